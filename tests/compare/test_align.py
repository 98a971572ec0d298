import math

import pandas as pd
import pytest

from harness.compare import align, load_runs
from harness.compare.align import choose, evaluations, find_point, positions
from harness.exceptions import ConfigError
from tests.compare.made_runs import last_row, make_run, train_row


def run_of(path, *, tokens=100, seconds=2.0, epochs=(0, 0, 1, 1, 2), nlls=(5.0, None, 4.0, None, 3.0)):
    """Four updates in two epochs, evaluated every other."""
    rows = [train_row(k, 4.0 - k, nlls[k], tokens=tokens) | {"time/step": seconds} for k in range(4)]
    rows.append(last_row(4, nlls[4]))
    for step, row in enumerate(rows):
        row |= {"epoch": epochs[step], "progress": step / 4}
    return make_run(path, rows)


def test_an_evaluation_stands_at_what_was_done_before_it(tmp_path):
    run_of(tmp_path / "a")
    runs = load_runs(tmp_path)
    for x, expected in {
        "step": [0, 1, 2, 3, 4],
        "tokens": [0, 100, 200, 300, 400],
        "loss-tokens": [0, 40, 80, 120, 160],
        "epoch": [0, 0.5, 1, 1.5, 2],
        "fraction": [0, 0.25, 0.5, 0.75, 1],
        "time": [0, 2, 4, 6, 8],
    }.items():
        assert positions(runs, x).tolist() == expected, x
    assert evaluations(runs, "tokens") == {"a": [(0, 0.0, 5.0), (2, 200.0, 4.0), (4, 400.0, 3.0)]}


def test_each_run_has_positions_of_its_own(tmp_path):
    run_of(tmp_path / "a")
    run_of(tmp_path / "b", tokens=10)
    assert positions(load_runs(tmp_path), "tokens").tolist() == [0, 100, 200, 300, 400, 0, 10, 20, 30, 40]


def test_what_the_rows_do_not_tell_is_not_known(tmp_path):
    run_of(tmp_path / "one-epoch", epochs=(0, 0, 0, 0, 0))
    make_run(tmp_path / "bare", [train_row(0, 4.0, 3.0)])
    runs = load_runs(tmp_path)
    for x, known in {"epoch": 0, "fraction": 5, "time": 5, "tokens": 6}.items():
        assert sum(~pd.isna(positions(runs, x))) == known, x


def test_another_axis_is_refused(tmp_path):
    run_of(tmp_path / "a")
    with pytest.raises(ConfigError, match=r'^no x axis "steps": choose one of step, tokens, loss-tokens, epoch, frac'):
        positions(load_runs(tmp_path), "steps")


def cells(frame):
    return [tuple(None if pd.isna(cell) else cell for cell in row) for row in frame.itertuples(index=False, name=None)]


def test_at_an_x_it_is_the_last_evaluation_until_then_and_says_where_x_lies(tmp_path):
    run_of(tmp_path / "a", nlls=(None, 5.0, None, 4.0, None))
    assert cells(align(load_runs(tmp_path), [0, 1, 2.5, 3, 4])) == [
        ("a", 0.0, None, None, "before"),
        ("a", 1.0, 5.0, 1, "at"),
        ("a", 2.5, 5.0, 1, "between"),
        ("a", 3.0, 4.0, 3, "at"),
        ("a", 4.0, 4.0, 3, "after"),
    ]


def test_a_line_between_evaluations_is_marked_and_ends_with_them(tmp_path):
    run_of(tmp_path / "a", nlls=(None, 5.0, None, 4.0, None))
    assert cells(align(load_runs(tmp_path), [0, 1, 1.5, 4], interpolate=True)) == [
        ("a", 0.0, None, None, "before"),
        ("a", 1.0, 5.0, 1, "at"),
        ("a", 1.5, 4.75, None, "between"),
        ("a", 4.0, None, None, "after"),
    ]


def test_the_point_common_to_all_is_the_last_that_each_reached(tmp_path):
    run_of(tmp_path / "a")
    run_of(tmp_path / "b", tokens=30)
    make_run(tmp_path / "untested", [train_row(0, 4.0)])
    runs = load_runs(tmp_path)
    assert find_point(runs, "common") == 4
    assert find_point(runs, "common", "tokens") == 120
    chosen = choose(runs, "common", "tokens")
    assert chosen["step"].tolist()[:2] == [0, 4]  # a stood at 0 and 200 tokens
    assert chosen["where"].tolist()[:2] == ["between", "at"]
    assert chosen["point"].tolist()[:2] == ["step 0", "tokens 120"]
    assert pd.isna(chosen.loc["untested", "step"])


def test_points_that_are_none(tmp_path):
    run_of(tmp_path / "a", epochs=(0, 0, 0, 0, 0))
    runs = load_runs(tmp_path)
    assert (find_point(runs, "2.5"), find_point(runs, 3)) == (2.5, 3.0)
    with pytest.raises(ConfigError, match=r'^--at "final": choose last, best, common, or a number on the tokens axis$'):
        find_point(runs, "final", "tokens")
    with pytest.raises(ConfigError, match=r'^--at "nan": choose last'):
        find_point(runs, "nan")
    with pytest.raises(ConfigError, match=r"^not every run's evaluations have a place on the epoch axis: choose anoth"):
        find_point(runs, "common", "epoch")
    make_run(tmp_path / "untested", [train_row(0, 4.0)])
    with pytest.raises(ConfigError, match=r"^no run was evaluated yet: they have no common point$"):
        find_point(load_runs(tmp_path / "untested"), "common")


def test_train_nll_and_gap_belong_to_the_chosen_evaluation(tmp_path):
    run_of(tmp_path / "a", nlls=(5.0, None, 2.5, None, 3.0))
    runs = load_runs(tmp_path)
    columns = ["point", "step", "test_nll", "train_nll", "train_step", "gap", "fingerprint"]
    assert choose(runs, "last").loc["a", columns].tolist() == ["last", 4, 3.0, 1.0, 3, 2.0, "feed"]
    assert choose(runs, "best").loc["a", columns].tolist() == ["best", 2, 2.5, 2.0, 2, 0.5, "feed"]
    assert choose(runs, 1).loc["a", columns].tolist() == ["step 0", 0, 5.0, 4.0, 0, 1.0, "feed"]


def test_of_equal_evaluations_the_first_is_best(tmp_path):
    run_of(tmp_path / "a", nlls=(3.0, None, 2.5, None, 2.5))
    assert choose(load_runs(tmp_path), "best").loc["a", "step"] == 2


def test_a_run_that_was_not_evaluated_has_no_point(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 4.0)])
    row = choose(load_runs(tmp_path)).loc["a"]
    assert pd.isna(row["step"]) and math.isnan(row["test_nll"]) and row["fingerprint"] == "feed"
