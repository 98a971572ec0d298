import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.backends.local import checkpoint
from harness.backends.local.backend import LocalBackend
from harness.backends.local.client import LocalTrainingClient
from harness.exceptions import BackendError, CheckpointDamagedError
from tests.backends.local.support import files, make_client, random_data, train

Make = Callable[..., LocalTrainingClient]


def saved(make: Make, tmp_path: Path, steps: int = 3) -> Path:
    client = make()
    train(client, range(steps))
    return tmp_path / client.save_state("a").result().path


RESUME = """
import sys
from pathlib import Path
from tests.backends.local.support import make_client, train
model, run = map(Path, sys.argv[1:])
client = make_client(model, run, state_path="checkpoints/three", seed=99)
train(client, range(3, 6))
client.save_state("resumed-elsewhere").result()
client.close()
"""


def test_a_resumed_run_ends_in_the_same_bits(make: Make, tiny_model: Path, tmp_path: Path):
    straight = make()
    train(straight, range(3))
    straight.save_state("three")
    train(straight, range(3, 6))
    straight.save_state("six").result()

    resumed = make(state_path="checkpoints/three", seed=99)  # nothing is left of another seed
    train(resumed, range(3, 6))
    resumed.save_state("resumed").result()
    subprocess.run([sys.executable, "-c", RESUME, tiny_model, tmp_path], check=True, cwd=Path(__file__).parents[3])

    six = files(tmp_path / "checkpoints/six")
    assert json.loads(six["manifest.json"])["step"] == 6
    assert files(tmp_path / "checkpoints/resumed") == six
    assert files(tmp_path / "checkpoints/resumed-elsewhere") == six


def test_the_folder_is_an_adapter_of_peft(make: Make, tiny_model: Path, tmp_path: Path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    client = make()
    train(client, range(3))
    folder = tmp_path / client.save_state("a").result().path
    (one,) = random_data([30])
    expected = client.forward([one], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_torch()

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folder)
    logits = model(torch.tensor([one.model_input.to_ints()])).logits[0]
    actual = logits.log_softmax(-1)[torch.arange(30), one.loss_fn_inputs["target_tokens"].to_torch()]

    in_loss = one.loss_fn_inputs["weights"].to_torch() != 0
    torch.testing.assert_close(actual[in_loss], expected[in_loss], rtol=1e-5, atol=1e-5)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_model)


def test_weights_alone_start_a_fresh_optimizer(make: Make, tmp_path: Path):
    folder = saved(make, tmp_path)
    client = make(weights_path=str(folder))
    fresh = tmp_path / client.save_state("fresh").result().path
    assert (fresh / "adapter_model.safetensors").read_bytes() == (folder / "adapter_model.safetensors").read_bytes()
    assert json.loads((fresh / "manifest.json").read_text())["step"] == 0

    (folder / "manifest.json").unlink()  # then it is any adapter of PEFT's
    (folder / "optimizer.safetensors").unlink()
    again = tmp_path / make(weights_path=str(folder)).save_state("again").result().path
    assert files(again) == files(fresh)


def test_weights_for_the_sampler_are_the_state_where_it_was_just_saved(make: Make, tmp_path: Path):
    client = make()
    train(client, range(1))
    client.save_state("a")
    assert client.save_weights_for_sampler("a").result().path == "checkpoints/a"
    assert client.save_weights_for_sampler("b").result().path == "checkpoints/b-weights"
    state = files(tmp_path / "checkpoints/a")
    train(client, range(1))
    assert client.save_weights_for_sampler("a").result().path == "checkpoints/a-weights", "the weights have changed"
    assert files(tmp_path / "checkpoints/a") == state
    weights_only = files(tmp_path / "checkpoints/a-weights")
    assert sorted(weights_only) == ["adapter_config.json", "adapter_model.safetensors", "manifest.json"]
    assert weights_only["adapter_model.safetensors"] != state["adapter_model.safetensors"]

    make(weights_path=str(tmp_path / "checkpoints/a-weights"))
    with pytest.raises(BackendError) as error:
        make(state_path="checkpoints/a-weights")
    path = tmp_path / "checkpoints/a-weights"
    assert str(error.value) == f"{path}: weights alone: a run resumes from a state with its optimiser"


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["missing", "cut", "one bit"])
def test_a_damaged_file_is_named(make: Make, tmp_path: Path, name: str, damage: str):
    folder = saved(make, tmp_path, steps=1)
    data = bytearray((folder / name).read_bytes())
    if damage == "missing":
        (folder / name).unlink()
    elif damage == "cut":
        (folder / name).write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
    with pytest.raises(CheckpointDamagedError) as error:
        make(state_path="checkpoints/a")
    if (name, damage) != ("manifest.json", "one bit"):  # that shows in what it says of another file
        assert str(error.value).startswith(f"{folder / name}: ")
    assert str(error.value).endswith("take another checkpoint")


def test_no_such_checkpoint(make: Make, tmp_path: Path):
    with pytest.raises(CheckpointDamagedError) as error:
        make(state_path="checkpoints/000010")
    assert str(error.value) == f"{tmp_path}/checkpoints/000010: no such checkpoint: take another"
    with pytest.raises(BackendError) as error:
        make(weights_path=str(tmp_path / "nothing"))
    assert str(error.value) == (
        f"{tmp_path}/nothing: no adapter there (No such file or directory: {tmp_path}/nothing/adapter_config.json): "
        "give the folder of a checkpoint, or of an adapter that PEFT saved"
    )


def test_another_lora_is_refused(make: Make, tiny_model: Path, tmp_path: Path):
    folder = saved(make, tmp_path)
    fix = "set lora_rank and backend.lora_alpha to the adapter's"
    with pytest.raises(BackendError) as error:
        make(weights_path=str(folder), lora_rank=8)
    assert (
        str(error.value)
        == f"{folder}: an adapter with r=4; this run's has r=8: set lora_rank and backend.lora_alpha to the adapter's"
    )
    with pytest.raises(BackendError) as error:
        make(weights_path=str(folder), lora_alpha=16)
    assert str(error.value) == f"{folder}: an adapter with lora_alpha=32; this run's has lora_alpha=16: {fix}"


def test_an_adapter_of_other_layers_is_refused(make: Make, tiny_model: Path, tmp_path: Path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(str(tmp_path / "q"))
    with pytest.raises(BackendError) as error:
        make(weights_path=str(tmp_path / "q"))
    assert str(error.value) == (
        f"{tmp_path}/q: not an adapter of every linear layer of {tiny_model}: "
        "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight has shape None; this run's has (4, 128)"
    )


def test_what_a_crash_left_is_replaced(tmp_path: Path):
    folder = tmp_path / "checkpoints" / "a"
    checkpoint.write(folder, {"x": b"left by a crash", "y": b"-"}, base_model="m", step=1)
    (folder.parent / ".a.tmp").mkdir()
    (folder.parent / ".a.tmp" / "z").write_bytes(b"half")
    checkpoint.write(folder, {"x": b"new"}, base_model="m", step=2)
    assert checkpoint.read(folder) == {"x": b"new"}
    assert [p.name for p in folder.parent.iterdir()] == ["a"]


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(BackendError) as error:
        checkpoint.write(tmp_path / "checkpoints" / "a", {"x": b"1"}, base_model="m", step=1)
    assert str(error.value) == (
        f"{tmp_path}/checkpoints/a: cannot be written (Not a directory): make room, then resume the run"
    )


def test_a_checkpoint_of_a_later_harness_is_refused(tmp_path: Path):
    checkpoint.write(tmp_path / "a", {"x": b"1"}, base_model="m", step=1)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest | {"format": 2}))
    with pytest.raises(BackendError) as error:
        checkpoint.read(tmp_path / "a")
    assert str(error.value) == f"{tmp_path}/a: format 2, this harness reads up to 1: upgrade it"


def test_remove_takes_checkpoints_of_the_run_alone(tmp_path: Path):
    run, other = tmp_path / "run", tmp_path / "other"
    for folder in (run / "checkpoints/a", run / "checkpoints/b", other / "checkpoints/a"):
        checkpoint.write(folder, {"x": b"1"}, base_model="m", step=1)
    backend = LocalBackend()
    backend.remove_checkpoint(run, "checkpoints/a")
    backend.remove_checkpoint(run, "checkpoints/a")  # gone already
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["b"]
    for path in (
        "checkpoints",
        ".",
        "checkpoints/b/..",
        "../other/checkpoints/a",
        str(other / "checkpoints/a"),
        "config.json",
    ):
        with pytest.raises(BackendError) as error:
            backend.remove_checkpoint(run, path)
        assert str(error.value) == f"{path}: not in {run}/checkpoints: not removed"
    assert (run / "checkpoints/b/x").exists() and (other / "checkpoints/a/x").exists()


def test_a_client_that_cannot_be_made_leaves_no_thread(tiny_model: Path, tmp_path: Path):
    import threading

    with pytest.raises(BackendError):
        make_client(tiny_model, tmp_path, state_path="checkpoints/none")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("local-backend")]
