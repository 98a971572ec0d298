import logging
import os
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
import transformers

from harness.backends.local.backend import LocalBackend
from harness.backends.local.torch_setup import best_dtype, machine
from harness.exceptions import ConfigError
from tests.backends.local.support import make_client, train

ROOT = Path(__file__).parents[3]


def run_python(code: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()


def test_without_torch_or_peft(tiny_model: Path):
    code = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {missing} else find_spec(name, *rest)
from harness.backends.local.backend import LocalBackend
from harness.exceptions import BackendError
try:
    LocalBackend().check(sys.argv[1])
except BackendError as error:
    print(error)
"""
    for missing, named in ((["torch"], "torch"), (["torch", "peft"], "torch, peft")):
        said = run_python(code.replace("{missing}", repr(missing)), str(tiny_model))
        assert said == f"backend=local needs {named}: pip install 'sft-harness[local]'"


def test_checking_loads_nothing_heavy(tiny_model: Path):
    code = """
import sys
from harness.backends.local.backend import LocalBackend
LocalBackend().check(sys.argv[1])
print(sorted({"torch", "peft", "transformers", "tinker"} & sys.modules.keys()))
"""
    assert run_python(code, str(tiny_model)) == "[]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "backend.dtype=float16: bfloat16 or float32"),
        ({"num_threads": 0}, "backend.num_threads=0: must be at least 1"),
        ({"micro_batch_tokens": 0}, "backend.micro_batch_tokens=0: must be at least 1"),
        ({"eval_micro_batch_tokens": 0}, "backend.eval_micro_batch_tokens=0: must be at least 1"),
        ({"lora_alpha": -1}, "backend.lora_alpha=-1: must be at least 1"),
        (
            {"train_attn": False, "train_mlp": False},
            "backend.train_attn, train_mlp and train_unembed are all false: nothing to train",
        ),
    ],
)
def test_options_that_cannot_be(tiny_model: Path, options: dict, message: str):
    with pytest.raises(ConfigError) as error:
        LocalBackend(**options).check(str(tiny_model))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("given", "policy", "spins"),
    [({}, "PASSIVE", "5000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE", None), ({"GOMP_SPINCOUNT": "7"}, None, "7")],
)
def test_how_threads_wait_is_set_unless_it_is_given(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], policy: str | None, spins: str | None
):
    monkeypatch.setattr(os, "environ", dict(given))
    LocalBackend().check(str(tiny_model))
    assert (os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT")) == (policy, spins)


def test_models_that_are_not_there(tiny_model: Path, tmp_path: Path):
    LocalBackend().check(str(tiny_model))
    LocalBackend().check("Qwen/Qwen3-8B")  # a hub id: known only when it is asked for
    with pytest.raises(ConfigError) as error:
        LocalBackend().check("./nothing")
    assert str(error.value) == "model './nothing': no such folder: check the path"
    with pytest.raises(ConfigError) as error:
        LocalBackend().check(str(tmp_path))
    assert str(error.value) == f"model '{tmp_path}': no config.json in this folder: give the folder of a model"


def test_numerics_name_all_that_changes_the_numbers():
    numerics = LocalBackend(dtype="float32", num_threads=3, micro_batch_tokens=77, lora_alpha=5).numerics()
    assert numerics == {
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "processor": machine()["processor"],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "engine": 3,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "dtype": "float32",
        "num_threads": 3,
        "micro_batch_tokens": 77,
        "eval_micro_batch_tokens": 8192,
        "lora_alpha": 5,
    }
    default = LocalBackend().numerics()
    assert default["dtype"] == best_dtype(default["device"])
    assert LocalBackend(dtype="bfloat16").numerics()["micro_batch_tokens"] == 2048
    assert LocalBackend(dtype="float32").numerics()["micro_batch_tokens"] == 1024
    assert default["num_threads"] == torch.get_num_threads()


def test_the_recorded_numerics_win_over_the_options(tiny_model: Path, tmp_path: Path):
    recorded = LocalBackend(dtype="bfloat16", num_threads=1, micro_batch_tokens=77, lora_alpha=5).numerics()
    client = make_client(tiny_model, tmp_path, dtype="float32", lora_alpha=32, numerics=recorded)
    engine = client._engine
    client.close()
    assert engine._micro_batch_tokens == 77
    assert engine._model.dtype == torch.bfloat16
    assert engine._model.peft_config["default"].lora_alpha == 5  # pyright: ignore[reportAttributeAccessIssue]


def test_another_machine_is_warned_of(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    numerics = LocalBackend(dtype="float32", num_threads=1).numerics() | {"torch": "1.0"}
    with caplog.at_level(logging.WARNING, logger="harness"):
        make_client(tiny_model, tmp_path, numerics=numerics).close()
    assert caplog.messages == [f"torch is {torch.__version__}, the run was started on 1.0: last digits may differ"]


def test_a_run_of_the_engine_before_this_one_goes_on_within_rounding(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    recorded = LocalBackend(dtype="float32", num_threads=1, micro_batch_tokens=77).numerics()
    del recorded["engine"], recorded["eval_micro_batch_tokens"]  # which it did not write
    with caplog.at_level(logging.WARNING, logger="harness"):
        client = make_client(tiny_model, tmp_path, numerics=recorded)
    train(client, range(1))
    assert client.save_state("a").result().path == "checkpoints/a"
    client.close()
    assert caplog.messages == ["engine is 3, the run was started on 1: last digits may differ"]
    assert client._engine._eval_tokens == 77
    assert LocalBackend().tolerance(recorded) == 1e-4


def test_more_threads_than_processors_are_slow_and_no_mistake(tiny_model: Path, tmp_path: Path, caplog):
    backend = LocalBackend(num_threads=(os.cpu_count() or 1) + 1)
    backend.check(str(tiny_model))
    make_client(tiny_model, tmp_path, numerics=backend.numerics()).close()
    assert f"{backend.num_threads} threads compute on {os.cpu_count()} processors: slowly" in caplog.messages


def test_a_replay_here_is_exact_and_on_another_machine_within_rounding():
    for dtype, rounding in (("float32", 1e-4), ("bfloat16", 1e-1)):
        numerics = LocalBackend(dtype=dtype).numerics()
        assert LocalBackend().tolerance(numerics | {"num_threads": 99}) == 0
        assert LocalBackend().tolerance(numerics | {"processor": "Z80"}) == rounding
        assert LocalBackend().tolerance(numerics | {"peft": "0.1"}) == rounding
        assert LocalBackend().tolerance({k: v for k, v in numerics.items() if k != "peft"}) == 0  # not recorded yet


def test_the_size_of_a_state_is_known_before_it_is_made(tiny_model: Path, tmp_path: Path):
    client = make_client(tiny_model, tmp_path, lora_rank=8)
    client.save_state("s").result()
    client.close()
    files = (tmp_path / "checkpoints" / "s").glob("*.safetensors")
    tensors = [tensor for file in files for tensor in safetensors.torch.load_file(file).values()]
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.numel() > 1)
    assert LocalBackend().state_bytes(str(tiny_model), 8) == held
