import json

import pytest

from harness.tracking.points import Cursor, Totals, clean_key, points, sent_row, unsent
from tests.tracking.conftest import T0, row, start_run

ROWS = [
    row(0, 4.0, num_tokens=100) | {"time/step": 0.5, "test/nll": 5.0},
    row(1, 3.5, num_tokens=50) | {"time/step": 0.25},
    row(2, 3.0, num_tokens=7) | {"time/step": 1.0, "test/nll": 4.5},
    {"step": 3, "ts": T0 + 3000, "test/nll": 4.5, "time/eval": 2.0},
]


def test_a_row_shows_what_the_run_has_come_to():
    shown = [
        {key: value for key, value in row.values.items() if key not in ROWS[i]} for i, row in enumerate(points(ROWS))
    ]
    assert shown == [
        {"total_tokens": 100, "wall_seconds": 0.5, "best_test_nll": 5.0, "best_step": 0},
        {"total_tokens": 150, "wall_seconds": 0.75},
        {"total_tokens": 157, "wall_seconds": 1.75, "best_test_nll": 4.5, "best_step": 2},
        {"best_test_nll": 4.5, "best_step": 2},  # the earliest of equals, and nothing of the updates
    ]
    assert [(row.step, row.ts) for row in points(ROWS)] == [(step, T0 + 1000 * step) for step in range(4)]


def test_the_best_is_of_the_first_test_set():
    named = {"step": 0, "ts": T0, "test/hard/nll": 5.0, "test/easy/nll": 1.0}
    (only,) = points([named])
    assert only.values["best_test_nll"] == 5.0


def test_completing_the_last_row_only_adds_points():
    *_, before = points(ROWS)
    *_, after = points([*ROWS[:3], row(3, 2.5, num_tokens=3) | {"time/step": 0.25} | ROWS[3]])
    assert before.values.items() <= after.values.items()
    assert after.values.keys() - before.values.keys() == {"train_mean_nll", "num_tokens", "time/step"} | {
        "total_tokens",
        "wall_seconds",
    }
    assert (after.values["total_tokens"], after.values["wall_seconds"]) == (160, 2.0)


def test_the_totals_go_on_from_the_cursor_as_if_all_had_been_read(tmp_path):
    run_dir = start_run(tmp_path / "run")
    for written in ROWS:
        run_dir.append_metrics(written)
    whole = list(unsent(run_dir, None))
    assert [at.step for at in whole] == [0, 1, 2, 3]
    for i, at in enumerate(whole):
        cursor = Cursor.from_row(json.loads(json.dumps(at.cursor.to_row())))  # by way of mirror.json
        assert list(unsent(run_dir, cursor)) == whole[i + 1 :]
        assert cursor and sent_row(run_dir, cursor) == at


def test_a_cursor_whose_row_grew_or_was_superseded(tmp_path):
    run_dir = start_run(tmp_path / "run")
    for written in ROWS:
        run_dir.append_metrics(written)
    *_, last = unsent(run_dir, None)
    run_dir.complete_row(row(3, 2.5, num_tokens=3) | ROWS[3])
    (grown,) = unsent(run_dir, last.cursor)
    assert grown.values["total_tokens"] == 160

    run_dir.supersede(from_step=3, attempt=2)
    run_dir.append_metrics(row(3, 2.4, ts=T0 + 90_000))
    assert sent_row(run_dir, last.cursor) is None
    assert [at.step for at in unsent(run_dir, last.cursor)] == [0, 1, 2, 3]


def test_mirror_json_without_a_cursor():
    assert Cursor.from_row({}) is None
    assert Cursor.from_row({"sent_step": None}) is None
    assert Cursor.from_row({"sent_step": 3, "sent_ts": T0, "sent_points": 9}) is None  # of a version without totals
    assert Totals().plus(ROWS[3]) == Totals(best_test_nll=4.5, best_step=3)


@pytest.mark.parametrize(
    ("key", "cleaned"),
    [
        ("test/nll", "test/nll"),
        ("time/step", "time/step"),
        ("a:b%c", "a_b_c"),
        ("/a//../b/./c/", "a/b/c"),
        ("..", "_"),
        ("x" * 300, "x" * 250),
    ],
)
def test_clean_key(key, cleaned):
    assert clean_key(key) == cleaned


def later(step, nll, ts, **more):
    metrics = {"test/new/nll": nll, "test/new/bpb": nll / 2}
    return {"step": step, "ts": ts, "metrics": metrics, "set": "new", "fingerprint": "aa", "num_examples": 3} | more


def test_what_was_evaluated_after_training_follows_with_its_own_time(tmp_path):
    run_dir = start_run(tmp_path / "run")
    for written in ROWS:
        run_dir.append_metrics(written)
    *_, last = unsent(run_dir, None)
    run_dir.append_later_evaluation(later(3, 1.0, T0 + 90_000))
    run_dir.append_later_evaluation(later(2, 1.5, T0 + 91_000, superseded_by_attempt=2))
    run_dir.append_later_evaluation(later(2, 2.0, T0 + 92_000))
    found = list(unsent(run_dir, last.cursor))
    assert [(row.step, row.ts, dict(row.values)) for row in found] == [
        (3, T0 + 90_000, {"test/new/nll": 1.0, "test/new/bpb": 0.5}),
        (2, T0 + 91_000, {}),
        (2, T0 + 92_000, {"test/new/nll": 2.0, "test/new/bpb": 1.0}),
    ]
    cursor = Cursor.from_row(json.loads(json.dumps(found[0].cursor.to_row())))
    assert list(unsent(run_dir, cursor)) == found[1:]
    assert list(unsent(run_dir, found[-1].cursor)) == []
    assert [row.step for row in unsent(run_dir, None)] == [0, 1, 2, 3, 3, 2, 2]

    run_dir.append_metrics(row(4, 2.0))  # the run goes on
    (added,) = unsent(run_dir, found[-1].cursor)
    assert (added.step, added.cursor.num_later) == (4, 3)
