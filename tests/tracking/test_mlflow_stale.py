import shutil
import socket

from harness.run_dir import RunDir
from harness.tracking.mlflow_mirror import sync
from harness.tracking.mlflow_stale import close_orphans, close_stale, stores_of
from harness.tracking.mlflow_store import embedded_uri
from tests.tracking.conftest import T0, end_attempt, mirror_to, row, start_run


def killed(path, uri):
    """A run whose process was killed while it was mirrored, and its MLflow run's id."""
    run_dir = start_run(path)
    run_dir.append_metrics(row(0, 4.0))
    with run_dir.lock():
        mirror = mirror_to(run_dir, uri)
        mirror.send()
    run_dir.append_metrics(row(1, 3.5))
    return run_dir, mirror.run_id


def status(client, run_id):
    info = client.get_run(run_id).info
    return info.status, info.end_time


def test_a_run_whose_process_is_gone_is_closed_and_one_that_lives_is_not(tmp_path, uri, client):
    run_dir, run_id = killed(tmp_path / "run", uri)
    with run_dir.lock():
        assert not close_stale(run_dir)
        assert close_orphans(uri) == []
        copy = RunDir(shutil.copytree(run_dir.path, tmp_path / "copy"))
        assert not close_stale(copy)  # its mirror.json names the run of the one that lives
    assert status(client, run_id) == ("RUNNING", None)
    assert close_stale(run_dir)
    assert status(client, run_id) == ("KILLED", T0 + 1000)
    assert client.get_metric_history(run_id, "train_mean_nll")[-1].step == 1
    assert not close_stale(run_dir)
    assert len(client.search_runs(["1"])) == 1


def test_a_run_whose_directory_is_gone_is_closed(tmp_path, uri, client):
    run_dir, run_id = killed(tmp_path / "run", uri)
    shutil.rmtree(run_dir.path)
    assert close_orphans(uri) == [f"{run_dir.path}: its MLflow run {run_id} said RUNNING: closed as KILLED"]
    assert status(client, run_id) == ("KILLED", T0)
    assert close_orphans(uri) == []


def test_a_run_that_ended_out_of_mlflows_sight_is_closed_as_what_it_was(tmp_path, uri, client):
    run_dir, run_id = killed(tmp_path / "run", uri)
    end_attempt(run_dir, 1)
    (run_dir / "mirror.json").unlink()
    assert close_orphans(uri) == [f"{run_dir.path}: its MLflow run {run_id} said RUNNING: closed as FINISHED"]


def test_a_run_of_another_machine_or_program_is_left_alone(tmp_path, uri, client):
    run_dir, run_id = killed(tmp_path / "run", uri)
    shutil.rmtree(run_dir.path)
    client.create_run("1")  # somebody's own
    client.set_tag(run_id, "harness.log_host", "elsewhere")
    assert close_orphans(uri) == []
    client.set_tag(run_id, "harness.log_host", socket.gethostname())
    assert len(close_orphans(uri)) == 1


def test_stores(tmp_path, uri, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run_dir = start_run(tmp_path / "run")
    assert stores_of([run_dir]) == []  # never mirrored, and there is no store here
    sync(run_dir, uri)
    assert stores_of([run_dir]) == [uri]
    monkeypatch.chdir(tmp_path)
    assert stores_of([]) == [embedded_uri(tmp_path)]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert stores_of([run_dir, run_dir]) == [uri, "http://server"]
