from harness.tracking.attempt_tags import attempt_tags
from harness.tracking.mlflow_mirror import sync
from tests.tracking.conftest import end_attempt, start_run

MINUTE = 60_000
START = {"event": "start", "ts": 1_790_000_000_000, "next_step": 0, "resumed_from": None, "changed": {}}


def test_each_attempt_and_what_it_changed(tmp_path):
    run_dir = start_run(tmp_path / "run", max_steps=12)
    (run_dir / "attempts.jsonl").unlink()
    run_dir.append_attempt(START | {"attempt": 1})
    run_dir.append_attempt(START | {"attempt": 2, "ts": START["ts"] + MINUTE, "resumed_from": "000010"})
    end_attempt(run_dir, 2, "FINISHED", verified_rows=3, exact=True)
    changed = {"max_steps": 20, "num_epochs": 2}
    run_dir.append_attempt(START | {"attempt": 3, "resumed_from": "000012", "changed": changed})
    end_attempt(run_dir, 3, "FAILED", verified_rows=2, exact=False, is_inexact=False, error="ValueError: no")
    run_dir.append_attempt(START | {"attempt": 4, "resumed_from": "000012", "changed": changed})

    assert attempt_tags(run_dir) == {
        "harness.attempt.1": "2026-09-21 14:13 UTC, from the start, KILLED",
        "harness.attempt.2": (
            "2026-09-21 14:14 UTC, from checkpoint 000010, 3 rows made again, equal to the bit, FINISHED"
        ),
        "harness.attempt.3": (
            "2026-09-21 14:13 UTC, from checkpoint 000012, 2 rows made again, equal within the tolerance, FAILED"
        ),
        "harness.attempt.4": "2026-09-21 14:13 UTC, from checkpoint 000012, KILLED",
        "harness.changed.max_steps": "12 → 20",
        "harness.changed.num_epochs": "None → 2",
    }
    with run_dir.lock():
        assert attempt_tags(run_dir)["harness.attempt.4"].endswith(", RUNNING")


def test_what_an_attempt_used_stands_with_it(tmp_path):
    run_dir = start_run(tmp_path / "run")
    used = {"trained": 12_000, "evaluated": 300, "measured": 45}
    for attempt, more in (
        (1, {"price": None}),
        (2, {"price": 0.5}),
        (3, {"price": None, "asked": 6_000, "sampled": 1}),
    ):
        run_dir.append_attempt(START | {"attempt": attempt})
        end_attempt(run_dir, attempt, "FINISHED", used=used | more)
    tags = attempt_tags(run_dir)
    assert tags["harness.attempt.1"].endswith(", from the start, 12,345 tokens used, FINISHED")
    assert tags["harness.attempt.2"].endswith(", 12,345 tokens used for 0.5000, FINISHED")
    assert tags["harness.attempt.3"].endswith(", 18,346 tokens used, FINISHED")


def test_more_attempts_than_tags_in_a_call(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "run")
    for attempt in range(2, 121):
        run_dir.append_attempt(START | {"attempt": attempt})
    tags = client.get_run(sync(run_dir, uri).run_id).data.tags
    assert sum(key.startswith("harness.attempt.") for key in tags) == 120
