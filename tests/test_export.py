import dataclasses
import json
import resource
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from harness.__main__ import main
from harness.backends.local import checkpoint
from harness.run_dir import RunDir
from tests.exportable import TEST_DATA, exportable, score_in_a_plain_script
from tests.prunable import tree
from tests.tiny_model import make_tiny_model
from tests.tracking.conftest import start_run

KEY = "tml-marker-of-a-key-0123456789"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with the tiny model and a run of it."""
    folder = tmp_path_factory.mktemp("exportable")
    make_tiny_model(folder / "tiny")
    argv = ["recipes/sl_basic.py", "log_path=runs/a", f"api_key={KEY}"]
    exportable(folder / "runs" / "a", folder / "tiny", argv=argv, module="recipes.sl_basic")
    return folder


@pytest.fixture
def run(made, tmp_path, monkeypatch) -> RunDir:
    """A copy of it, in the current directory."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return RunDir("runs/a")


def export(*args: str):
    return CliRunner().invoke(main, ["export", *args])


def test_without_the_harness_it_scores_as_the_run_did(run, tmp_path):
    """In plain scripts, from another directory."""
    (tmp_path / "elsewhere").mkdir()
    for out, *option in (["m", "--merge"], ["a"]):
        done = export("runs/a", "--out", out, *option)
        assert (done.exit_code, done.stderr) == (0, "")
        nll = score_in_a_plain_script(f"../{out}", TEST_DATA, peft=not option, cwd=tmp_path / "elsewhere")
        assert nll == pytest.approx(run.test_nlls()[4], abs=1e-5)


def test_the_adapter_is_as_it_was_saved(run, made):
    done = export("runs/a", "--at", "2", "--out", "a")
    assert done.stdout.startswith(f"a: runs/a at step 2 as an adapter for {made / 'tiny'}, ")
    written, saved = tree(Path("a")), tree(run / "checkpoints/000002")
    assert written["adapter_model.safetensors"] == saved["adapter_model.safetensors"]
    assert written.keys() == {
        "adapter_config.json", "adapter_model.safetensors", "README.md", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja",
    }  # fmt: skip
    config, before = (json.loads(files["adapter_config.json"]) for files in (written, saved))
    assert config == before | {"base_model_name_or_path": str(made / "tiny")}


def test_full_weights_stand_alone(run, made):
    done = export("runs/a", "--out", "m", "--merge")
    assert done.stdout.startswith("m: runs/a at step 4 as full weights in float32, ")
    assert tree(Path("m")).keys() == {
        "config.json", "generation_config.json", "model.safetensors", "README.md", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip
    for name, content in tree(Path("m")).items():
        assert name == "README.md" or str(made).encode() not in content, name


def test_best_is_the_lowest_test_nll_of_those_that_are_there(run):
    nlls = run.test_nlls()
    best = min(nlls, key=nlls.__getitem__)
    assert f"runs/a at step {best} " in export("runs/a", "--at", "best", "--out", "a").stdout


def test_the_card_says_what_it_is(run, made):
    run.append_later_evaluation({
        "step": 4, "ts": 1, "set": "later", "fingerprint": "f", "metrics": {"test/later/nll": 2.5}, "ids": [],
    })  # fmt: skip
    for out, option in (("a", []), ("m", ["--merge"])):
        assert export("runs/a", "--out", out, *option).exit_code == 0
    card, merged = (Path(out, "README.md").read_text() for out in "am")
    _, front_matter, body = card.split("---\n", 2)
    assert yaml.safe_load(front_matter) == {
        "library_name": "peft", "pipeline_tag": "text-generation", "tags": ["sft", "lora", "sft-harness"],
    }  # fmt: skip
    assert yaml.safe_load(merged.split("---\n")[1])["library_name"] == "transformers"
    table = [line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("| ")][2:]
    rows = dict(table)
    assert rows.pop("harness").startswith("0.0.9; exported by ")
    assert rows == {
        "updates": "4",
        "trained on": "`Builder` (12 examples), fingerprint `beef`",
        "test set": "`Builder` (3 examples), fingerprint `feed`",
        "train_mean_nll": "2.0000 nats per token",
        "test/nll": f"{run.test_nlls()[4]:.4f} nats per token",
        "test/later/nll": "2.5000 nats per token",
        "renderer": "`role_colon`",
        "run id": f"`{run.config()['run_id']}`",
    }
    assert f"A LoRA (PEFT) for `{made / 'tiny'}`." in body
    assert f"`{made / 'tiny'}` with a LoRA merged in, in float32." in merged
    assert "python -m recipes.sl_basic log_path=runs/a" in body
    assert "dataset_builder.common_config.batch_size" in body
    assert KEY not in card


def test_a_model_and_a_dataset_of_the_hub_stand_in_the_front_matter(tmp_path):
    from harness.export_card import model_card
    from tests.prunable import record
    from tests.tracking.conftest import config

    builder = config()["dataset_builder"] | {"hf_path": "HuggingFaceH4/no_robots"}
    run = start_run(
        tmp_path / "r",
        document={"data": {"train": "beef", "test": {}}},
        model_name="Qwen/Qwen3-8B",
        dataset_builder=builder,
    )
    front_matter = yaml.safe_load(model_card(run, run.config(), record(3), None).split("---\n")[1])
    assert front_matter["base_model"] == "Qwen/Qwen3-8B"
    assert front_matter["datasets"] == ["HuggingFaceH4/no_robots"]


# ---- whole or not at all


def test_what_is_there_is_never_written_over(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    for out in ("mine", "file", "runs/a", "."):
        done = export("runs/a", "--out", out)
        where = Path(out).absolute()
        assert done.stderr == f"error: --out {where}: there is something already: choose another folder\n"
        assert done.exit_code == 2
    assert tree(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert export("runs/a", "--out", "empty").exit_code == 0


def test_a_killed_one_leaves_nothing_half_and_is_made_anew(run, tmp_path, monkeypatch):
    (tmp_path / ".a.export").mkdir()  # as SIGKILL leaves it
    (tmp_path / ".a.export" / "model.safetensors").write_text("half")

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("harness.export.os.replace", interrupt)
        assert export("runs/a", "--out", "a").exit_code == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    assert export("runs/a", "--out", "a").exit_code == 0
    assert not (tmp_path / "a" / "model.safetensors").exists()


@pytest.mark.parametrize("option", [[], ["--merge"]], ids=["adapter", "merged"])
def test_a_disk_that_takes_no_more(run, tmp_path, option):
    before = tree(tmp_path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        done = export("runs/a", "--out", "m", *option)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: --out {tmp_path / 'm'}: cannot be written (")
    assert "File too large" in done.stderr
    assert done.stderr.endswith("): make room, or choose another folder\n") and done.stderr.count("\n") == 1
    assert tree(tmp_path) == before and not (tmp_path / ".m.export").exists()


# ---- mistakes


def test_mistakes_are_one_line_and_exit_2(run, tmp_path):
    records = {record.step: record for record in run.checkpoints()}
    run.append_checkpoint(dataclasses.replace(records[2], deleted=True))
    start_run(tmp_path / "runs" / "bare")
    weights = run / "checkpoints" / "000004" / checkpoint.ADAPTER
    for args, error in [
        (["nope"], "nope: no config.json: not a run directory"),
        (["runs/bare"], "runs/bare: no checkpoint is there: train it on, until its first one is saved"),
        (["runs/a", "--at", "3"], "runs/a: no checkpoint at 3: there is 4 (or say best or last)"),
        (["runs/a", "--at", "2"], "runs/a: no checkpoint at 2, which was deleted: there is 4 (or say best or last)"),
        (["runs/a", "--at", "newest"], "runs/a: no checkpoint at newest: there is 4 (or say best or last)"),
    ]:
        done = export(*args, "--out", "m")
        assert (done.exit_code, done.stderr, done.stdout) == (2, f"error: {error}\n", "")
    run.append_checkpoint(dataclasses.replace(records[2], superseded=True))
    done = export("runs/a", "--at", "2", "--out", "m")
    assert "no checkpoint at 2, which a resume left behind: there is 4" in done.stderr
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    done = export("runs/a", "--out", "m")
    assert done.stderr == f"error: {weights}: not what was saved: take another checkpoint\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


@pytest.mark.parametrize("option", [[], ["--merge"]], ids=["adapter", "merged"])
def test_a_base_model_that_is_gone(run, tmp_path, option):
    document = run.config()
    document["config"]["model_name"] = gone = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(document))
    done = export("runs/a", "--out", "m", *option)
    assert (done.exit_code, done.stderr) == (2, f"error: model '{gone}': no such folder: check the path\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
