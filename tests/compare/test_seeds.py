import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from harness.compare import load_runs
from harness.compare.align import choose
from harness.compare.seeds import compare_configs, same_config, welch
from tests.compare.made_runs import last_row, make_run, train_row


def test_welch_by_hand():
    low, high, p = welch([1.0, 2.0, 3.0], [4.0, 6.0, 8.0])
    # means 2 and 6, variances 1 and 4: error √(1/3 + 4/3) = √(5/3), (5/3)² / ((1/3)² / 2 + (4/3)² / 2) = 50/17 degrees
    half = stats.t.ppf(0.975, 50 / 17) * math.sqrt(5 / 3)
    assert (low, high) == (pytest.approx(4 - half), pytest.approx(4 + half))
    assert p == pytest.approx(2 * stats.t.sf(4 / math.sqrt(5 / 3), 50 / 17))


def test_welch_is_scipys():
    rng = np.random.default_rng(0)
    for n, m in ((3, 3), (20, 20)):
        a, b = rng.normal(2, 0.1, n).tolist(), rng.normal(2.1, 0.3, m).tolist()
        theirs: Any = stats.ttest_ind(b, a, equal_var=False)
        interval = theirs.confidence_interval(0.99)
        assert welch(a, b, 0.99) == pytest.approx((interval.low, interval.high, theirs.pvalue))


def test_samples_of_unequal_size_have_the_degrees_of_freedom_of_the_smaller():
    low, high, _ = welch([1.0, 3.0], [4.0, 8.0, 6.0])
    # means 2 and 6, variances 2 and 4: error √(2/2 + 4/3); Welch's own degrees of freedom would be 2.9
    half = stats.t.ppf(0.975, 1) * math.sqrt(7 / 3)
    assert (low, high) == (pytest.approx(4 - half), pytest.approx(4 + half))


def test_two_seeds_have_one_degree_of_freedom():
    low, high, _ = welch([1.0, 3.0], [4.0, 8.0])
    half = stats.t.ppf(0.975, 1) * math.sqrt(2 / 2 + 8 / 2)
    assert (low, high) == (pytest.approx(4 - half), pytest.approx(4 + half))


def test_two_seeds_and_ten_are_told_apart_no_oftener_than_is_said():
    rng = np.random.default_rng(0)
    found = [welch(rng.normal(size=2).tolist(), rng.normal(size=10).tolist())[2] < 0.05 for _ in range(2000)]
    assert np.mean(found) < 0.05  # Welch's own degrees of freedom: 0.1


def test_without_spread_there_is_no_interval():
    low, high, p = welch([2.1] * 3, [3.3] * 3)
    assert math.isnan(low) and math.isnan(high) and p == 1.0


def make(root, nlls, **config):
    """A run for each test NLL, of one config, its seeds counted from 0; named a0, a1, … for root a."""
    for seed, nll in enumerate(nlls):
        rows = [train_row(0, 4.0, 4.5), last_row(1, nll)]
        make_run(root.with_name(f"{root.name}{seed}"), rows, seed=seed, **config)


def compared(folder, baseline, at="last"):
    runs = load_runs(folder)
    return compare_configs(runs, choose(runs, at), baseline)


def test_configs_are_compared_by_the_means_over_their_seeds(tmp_path):
    make(tmp_path / "a", [3.0, 3.2, 3.1])
    make(tmp_path / "b", [2.0, 2.2, 2.1], lora_rank=8)
    make(tmp_path / "lonely", [1.0], lora_rank=64)

    first, second = compared(tmp_path, "a1").to_dict("records")

    assert (first["runs"], first["num_seeds"], first["verdict"]) == ("a0, a1, a2", 3, "baseline")
    assert (second["runs"], second["num_seeds"], second["verdict"]) == ("b0, b1, b2", 3, "better")
    assert (first["test_nll"], second["test_nll"]) == (pytest.approx(3.1), pytest.approx(2.1))
    assert second["difference"] == pytest.approx(-1.0)
    expected = welch([3.0, 3.2, 3.1], [2.0, 2.2, 2.1])
    assert (second["low"], second["high"], second["p"]) == pytest.approx(expected)


def test_several_configs_are_corrected_for_each_other(tmp_path):
    make(tmp_path / "a", [3.0, 3.1, 3.2])
    make(tmp_path / "b", [2.0, 2.1, 2.2], lora_rank=8)
    make(tmp_path / "c", [3.1, 3.12, 3.15], lora_rank=16)
    _, b, c = compared(tmp_path, "a0").to_dict("records")
    low, high, p = welch([3.0, 3.1, 3.2], [2.0, 2.1, 2.2], 0.975)
    assert (b["low"], b["high"], b["p"]) == (pytest.approx(low), pytest.approx(high), pytest.approx(2 * p))
    assert (b["verdict"], c["verdict"]) == ("better", "not told apart")


@pytest.mark.parametrize(("state", "num_configs"), [("FINISHED", 2), (None, 0)])
@pytest.mark.parametrize("at", ["last", "best"])
def test_a_config_that_has_not_ended_is_not_judged_against_one_that_has(tmp_path, state, num_configs, at):
    make(tmp_path / "a", [3.0, 3.2])
    for seed in (0, 1):
        rows = [train_row(0, 4.0, 4.5), train_row(1, 4.0, 3.9 + seed / 10), last_row(2, 3.8 + seed / 10)]
        make_run(tmp_path / f"b{seed}", rows, state=state, seed=seed, lora_rank=8)
    assert len(compared(tmp_path, "a0", at)) == num_configs


def test_a_fork_is_no_seed_of_the_config_that_it_went_on_with(tmp_path):
    make(tmp_path / "a", [3.0])
    parent = {"parent": {"run_id": "p", "path": "runs/p", "step": 500}}
    make_run(tmp_path / "f", [train_row(0, 4.0, 4.5), last_row(1, 3.1)], seed=1, document=parent)
    runs = load_runs(tmp_path)
    assert [len(group) for group in same_config(runs, choose(runs, "last"))] == [1, 1]


def test_one_run_of_a_config_compares_no_configs(tmp_path):
    make(tmp_path / "a", [3.0])
    make(tmp_path / "b", [2.0, 2.2], lora_rank=8)
    assert compared(tmp_path, "a0").empty
    assert compared(tmp_path, "b0").empty


def test_the_same_seed_again_is_no_other_seed(tmp_path):
    make(tmp_path / "a", [3.0])
    make(tmp_path / "again" / "a", [3.2])
    make(tmp_path / "b", [2.0, 2.2], lora_rank=8)
    assert compared(tmp_path, "b0").empty
    groups = same_config(load_runs(tmp_path), choose(load_runs(tmp_path)))
    assert sorted(len(group) for group in groups) == [1, 2]


def test_names_libraries_and_commit_may_differ_between_seeds_and_data_may_not(tmp_path):
    rows = [train_row(0, 4.0, 4.5), last_row(1, 3.0)]
    data = {"train": "beef", "test": {"": "feed"}}
    make_run(tmp_path / "a", rows, seed=0, note="first")
    moved_on = {"versions": {"torch": "3"}, "git_commit": "f00d"}
    make_run(tmp_path / "b", rows, seed=1, run_name="b", document=moved_on)
    make_run(tmp_path / "cut", rows, seed=4, backend={"micro_batch_tokens": 1024})  # which is rounding alone
    make_run(tmp_path / "other-data", rows, seed=2, document={"data": data | {"train": "f00d"}})
    make_run(tmp_path / "other-test", rows, seed=3, test={"": "dead"})
    runs = load_runs(tmp_path)
    of_one, *others = same_config(runs, choose(runs))
    assert of_one == {0: ["a"], 1: ["b"], 4: ["cut"]}
    assert others == [{2: ["other-data"]}, {3: ["other-test"]}]


def test_a_seed_of_somebody_elses_config_may_be_a_list(tmp_path):
    for name, seed in (("a", [0, 1]), ("b", [0, 2]), ("c", [0, 1])):
        make_run(tmp_path / name, [last_row(1, 3.0)], seed=seed)
    runs = load_runs(tmp_path)
    assert same_config(runs, choose(runs)) == [{"[0, 1]": ["a", "c"], "[0, 2]": ["b"]}]


def test_seeds_that_stand_at_different_steps_are_of_one_config_only_at_a_common_point(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 4.0, 4.5), last_row(1, 3.0)], seed=0)
    make_run(tmp_path / "b", [train_row(0, 4.0, 4.4), train_row(1, 3.0, 3.1), last_row(2, 2.0)], seed=1)
    runs = load_runs(tmp_path)
    assert len(same_config(runs, choose(runs, "last"))) == 2
    assert same_config(runs, choose(runs, "common")) == [{0: ["a"], 1: ["b"]}]
    assert same_config(runs, choose(runs, "best")) == [{0: ["a"], 1: ["b"]}]


def test_configs_on_other_test_data_are_left_out(tmp_path):
    make(tmp_path / "a", [3.0, 3.2])
    make(tmp_path / "b", [2.0, 2.2], lora_rank=8, test={"": "dead"})
    assert compared(tmp_path, "a0").empty


def test_seeds_of_one_config_are_called_better_in_at_most_one_of_twenty_pairs():
    """Twenty seeds of one config, dealt into groups as if each were a config of its own; that 200 times."""
    rng = np.random.default_rng(1)
    for size in (2, 5, 10):
        called = pairs = 0
        for _ in range(200):
            seeds = rng.normal(2.0, 0.02, 20)
            groups = seeds.reshape(-1, size)
            for a, b in itertools.combinations(groups, 2):
                low, high, _ = welch(a.tolist(), b.tolist())
                called += high < 0 or low > 0
                pairs += 1
        assert called / pairs <= 0.05, size


def test_seeds_with_one_evaluation_each_are_of_one_config_wherever_it_stands(tmp_path):
    """As ``eval --at best`` leaves them."""
    for name, step, seed, state in (("a", 1, 0, "FINISHED"), ("b", 2, 1, "FINISHED"), ("c", 2, 2, None)):
        rows = [train_row(k, 4.0) for k in range(3)]
        run = make_run(tmp_path / name, [*rows, last_row(3, 3.0)], seed=seed, state=state)
        row = {"step": step, "ts": 1, "set": "mine", "fingerprint": "aa", "metrics": {"test/mine/nll": 2.0 + seed}}
        run.append_later_evaluation(row)
    runs = load_runs(tmp_path)
    chosen = choose(runs, on="mine")
    assert chosen["of_num"].tolist() == [1, 1, 1]
    assert same_config(runs, chosen) == [{0: ["a"], 1: ["b"]}, {2: ["c"]}]
    assert same_config(runs, choose(runs, "best", on="mine")) == same_config(runs, chosen)
