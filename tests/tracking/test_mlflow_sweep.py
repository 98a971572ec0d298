"""The MLflow run of a sweep, above those of its runs."""

import shutil

import pytest
from click.testing import CliRunner

from harness.__main__ import main
from harness.doctor import examine
from harness.exceptions import TrackingError
from harness.run_dir import RunDir
from harness.sweep_record import write_record
from harness.tracking.mlflow_mirror import sync
from harness.tracking.mlflow_stale import close_orphans
from harness.tracking.mlflow_sweep import sync_sweep
from tests.tracking.conftest import T0, end_attempt, mirror_to, row, start_run


@pytest.fixture
def root(tmp_path):
    """The folder of a sweep of two runs, and a run in it that was made by hand."""
    root = tmp_path / "sw"
    for name in ("x=1", "x=2", "mine"):
        start_run(root / name).append_metrics(row(0, 4.0))
    note(root, "1", "2")
    return root


def note(root, *values):
    write_record(
        root,
        started=T0,
        recipe="recipes.toy",
        argv=["harness", "sweep", "recipes.toy", f"x=[{','.join(values)}]"],
        grid={"x": list(values)},
        runs=[f"x={value}" for value in values],
    )


def end(root, *states):
    for value, state in enumerate(states, start=1):
        end_attempt(RunDir(root / f"x={value}"), 1, state)


def parent_of(client, run_id):
    return client.get_run(client.get_run(run_id).data.tags["mlflow.parentRunId"])


def test_the_first_run_that_is_mirrored_makes_the_sweeps_and_all_are_nested_under_it(root, uri, client):
    end(root, "FINISHED", "FINISHED")
    ids = [sync(RunDir(root / name), uri).run_id for name in ("x=1", "x=2", "mine")]
    parents = {parent_of(client, run_id).info.run_id for run_id in ids}
    assert len(parents) == 1
    parent = parent_of(client, ids[0])
    assert (parent.info.run_name, parent.info.status, parent.info.start_time) == ("sw", "RUNNING", T0)
    assert parent.info.experiment_id == client.get_run(ids[0]).info.experiment_id
    tags = parent.data.tags
    assert (tags["harness.recipe"], tags["harness.sweep.x"], tags["mlflow.user"]) == ("recipes.toy", "1, 2", "ann")
    assert tags["harness.log_path"] == str(root) and "harness.run_id" not in tags
    assert tags["mlflow.note.content"].splitlines() == [
        "Sweep of `recipes.toy`: a run for each combination of the values in the tags `harness.sweep.…`.",
        "",
        "- First command: `harness sweep recipes.toy 'x=[1,2]'`",
        f"- Directory: `{root}`",
    ]
    assert sync_sweep(root, uri) == parent.info.run_id
    ended = client.get_run(parent.info.run_id).info
    assert ended.status == "FINISHED" and len(client.search_runs([parent.info.experiment_id])) == 4
    sync_sweep(root, uri)
    assert client.get_run(parent.info.run_id).info.end_time == ended.end_time


@pytest.mark.parametrize(
    ("states", "status"),
    [
        (["FINISHED", "FINISHED"], "FINISHED"),
        (["FINISHED", "FAILED"], "FAILED"),
        (["FINISHED", "KILLED"], "KILLED"),
        (["FINISHED"], "KILLED"),  # its process is gone without a word
    ],
)
def test_the_status_is_that_of_all_runs(root, uri, client, states, status):
    end(root, *states)
    sync(RunDir(root / "x=1"), uri)
    assert client.get_run(sync_sweep(root, uri)).info.status == status


def test_a_run_that_was_not_begun_leaves_the_sweep_incomplete(root, uri, client):
    shutil.rmtree(root / "x=2")
    end(root, "FINISHED")
    sync(RunDir(root / "x=1"), uri)
    assert client.get_run(sync_sweep(root, uri)).info.status == "KILLED"


def test_a_sweep_that_goes_on_says_running_and_knows_its_new_values(root, uri, client):
    end(root, "FINISHED", "FINISHED")
    sync(RunDir(root / "x=1"), uri)
    parent_id = sync_sweep(root, uri)
    client.set_tag(parent_id, "mlflow.note.content", "edited")
    note(root, "1", "2", "3")
    third = start_run(root / "x=3")
    with third.lock():
        mirror_to(third, uri).send()
        assert client.get_run(parent_id).info.status == "RUNNING"
        sync_sweep(root, uri)
        assert client.get_run(parent_id).info.status == "RUNNING"
    sync_sweep(root, uri)
    parent = client.get_run(parent_id)
    assert (parent.info.status, parent.data.tags["harness.sweep.x"]) == ("KILLED", "1, 2, 3")
    assert parent.data.tags["mlflow.note.content"] == "edited"


def test_what_was_trained_while_mlflow_was_away_is_nested_by_sync(root, uri, client, tmp_path):
    end(root, "FINISHED", "FINISHED")
    with pytest.raises(TrackingError, match="cannot be reached"):
        sync_sweep(root, "http://127.0.0.1:1")
    done = CliRunner().invoke(main, ["sync", str(root), "--to", uri])
    assert done.exit_code == 0, done.output
    parent_id = sync_sweep(root, uri)
    assert done.output.splitlines()[-1] == f"{root}: its runs are nested under run {parent_id}"
    children = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent_id}'")
    assert len(children) == 3
    assert client.get_run(parent_id).info.status == "FINISHED"


def test_a_sweeps_run_that_was_deleted_is_made_again(root, uri, client):
    end(root, "FINISHED", "FINISHED")
    run_id = sync(RunDir(root / "x=1"), uri).run_id
    gone = parent_of(client, run_id).info.run_id
    client.delete_run(gone)
    sync(RunDir(root / "x=1"))
    assert parent_of(client, run_id).info.run_id == sync_sweep(root) != gone


def test_doctor_does_not_take_the_sweeps_run_for_one_that_died(root, uri, client):
    with RunDir(root / "x=1").lock():
        mirror_to(RunDir(root / "x=1"), uri).send()
        parent_id = sync_sweep(root, uri)
        assert not examine(RunDir(root / "x=1")).problems
        assert close_orphans(uri) == []
        assert client.get_run(parent_id).info.status == "RUNNING"


def test_a_folder_that_is_no_sweeps_and_runs_that_are_not_in_mlflow_have_none(root, uri, client, tmp_path):
    assert sync_sweep(tmp_path, uri) is None
    assert sync_sweep(root, uri) is None
    assert client.search_runs(["0"]) == []


def test_doctor_closes_that_of_a_sweep_that_was_killed(root, uri, client, monkeypatch):
    end(root, "FINISHED")  # the other run's process is gone without a word, and the sweep's
    ids = [sync(RunDir(root / name), uri).run_id for name in ("x=1", "x=2")]
    monkeypatch.chdir(root.parent)
    done = CliRunner().invoke(main, ["doctor", "sw"])
    assert f"{root}: its MLflow run said RUNNING: brought up to date" in done.output.splitlines()
    assert parent_of(client, ids[0]).info.status == "KILLED"
    assert "said RUNNING" not in CliRunner().invoke(main, ["doctor", "sw"]).output


def test_a_copied_folder_has_one_for_itself_and_a_moved_one_keeps_its_own(root, uri, client):
    end(root, "FINISHED", "FINISHED")
    first = parent_of(client, sync(RunDir(root / "x=1"), uri).run_id).info.run_id
    copy = root.with_name("sw2")
    shutil.copytree(root, copy)
    second = parent_of(client, sync(RunDir(copy / "x=1"), uri).run_id).info.run_id
    assert second != first and sync_sweep(root, uri) == first and sync_sweep(copy, uri) == second
    root.rename(root.with_name("moved"))
    assert sync_sweep(root.with_name("moved"), uri) == first
    assert client.get_run(first).data.tags["harness.log_path"] == str(root.with_name("moved"))


def test_a_parameter_that_is_swept_no_longer_is_no_tag(root, uri, client):
    sync(RunDir(root / "x=1"), uri)
    write_record(root, started=T0, recipe="recipes.toy", argv=[], grid={"y": ["1"]}, runs=["x=1"])
    parent = client.get_run(sync_sweep(root, uri))
    assert {key for key in parent.data.tags if key.startswith("harness.sweep.")} == {"harness.sweep.y"}


@pytest.mark.parametrize("text", ['{"method": "grid"}', "{"])
def test_what_is_no_sweeps_record_leaves_runs_without_a_parent(tmp_path, uri, client, text):
    run_dir = start_run(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "sweep.json").write_text(text)
    run = client.get_run(sync(run_dir, uri).run_id)
    assert "mlflow.parentRunId" not in run.data.tags
