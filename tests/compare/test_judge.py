from typing import Any

import numpy as np
import pytest

from harness.compare import judge, load_runs
from harness.compare.align import evaluations
from harness.compare.judge import _SAME_DATA, find_baseline, turned_up
from harness.compare.paired import compare_examples, t_interval
from harness.exceptions import ConfigError
from tests.compare.made_runs import last_row, make_run, scored, train_row

N = 40
TOKENS = np.array([10, 20] * (N // 2))
NOISE = np.random.default_rng(0).normal(0, 0.1, N)


def make(path, shift=0.0, *, ids=None, tokens=TOKENS, noise: np.ndarray | float = 0.0, bpb=None, **more):
    """A run whose one evaluation lies ``shift`` nats per token above 2, with ``noise`` an example."""
    nll = (2 + shift + noise) * tokens
    row = last_row(1, nll.sum() / tokens.sum()) | ({} if bpb is None else {"test/bpb": bpb})
    return make_run(path, [train_row(0, 4.0), row], examples=scored(nll.tolist(), tokens.tolist(), ids), **more)


def against(folder, **options):
    return judge(load_runs(folder), **options).against


def test_each_run_is_held_against_the_first_example_by_example(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b", -0.2, noise=NOISE)
    make(tmp_path / "c", 0.2, noise=NOISE)
    make(tmp_path / "d", 0.0, noise=NOISE - (NOISE * TOKENS).sum() / TOKENS.sum())

    judgement = judge(load_runs(tmp_path))

    assert (judgement.baseline, judgement.at) == ("a", "last")
    table = judgement.against
    assert table["verdict"].to_dict() == {"b": "better", "c": "worse", "d": "not told apart"}
    assert table["step"].tolist() == [1, 1, 1] and table["num_examples"].tolist() == [N] * 3
    noise = float((NOISE * TOKENS).sum() / TOKENS.sum())
    assert table["difference"].tolist() == pytest.approx([noise - 0.2, noise + 0.2, 0.0], abs=1e-12)
    means = judgement.chosen["test_nll"]
    assert table.loc["b", "difference"] == pytest.approx(means["b"] - means["a"])  # as test/nll says
    differences = np.column_stack([(shift + NOISE) * TOKENS for shift in (-0.2, 0.2)])
    differences = np.column_stack([differences, (NOISE - noise) * TOKENS])
    expected = compare_examples(differences, TOKENS, [str(i) for i in range(N)])
    for run, comparison in zip("bcd", expected, strict=True):
        row = table.loc[run]
        assert row[["low", "high", "p"]].tolist() == pytest.approx([comparison.low, comparison.high, comparison.p])
        assert row["lower"] == comparison.lower and row["sign_p"] == pytest.approx(comparison.sign_p)
    assert judgement.worse() == ["c"]


def test_another_baseline_by_name_or_by_path(tmp_path, monkeypatch):
    make(tmp_path / "runs" / "a")
    make(tmp_path / "runs" / "b", -0.2, noise=NOISE)
    monkeypatch.chdir(tmp_path)
    runs = load_runs(["runs/a", "runs/a/../b"])
    assert [find_baseline(runs, named) for named in (None, "b", "runs/b", "runs/../runs/b/")] == ["a", "b", "b", "b"]
    judgement = judge(runs, "runs/b")
    assert judgement.against["verdict"].to_dict() == {"a": "worse"}
    with pytest.raises(ConfigError, match=r'^no run "c" among those compared: choose one with --baseline: a, b$'):
        find_baseline(runs, "c")


def test_the_evaluations_of_the_asked_point_are_compared(tmp_path):
    make(tmp_path / "a")
    run = make_run(tmp_path / "b", [train_row(0, 4.0, 1.0)], examples=scored([10.0] * N, [10] * N), test={"": "feed"})
    nll = 3.0 * TOKENS
    run.append_eval_examples([{"step": 1, "set": "", "fingerprint": "feed"} | scored(nll.tolist(), TOKENS.tolist())])
    run.append_metrics(last_row(1, 3.0))
    assert against(tmp_path).loc["b", "difference"] == pytest.approx(1.0)
    best = against(tmp_path, at="best").loc["b"]
    assert (best["step"], best["difference"]) == (0, pytest.approx((10.0 * N - 2 * TOKENS.sum()) / TOKENS.sum()))
    assert against(tmp_path, at=0)["reason"].tolist() == ["the baseline has no evaluated examples at this point"]


def test_evaluations_before_an_x_compare_where_they_are_of_one_step(tmp_path):
    for name, tokens in (("a", 100), ("b", 100), ("c", 60)):  # c has trained on 60 tokens when it is evaluated
        rows = [train_row(0, 4.0, tokens=tokens), last_row(1, 2.0)]
        make_run(tmp_path / name, rows, examples=scored([10.0] * N, [5] * N))
    at_60 = against(tmp_path, baseline="c", at=60, x="tokens")
    assert at_60["reason"].tolist() == ["it has no evaluated examples at this point"] * 2
    at_100 = against(tmp_path, at=100, x="tokens")
    assert at_100["verdict"].to_dict() == {"b": "not told apart", "c": "no verdict"}
    assert at_100.loc["c", "reason"] == "its evaluation stands at step 1, the baseline's at tokens 100"
    assert set(against(tmp_path, at=200, x="tokens")["verdict"]) == {"not told apart"}  # all three at step 1
    assert set(against(tmp_path, at="last", x="tokens")["verdict"]) == {"not told apart"}


def test_other_test_data_gets_no_verdict_and_the_way_to_one(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b", -0.5, test={"": "dead"})
    make(tmp_path / "c", -0.5, ids=[f"other{i}" for i in range(N)])
    make_run(tmp_path / "d", [train_row(0, 4.0)])
    make_run(tmp_path / "e", [last_row(1, 1.0)], evaluated=False)
    table = against(tmp_path)
    assert set(table["verdict"]) == {"no verdict"}
    assert table[["difference", "low", "high", "p", "lower", "sign_p"]].isna().to_numpy().all()
    assert table["reason"].to_dict() == {
        "b": f"tested on other data (dead, the baseline on feed): {_SAME_DATA}",
        "c": f"its examples have other ids than the baseline's: {_SAME_DATA}",
        "d": "it has no evaluated examples at this point",
        "e": "it has no evaluated examples at this point",
    }


def test_a_run_without_verdict_is_not_taken_for_one_that_is_not_worse(tmp_path):
    make(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"^there is no run beside a to be worse than it: name another$"):
        judge(load_runs(tmp_path)).worse()
    make(tmp_path / "b", 0.5, test={"": "dead"})
    with pytest.raises(ConfigError, match=r"^no verdict on b: tested on other data \(dead, the baseline on feed\): "):
        judge(load_runs(tmp_path)).worse()


def test_a_handful_of_examples_tells_nothing(tmp_path):
    make(tmp_path / "a", tokens=TOKENS[:19])
    make(tmp_path / "b", -0.5, tokens=TOKENS[:19])
    row = against(tmp_path).loc["b"]
    assert (row["verdict"], row["reason"]) == (
        "no verdict",
        "19 of the 20 examples that a verdict takes: test on more",
    )
    assert (row["difference"], row["lower"], row["num_examples"]) == (pytest.approx(-0.5), 1.0, 19)


def test_examples_of_one_source_count_as_one(tmp_path):
    sources = [f"source{i // 2}" for i in range(N)]
    make(tmp_path / "a", ids=sources)
    make(tmp_path / "b", -0.2, ids=sources, noise=NOISE)
    assert against(tmp_path).loc["b", "num_examples"] == N // 2


OTHER_TOKENIZER: dict[str, Any] = {
    "dataset_builder__common_config__model_name_for_tokenizer": "other",
    "model_name": "other",
}


SAME_TEXT = {"data": {"train": "beef", "test": {}, "test_contents": {"": "text"}}}


def test_where_only_the_tokenizer_differs_bits_per_byte_are_named(tmp_path):
    make(tmp_path / "a", bpb=0.9, document=SAME_TEXT)
    make(tmp_path / "b", bpb=0.85, tokens=TOKENS * 2, test={"": "dead"}, document=SAME_TEXT, **OTHER_TOKENIZER)
    row = against(tmp_path).loc["b"]
    assert row["verdict"] == "no verdict" and np.isnan(row["difference"])
    assert row["reason"] == (
        "another tokenizer, so NLLs per token do not compare: 0.8500 bits per byte, the baseline 0.9000 "
        "(one number each, no interval)"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"dataset_builder__file_path": "other.jsonl"},
        {"seed": 1},
        {"document": {"data": SAME_TEXT["data"] | {"train": "f00d"}}},
    ],
)
def test_bits_per_byte_of_other_text_are_not_named(tmp_path, change):
    make(tmp_path / "a", bpb=0.9, document=SAME_TEXT)
    make(tmp_path / "b", bpb=0.85, test={"": "dead"}, **({"document": SAME_TEXT} | OTHER_TOKENIZER | change))
    assert against(tmp_path).loc["b", "reason"].startswith("tested on other data")


def test_nor_where_one_tokenizer_read_other_data(tmp_path):
    make(tmp_path / "a", bpb=0.9, document=SAME_TEXT)
    make(tmp_path / "b", bpb=0.85, test={"": "dead"}, document=SAME_TEXT)
    assert against(tmp_path).loc["b", "reason"].startswith("tested on other data")


def test_nor_are_those_that_were_not_measured(tmp_path):
    make(tmp_path / "a", document=SAME_TEXT)
    make(tmp_path / "b", bpb=0.85, test={"": "dead"}, document=SAME_TEXT, **OTHER_TOKENIZER)
    assert against(tmp_path).loc["b", "reason"].startswith("tested on other data")


def test_configs_are_judged_at_the_same_point(tmp_path):
    for seed, shift in enumerate((0.0, 0.1)):
        make(tmp_path / f"a{seed}", shift, seed=seed)
        make(tmp_path / f"b{seed}", shift - 1, seed=seed, lora_rank=8)
    configs = judge(load_runs(tmp_path)).configs
    assert configs["runs"].tolist() == ["a0, a1", "b0, b1"]
    assert configs["difference"].tolist()[1] == pytest.approx(-1.0)


def trained(path, train, test):
    """Updates with ``train`` NLLs, before each and after the last an evaluation: ``test`` has its examples' NLLs a
    token, N of them or one for all."""
    run = make_run(path, [])
    for step, nll in enumerate(test):
        nlls = (nll + np.zeros(N)) * TOKENS
        examples = scored(nlls.tolist(), TOKENS.tolist())
        run.append_eval_examples([{"step": step, "set": "", "fingerprint": "feed"} | examples])
        mean = nlls.sum() / TOKENS.sum()
        run.append_metrics(train_row(step, train[step], mean) if step < len(train) else last_row(step, mean))
    return run


FALLS, RISES = [4.0, 3.0, 2.9, 2.7, 2.0, 1.9, 1.7], [4.0, 3.0, 3.1, 3.3, 4.0, 4.1, 4.3]
TURNS = [5.0, 4.0, 4.1, 4.2, 4.3, 4.4, 4.5, 4.6]


def test_where_test_nll_turned_up_while_train_nll_fell(tmp_path):
    trained(tmp_path / "overfits", FALLS, [nll + NOISE * i for i, nll in enumerate(TURNS)])
    trained(tmp_path / "diverges", RISES, TURNS)
    trained(tmp_path / "learns", FALLS, sorted(TURNS, reverse=True))
    trained(tmp_path / "one-batch-since", FALLS, [*sorted(TURNS, reverse=True)[:-2], 1.0, 2.0])
    make_run(tmp_path / "few-examples", [train_row(k, *pair) for k, pair in enumerate(zip(FALLS, TURNS, strict=False))])
    make_run(tmp_path / "untested", [train_row(0, 4.0)])
    found = turned_up(load_runs(tmp_path))
    assert list(found) == ["overfits"]
    # the last evaluation minus that of step 1: 0.6 and six times the noise; picked from seven others
    low, high = t_interval((0.6 + 6 * NOISE * 1.0)[:, None] * TOKENS[:, None], TOKENS, 1 - 0.05 / 7)
    mean = 0.6 + 6 * (NOISE * TOKENS).sum() / TOKENS.sum()
    assert found["overfits"] == pytest.approx((1, mean, low[0], high[0]))


def test_noise_is_no_turn(tmp_path):
    rng = np.random.default_rng(0)
    flat = [3 + rng.normal(0, 0.1, 20) for _ in range(40)]
    for i, train in enumerate(flat):
        of_noise = [2 + rng.normal(0, 0.1, N) for _ in range(21)]
        trained(tmp_path / "test" / f"{i}", np.linspace(4, 2, 20) + rng.normal(0, 0.1, 20), of_noise)
        trained(tmp_path / "train" / f"{i}", train, [2 + 0.05 * step + rng.normal(0, 0.1, N) for step in range(21)])
    test, train = load_runs(tmp_path / "test"), load_runs(tmp_path / "train")
    assert (
        sum(nlls[-1].test_nll > min(nlls, key=lambda p: p.test_nll).test_nll for nlls in evaluations(test).values())
        > 30
    )
    assert len(turned_up(test)) <= 2 and len(turned_up(train)) <= 2  # 40 runs each; at most 2.5 % are to be expected


@pytest.mark.parametrize(("damaged", "told"), [("c", ["c"]), ("a", ["b", "c"])])
def test_a_damaged_evaluation_has_no_verdict_and_leaves_the_others_theirs(tmp_path, damaged, told):
    for name, shift in (("a", 0.0), ("b", -0.2), ("c", -0.2)):
        make(tmp_path / name, shift, noise=NOISE)
    file = tmp_path / damaged / "eval_examples.jsonl"
    file.write_text(file.read_text().replace('"nll": [', '"nll": [1.0, '))
    table = against(tmp_path)
    reasons = table["reason"].to_dict()
    assert table["verdict"].to_dict() == {run: "no verdict" if run in told else "better" for run in reasons}
    for run in told:
        assert reasons[run].startswith(f"{file}: the evaluation at step 1 has columns of different lengths")


@pytest.mark.parametrize(
    ("theirs", "are_named"), [({"contents": "x"}, True), ({"contents": "y"}, False), ({}, False)], ids=str
)
def test_bits_per_byte_of_a_later_test_set_are_named_where_it_says_the_same(tmp_path, theirs, are_named):
    for name, contents, more in (("a", {"contents": "x"}, {}), ("b", theirs, OTHER_TOKENIZER)):
        run = make(tmp_path / name, bpb=0.9, document=SAME_TEXT, **more)
        row = {"step": 1, "ts": 1, "set": "mine", "fingerprint": f"of {name}"} | contents
        row |= {"metrics": {"test/mine/nll": 2.0, "test/mine/bpb": 0.8}} | scored([20.0] * N, [10] * N)
        run.append_later_evaluation(row)
    reason = against(tmp_path, on="mine").loc["b", "reason"]
    assert reason.startswith("another tokenizer" if are_named else "tested on other data")


def test_bits_per_byte_are_not_named_where_it_is_not_known_what_was_tested_on(tmp_path):
    make(tmp_path / "a", bpb=0.9)
    make(tmp_path / "b", bpb=0.85, test={"": "dead"}, **OTHER_TOKENIZER)
    assert against(tmp_path).loc["b", "reason"].startswith("tested on other data")


@pytest.mark.parametrize("damage", [('"fingerprint"', '"print"'), ('"nll": [', '"nll": ["x", ')])
def test_an_evaluation_of_another_shape_has_no_verdict(tmp_path, damage):
    for name in ("a", "b"):
        make(tmp_path / name, noise=NOISE)
    file = tmp_path / "b" / "eval_examples.jsonl"
    file.write_text(file.read_text().replace(*damage))
    assert against(tmp_path)["verdict"].tolist() == ["no verdict"]
