"""Which MLflow run is a directory's: moved, copied, rebuilt, with its experiment deleted."""

import shutil

import pytest

from harness.exceptions import TrackingError
from harness.run_dir import RunDir
from harness.tracking.mlflow_mirror import Mirror, sync
from harness.tracking.mlflow_rebuild import rebuild
from harness.tracking.mlflow_store import Destination
from tests.tracking.conftest import T0, end_attempt, history, mirror_to, mirrored, row, start_run


@pytest.fixture
def run_dir(tmp_path):
    run_dir = start_run(tmp_path / "run")
    run_dir.append_metrics(row(0, 4.0))
    end_attempt(run_dir, 1)
    return run_dir


def tags(client, run_id):
    return client.get_run(run_id).data.tags


@pytest.mark.parametrize("is_noted", [True, False], ids=["with mirror.json", "without"])
def test_a_moved_directory_keeps_its_run_and_a_copy_gets_its_own(tmp_path, uri, client, run_dir, is_noted):
    first = sync(run_dir, uri).run_id
    copy = RunDir(shutil.copytree(run_dir.path, tmp_path / "copy"))
    if not is_noted:
        (copy / "mirror.json").unlink()

    copied = sync(copy, uri)
    assert (copied.num_points, tags(client, copied.run_id)["harness.copy_of"]) == (1, first)
    assert tags(client, copied.run_id)["harness.log_path"] == str(tmp_path / "copy")
    assert history(client, copied.run_id, "train_mean_nll") == [(0, T0, 4.0)]
    assert sync(run_dir).run_id == first and tags(client, first)["harness.log_path"] == str(run_dir.path)
    assert sync(copy).run_id == copied.run_id

    moved = RunDir(run_dir.path.rename(tmp_path / "moved"))
    if not is_noted:
        (moved / "mirror.json").unlink()
    again = sync(moved, uri)
    assert again.run_id == first and tags(client, first)["harness.log_path"] == str(tmp_path / "moved")
    assert len(client.search_runs(["1"])) == 2


def test_a_copy_does_not_take_the_run_of_a_copy_that_is_gone(tmp_path, uri, client, run_dir):
    first = sync(run_dir, uri).run_id
    gone = RunDir(shutil.copytree(run_dir.path, tmp_path / "gone"))
    gone_id = sync(gone).run_id
    shutil.rmtree(gone.path)
    copy = RunDir(shutil.copytree(run_dir.path, tmp_path / "copy"))
    copy_id = sync(copy).run_id
    assert len({first, gone_id, copy_id}) == 3
    assert tags(client, copy_id)["harness.copy_of"] == first


def test_another_path_to_the_same_directory_is_no_copy(tmp_path, uri, client, run_dir):
    first = sync(run_dir, uri).run_id
    (tmp_path / "link").symlink_to(run_dir.path)
    assert sync(RunDir(tmp_path / "link")).run_id == first
    assert sync(run_dir).run_id == first


# ---- deleted experiments


def test_a_run_whose_experiment_was_deleted_goes_to_another_by_its_own_command(tmp_path, uri, client, run_dir):
    first = sync(run_dir, uri).run_id
    client.delete_experiment("1")
    message = r'the experiment "exp" was deleted .*_URI=sqlite:.* experiments restore -x 1\), .* with experiment=NAME'
    with pytest.raises(TrackingError, match=message):
        sync(run_dir)

    asked = run_dir.config() | {"config": run_dir.config()["config"] | {"experiment": "other"}}
    mirror = Mirror(run_dir, Destination.of(asked, uri))  # as the run's command makes it
    assert mirror.send() == 1
    mirror.close("FINISHED")
    assert sync(run_dir).run_id == mirror.run_id != first
    assert client.get_experiment(mirrored(run_dir)["experiment_id"]).name == "other"


# ---- sync --rebuild


def superseded(run_dir, uri):
    run_dir.append_metrics(row(1, 3.5))
    mirror = mirror_to(run_dir, uri)
    mirror.send()
    run_dir.supersede(from_step=1, attempt=2)
    run_dir.append_metrics(row(1, 3.4, ts=T0 + 90_000))
    return sync(run_dir, uri).run_id


def test_a_run_with_superseded_points_is_rebuilt_once(tmp_path, uri, client, run_dir):
    old = superseded(run_dir, uri)
    result, replaced = rebuild(run_dir)
    assert (replaced, result.num_points) == (old, 2)
    assert history(client, result.run_id, "train_mean_nll") == [(0, T0, 4.0), (1, T0 + 90_000, 3.4)]
    assert len(history(client, old, "train_mean_nll")) == 3
    assert tags(client, result.run_id)["harness.rebuilds"] == old
    assert tags(client, old)["harness.rebuilt_as"] == result.run_id
    assert client.get_run(result.run_id).info.status == "FINISHED"

    again, replaced = rebuild(run_dir)
    assert (again.run_id, again.num_points, replaced) == (result.run_id, 0, None)
    (run_dir / "mirror.json").unlink()
    assert sync(run_dir, uri).run_id == result.run_id
    assert len(client.search_runs(["1"])) == 2


def test_a_rebuilding_that_was_cut_short_is_finished(uri, client, run_dir):
    old = superseded(run_dir, uri)
    before = mirrored(run_dir)
    new = rebuild(run_dir)[0].run_id
    client.delete_tag(old, "harness.rebuilt_as")
    run_dir.write_mirror(before)
    assert rebuild(run_dir)[0].run_id == new
    assert tags(client, old)["harness.rebuilt_as"] == new
    assert len(client.search_runs(["1"])) == 2


def test_a_deleted_run_is_rebuilt(uri, client, run_dir):
    old = sync(run_dir, uri).run_id
    client.delete_run(old)
    result, replaced = rebuild(run_dir)
    assert (replaced, result.num_points) == (old, 1)
    assert tags(client, result.run_id)["harness.rebuilds"] == old
    (run_dir / "mirror.json").unlink()
    assert sync(run_dir, uri).run_id == result.run_id


def test_a_run_that_is_being_trained_is_not_rebuilt(uri, run_dir):
    superseded(run_dir, uri)
    with run_dir.lock(), pytest.raises(TrackingError, match=r"run: still being trained: rebuild its MLflow run once"):
        rebuild(run_dir)
