from pathlib import Path

import pytest

from harness.exceptions import TrackingError
from harness.tracking.mlflow_report import log_report


def test_a_report_is_an_artifact_of_a_run_of_its_own(uri, client, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    said = log_report("<p>é</p>", ["a", "b"], "exp")
    (run,) = client.search_runs([client.get_experiment_by_name("exp").experiment_id])
    assert said == f"logged report.html to run {run.info.run_id} of experiment exp at {uri}"
    assert (run.info.run_name, run.info.status) == ("compare a, b", "FINISHED")
    assert run.data.tags["harness.compares"] == "a, b"
    found = client.download_artifacts(run.info.run_id, "report.html", str(tmp_path))
    assert Path(found).read_text() == "<p>é</p>"


def test_without_a_server_it_is_the_embedded_store(uri, client, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert log_report("x", [f"run-{i}" for i in range(100)], "exp").endswith(f" at {uri}")
    (run,) = client.search_runs([client.get_experiment_by_name("exp").experiment_id])
    assert run.info.run_name.startswith("compare run-0, run-1,") and len(run.info.run_name) <= 80


def test_what_is_wrong_is_said_in_a_line(uri, client, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(
        TrackingError, match=r'^the experiment "gone" was deleted at .*, or choose another: --log NAME$'
    ):
        log_report("x", ["a"], "gone")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere")
    with pytest.raises(TrackingError, match=r"^nowhere: names no store: give sqlite:///FILE"):
        log_report("x", ["a"], "exp")


def test_a_page_that_cannot_be_stored_leaves_a_failed_run(uri, client, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    (tmp_path / "file").write_text("no folder")
    experiment = client.create_experiment("exp", f"file://{tmp_path}/file")
    with pytest.raises(TrackingError):
        log_report("x", ["a"], "exp")
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FAILED"
