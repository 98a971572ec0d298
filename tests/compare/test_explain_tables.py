import io
import json

import pandas as pd
import pytest
from rich.console import Console

from harness.compare import explain, load_runs
from harness.compare.explain_tables import explain_sections, harmless, shortened, words_of_parted
from harness.compare.terminal import print_sections
from harness.metric_keys import BATCH_DIGEST
from harness.supervised.mapping import fingerprint
from tests.compare.made_runs import last_row, make_run, scored, train_row


@pytest.mark.parametrize(
    ("steps", "same", "nll_parts", "tolerance", "beyond", "batches", "nll"),
    [
        (0, None, None, 0.0, None, "no step that both trained", "-"),
        (4000, None, None, 0.0, None, "not known: no digests", "-"),
        (4000, 0, None, 0.0, None, "other ones from the first step on", "-"),
        (4000, 4000, None, 0.0, None, "the same in all 4,000 steps", "equal to the bit"),
        (4000, 1200, 12, 0.0, 12, "the same before step 1,200 of 4,000", "equal to the bit before step 12"),
        (
            40,
            40,
            12,
            1e-4,
            14,
            "the same in all 40 steps",
            "equal to the bit before step 12, within rounding (0.0001) before step 14",
        ),
        (
            40,
            40,
            0,
            0.1,
            None,
            "the same in all 40 steps",
            "equal to the bit before step 0, within rounding (0.1) from there on",
        ),
        (
            40,
            40,
            3,
            None,
            None,
            "the same in all 40 steps",
            "equal to the bit before step 3; how much rounding makes is not known",
        ),
    ],
)
def test_where_training_parted_in_words(steps, same, nll_parts, tolerance, beyond, batches, nll):
    frame = pd.DataFrame(
        {
            "steps": [steps],
            "same_batches": [same],
            "nll_parts": [nll_parts],
            "tolerance": [tolerance],
            "beyond": [beyond],
        }
    ).astype(dict.fromkeys(("steps", "same_batches", "nll_parts", "beyond"), "Int64") | {"tolerance": float})
    assert words_of_parted(frame.to_dict("records")[0]) == (batches, nll)


MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "one"},
    {"role": "user", "content": "what  of\nthe [bold]sea[/bold]"},
    {"role": "assistant", "content": [{"type": "text", "text": "wide"}]},
]


def test_a_conversation_on_a_line():
    assert shortened(MESSAGES) == "user: what of the [bold]sea[/bold] → assistant: wide"
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"é": 1}}}]}
    tool = {"role": "tool", "content": "42"}
    assert shortened([MESSAGES[1], call]) == (
        'user: first → assistant: [{"function": {"name": "f", "arguments": {"é": 1}}}]'
    )
    assert shortened([MESSAGES[1], call, tool, MESSAGES[4]]) == "user: first → assistant: wide"
    assert shortened([MESSAGES[1]]) == "user: first"
    assert shortened([{"role": "assistant", "content": ""}]) == 'assistant: ""'
    assert shortened(None) == "-"
    long = shortened([{"role": "user", "content": "x" * 81}, {"role": "assistant", "content": "y" * 80}])
    assert long == f"user: {'x' * 80}… → assistant: {'y' * 80}"


def test_what_a_terminal_would_obey_is_shown_and_not_done():
    assert harmless("a\x1b[31mred\x07\u202eback\x9bK") == "a\\x1b[31mred\\x07\\u202eback\\x9bK"
    assert harmless("नमस्ते 👩\u200d🚀 ب\u200cا 海") == "नमस्ते 👩\u200d🚀 ب\u200cا 海"
    assert shortened([{"role": "user", "content": "\x1b]0;title\x07"}]) == "user: \\x1b]0;title\\x07"


def talk(i):
    return [{"role": "user", "content": f"what of {i}\x1b[2J"}, {"role": "assistant", "content": f"[red]it is {i}"}]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two runs on 40 conversations of two slices: b is better on "x" and worse on two of "y"."""
    rows = [{"messages": talk(i)} for i in range(40)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    contents = fingerprint(row["messages"] for row in rows)
    data = {"train": "beef", "test": {"": "feed"}, "test_contents": {"": contents}}
    for name, nlls in (("a", [10.0] * 40), ("b", [8.0] * 20 + [10.0] * 18 + [11.0, 12.5])):
        examples = scored(nlls, [5] * 40) | {"slices": ["x"] * 20 + ["[y]"] * 20}
        trained = [train_row(k, 4.0 if k < 3 else nlls[0] / 4) | {BATCH_DIGEST: str(k)} for k in range(5)]
        make_run(
            tmp_path / name,
            [*trained, last_row(5, sum(nlls) / 200)],
            examples=examples,
            document={"data": data},
            dataset_builder__test_file_path="test.jsonl",
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(runs, *, width=80, terminal=False, **options):
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, color_system=None)
    print_sections(explain_sections(explain(runs, **options)), console)
    return file.getvalue()


def test_an_explanation_is_printed_with_its_numbers(folder):
    text = printed(load_runs([folder / "a", folder / "b"]), num_examples=1)
    lines = [line.split() for line in text.splitlines()]
    assert ["b", "the", "same", "in", "all", "5", "steps", "equal", "to", "the", "bit", "before", "step", "3"] in lines
    assert ["x", "20", "100", "2.0000", "1.6000", "-0.4000", "-0.4000", "to", "-0.4000", "-0.2000"] in lines
    (y,) = [line for line in lines if line[:1] == ["[y]"]]
    assert y[1:6] == ["20", "100", "2.0000", "2.0350", "+0.0350"] and y[-1] == "+0.0175"
    assert ["all", "200", "-0.1825", "-0.1825"] in lines
    assert "\nb and a, by slice" in text and "\nExamples on which b and a differ most" in text
    e0, e39 = "user: what of 0\\x1b[2J → assistant: [red]it is 0", "user: what of 39\\x1b[2J → assistant: [red]it is 39"
    assert ["-2.00", "5", "2.0000", "1.6000", "x", "e0", *e0.split()] in lines
    assert ["+2.50", "5", "2.0000", "2.5000", "[y]", "e39", *e39.split()] in lines
    assert "they show where to look, and prove nothing" in " ".join(text.split())
    assert "\x1b" not in text


def test_a_terminal_of_80_characters_holds_it(folder):
    text = printed(load_runs([folder / "a", folder / "b"]), terminal=True)
    assert max(map(len, text.splitlines())) <= 80
    assert "-0.4000 to -0.4000" in text and "…" not in text


def test_without_text_the_reason_is_given(folder):
    (folder / "test.jsonl").unlink()
    text = printed(load_runs([folder / "a", folder / "b"]))
    assert "\nTheir text is not at hand: Data file not found: test.jsonl\n" in text
    assert "text" not in explain_sections(explain(load_runs([folder / "a", folder / "b"])))[2].columns


def test_examples_of_no_slice_have_no_such_column_and_runs_that_do_not_compare_a_reason(tmp_path):
    make_run(tmp_path / "a", [last_row(1, 2.0)], examples=scored([2.0, 3.0], [1, 1]))
    make_run(tmp_path / "b", [last_row(1, 1.0)], examples=scored([1.0, 3.0], [1, 1]))
    make_run(tmp_path / "c", [train_row(0, 1.0)])
    training, examples, reasons = explain_sections(explain(load_runs(tmp_path)))
    assert training.rows == [["b", "no step that both trained", "-"], ["c", "no step that both trained", "-"]]
    assert examples.columns == ("diff", "tokens", "baseline", "NLL", "id") and len(examples.rows) == 1
    assert reasons.notes == ["c: no examples to hold against: it has no evaluated examples at this point"]


def test_what_does_not_compare_has_a_title(tmp_path):
    for name, data in (("a", "feed"), ("b", "dead")):
        make_run(tmp_path / name, [last_row(1, 2.0)], test={"": data})
    *_, reasons = explain_sections(explain(load_runs(tmp_path)))
    assert reasons.title == "Runs whose examples do not compare"
    assert reasons.notes[0].startswith("b: no examples to hold against: tested on other data")
