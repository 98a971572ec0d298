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
