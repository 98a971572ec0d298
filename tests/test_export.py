import dataclasses
import functools
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from transformers import AutoTokenizer

from harness.__main__ import main
from harness.backends.local import checkpoint
from harness.export_chat import Chat
from harness.renderers import get_renderer
from harness.run_dir import RunDir
from tests.exportable import TEST_DATA, exportable, score_in_a_plain_script
from tests.prunable import tree
from tests.renderers.templates import CHATML, QWEN3
from tests.tiny_model import SPECIAL_TOKENS, make_tiny_model
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
        "chat_template.jinja", "generation_config.json",
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
        "note": r"a turn ends in words: generate(..., stop_strings=\['\\n\\nUser:'\], tokenizer=tokenizer)",
        "run id": f"`{run.config()['run_id']}`",
    }
    assert "A LoRA (PEFT) for `tiny`." in body
    assert "`tiny` with a LoRA merged in, in float32." in merged
    assert "python -m recipes.sl_basic log_path=runs/a" in body
    assert "dataset_builder.common_config.batch_size" in body
    assert KEY not in card and str(made) not in card


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


def test_the_card_says_names_as_they_are_and_not_where_they_lie(tmp_path):
    from huggingface_hub import ModelCard

    from harness.export_card import model_card
    from tests.prunable import record
    from tests.tracking.conftest import config

    secret = tmp_path / "secret"
    name = "a|b`c\nd ``` <b>_x_"
    builder = config()["dataset_builder"] | {"file_path": f"{secret}/{name}", "others": [f"{secret}/more.jsonl"]}
    run = start_run(
        secret / "my_*run*|",
        document={
            "data": {"train": "beef", "test": {"<b>|": "feed"}},
            "argv": [f"{secret}/train.py", f"model_name={secret}/model", f"x=['{secret}/one', '{secret}/two three']"],
        },
        model_name=f"{secret}/mo`del",
        tracking_uri=f"sqlite:///{secret}/m.db",
        dataset_builder=builder,
    )
    card = model_card(run, run.config(), record(3), None, ["not *this*"])
    assert "secret" not in card
    body = ModelCard(card).text.splitlines()
    assert r"# my\_\*run\*|" in body and "A LoRA (PEFT) for `` mo`del ``." in body
    assert r"| trained on | ```` a\|b`c d ``` <b>_x_ ````, fingerprint `beef` |" in body
    assert r"| test set \<b\>\| | `<b>\|`, fingerprint `feed` |" in body
    assert r"| note | not \*this\* |" in body
    assert body.count("````text") == 1 and body.count("````") == 1, "the fence of what holds ``` is longer"
    assert "python train.py model_name=model " in card and "two three" in card and "'log_path=my_*run*|'" in card
    assert "sqlite:///m.db" in card and "['more.jsonl']" in card


def test_a_name_that_is_no_text(run):
    """But bytes, as a disk from elsewhere has them."""
    odd = os.fsdecode(b"runs/b\xe9")
    os.rename("runs/a", odd)
    done = export(odd, "--out", "a")
    assert (done.exit_code, done.exception) == (0, None)
    assert "# b?\n" in Path("a", "README.md").read_text(encoding="utf-8")


# ---- how it is talked with

MESSAGES = [{"role": "user", "content": "What is the sea?"}]


def talking(run: RunDir, made: Path, renderer: str | None, chat_template: str | None) -> Any:
    """Let the run be one of a model that has this template and ends with another token than its turns do; its
    tokenizer."""
    model = Path("model").absolute()
    shutil.copytree(made / "tiny", model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template, tokenizer.eos_token = chat_template, "<|endoftext|>"
    (model / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(model)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 7, "temperature": 0.6}))
    document = run.config()
    document["config"]["model_name"] = str(model)
    document["config"]["dataset_builder"]["common_config"]["renderer_name"] = renderer
    (run / "config.json").write_text(json.dumps(document))
    return tokenizer


@pytest.mark.parametrize(
    ("renderer", "template"),
    [
        ("chat_template", CHATML),
        ("role_colon", CHATML),
        ("qwen3", QWEN3),
        ("qwen3_disable_thinking", QWEN3),
        ("qwen3_disable_thinking", CHATML + "{{ enable_thinking }}"),  # used in the renderer's place
        ("nemotron3_disable_thinking", QWEN3),
    ],
)
def test_the_chat_template_is_the_one_that_it_was_trained_on(run, made, renderer, template):
    tokenizer = talking(run, made, renderer, template)
    expected = get_renderer(renderer, tokenizer).generation_prompt(MESSAGES)
    assert export("runs/a", "--out", "a").exit_code == 0
    ask = functools.partial(
        AutoTokenizer.from_pretrained("a").apply_chat_template, MESSAGES, tokenize=False, add_generation_prompt=True
    )
    assert ask() == expected
    if template == QWEN3:
        assert ask(enable_thinking=True) == get_renderer("qwen3", tokenizer).generation_prompt(MESSAGES)


@pytest.mark.parametrize("option", [[], ["--merge"]], ids=["adapter", "merged"])
def test_it_stops_where_a_turn_ends(run, made, option):
    """Beside where the base model stops, whose own settings stay."""
    talking(run, made, "chat_template", CHATML)
    done = export("runs/a", "--out", "a", *option)
    assert (done.exit_code, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    config = json.loads(Path("a", "generation_config.json").read_text())
    assert (config["eos_token_id"], config["temperature"]) == ([7, 0, SPECIAL_TOKENS.index("<|im_end|>")], 0.6)


@pytest.mark.parametrize(
    ("renderer", "template", "note"),
    [
        ("qwen3", None, "no chat template: there is none that writes what qwen3 does"),
        ("mine", CHATML, "what renders the run is not known here: chat template and ends are the base model's"),
        (None, CHATML, "what renders the run is not known here: chat template and ends are the base model's"),
        ("role_colon", CHATML, r"a turn ends in words: generate(..., stop_strings=['\n\nUser:'], tokenizer=tokenizer)"),
    ],
)
def test_what_no_file_says_is_said(run, made, renderer, template, note):
    talking(run, made, renderer, template)
    done = export("runs/a", "--out", "a")
    assert done.exit_code == 0 and done.stdout.splitlines()[1:] == [f"a: {note}"]
    assert "| note |" in Path("a", "README.md").read_text()
    found = Path("a", "chat_template.jinja")
    assert found.exists() == (template is not None)
    assert template is None or (found.read_text() == template) == (renderer != "role_colon")


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


def test_an_interrupted_one_leaves_nothing_half_and_is_made_anew(run, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("harness.export.os.replace", interrupt)
        assert export("runs/a", "--out", "a").exit_code == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    assert export("runs/a", "--out", "a").exit_code == 0


def meanwhile(monkeypatch, happens: Callable[[], object]) -> None:
    """Once, while the tokenizer is loaded, which takes seconds."""

    def chat(document):
        while pending:
            pending.pop()()
        return Chat(document)

    pending = [happens]
    monkeypatch.setattr("harness.export.Chat", chat)


def test_a_run_that_deletes_its_checkpoint_meanwhile_gives_what_is_there_now(run, monkeypatch):
    first, last = run.checkpoints()
    run.append_checkpoint(dataclasses.replace(last, deleted=True))

    def train_on():
        run.append_checkpoint(dataclasses.replace(last, deleted=False))
        run.append_checkpoint(dataclasses.replace(first, deleted=True))
        shutil.rmtree(run / first.state_path)

    meanwhile(monkeypatch, train_on)
    done = export("runs/a", "--out", "a")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "runs/a at step 4 " in done.stdout and "| updates | 4 |" in Path("a", "README.md").read_text()


def test_two_at_once_to_one_place_make_it_once(run, tmp_path, monkeypatch):
    meanwhile(monkeypatch, lambda: export("runs/a", "--at", "2", "--out", "a"))
    done = export("runs/a", "--out", "a")
    assert done.exit_code == 2
    assert done.stderr == f"error: --out {tmp_path / 'a'}: there is something already: choose another folder\n"
    assert "| updates | 2 |" in Path("a", "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "runs"]


def test_what_a_link_leads_to_is_made(run, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "a").symlink_to("disk")
    assert export("runs/a", "--out", "a").exit_code == 0
    assert (tmp_path / "a").is_symlink() and (tmp_path / "disk" / "README.md").exists()


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
    assert tree(tmp_path) == before and sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


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
def test_a_base_model_that_was_named_from_another_directory(run, option):
    document = run.config()
    document["config"]["model_name"] = "./tiny"
    (run / "config.json").write_text(json.dumps(document))
    done = export("runs/a", "--out", "m", *option)
    assert (done.exit_code, done.stderr) == (
        2,
        "error: model './tiny': no such folder: check the path; if it is a folder, export from where the "
        "run was trained\n",
    )


@pytest.mark.parametrize("option", [[], ["--merge"]], ids=["adapter", "merged"])
def test_a_base_model_that_is_gone(run, tmp_path, option):
    document = run.config()
    document["config"]["model_name"] = gone = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(document))
    done = export("runs/a", "--out", "m", *option)
    assert (done.exit_code, done.stderr) == (2, f"error: model '{gone}': no such folder: check the path\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
