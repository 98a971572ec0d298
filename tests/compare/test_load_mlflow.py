import shutil

import pandas as pd
import pytest

from harness.compare import load_runs, summarise
from harness.tracking.mlflow_mirror import sync
from tests.compare.made_runs import make_run, scored
from tests.tracking.conftest import client as client
from tests.tracking.conftest import database as database
from tests.tracking.conftest import end_attempt, mirrored, row, start_attempt, start_run
from tests.tracking.conftest import uri as uri

DATA = {"data": {"train": "beef", "test": {"": "feed"}}}


@pytest.fixture(autouse=True)
def here(uri, tmp_path, monkeypatch):
    """A working directory whose embedded store is ``uri``."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def evaluated(step, nll, test_nll):
    return row(step, nll, num_tokens=100, num_loss_tokens=40, **{"test/nll": test_nll})


def finished_run(path, *rows, **changes):
    run_dir = start_run(path, document=DATA, **{"run_name": path.name} | changes)
    run_dir.append_eval_examples([{"step": 0, "set": "", "fingerprint": "feed"} | scored([4.0, 2.0], [2, 1])])
    for one in rows or [evaluated(0, 3.0, 2.5), evaluated(1, 2.0, 2.0)]:
        run_dir.append_metrics(one)
    end_attempt(run_dir, 1)
    sync(run_dir)
    return run_dir


def test_a_run_directory_that_is_there_is_read_and_once(tmp_path):
    run_dir = finished_run(tmp_path / "runs" / "a", run_name="another")
    run_id = mirrored(run_dir)["run_id"]
    runs = load_runs(["mlflow:exp", "runs", f"mlflow:{run_id}", run_id, run_dir.path])
    assert list(runs.states) == ["a"]
    assert runs.directories["a"].path == run_dir.path
    assert runs.origins == {"a": "runs/a"}


def test_without_its_directory_the_artifacts_say_the_same(tmp_path):
    run_dir = finished_run(tmp_path / "a")
    before = load_runs("a")
    run_id = mirrored(run_dir)["run_id"]
    shutil.rmtree(run_dir.path)
    runs = load_runs("mlflow:exp")
    pd.testing.assert_frame_equal(runs.metrics, before.metrics)
    pd.testing.assert_frame_equal(runs.configs, before.configs)
    pd.testing.assert_frame_equal(runs.test_sets, before.test_sets)
    assert runs.states == {"a": "FINISHED"} and runs.directories == {} and runs.notes == {}
    assert runs.origins == {"a": f"artifacts of MLflow run {run_id}"}
    evaluation = runs.evaluation("a", 0)
    assert evaluation is not None and evaluation.nll.tolist() == [4.0, 2.0]


def test_without_artifacts_the_points_do(tmp_path):
    run_dir = finished_run(tmp_path / "a")
    before = load_runs("a")
    run_id = mirrored(run_dir)["run_id"]
    shutil.rmtree(run_dir.path)
    shutil.rmtree(tmp_path / "mlruns" / "artifacts")
    runs = load_runs(run_id)
    assert runs.origins == {"a": f"points of MLflow run {run_id}"}
    pd.testing.assert_frame_equal(summarise(runs), summarise(before))
    pd.testing.assert_frame_equal(runs.test_sets, before.test_sets)
    a, b = runs.configs.loc["a"].dropna().to_dict(), before.configs.loc["a"].dropna().to_dict()
    assert a == b
    assert runs.directories == runs.files == {} and runs.evaluation("a", 0) is None


def test_what_was_trained_since_the_artifacts_comes_from_the_points(tmp_path):
    run_dir = finished_run(tmp_path / "a")
    start_attempt(run_dir, 2)
    run_dir.append_metrics(evaluated(2, 1.0, 1.5))
    with run_dir.lock():
        sync(run_dir)
    shutil.rmtree(run_dir.path)
    runs = load_runs("mlflow:exp")
    assert runs.states == {"a": "RUNNING"}
    assert runs.metrics["test/nll"].tolist() == [2.5, 2.0, 1.5]
    assert runs.configs.loc["a", "learning_rate"] == 2e-4
    assert runs.evaluation("a", 0) is not None and runs.evaluation("a", 2) is None


def test_artifacts_that_cannot_be_had_are_noted(tmp_path, client):
    run_id = client.create_run(client.create_experiment("far", "s3-of-nobody://bucket")).info.run_id
    client.log_metric(run_id, "test/nll", 2.0, step=0)
    runs = load_runs(f"mlflow:{run_id}")
    (note,) = next(iter(runs.notes.values()))
    assert note.startswith("its artifacts cannot be read: MLflow at sqlite:///")
    assert runs.metrics["test/nll"].tolist() == [2.0]


def test_runs_of_one_name_are_told_apart_by_their_ids(client):
    experiment = client.create_experiment("theirs")
    ids = [client.create_run(experiment, run_name=name).info.run_id for name in ("x", "x", "y/z")]
    for run_id in ids:
        client.log_metric(run_id, "test/nll", 2.0)
    assert list(load_runs("mlflow:theirs").states) == [f"{ids[0]}/x", f"{ids[1]}/x", "y/z"]


def test_copies_of_artifacts_are_gone_when_the_process_ends(tmp_path, monkeypatch):
    at_exit = []
    monkeypatch.setattr("atexit.register", lambda *args, **kwargs: at_exit.append((args, kwargs)))
    shutil.rmtree(finished_run(tmp_path / "a").path)
    copy = load_runs("mlflow:exp").files["a"]
    assert copy.exists()
    for (function, *args), kwargs in at_exit:
        function(*args, **kwargs)
    assert not copy.path.parent.exists()


def test_a_name_with_separators_is_not_taken_for_a_path(tmp_path):
    run_dir = finished_run(tmp_path / "gone", run_name="sw/a")
    run_id = mirrored(run_dir)["run_id"]
    shutil.rmtree(run_dir.path)
    for folder in ("sw", "other"):
        make_run(tmp_path / folder / "a", [])
    names = list(load_runs(["mlflow:exp", "sw/a", "other/a"]).states)
    assert names == [f"{run_id}/sw/a", f"{tmp_path.name}/sw/a", "other/a"]
