import pytest

from harness.exceptions import DataError
from harness.supervised import survey as survey_module
from harness.supervised.data import SupervisedDatasetFromRows
from harness.supervised.survey import coloured, survey
from tests.fakes import FakeTokenizer, byte_datum


def dataset(*rows, batch_size=1):
    return SupervisedDatasetFromRows(list(rows), batch_size, lambda row: byte_datum(**row))


def test_counts():
    counted = survey(
        dataset(
            {"text": "abcd"},
            {"text": "ab", "num_truncated": 5, "end_cut_off": True},
            {"text": "abc", "loss": False, "num_truncated": 2},
            {"text": "xy", "loss": False},
            {"text": "left over"},
            batch_size=2,
        )
    )
    assert counted.lines() == [
        "4 conversations, 6 tokens, 6 of them with loss, an epoch",
        "2 conversations are cut at max_length",
        "1 of them inside what is trained: without its end-of-turn",
        "1 are dropped: max_length cuts away all that carries loss",
        "1 are dropped: no assistant message to train on",
        "1 are left out of each epoch: they do not fill a batch",
    ]


def test_a_large_set_is_estimated_and_says_so(monkeypatch):
    monkeypatch.setattr(survey_module, "_MOST", 4)
    counted = survey(dataset(*({"text": "abcd"} for _ in range(12)), batch_size=2))
    assert counted.lines()[:2] == [
        "12 conversations, about 48 tokens, about 48 of them with loss, an epoch",
        "estimated from 4 conversations",
    ]


def test_nothing_to_train_on():
    with pytest.raises(DataError, match="none of the 2 training examples carries loss"):
        survey(dataset({"text": "ab", "loss": False}, {"text": "cd", "loss": False}))


def test_the_example_is_marked_with_and_without_colours():
    datum = byte_datum("abc")
    assert coloured(datum, FakeTokenizer(), brackets=True).plain == "a⟦bc\x03⟧"
    text = coloured(datum, FakeTokenizer())
    assert text.plain == "abc\x03"
    assert [(span.start, span.end, span.style) for span in text.spans] == [(0, 1, "dim"), (1, 4, "bold green")]
