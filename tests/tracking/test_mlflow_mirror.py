import logging
import shutil
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from harness.exceptions import RunDirError, TrackingError
from harness.files import append_jsonl
from harness.run_dir import RunDir
from harness.tracking.live_mirror import LiveMirror
from harness.tracking.mlflow_mirror import sync
from harness.tracking.mlflow_store import Destination
from tests.tracking.conftest import T0, end_attempt, history, mirror_to, mirrored, row, start_attempt, start_run

ALL = [(0, T0, 4.0), (1, T0 + 1000, 3.5), (2, T0 + 2000, 3.0)]


def live(run_dir: RunDir, uri: str, **options: Any) -> LiveMirror:
    options = {"interval": 0.01} | options
    mirror = LiveMirror(run_dir, Destination.of(run_dir.config(), uri), **options)
    mirror.start()
    return mirror


def wait_until(condition) -> None:
    """Let the mirror's thread come to ``condition``; fails the test where it never does."""
    pause = threading.Event()
    for _ in range(3000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("the mirror did not get there")


def sent_step(run_dir: RunDir) -> int | None:
    return (run_dir.mirror() or {}).get("sent_step")


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


# ---- live, then sync, then sync again


def test_every_point_stands_once_with_its_own_time_after_live_and_two_syncs(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "run")
    with run_dir.lock():
        mirror = live(run_dir, uri)
        run_dir.append_metrics(row(0, 4.0, batch_digest="9f", epoch=0))
        wait_until(lambda: sent_step(run_dir) == 0)  # while training goes on
        run_id = mirrored(run_dir)["run_id"]
        assert client.get_run(run_id).info.status == "RUNNING"
        run_dir.append_metrics(row(1, 3.5))
        run_dir.append_metrics(row(2, 3.0))
        end_attempt(run_dir, 1)
        mirror.finish("FINISHED")
    assert history(client, run_id, "train_mean_nll") == ALL
    assert mirror.where() == f'experiment "exp", run "first" at {uri}'

    assert sync(run_dir).num_points == 0
    (run_dir / "mirror.json").unlink()
    again = sync(run_dir, uri)

    assert (again.run_id, again.tracking_uri, again.num_points) == (run_id, uri, 4)
    assert history(client, run_id, "train_mean_nll") == ALL
    assert history(client, run_id, "epoch") == [(0, T0, 0.0)]
    assert set(client.get_run(run_id).data.metrics) == {"train_mean_nll", "epoch"}
    assert len(client.search_runs(["1"])) == 1


def test_a_finished_run_has_its_files_params_tags_status_and_times(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "run", tags={"team": "a", "bad:key": "b"}, run_name="named", max_steps=3)
    run_dir.append_metrics(row(0, 4.0))
    end_attempt(run_dir, 1)
    run = client.get_run(sync(run_dir, uri).run_id)

    assert (run.info.run_name, run.info.status) == ("named", "FINISHED")
    assert (run.info.start_time, run.info.end_time) == (T0 - 500, T0 + 60_000)
    assert {f.path for f in client.list_artifacts(run.info.run_id)} == {
        "config.json",
        "metrics.jsonl",
        "nll.png",
        "attempts.jsonl",
    }
    assert run.info.artifact_uri.startswith((tmp_path / "mlruns" / "artifacts").as_uri())
    assert run.data.params["dataset_builder.common_config.batch_size"] == "8"
    assert run.data.params["dataset_builder"] == "my.data:Builder"
    assert run.data.params["max_steps"] == "3"
    expected = {
        "team": "a",
        "bad_key": "b",
        "mlflow.source.name": "train.py",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": "abc123",
        "harness.run_id": run_dir.config()["run_id"],
        "harness.log_path": str(tmp_path / "run"),
        "harness.recipe": "sl_basic",
        "harness.backend": "LocalBackend",
        "harness.model": "tiny/model",
        "harness.renderer": "role_colon",
        "harness.attempts": "1",
        "harness.exactness": "uninterrupted",
    }
    assert {key: run.data.tags.get(key) for key in expected} == expected
    assert run.data.tags["mlflow.note.content"].startswith("Supervised fine-tuning of `tiny/model`, ")


def test_the_users_note_is_the_description_and_an_edit_in_mlflow_stays(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "run", note="why I did it")
    run_id = sync(run_dir, uri).run_id
    assert client.get_run(run_id).data.tags["mlflow.note.content"] == "why I did it"
    client.set_tag(run_id, "mlflow.note.content", "edited")
    sync(run_dir)
    assert client.get_run(run_id).data.tags["mlflow.note.content"] == "edited"


def test_a_failed_run_says_why_until_it_is_resumed(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "run")
    end_attempt(run_dir, 1, "FAILED", error="ValueError: at http://bob:s3cret@host/x")
    run_id = sync(run_dir, uri).run_id
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["harness.error"]) == ("FAILED", "ValueError: at http://host/x")

    start_attempt(run_dir, 2)
    with run_dir.lock():
        sync(run_dir)
        run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert "harness.error" not in run.data.tags


def test_a_killed_run_ends_at_its_last_sign_of_life(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "run")
    run_dir.append_metrics(row(7, 3.0))
    run = client.get_run(sync(run_dir, uri).run_id)
    assert (run.info.status, run.info.end_time) == ("KILLED", T0 + 7000)


# ---- one run directory, one MLflow run


def test_a_resumed_run_keeps_its_mlflow_run_and_changed_params_do_no_harm(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "run")
    run_dir.append_metrics(row(0, 4.0))
    run_id = sync(run_dir, uri).run_id
    document = run_dir.config()
    document["config"] |= {"learning_rate": 1e-5, "new_field": "new"}
    (run_dir / "config.json").unlink()
    run_dir.write_config(document)

    start_attempt(run_dir, 2)
    with run_dir.lock():
        mirror = live(run_dir, uri)
        run_dir.append_metrics(row(1, 3.5))
        end_attempt(run_dir, 2, verified_rows=3, exact=True)
        mirror.finish("FINISHED")

    run = client.get_run(run_id)
    assert history(client, run_id, "train_mean_nll") == ALL[:2]
    assert (run.data.params["learning_rate"], run.data.params["new_field"]) == ("0.0002", "new")
    assert (run.data.tags["harness.attempts"], run.data.tags["harness.exactness"]) == ("2", "exact")
    assert len(client.search_runs(["1"])) == 1


def test_a_crash_between_making_the_run_and_noting_it_makes_no_second_one(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "run")
    (run_dir / ".mirror.json.tmp").mkdir()  # mirror.json cannot be written
    with pytest.raises(RunDirError, match=r"mirror\.json: cannot be written"):
        sync(run_dir, uri)
    (made,) = client.search_runs(["1"])
    (run_dir / ".mirror.json.tmp").rmdir()
    assert sync(run_dir, uri).run_id == made.info.run_id


def test_another_store_gets_every_point_and_mirror_json_follows(tmp_path, uri, database, client):
    run_dir = start_run(tmp_path / "run")
    run_dir.append_metrics(row(0, 4.0))
    other = f"sqlite:///{shutil.copy(database, tmp_path / 'other.db')}"
    first = sync(run_dir, other)
    second = sync(run_dir, uri)
    assert (second.num_points, mirrored(run_dir)["tracking_uri"]) == (1, uri)
    assert history(client, second.run_id, "train_mean_nll") == ALL[:1]
    assert sync(run_dir, other).run_id == first.run_id


def test_a_store_made_anew_gets_the_run_again(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "run")
    run_dir.append_metrics(row(0, 4.0))
    sync(run_dir, uri)
    run_dir.write_mirror(mirrored(run_dir) | {"run_id": "0" * 32})
    (run_dir / "config.json").write_text((run_dir / "config.json").read_text().replace('"exp"', '"other"'))
    result = sync(run_dir)
    assert result.num_points == 1
    assert history(client, result.run_id, "train_mean_nll") == ALL[:1]


def test_a_run_deleted_in_mlflow_is_refused_and_not_made_again(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "run")
    run_id = sync(run_dir, uri).run_id
    client.delete_run(run_id)
    message = rf"its MLflow run {run_id} was deleted .*: .* \(MLFLOW_.* mlflow runs restore --run-id {run_id}\)"
    with pytest.raises(TrackingError, match=message):
        sync(run_dir)
    (run_dir / "mirror.json").unlink()
    with pytest.raises(TrackingError, match=message):
        sync(run_dir, uri)
    client.restore_run(run_id)
    assert sync(run_dir, uri).run_id == run_id


def test_a_deleted_experiment_is_refused(tmp_path, uri, client):
    client.delete_experiment(client.create_experiment("exp"))
    with pytest.raises(TrackingError, match=r'the experiment "exp" was deleted .* with experiment=NAME'):
        sync(start_run(tmp_path / "run"), uri)


# ---- rows


def test_a_torn_row_is_sent_once_it_is_whole(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "run")
    mirror = mirror_to(run_dir, uri)
    run_dir.append_metrics(row(0, 4.0))
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "ts": 17900')
    assert mirror.send() == 1
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('00001000, "train_mean_nll": 3.5}\n')
    assert mirror.send() == 1
    assert history(client, mirror.run_id, "train_mean_nll") == ALL[:2]


def test_superseded_rows_are_followed_by_those_written_anew(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "run")
    for step, nll in enumerate((4.0, 3.5, 3.0)):
        run_dir.append_metrics(row(step, nll))
    mirror = mirror_to(run_dir, uri)
    assert mirror.send() == 3
    run_dir.supersede(from_step=1, attempt=2)
    run_dir.append_metrics(row(1, 3.4, ts=T0 + 90_000))
    run_dir.append_metrics(row(2, 2.9, ts=T0 + 91_000))
    mirror.send()
    assert history(client, mirror.run_id, "train_mean_nll") == [
        (0, T0, 4.0),
        (1, T0 + 1000, 3.5),
        (1, T0 + 90_000, 3.4),
        (2, T0 + 2000, 3.0),
        (2, T0 + 91_000, 2.9),
    ]
    assert mirror.send() == 0


def test_the_last_evaluations_row_is_sent_again_when_an_extended_run_completes_it(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "run")
    run_dir.append_metrics({"step": 0, "ts": T0, "test/nll": 5.0})
    mirror = mirror_to(run_dir, uri)
    mirror.send()
    (run_dir / "metrics.jsonl").unlink()
    run_dir.append_metrics(row(0, 4.0) | {"test/nll": 5.0})
    run_dir.append_metrics(row(1, 3.5))
    mirror.send()
    assert history(client, mirror.run_id, "train_mean_nll") == ALL[:2]
    assert history(client, mirror.run_id, "test/nll") == [(0, T0, 5.0)]


def test_many_rows_and_rows_wider_than_a_call(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "run")
    wide = {f"test/set{i}/nll": float(i) for i in range(1001)}
    append_jsonl(run_dir / "metrics.jsonl", [row(step, 1.0 + step) for step in range(120)] + [row(120, 0.5) | wide])
    mirror = mirror_to(run_dir, uri)
    assert mirror.send() == 121 + 1001 + 2  # the best test NLL and its step
    assert mirror.send() == 0
    assert len(history(client, mirror.run_id, "train_mean_nll")) == 121
    assert history(client, mirror.run_id, "test/set1000/nll") == [(120, T0 + 120_000, 1000.0)]


def test_keys_and_values_that_mlflow_does_not_take(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "run", long="x" * 7000)
    run_dir.append_metrics(row(0, 4.0, **{"test/a?b/nll": 1.0, "flag": True, "none": None, "text": "x"}))
    mirror = mirror_to(run_dir, uri)
    mirror.send()
    run = client.get_run(mirror.run_id)
    assert run.data.metrics == {"train_mean_nll": 4.0, "test/a_b/nll": 1.0, "best_test_nll": 1.0, "best_step": 0.0}
    assert run.data.params["long"] == "x" * 6000


# ---- trouble


def test_a_dead_server_warns_once_and_never_raises_and_sync_completes_later(tmp_path, uri, client, caplog):
    caplog.set_level(logging.INFO, "harness.tracking")
    run_dir = start_run(tmp_path / "run")
    port = closed_port()
    mirror = live(run_dir, f"http://bob:s3cret@127.0.0.1:{port}")
    for step, nll in enumerate((4.0, 3.5, 3.0)):
        run_dir.append_metrics(row(step, nll))
    wait_until(lambda: caplog.records)
    end_attempt(run_dir, 1)
    mirror.finish("FINISHED")

    reason = f"MLflow at http://127.0.0.1:{port} cannot be reached (ConnectionError): is the server up?"
    command = f"python -m harness sync {run_dir}"
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]  # a person sees one
    assert [record.getMessage() for record in caplog.records] == [
        f"{reason}: training goes on, and MLflow catches up once that is mended, or by {command}",
        f"{reason}: {command} completes the MLflow run",
    ]
    assert mirror.where() is None
    with pytest.raises(TrackingError) as raised:
        sync(run_dir, f"http://bob:s3cret@127.0.0.1:{port}")
    assert str(raised.value) == reason
    assert raised.value.__cause__ is None and raised.value.__suppress_context__

    assert history(client, sync(run_dir, uri).run_id, "train_mean_nll") == ALL


def test_an_outage_is_caught_up_with_by_itself_and_no_password_is_written(tmp_path, serve, caplog, capfd):
    caplog.set_level(logging.INFO, "harness.tracking")
    server = serve(0)
    address = f"127.0.0.1:{server.server_port}"
    run_dir = start_run(tmp_path / "run", experiment="outage")
    mirror = live(run_dir, f"http://bob:s3cret@{address}", max_interval=0.05)
    run_dir.append_metrics(row(0, 4.0))
    wait_until(lambda: sent_step(run_dir) == 0)
    server.shutdown()
    server.server_close()
    run_dir.append_metrics(row(1, 3.5))
    wait_until(lambda: caplog.records)
    serve(server.server_port)
    wait_until(lambda: sent_step(run_dir) == 1)
    run_dir.append_metrics(row(2, 3.0))
    end_attempt(run_dir, 1)
    mirror.finish("FINISHED")

    from mlflow import MlflowClient

    client = MlflowClient(f"http://{address}")
    run = client.get_run(mirrored(run_dir)["run_id"])
    assert history(client, run.info.run_id, "train_mean_nll") == ALL
    assert run.info.status == "FINISHED"
    assert {f.path for f in client.list_artifacts(run.info.run_id)} >= {"metrics.jsonl", "config.json"}
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    page = f"http://{address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert mirror.where() == f'experiment "outage", run "first" at {page}'
    assert sync(run_dir).tracking_uri == f"http://{address}"
    output = capfd.readouterr()
    written = "".join(path.read_text() for path in run_dir.path.iterdir())
    everything = written + caplog.text + output.out + output.err + str({**run.data.tags, **run.data.params})
    assert "s3cret" not in everything


def test_a_database_that_cannot_be_opened_is_said_at_once(tmp_path):
    run_dir = start_run(tmp_path / "run")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(TrackingError, match=r"file/mlflow\.db: cannot be opened \(.*\): choose another tracking URI"):
        sync(run_dir, f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(TrackingError, match=r"cannot be opened \(file is not a database\)"):
        (tmp_path / "text.db").write_text("not a database, and longer than its header would be" * 9)
        sync(run_dir, f"sqlite:///{tmp_path}/text.db")


def test_a_file_store_is_refused_in_one_line(tmp_path):
    with pytest.raises(TrackingError, match=r"^\./mlruns: names no store: give sqlite:///FILE"):
        sync(start_run(tmp_path / "run"), "./mlruns")


def test_finish_waits_for_a_bounded_time(tmp_path, uri, client, caplog):
    import filelock

    run_dir = start_run(tmp_path / "run")
    with filelock.FileLock(run_dir / ".mirror.json.lock"):  # another mirror is at work, and does not end
        mirror = live(run_dir, uri, patience=0.05)
        mirror.finish("FINISHED")
    (record,) = caplog.records
    assert record.getMessage() == (
        f"MLflow was not done within 0.05 s: python -m harness sync {run_dir} completes the MLflow run"
    )


def test_what_is_no_run_directory_is_refused(tmp_path):
    with pytest.raises(RunDirError, match=r"no config\.json: not a run directory"):
        sync(RunDir(tmp_path))


def test_two_mirrors_at_once_make_one_run(tmp_path: Path, uri, client):
    run_dir = start_run(tmp_path / "run")
    for step, nll in enumerate((4.0, 3.5, 3.0)):
        run_dir.append_metrics(row(step, nll))
    end_attempt(run_dir, 1)
    mirrors = [live(run_dir, uri) for _ in range(3)]
    for mirror in mirrors:
        mirror.finish("FINISHED")
    (run,) = client.search_runs(["1"])
    assert history(client, run.info.run_id, "train_mean_nll") == ALL
