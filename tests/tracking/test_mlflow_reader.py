import os
import shutil
from pathlib import Path

import pytest

from harness.exceptions import TrackingError
from harness.tracking.mlflow_mirror import sync
from harness.tracking.mlflow_reader import MlflowReader, is_source
from tests.tracking.conftest import T0, end_attempt, mirrored, row, start_run


@pytest.fixture(autouse=True)
def here(uri, tmp_path, monkeypatch):
    """A working directory whose embedded store is ``uri``."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def finished_run(path, rows=None, **changes):
    run_dir = start_run(path, **changes)
    for one in rows or [row(0, 3.0, num_tokens=10), row(1, 2.0) | {"test/nll": 2.5, "time/step": 0.5}]:
        run_dir.append_metrics(one)
    end_attempt(run_dir, 1)
    sync(run_dir)
    return run_dir


def test_what_names_something_in_mlflow():
    assert is_source("mlflow:exp") and is_source("mlflow:a/b c") and is_source("0123456789abcdef" * 2)
    assert not is_source("runs/a") and not is_source("0123456789abcdef") and not is_source("g" * 32)


def test_a_run_by_its_id_and_the_runs_of_an_experiment(tmp_path):
    a, b = finished_run(tmp_path / "a"), finished_run(tmp_path / "b", experiment="other")
    c = finished_run(tmp_path / "c", run_name="named")
    reader = MlflowReader()
    assert sorted(run.name for run in reader.find("mlflow:exp")) == ["first", "named"]  # by log_path, by run_name
    for run_dir in (a, b, c):
        run_id = mirrored(run_dir)["run_id"]
        for source in (run_id, f"mlflow:{run_id}"):
            (run,) = reader.find(source)
            assert (run.run_id, run.state) == (run_id, "FINISHED")
            assert run.directory is not None and run.directory.path == run_dir.path


def test_a_run_directory_counts_where_it_holds_the_same_run(tmp_path):
    run_dir = finished_run(tmp_path / "a")
    run_id = mirrored(run_dir)["run_id"]
    shutil.rmtree(run_dir.path)
    (run,) = MlflowReader().find(run_id)
    assert run.directory is None
    start_run(tmp_path / "a")  # another run at the same path
    (run,) = MlflowReader().find(run_id)
    assert run.directory is None


def test_files_are_downloaded_and_the_points_are_the_rows(tmp_path):
    run_dir = finished_run(tmp_path / "a")
    (run,) = MlflowReader().find("mlflow:exp")
    copy = tmp_path / "copy"
    assert run.download(copy)
    assert {file.name for file in copy.iterdir()} == {"config.json", "metrics.jsonl", "attempts.jsonl"}
    assert (copy / "metrics.jsonl").read_bytes() == (run_dir / "metrics.jsonl").read_bytes()
    assert run.history() == run_dir.metrics()  # its totals are no metrics of a row
    assert run.last_step == 1


def test_params_and_tags_say_what_config_json_does(tmp_path):
    versions = {"versions": {"torch": "2.13.0"}, "data": {"train": "beef", "test": {"": "aa", "math": "bb"}}}
    finished_run(tmp_path / "a", document=versions, tags={"team": "x"}, targets=["q", "v"])
    finished_run(tmp_path / "b", experiment="bare")
    (run,) = MlflowReader().find("mlflow:exp")
    config = run.config
    assert (config["learning_rate"], config["max_steps"], config["mirror"]) == (2e-4, None, True)
    assert (config["targets"], config["dataset_builder.common_config.batch_size"]) == (["q", "v"], 8)
    assert (config["dataset_builder"], config["tags.team"]) == ("my.data:Builder", "x")
    assert (config["versions.torch"], config["git_commit"], config["data.train"]) == ("2.13.0", "abc123", "beef")
    assert run.test_sets == [("", "aa"), ("math", "bb")]
    (run,) = MlflowReader().find("mlflow:bare")
    assert run.test_sets == [] and "data.train" not in run.config


def test_a_run_that_somebody_else_logged(tmp_path, client):
    experiment = client.create_experiment("theirs", artifact_location=(tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment, run_name="x").info.run_id
    client.log_param(run_id, "lr", "1e-3")
    client.log_param(run_id, "api_key", "hf_secretsecret")
    for step, ts, value in [(0, 10, 3.0), (5, 20, 2.0), (5, 30, 1.5), (5, 25, 1.8)]:
        client.log_metric(run_id, "test/nll", value, timestamp=ts, step=step)
    client.log_metric(run_id, "gpu", 90.0, timestamp=10, step=7)
    client.create_run(experiment, run_name="a parent, which holds nothing")
    (run,) = MlflowReader().find("mlflow:theirs")
    assert (run.name, run.state, run.directory, run.last_step) == ("x", "RUNNING", None, 5)
    assert run.config == {"lr": "1e-3", "api_key": "<redacted>"}
    assert not run.download(tmp_path / "copy") and not (tmp_path / "copy").exists()
    assert run.history() == [{"step": 0, "ts": 10, "test/nll": 3.0}, {"step": 5, "ts": 30, "test/nll": 1.5}]


def test_an_evaluation_of_weights_that_a_resume_left_does_not_count(tmp_path, client):
    run_dir = finished_run(tmp_path / "a", [row(0, 3.0), row(1, 2.0), row(2, 1.5)])
    run_id = mirrored(run_dir)["run_id"]
    for step in (1, 2, 3):  # scored after training
        client.log_metric(run_id, "test/mine/nll", 1.0, timestamp=T0 + 50_000, step=step)
    client.log_metric(run_id, "train_mean_nll", 1.9, timestamp=T0 + 90_000, step=1)  # trained again from step 1 on
    client.log_metric(run_id, "train_mean_nll", 1.4, timestamp=T0 + 91_000, step=2)
    client.log_metric(run_id, "test/mine/nll", 0.9, timestamp=T0 + 95_000, step=3)
    (run,) = MlflowReader().find(run_id)
    found = {one["step"]: one.get("test/mine/nll") for one in run.history()}
    assert found == {0: None, 1: 1.0, 2: None, 3: 0.9}


def test_mistakes_are_one_line(tmp_path, uri, client):
    run_dir = finished_run(tmp_path / "a", experiment="chat")
    run_id = mirrored(run_dir)["run_id"]
    client.create_experiment("empty")
    gone = client.create_experiment("gone")
    client.delete_experiment(gone)
    client.delete_run(run_id)
    reader = MlflowReader()
    for source, text in {
        "mlflow:": "mlflow: names no experiment: choose one of empty, chat, Default",
        "mlflow:cat": f"mlflow:cat: no such experiment at {uri}; did you mean chat?",
        "mlflow:zzz": f"mlflow:zzz: no such experiment at {uri}: choose one of empty, chat, Default",
        "f" * 32: f"{'f' * 32}: no such run or experiment at {uri}: choose one of empty, chat, Default",
        "mlflow:empty": f"mlflow:empty: no run in this experiment at {uri}: name another",
        "mlflow:chat": f"mlflow:chat: no run in this experiment at {uri}: name another",
        "mlflow:gone": f"mlflow:gone: this experiment was deleted at {uri}: restore it there "
        f"(MLFLOW_TRACKING_URI={uri} mlflow experiments restore -x {gone})",
        run_id: f"{run_id}: this run was deleted at {uri}: restore it there "
        f"(MLFLOW_TRACKING_URI={uri} mlflow runs restore --run-id {run_id})",
    }.items():
        with pytest.raises(TrackingError) as error:
            reader.find(source)
        assert str(error.value) == text


def test_a_store_that_is_not_there_is_not_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(TrackingError, match=r"mlflow.db: no such database: go where the runs were trained, or set MLF"):
        MlflowReader()
    assert not os.path.exists("mlruns")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    MlflowReader()


def test_a_server_that_is_away_is_one_line(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@127.0.0.1:1")
    with pytest.raises(TrackingError, match=r"^MLflow at http://127.0.0.1:1 cannot be reached .*: is the server up\?$"):
        MlflowReader().find("mlflow:exp")


def test_a_rebuilt_run_stands_for_the_one_before(tmp_path):
    from harness.tracking.mlflow_mirror import Mirror

    run_dir = finished_run(tmp_path / "a")
    sync(run_dir, send=Mirror.rebuild)
    assert [run.run_id for run in MlflowReader().find("mlflow:exp")] == [mirrored(run_dir)["run_id"]]


def test_a_server_serves_it_all(serve, tmp_path, monkeypatch):
    address = f"http://127.0.0.1:{serve(0).port}"
    run_dir = finished_run(tmp_path / "a", experiment="served", tracking_uri=address)
    shutil.move(run_dir.path, tmp_path / "moved")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)  # now: a server sets it for its own process, which is this one
    (run,) = MlflowReader().find("mlflow:served")
    assert run.directory is None
    assert run.download(tmp_path / "copy")
    moved = Path(tmp_path / "moved" / "metrics.jsonl")
    assert (tmp_path / "copy" / "metrics.jsonl").read_bytes() == moved.read_bytes()
    assert [r["train_mean_nll"] for r in run.history()] == [3.0, 2.0]
