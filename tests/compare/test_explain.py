import numpy as np
import pandas as pd
import pytest

from harness.compare import explain, judge, load_runs
from harness.compare.explain import by_slice, most_different, parted
from harness.compare.judge import _SAME_DATA
from harness.compare.load import Evaluation
from harness.compare.paired import compare_examples
from harness.exceptions import ConfigError
from harness.metric_keys import BATCH_DIGEST
from tests.compare.made_runs import last_row, make_run, scored, train_row


def trained(path, nlls, batches, **more):
    rows = [train_row(k, nll) for k, nll in enumerate(nlls)]
    if batches:
        rows = [row | {BATCH_DIGEST: digest} for row, digest in zip(rows, batches, strict=True)]
    return make_run(path, rows, **more)


def cells(frame):
    return {str(run): [None if pd.isna(value) else value for value in row] for run, *row in frame.itertuples()}


def test_training_parts_where_the_batches_do_and_train_nll_on_the_same_batches_does(tmp_path):
    trained(tmp_path / "a", [4.0, 3.0, 2.0, 1.0], "wxyz")
    trained(tmp_path / "again", [4.0, 3.0, 2.0, 1.0], "wxyz")
    trained(tmp_path / "faster", [4.0, 3.0, 1.5, 0.5], "wxyz")
    trained(tmp_path / "other-epoch", [4.0, 3.0, 2.0, 0.5], "wxyy")  # 0.5 on another batch says nothing
    trained(tmp_path / "shuffled", [4.5, 3.0, 2.0, 1.0], "zxyw")
    trained(tmp_path / "shorter", [4.0, 3.0], "wx")
    trained(tmp_path / "untrained", [], "")
    trained(tmp_path / "no-digests", [4.0, 3.0, 2.0, 1.0], None)
    found = parted(load_runs([tmp_path / "a", tmp_path]), "a")
    assert found.columns.tolist() == ["steps", "same_batches", "nll_parts", "tolerance", "beyond"]
    assert cells(found) == {
        "again": [4, 4, None, 0.0, None],
        "faster": [4, 4, 2, 0.0, 2],
        "other-epoch": [4, 3, None, 0.0, None],
        "shuffled": [4, 0, None, 0.0, None],
        "shorter": [2, 2, None, 0.0, None],
        "untrained": [0, None, None, 0.0, None],
        "no-digests": [4, None, None, 0.0, None],
    }


def test_rounding_is_allowed_for_where_machine_or_libraries_differ(tmp_path):
    nlls = [4.0, 3.00001, 2.05, 1.2]
    trained(tmp_path / "a", [4.0, 3.0, 2.0, 1.0], "wxyz")
    trained(tmp_path / "alike", nlls, "wxyz", document={"git_commit": "f00d"})
    trained(tmp_path / "torch", nlls, "wxyz", document={"versions": {"torch": "3"}})
    trained(tmp_path / "bf16", nlls, "wxyz", document={"numerics": {"dtype": "bfloat16"}})
    trained(tmp_path / "service", nlls, "wxyz", document={"numerics": {}})
    (trained(tmp_path / "bare", nlls, "wxyz") / "config.json").unlink()
    found = parted(load_runs([tmp_path / "a", tmp_path]), "a")[["nll_parts", "tolerance", "beyond"]]
    assert cells(found) == {
        "alike": [1, 0.0, 1],
        "torch": [1, 1e-4, 2],
        "bf16": [1, 0.1, 3],
        "service": [1, None, None],
        "bare": [1, None, None],
    }


def evaluation(nll, tokens, slices, ids=None):
    ids = [f"e{i}" for i in range(len(nll))] if ids is None else ids
    return Evaluation("feed", None, list(ids), list(slices), np.array(nll, dtype=float), np.array(tokens))


def test_what_slices_contribute_adds_up_to_the_difference(tmp_path):
    slices = ["math", None, "math", "chat"]
    base = evaluation([10.0, 4.0, 20.0, 6.0], [5, 2, 10, 3], slices)
    other = evaluation([8.0, 5.0, 18.0, 6.5], [5, 2, 10, 3], slices)
    found = by_slice({"a": base, "b": other}, "a")
    assert found["slice"].tolist() == ["math", None, "chat"]  # by size of what they contribute
    assert found["num_examples"].tolist() == [2, 1, 1] and found["num_loss_tokens"].tolist() == [15, 2, 3]
    assert found["baseline_nll"].tolist() == pytest.approx([30 / 15, 2, 2])
    assert found["nll"].tolist() == pytest.approx([26 / 15, 2.5, 6.5 / 3])
    assert found["difference"].tolist() == pytest.approx([-4 / 15, 0.5, 0.5 / 3])
    assert found["contribution"].tolist() == pytest.approx([-4 / 20, 1 / 20, 0.5 / 20])
    assert sum(found["contribution"]) == pytest.approx((other.nll.sum() - base.nll.sum()) / 20)
    assert set(found["verdict"]) == {"no verdict"} and found[["low", "high", "p"]].isna().to_numpy().all()


def test_one_slice_tells_nothing_more():
    base = evaluation([1.0, 2.0], [1, 1], ["math", "math"])
    assert by_slice({"a": base, "b": base}, "a").empty
    assert by_slice({}, "a").empty


def test_intervals_of_slices_hold_together_over_slices_and_runs():
    rng = np.random.default_rng(0)
    slices = ["x", "y"] * 30 + ["few"] * 19
    tokens = rng.integers(5, 20, len(slices))
    base = evaluation(2.0 * tokens, tokens, slices)
    noise = rng.normal(0, 0.1, len(slices))
    runs = {"a": base, "b": evaluation((1.8 + noise) * tokens, tokens, slices)}
    runs["c"] = evaluation((2.0 + noise - noise.mean()) * tokens, tokens, slices)
    found = by_slice(runs, "a")
    assert found["run"].tolist() == ["b"] * 3 + ["c"] * 3

    there = np.array(slices) == "x"
    differences = np.column_stack([runs[run].nll - base.nll for run in "bcbc"])[there]  # as many models as rows judged
    ids = [str(i) for i in range(30)]
    expected = compare_examples(differences, tokens[there], ids)
    rows = {(row["run"], row["slice"]): row for row in found.to_dict("records")}
    for i, run in enumerate("bc"):
        row = rows[run, "x"]
        assert (row["low"], row["high"]) == pytest.approx((expected[i].low, expected[i].high))
    assert rows["b", "x"]["p"] == pytest.approx(expected[0].p)  # the smallest, times four
    assert {key: row["verdict"] for key, row in rows.items()} == {
        ("b", "x"): "better",
        ("b", "y"): "better",
        ("b", "few"): "no verdict",
        ("c", "x"): "not told apart",
        ("c", "y"): "not told apart",
        ("c", "few"): "no verdict",
    }


def test_copies_count_once_in_a_slice():
    slices = ["x"] * 40 + ["y"]
    base = evaluation([2.0] * 41, [1] * 41, slices, [f"e{i // 2}" for i in range(41)])
    found = by_slice({"a": base, "b": base}, "a")
    assert dict(zip(found["slice"], found["num_examples"], strict=True)) == {"x": 20, "y": 1}


def test_the_examples_that_differ_most_both_ways():
    base = evaluation([10.0, 4.0, 20.0, 6.0, 3.0], [5, 2, 10, 3, 1], ["m", None, "m", "c", "c"])
    other = evaluation([8.0, 9.0, 17.0, 6.5, 3.0], [5, 2, 10, 3, 1], ["m", None, "m", "c", "c"])
    found = most_different(base, other, 3)
    assert found["id"].tolist() == ["e2", "e0", "e1", "e3"]  # better by 3 and 2, worse by 5 and 0.5; e4 is the same
    assert found["difference"].tolist() == [-3.0, -2.0, 5.0, 0.5]
    assert found["slice"].tolist() == ["m", "m", None, "c"]
    assert found["num_loss_tokens"].tolist() == [10, 5, 2, 3]
    assert found["baseline_nll"].tolist() == [2.0, 2.0, 2.0, 2.0]
    assert found["nll"].tolist() == pytest.approx([1.7, 1.6, 4.5, 6.5 / 3])
    assert most_different(base, other, 1)["id"].tolist() == ["e2", "e1"]
    assert most_different(base, base).empty


def test_copies_of_an_example_are_one():
    base = evaluation([2.0, 1.0, 2.0], [1, 1, 3], ["first", None, "second"], ["twice", "once", "twice"])
    other = evaluation([1.0, 1.5, 1.5], [1, 1, 3], ["first", None, "second"], ["twice", "once", "twice"])
    assert most_different(base, other).values.tolist() == [
        ["twice", "first", 4, 1.0, 0.625, -1.5],
        ["once", None, 1, 1.0, 1.5, 0.5],
    ]


@pytest.fixture
def folder(tmp_path):
    """Three runs on three examples, and one on others."""
    for name, nll in (("a", [2.0, 4.0, 6.0]), ("b", [2.5, 3.0, 5.0]), ("c", [1.0, 4.0, 6.5])):
        examples = scored(nll, [1, 2, 3]) | {"slices": ["x", "y", "y"]}
        make_run(tmp_path / name, [train_row(0, 4.0, sum(nll) / 6), last_row(1, sum(nll) / 6)], examples=examples)
    make_run(tmp_path / "elsewhere", [last_row(1, 1.0)], test={"": "dead"}, learning_rate=1e-3)
    return tmp_path


def test_runs_are_explained_against_the_baseline(folder):
    runs = load_runs([folder / "a", folder / "elsewhere", folder / "b", folder / "c"])
    explanation = explain(runs)
    assert (explanation.baseline, explanation.run) == ("a", "b")  # the first that compares
    assert explanation.examples["id"].tolist() == ["e1", "e2", "e0"]
    assert explanation.slices[["run", "slice"]].values.tolist() == [["b", "y"], ["b", "x"], ["c", "x"], ["c", "y"]]
    assert explanation.parted.index.tolist() == ["elsewhere", "b", "c"]
    assert explanation.differences.loc["learning_rate"].tolist() == [2e-4, 1e-3, 2e-4, 2e-4]
    assert explanation.reasons == {"elsewhere": f"tested on other data (dead, the baseline on feed): {_SAME_DATA}"}
    assert explanation.examples["messages"].tolist() == [None] * 3
    assert explanation.no_text == "config.json does not say what the test conversations were"


def test_the_judgement_says_at_which_point_and_against_which_baseline(folder):
    b = make_run(folder / "d", [train_row(0, 4.0, 9.0)], examples=scored([9.0, 9.0, 9.0], [1, 2, 3]))
    b.append_eval_examples([{"step": 1, "set": "", "fingerprint": "feed"} | scored([0.0, 0.0, 0.0], [1, 2, 3])])
    b.append_metrics(last_row(1, 0.0))
    runs = load_runs([folder / "a", folder / "d"])
    assert explain(runs).examples["difference"].tolist() == [-6.0, -4.0, -2.0]
    at_0 = explain(runs, judge(runs, at=0), num_examples=1)
    assert at_0.examples["difference"].tolist() == [7.0]
    assert explain(runs, judge(runs, "d")).examples["difference"].tolist() == [6.0, 4.0, 2.0]


def test_another_run_s_examples(folder):
    runs = load_runs([folder / name for name in "abc"] + [folder / "elsewhere"])
    assert explain(runs, run="c").examples["id"].tolist() == ["e0", "e2"]
    assert explain(runs, run=str(folder / "c")).run == "c"
    elsewhere = explain(runs, run="elsewhere")
    assert elsewhere.examples.empty and "messages" in elsewhere.examples and elsewhere.no_text == ""
    with pytest.raises(
        ConfigError, match=r'^no run "z" among those compared: choose one with run: a, b, c, elsewhere$'
    ):
        explain(runs, run="z")
    with pytest.raises(ConfigError, match=r"^a is the baseline: choose another run$"):
        explain(runs, run="a")
    with pytest.raises(ConfigError, match=r"^there is no run beside a to differ from it: name another$"):
        explain(load_runs(folder / "a"))


def test_runs_without_evaluations_are_explained_by_their_training(tmp_path):
    for name in "ab":
        trained(tmp_path / name, [4.0, 3.0], "wx")
    explanation = explain(load_runs(tmp_path))
    assert explanation.reasons == {"b": "the baseline has no evaluated examples at this point"}
    assert explanation.slices.empty and explanation.examples.empty
    assert explanation.parted.loc["b", "same_batches"] == 2
