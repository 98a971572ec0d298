import io
import math

import pytest
from rich.console import Console

from harness.compare import load_runs
from harness.compare.responses import draw, responses, responses_section, results
from harness.compare.terminal import print_sections
from harness.exceptions import ConfigError
from tests.compare.made_runs import last_row, make_run, train_row

# NLL by learning rate, rank and seed.
GRID = {
    ("1e-3", "8", "0"): 2.0,
    ("1e-3", "8", "1"): 2.4,
    ("1e-3", "16", "0"): 1.8,
    ("1e-3", "16", "1"): 1.6,
    ("1e-4", "8", "0"): 3.0,
    ("1e-4", "8", "1"): 3.2,
    ("1e-4", "16", "0"): 2.9,
    ("1e-4", "16", "1"): 2.9,
}


def make_runs(folder, nlls, names, fingerprints=None, state="FINISHED"):
    """Runs by their values, and what :func:`results` wants of them."""
    settings = {}
    for values, nll in nlls.items():
        name = ",".join(values)
        test = {"": (fingerprints or {}).get(values, "feed")}
        make_run(folder / name, [train_row(0, 5.0, 4.0), last_row(1, nll)], test=test, state=state)
        settings[name] = dict(zip(names, values, strict=True))
    return load_runs(folder), settings


@pytest.fixture
def grid(tmp_path):
    return results(*make_runs(tmp_path / "runs", GRID, ("learning_rate", "rank", "seed")))


def test_a_row_a_run_with_numbers_for_numbers(grid):
    row = grid.loc["1e-3,16,1"].to_dict()
    assert row == {"learning_rate": 1e-3, "rank": 16, "seed": 1, "test_nll": 1.6, "fingerprint": "feed"}


def test_the_best_and_the_mean_over_the_others_of_the_means_over_seeds(grid):
    found = responses(grid).set_index(["parameter", "value"])
    assert found.index.tolist() == [("learning_rate", 1e-4), ("learning_rate", 1e-3), ("rank", 8), ("rank", 16)]
    high = found.loc[("learning_rate", 1e-3)]
    # seeds: rank 8 (2.0 + 2.4) / 2 = 2.2, rank 16 (1.8 + 1.6) / 2 = 1.7
    assert high["num_runs"] == 4
    assert high[["best", "mean", "worst"]].tolist() == pytest.approx([1.7, 1.95, 2.2])
    assert high["seed_sd"] == pytest.approx(math.sqrt((0.1**2 + 0.1**2) / 1))
    rank = found.loc[("rank", 8)]
    assert rank[["best", "mean", "worst"]].tolist() == pytest.approx([2.2, 2.65, 3.1])


def test_without_seeds_there_is_no_spread_and_one_value_gives_no_response(tmp_path):
    measured = results(*make_runs(tmp_path, {("a", "1"): 2.0, ("b", "1"): 3.0}, ("kind", "rank")))
    found = responses(measured)
    assert found["parameter"].tolist() == ["kind", "kind"] and found["value"].tolist() == ["a", "b"]
    assert found["seed_sd"].isna().tolist() == [True, True] and found["best"].tolist() == [2.0, 3.0]


def test_seeds_alone_give_no_response(tmp_path):
    measured = results(*make_runs(tmp_path, {("0",): 2.0, ("1",): 3.0}, ("seed",)))
    assert len(measured) == 2 and len(responses(measured)) == 0


def test_words_and_numbers_of_one_parameter_stand_as_written(tmp_path):
    nlls = {("None",): 2.0, ("128",): 3.0, ("64",): 4.0}
    found = responses(results(*make_runs(tmp_path, nlls, ("max_length",))))
    assert found["value"].tolist() == ["None", 128, 64] and found["best"].tolist() == [2.0, 3.0, 4.0]


def test_runs_that_are_not_finished_or_not_evaluated_do_not_count(tmp_path):
    runs, settings = make_runs(tmp_path, {("1",): 2.0}, ("x",), state="FAILED")
    assert len(responses(results(runs, settings))) == 0
    make_run(tmp_path / "2", [train_row(0, 5.0)], test={})
    settings["2"] = {"x": "2"}
    assert len(results(load_runs(tmp_path), settings)) == 0


def test_test_sets_that_differ_are_kept_apart(tmp_path):
    """As max_length makes them differ: a longer conversation is tested on more of its tokens."""
    nlls = {("1", "64"): 2.0, ("1", "128"): 1.0, ("2", "64"): 3.0, ("2", "128"): 4.0}
    by_length = {values: values[1] for values in nlls}
    measured = results(*make_runs(tmp_path / "runs", nlls, ("x", "max_length"), by_length))
    found = responses(measured)
    rows = found[["parameter", "fingerprint", "value", "best"]].to_numpy().tolist()
    assert rows == [
        ["x", "64", 1, 2.0],
        ["x", "64", 2, 3.0],
        ["x", "128", 1, 1.0],
        ["x", "128", 2, 4.0],
        ["max_length", "64", 64, 2.0],
        ["max_length", "128", 128, 1.0],
    ]
    assert "TEST SETS DIFFER: NLLs compare only within one" in printed(found)
    draw(measured, found, tmp_path / "r.svg")
    drawn = (tmp_path / "r.svg").read_text()
    assert "<!-- test sets differ or are unknown: NLLs compare within one colour -->" in drawn


def printed(found):
    out = io.StringIO()
    print_sections([responses_section(found)], Console(file=out, width=60))
    return out.getvalue()


def test_the_table(grid):
    lines = [line.split() for line in printed(responses(grid)).splitlines()]
    assert ["parameter", "value", "runs", "best", "seed", "sd", "mean", "worst"] in lines
    assert ["learning_rate", "0.0001", "4", "2.9000", "0.0000", "3.0000", "3.1000"] in lines
    assert ["0.001", "4", "1.7000", "0.1414", "1.9500", "2.2000"] in lines
    assert ["rank", "8", "4", "2.2000", "0.2828", "2.6500", "3.1000"] in lines
    assert "TEST SETS DIFFER" not in printed(responses(grid))


def test_the_figure_has_a_panel_a_parameter_and_a_log_axis_over_decades(grid, tmp_path):
    path = tmp_path / "r.svg"
    path.write_text("of an earlier sweep")
    draw(grid, responses(grid), path)
    drawn = path.read_text()
    for text in ("learning_rate", "rank", "0.0001", "0.001", "8", "16", "run", "test NLL (nats per token)"):
        assert f"<!-- {text} -->" in drawn
    assert "test sets" not in drawn


def test_a_figure_that_cannot_be_written_is_one_line(grid, tmp_path):
    with pytest.raises(ConfigError, match=r"r\.png: cannot be written \(No such file or directory\): make room, then"):
        draw(grid, responses(grid), tmp_path / "gone" / "r.png")
