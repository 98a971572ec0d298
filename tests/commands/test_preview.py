import json

import pytest
from click.testing import CliRunner

from harness.__main__ import main
from tests import offline


@pytest.fixture
def working(offline_world, tmp_path, monkeypatch):
    offline.enter(offline_world, tmp_path, monkeypatch)
    return tmp_path


def preview(*args):
    return CliRunner().invoke(main, ["preview", *map(str, args)])


def test_counts_lengths_copies_and_examples_in_the_terminal(working):
    file = offline.write_conversations(working / "my.jsonl", 6)
    lines = file.read_text().splitlines()
    lines += [lines[0], json.dumps({"messages": [{"role": "user", "content": "alone"}]})]
    file.write_text("\n".join(lines))
    (working / "test.jsonl").write_text(lines[1])
    done = preview(
        "recipes.sl_basic", "dataset_builder.file_path=my.jsonl", "dataset_builder.test_file_path=test.jsonl",
        "dataset_builder.test_size=0", "...max_length=50", "...batch_size=3", "--num", 1,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    said = done.stdout
    assert said.startswith("SmolLM2-135M-Instruct.Q4_1, ChitchatBuilder\n  train  6 conversations, ")
    for part in (
        "conversations are cut at max_length",
        "2 are left out of each epoch",
        "test   1 conversations",
        "copies: 1 of 1 test examples are trained on too",
        "tokens a conversation\n",
        " 33-50  █",
        "example 1: 50 tokens, ",
        "⟦sea sea<|im_end|>⟧",
    ):
        assert part in said, f"{part} in\n{said}"
    assert "example 2" not in said


def test_a_page_holds_the_same_with_colours_and_nothing_to_fetch(working):
    done = preview("recipes.cli_config", "test_size=4", "--out", "page.html")
    assert (done.exit_code, done.stdout) == (0, "wrote page.html\n")
    page = (working / "page.html").read_text()
    assert "conversations" in page and "example 3: " in page
    assert 'class="' in page and "sea sea&lt;|im_end|&gt;</span>" in page
    assert "⟦" not in page
    assert "http" not in page and "src=" not in page


def test_mistakes_are_one_line_and_exit_2(working):
    for args, error in [
        (["recipes.sl_basc"], "recipes.sl_basc: no such module: give what stands after python -m, as recipes.sl_basic"),
        (["recipes.sl_basic", "lerning_rate=1"], "lerning_rate: no such option; did you mean learning_rate?"),
        (["recipes.sl_basic", "--out", "no/page.html"], "no/page.html: cannot be written (No such file or directory)"),
        (["recipes.sl_basic", "dataset_builder.file_path=no.jsonl"], "Data file not found: no.jsonl"),
    ]:
        result = preview(*args)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith(f"error: {error}")
        assert len(result.stderr.splitlines()) == 1


def test_it_loads_no_weights_and_leaves_no_run(tmp_path, monkeypatch):
    offline.make_world(tmp_path / "world")
    for weights in (tmp_path / "world" / "cache").rglob("model.safetensors"):
        weights.write_bytes(b"")  # a run would fail on these
    (tmp_path / "working").mkdir()
    offline.enter(tmp_path / "world", tmp_path / "working", monkeypatch)
    assert preview("recipes.sl_basic").exit_code == 0
    assert [path.name for path in (tmp_path / "working").iterdir()] == ["data"]
