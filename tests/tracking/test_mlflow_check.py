import contextlib
import sqlite3
from pathlib import Path

import pytest

from harness.exceptions import TrackingError
from harness.run_dir import CheckpointRecord, RunDir
from harness.tracking.mlflow_check import check
from harness.tracking.mlflow_mirror import sync
from harness.tracking.mlflow_rebuild import rebuild
from tests.tracking.conftest import T0, end_attempt, history, mirror_to, row, start_run


@pytest.fixture
def run_dir(tmp_path):
    run_dir = start_run(tmp_path / "run")
    for step, nll in enumerate((4.0, 3.5, 3.0)):
        run_dir.append_metrics(row(step, nll))
    end_attempt(run_dir, 1)
    return run_dir


def execute(uri: str, *statements: str) -> None:
    """Change the database behind MLflow's back."""
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def words(run_dir: RunDir, uri: str | None = None) -> list[str]:
    return [str(difference) for difference in check(run_dir, uri).differences]


def test_equal_after_a_sync_and_nothing_is_changed_by_looking(tmp_path, uri, client, run_dir):
    before = check(run_dir, uri)
    assert (before.is_equal, before.run_id, before.mended_by) == (False, None, "sync")
    assert client.get_experiment_by_name("exp") is None and run_dir.mirror() is None
    nowhere = f"sqlite:///{tmp_path}/nowhere/mlflow.db"
    assert check(run_dir, nowhere).run_id is None
    assert not (tmp_path / "nowhere").exists()

    run_id = sync(run_dir, uri).run_id
    client.log_metric(run_id, "system/cpu", 5.0)
    files = {path: path.read_bytes() for path in run_dir.path.iterdir()}
    result = check(run_dir)
    assert (result.is_equal, result.num_points, result.run_id) == (True, 3, run_id)
    assert {path: path.read_bytes() for path in run_dir.path.iterdir()} == files


def test_what_is_missing_is_named_and_sent(uri, client, run_dir):
    run_id = sync(run_dir, uri).run_id
    run_dir.append_metrics(row(3, 2.5))
    result = check(run_dir)
    assert words(run_dir) == [
        "points missing in MLflow: 1 (train_mean_nll at step 3)",
        "files to upload to MLflow: 1 (metrics.jsonl)",
    ]
    assert result.mended_by == "sync"
    assert sync(run_dir).num_points == 1
    assert check(run_dir).is_equal

    execute(uri, "DELETE FROM metrics WHERE step = 1")  # before the last, where sync does not look
    assert words(run_dir) == ["points missing in MLflow: 1 (train_mean_nll at step 1)"]
    assert check(run_dir).mended_by == "sync --rebuild"
    result, replaced = rebuild(run_dir)
    assert (result.run_id, replaced) == (run_id, None)
    assert check(run_dir).is_equal


def test_what_only_mlflow_has_needs_a_rebuild(uri, client, run_dir):
    run_id = sync(run_dir, uri).run_id
    client.log_metric(run_id, "mine", 1.0, T0, 10)  # a user's own
    assert check(run_dir).is_equal
    for step in range(10, 14):
        client.log_metric(run_id, "train_mean_nll", 1.0, T0, step)
    client.log_metric(run_id, "train_mean_nll", 9.0, T0 + 1000, 1)
    assert words(run_dir) == [
        "points only in MLflow: 4 (train_mean_nll at step 10, train_mean_nll at step 11, train_mean_nll at step 12, …)",
        "points with another value in MLflow: 1 (train_mean_nll at step 1)",
    ]
    assert check(run_dir).mended_by == "sync --rebuild"
    assert rebuild(run_dir)[1] == run_id
    assert check(run_dir).is_equal


def test_what_stands_beside_the_points(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "b", document={"data": {"train": "beef", "test": {"": "feed"}}})
    run_dir.append_metrics(row(0, 4.0) | {"test/nll": 4.0})
    run_dir.append_checkpoint(CheckpointRecord("000000", 0, 0, 0, "checkpoints/000000"))
    end_attempt(run_dir, 1)
    run_id = sync(run_dir, uri).run_id
    execute(uri, "DELETE FROM inputs", "DELETE FROM tags WHERE key = 'harness.run_id'")
    client.delete_tag(run_id, "harness.log_path")
    for model in client.search_logged_models([client.get_run(run_id).info.experiment_id]):
        client.delete_logged_model(model.model_id)
    next(Path(uri.removeprefix("sqlite:///")).parent.glob(f"artifacts/**/{run_id}/artifacts/nll.png")).unlink()
    assert words(run_dir) == [
        "tags to set in MLflow: 2 (harness.run_id, harness.log_path)",
        "data sets missing in MLflow: 2 (Builder, Builder)",
        "checkpoints missing in MLflow: 1 (ckpt-000000)",
        "files to upload to MLflow: 1 (nll.png)",
    ]
    assert sync(run_dir).num_points == 0
    assert check(run_dir).is_equal


def test_superseded_points_are_named_as_such(uri, run_dir):
    sync(run_dir, uri)
    run_dir.supersede(from_step=1, attempt=2)
    run_dir.append_metrics(row(1, 3.4, ts=T0 + 90_000))
    sync(run_dir)
    assert words(run_dir) == ["superseded points in MLflow: 2 (train_mean_nll at step 1, train_mean_nll at step 2)"]
    assert sync(run_dir).num_points == 0


def test_params_tags_status_and_files(uri, client, run_dir):
    run_id = sync(run_dir, uri).run_id
    client.set_tag(run_id, "harness.exactness", "exact")
    client.update_run(run_id, status="RUNNING")
    execute(uri, "UPDATE params SET value = '1' WHERE key = 'learning_rate'", "DELETE FROM params WHERE key = 'note'")
    (run_dir / "attempts.jsonl").write_text((run_dir / "attempts.jsonl").read_text() + "\n{}")
    (run_dir / "attempts.jsonl").write_text((run_dir / "attempts.jsonl").read_text()[:-3])
    (run_dir / "eval_examples.jsonl").write_text('{"step": 0, "set": ""}\n')
    assert words(run_dir) == [
        "params missing in MLflow: 1 (note)",
        "params with another value in MLflow: 1 (learning_rate ('1', not '0.0002'))",
        "tags to set in MLflow: 1 (harness.exactness)",
        "status to set in MLflow: 1 (RUNNING, not FINISHED)",
        "files to upload to MLflow: 1 (eval_examples.jsonl)",
    ]
    client.delete_run(run_id)
    assert words(run_dir) == [f"run deleted in MLflow: 1 ({run_id})"]


def test_a_run_that_is_being_trained_is_compared_as_far_as_it_was_sent(tmp_path, uri):
    run_dir = start_run(tmp_path / "live")
    with run_dir.lock():
        run_dir.append_metrics(row(0, 4.0))
        mirror_to(run_dir, uri).send()
        run_dir.append_metrics(row(1, 3.5))
        result = check(run_dir)
    assert (result.is_equal, result.until, result.num_points) == (True, 0, 1)


# ---- what MLflow lost


def test_a_store_restored_from_a_backup_gets_all_again(uri, client, run_dir):
    run_id = sync(run_dir, uri).run_id
    path = uri.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path)) as now, contextlib.closing(sqlite3.connect(":memory:")) as backup:
        now.backup(backup)
        for step in range(3, 6):
            run_dir.append_metrics(row(step, 2.0))
        assert sync(run_dir).num_points == 3
        backup.backup(now)
    assert len(history(client, run_id, "train_mean_nll")) == 3
    assert check(run_dir).mended_by == "sync"
    assert (sync(run_dir).num_points, sync(run_dir).num_points) == (6, 0)
    assert check(run_dir).is_equal


def test_a_live_mirror_finds_out_that_its_run_was_deleted(uri, client, run_dir):
    mirror = mirror_to(run_dir, uri)
    mirror.send()
    client.delete_run(mirror.run_id)
    run_dir.append_metrics(row(3, 2.5))
    with pytest.raises(TrackingError, match=rf"its MLflow run {mirror.run_id} was deleted at .*: restore it there"):
        mirror.send()
    client.restore_run(mirror.run_id)
    assert mirror.send() == 1


def test_a_live_mirror_finds_out_that_the_store_was_made_anew(uri, client, run_dir):
    mirror = mirror_to(run_dir, uri)
    assert mirror.send() == 3
    execute(uri, *(f"DELETE FROM {table}" for table in ("metrics", "latest_metrics", "params", "tags", "runs")))
    run_dir.append_metrics(row(3, 2.5))
    assert mirror.send() == 4
    assert len(history(client, mirror.run_id, "train_mean_nll")) == 4


# ---- what was evaluated after training


def evaluate(run_dir: RunDir, step: int, nll: float, ts: int) -> None:
    metrics = {"test/new/nll": nll}
    run_dir.append_later_evaluation(
        {"step": step, "ts": ts, "metrics": metrics, "set": "new", "fingerprint": "aa", "ids": ["x"]}
    )


def test_what_was_evaluated_after_training_is_sent_once_compared_and_rebuilt(uri, client, run_dir):
    run_dir.append_metrics(row(3, 2.5) | {"test/nll": 3.0})
    run_id = sync(run_dir, uri).run_id
    evaluate(run_dir, 3, 1.0, T0 + 90_000)
    evaluate(run_dir, 2, 2.0, T0 + 91_000)
    assert words(run_dir) == [
        "points missing in MLflow: 2 (test/new/nll at step 2, test/new/nll at step 3)",
        "files to upload to MLflow: 1 (later_evaluations.jsonl)",
    ]
    assert check(run_dir).mended_by == "sync"
    assert (sync(run_dir).num_points, sync(run_dir).num_points) == (2, 0)
    expected = [(2, T0 + 91_000, 2.0), (3, T0 + 90_000, 1.0)]
    assert history(client, run_id, "test/new/nll") == expected
    assert check(run_dir).is_equal
    assert client.get_run(run_id).data.metrics["best_test_nll"] == 3.0

    execute(uri, "DELETE FROM metrics WHERE key = 'test/new/nll' AND step = 2")
    assert check(run_dir).mended_by == "sync --rebuild"
    rebuild(run_dir)
    client.log_metric(run_id, "test/new/nll", 9.0, T0, 7)
    result, replaced = rebuild(run_dir)
    assert replaced == run_id
    assert history(client, result.run_id, "test/new/nll") == expected
    assert check(run_dir).is_equal


def test_a_store_that_lost_what_was_evaluated_after_training_gets_all_again(uri, client, run_dir):
    evaluate(run_dir, 2, 2.0, T0 + 91_000)
    run_id = sync(run_dir, uri).run_id
    execute(uri, *(f"DELETE FROM {table} WHERE key = 'test/new/nll'" for table in ("metrics", "latest_metrics")))
    assert check(run_dir).mended_by == "sync"
    assert sync(run_dir).num_points == 4
    assert history(client, run_id, "test/new/nll") == [(2, T0 + 91_000, 2.0)]


def test_an_evaluation_that_a_resume_superseded_is_named_as_such(uri, run_dir):
    evaluate(run_dir, 2, 2.0, T0 + 91_000)
    sync(run_dir, uri)
    run_dir.supersede_later_evaluations(1, attempt=2)
    sync(run_dir)
    assert words(run_dir) == ["superseded points in MLflow: 1 (test/new/nll at step 2)"]
    rebuild(run_dir)
    assert check(run_dir).is_equal


def test_of_a_run_that_is_being_trained_what_was_evaluated_before_is_compared_once_it_was_sent(tmp_path, uri):
    run_dir = start_run(tmp_path / "live")
    run_dir.append_metrics(row(0, 4.0))
    with run_dir.lock():
        mirror = mirror_to(run_dir, uri)
        mirror.send()
        evaluate(run_dir, 0, 2.0, T0 + 91_000)
        before = check(run_dir)
        mirror.send()
        after = check(run_dir)
    assert (before.is_equal, before.num_points) == (True, 1)
    assert (after.is_equal, after.num_points) == (True, 2)
