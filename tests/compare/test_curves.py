import math

import pytest

from harness.compare import load_runs
from harness.compare.curves import Resume, curves, resumes
from tests.compare.made_runs import last_row, make_run, train_row


def test_points_stand_where_they_were_measured_and_gaps_are_of_the_last_batch_until_then(tmp_path):
    rows = [train_row(0, 4.0, 4.5), train_row(1, 3.0), train_row(2, 2.5, 3.25), last_row(3, 3.0)]
    make_run(tmp_path / "a", rows)
    make_run(tmp_path / "b", [])
    found = curves(load_runs(tmp_path), "tokens")
    a, b = found["a"], found["b"]
    assert (a.train_step.tolist(), a.train_x.tolist(), a.train_nll.tolist()) == ([0, 1, 2], [0, 100, 200], [4, 3, 2.5])
    assert (a.test_step.tolist(), a.test_x.tolist(), a.test_nll.tolist()) == ([0, 2, 3], [0, 200, 300], [4.5, 3.25, 3])
    assert a.gap.tolist() == [0.5, 0.75, 0.5]
    assert a.num_unplaced == len(b.train_nll) == len(b.test_nll) == 0


def test_an_evaluation_before_the_first_batch_has_no_gap(tmp_path):
    make_run(tmp_path / "a", [last_row(0, 3.0), train_row(1, 2.0)])
    assert math.isnan(curves(load_runs(tmp_path))["a"].gap[0])


@pytest.mark.parametrize(("x", "drawn", "unplaced"), [("step", 1, 1), ("epoch", 0, 3)])
def test_points_without_a_place_are_left_out_and_counted(tmp_path, x, drawn, unplaced):
    rows = [train_row(0, 4.0, 3.0), train_row(1, 1e999)]
    run = make_run(tmp_path / "a", rows[:1])
    with (run / "metrics.jsonl").open("a") as file:  # as other programs write it
        file.write('{"step": 1, "train_mean_nll": Infinity, "num_tokens": 1}\n')
    found = curves(load_runs(tmp_path), x)["a"]
    assert (len(found.train_nll), len(found.test_nll), found.num_unplaced) == (drawn, drawn, unplaced)


def test_resumes_are_the_attempts_that_went_on(tmp_path):
    make_run(tmp_path / "whole", [train_row(0, 4.0)])
    run = make_run(tmp_path / "resumed", [train_row(k, 4.0) for k in range(4)], state=None)
    run.supersede(2, attempt=2)
    for attempt, step in ((2, 1), (3, 4)):
        run.append_attempt({"attempt": attempt, "event": "start", "ts": 1, "next_step": step})
    fork = make_run(tmp_path / "fork", [train_row(0, 4.0)], state=None)
    (fork / "attempts.jsonl").write_text("")
    fork.append_attempt({"attempt": 1, "event": "start", "ts": 1, "next_step": 1})
    assert resumes(load_runs(tmp_path)) == {
        "fork": [Resume(1, 1, 0)],
        "resumed": [Resume(2, 1, 2), Resume(3, 4, 0)],
    }


@pytest.mark.parametrize("damaged", ["attempts.jsonl", "metrics.superseded.jsonl"])
def test_a_run_whose_files_do_not_tell_is_left_out_and_noted(tmp_path, damaged):
    for name in ("a", "b"):
        run = make_run(tmp_path / name, [train_row(k, 4.0) for k in range(4)], state=None)
        run.supersede(2, attempt=2)
        run.append_attempt({"attempt": 2, "event": "start", "ts": 1, "next_step": 1})
    file = tmp_path / "a" / damaged
    file.write_text("{damaged\n" + file.read_text())
    runs = load_runs(tmp_path)
    assert resumes(runs) == {"b": [Resume(2, 1, 2)]}
    assert [note.startswith(f"{file}:1: ") for note in runs.notes["a"]] == [True]
