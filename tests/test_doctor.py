from harness.doctor import examine
from harness.run_dir import CheckpointRecord
from harness.tracking.mlflow_mirror import sync
from tests.tracking.conftest import client as client
from tests.tracking.conftest import database as database
from tests.tracking.conftest import end_attempt, mirror_to, row, start_run
from tests.tracking.conftest import uri as uri


def whole(path):
    run_dir = start_run(path)
    for step, nll in enumerate((4.0, 3.5)):
        run_dir.append_metrics(row(step, nll))
    (path / "checkpoints" / "000002").mkdir(parents=True)
    run_dir.append_checkpoint(CheckpointRecord("000002", 2, 0, 2, "checkpoints/000002"))
    run_dir.append_checkpoint(CheckpointRecord("000001", 1, 0, 1, "checkpoints/000001", deleted=True))
    run_dir.append_checkpoint(CheckpointRecord("remote", 2, 0, 2, "tinker://abc/weights/2"))
    return run_dir


def test_a_whole_run_and_one_that_is_being_trained(tmp_path):
    run_dir = whole(tmp_path / "run")
    assert str(examine(run_dir)) == "KILLED, 2 updates; its files are whole"
    end_attempt(run_dir, 1)
    assert str(examine(run_dir)) == "FINISHED, 2 updates; its files are whole"
    with run_dir.lock(), (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2')  # it is just being written
        assert str(examine(run_dir)) == "RUNNING, 2 updates; its files are whole"


def test_what_a_crash_tore_does_not_count(tmp_path):
    run_dir = whole(tmp_path / "run")
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2')
    diagnosis = examine(run_dir)
    assert diagnosis.problems == ()
    assert str(diagnosis) == "KILLED, 2 updates; its files are whole; the torn end of metrics.jsonl does not count"


def test_what_the_user_must_mend(tmp_path):
    run_dir = whole(tmp_path / "run")
    (run_dir / "checkpoints" / "000002").rmdir()
    run_dir.append_metrics(row(3, 3.0))
    with (run_dir / "attempts.jsonl").open("a") as file:
        file.write('not JSON\n{"attempt": 2, "event": "start"}\n')
    diagnosis = examine(run_dir)
    assert (diagnosis.state, diagnosis.num_updates) == ("UNREADABLE", 0)
    damaged, gap, gone = diagnosis.problems
    assert damaged.startswith(f"{run_dir}/attempts.jsonl:2: not a JSON row")
    assert gap == f"{run_dir}/metrics.jsonl: no row of step 2: a resume trains on from there"
    assert gone == f"{run_dir}: no state of checkpoint 000002: restore it, or resume from one before"


def test_damaged_tags_are_told(tmp_path):
    run_dir = whole(tmp_path / "run")
    (run_dir / "tags.jsonl").write_text('nonsense\n{"ts": 1, "key": "a", "value": "b"}\n')
    (problem,) = examine(run_dir).problems
    assert problem.startswith(f"{run_dir}/tags.jsonl:1: not a JSON row")


def test_its_mlflow_run_is_closed(tmp_path, uri, client):
    run_dir = whole(tmp_path / "run")
    with run_dir.lock():
        mirror = mirror_to(run_dir, uri)
        mirror.send()
    expected = "KILLED, 2 updates; its files are whole; its MLflow run said RUNNING: brought up to date, KILLED"
    assert str(examine(run_dir)) == expected
    assert client.get_run(mirror.run_id).info.status == "KILLED"
    assert sync(run_dir).num_points == 0


def test_an_mlflow_that_cannot_be_asked_is_a_problem(tmp_path):
    run_dir = whole(tmp_path / "run")
    run_dir.write_mirror({"tracking_uri": "http://127.0.0.1:9", "experiment_id": "1", "run_id": "0" * 32})
    (problem,) = examine(run_dir).problems
    assert problem == "MLflow at http://127.0.0.1:9 cannot be reached (ConnectionError): is the server up?"
