import pytest
from click.testing import CliRunner

from harness.__main__ import main
from harness.tracking.mlflow_mirror import sync
from tests.prunable import on_disk, prunable, tree
from tests.tracking.conftest import client as client
from tests.tracking.conftest import database as database
from tests.tracking.conftest import uri as uri

NLLS = {0: 5.0, 2: 4.0, 4: 3.0, 6: 3.5}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return [prunable(tmp_path / "runs" / name, NLLS) for name in "ab"]


def prune(*args):
    return CliRunner().invoke(main, ["prune", *args])


def test_nothing_goes_without_yes(runs, tmp_path):
    before = tree(tmp_path)
    result = prune("runs", "--keep", "best,final")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.split("  ")[:3] for line in lines[:2]] == [
        ["runs/a: keeps 000004 (best), 000006 (final)"],
        ["", "000002", "step 2, test NLL 4.0000"],
    ]
    assert lines[-1].startswith("2 to remove, ") and lines[-1].endswith(" kB: add --yes to do it")
    assert tree(tmp_path) == before


def test_with_yes_it_goes_here_and_in_mlflow(runs, uri, client):
    run_id = sync(runs[0], uri).run_id
    result = prune("runs", "--keep", "best", "--yes")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1].startswith("removed 4, ")
    assert [on_disk(run) for run in runs] == [["000004"], ["000004"]]
    experiment = client.get_run(run_id).info.experiment_id
    assert [model.name for model in client.search_logged_models([experiment])] == ["ckpt-000004"]
    assert not runs[1].mirror()
    again = prune("runs", "--keep", "best", "--yes")
    assert again.stdout.splitlines() == [
        "runs/a: keeps 000004 (best); nothing to remove",
        "runs/b: keeps 000004 (best); nothing to remove",
        "removed 0, 0 B",
    ]


def test_a_run_that_is_being_trained_is_left_alone(runs):
    with runs[0].lock():
        before = tree(runs[0].path)
        result = prune("runs", "--keep", "best", "--yes")
        assert tree(runs[0].path) == before
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "runs/a: being trained: left as it is"
    assert on_disk(runs[1]) == ["000004"]


def test_one_that_is_damaged_does_not_keep_the_others_from_it(runs):
    (runs[0] / "checkpoints.jsonl").write_text("nonsense\n{}\n")
    before = tree(runs[0] / "checkpoints")
    result = prune("runs", "--keep", "best", "--yes")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {runs[0].path}/checkpoints.jsonl:1: not a JSON row")
    assert tree(runs[0] / "checkpoints") == before
    assert on_disk(runs[1]) == ["000004"]


def test_a_directory_of_another_program_stays_as_it_is(runs, tmp_path):
    theirs = tmp_path / "runs" / "b" / "theirs"
    theirs.mkdir()
    (theirs / "config.json").write_text('{"log_path": "/tmp/sft"}')
    (theirs / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1, "train_me')  # it is being written just now
    (theirs / ".lock").write_text("pid 7")
    before = tree(theirs)
    result = prune("runs/a", str(theirs), "--keep", "best", "--yes")
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: {theirs}/config.json: not a run's: restore it or use another log_path\n",
    )
    assert tree(theirs) == before
    assert on_disk(runs[0]) == ["000004"]


def test_mlflow_that_is_away_is_a_warning(runs):
    runs[0].write_mirror({"tracking_uri": "http://127.0.0.1:9", "experiment_id": "1", "run_id": "x"})
    result = prune("runs", "--keep", "best", "--yes")
    assert result.exit_code == 0
    assert result.stderr == (
        "warning: MLflow at http://127.0.0.1:9 cannot be reached (ConnectionError): is the server up?: "
        "python -m harness sync runs tells MLflow\n"
    )
    assert on_disk(runs[0]) == ["000004"]


def test_mistakes_are_one_line_and_exit_2(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    for args, error in [
        (["nope", "--keep", "best"], "nope: no such run directory"),
        (["empty", "--keep", "best"], "empty: no run in it (a run directory holds config.json and metrics.jsonl)"),
        (
            ["runs", "--keep", "bst,2"],
            "--keep bst,2: 'bst' is none of best, last, final, or how many of the newest",
        ),
    ]:
        result = prune(*args, "--yes")
        assert (result.exit_code, result.stderr, result.stdout) == (2, f"error: {error}\n", "")
    assert prune("runs").exit_code == 2
