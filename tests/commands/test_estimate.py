import json

import pytest
from click.testing import CliRunner

from harness.__main__ import main
from tests import offline


@pytest.fixture
def working(offline_world, tmp_path, monkeypatch):
    offline.enter(offline_world, tmp_path, monkeypatch)
    return tmp_path


def estimate(*args):
    return CliRunner().invoke(main, ["estimate", *map(str, args)])


FEW = ("max_steps=3", "eval_every=2", "log_path=runs/a", "mirror=false")


def test_it_says_what_the_run_then_says_and_uses(working, monkeypatch, capsys):
    (working / "prices.toml").write_text(f'["{offline.MODEL}"]\ntrain = 2.0\nprefill = 0.5\n')
    done = estimate("recipes.sl_basic", *FEW, "--prices", "prices.toml")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("  train  48 conversations, ")
    assert not (working / "runs").exists()
    capsys.readouterr()
    command = f"python -m recipes.sl_basic {' '.join(FEW)} price_table=prices.toml"
    assert offline.run_python(command, monkeypatch) == 0
    said = capsys.readouterr().out
    (of_command,) = (line for line in done.stdout.splitlines() if line.startswith("to use: "))
    (of_run,) = (line for line in said.splitlines() if line.startswith("to use: "))
    start, end = (json.loads(line) for line in (working / "runs/a/attempts.jsonl").read_text().splitlines())
    assert of_command.split(",")[0] == of_run.split(",")[0]
    assert f"to use: {end['used']['trained']:,} tokens trained in 3 updates, " in of_run
    assert "; 2 checkpoints of about 117.2 MB, at most 2 kept; price " in of_run
    assert end["used"] | {"is_counted": True} == start["planned"] | {"asked": 0, "sampled": 0}
    assert end["used"]["price"] > 0

    assert estimate("recipes.sl_basic", *FEW).stdout == "runs/a: complete, nothing to train\n"
    left = estimate("recipes.sl_basic", "max_steps=5", *FEW[1:])
    assert left.exit_code == 0, left.output
    assert left.stdout.startswith("resuming at step 3 from checkpoint 000003\n2 steps to train of 5\nto use: ")
    assert f"used before: {end['used']['trained']:,} tokens trained in 3 updates" in left.stdout


def test_it_needs_no_key_no_server_and_no_weights(tmp_path, monkeypatch):
    offline.make_world(tmp_path / "world")
    for weights in (tmp_path / "world" / "cache").rglob("model.safetensors"):
        weights.write_bytes(b"")  # a run would fail on these
    (tmp_path / "working").mkdir()
    offline.enter(tmp_path / "world", tmp_path / "working", monkeypatch)
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    for place in (("backend=local",), ("backend=tinker",), ("base_url=http://127.0.0.1:9",)):
        done = estimate("recipes.sl_basic", "max_steps=3", *place)
        assert done.exit_code == 0, done.output
        size = "of about 117.2 MB" if place == ("backend=local",) else "of unknown size"
        assert "tokens trained in 3 updates, " in done.stdout and size in done.stdout
    assert [path.name for path in (tmp_path / "working").iterdir()] == ["data"]


def test_mistakes_are_one_line_and_exit_2(working):
    (working / "prices.toml").write_text('["another"]\ntrain = 1\nprefill = 1\n')
    for args, error in [
        (["--prices", "no.toml"], "price_table=no.toml: cannot be read (No such file or directory): give a table of"),
        (["--prices", "prices.toml"], f"prices.toml: no prices of {offline.MODEL}"),
        (["price_table=prices.toml"], f"prices.toml: no prices of {offline.MODEL}"),
        (["lerning_rate=1"], "lerning_rate: no such option; did you mean learning_rate?"),
        (["dataset_builder.file_path=no.jsonl"], "Data file not found: no.jsonl"),
    ]:
        result = estimate("recipes.sl_basic", *args)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith(f"error: {error}")
        assert len(result.stderr.splitlines()) == 1
