import json

import pytest
from click.testing import CliRunner

from harness.__main__ import main
from harness.run_dir import RunDir
from harness.run_tags import tags
from harness.tracking.mlflow_mirror import sync
from tests.tracking.conftest import client as client
from tests.tracking.conftest import database as database
from tests.tracking.conftest import end_attempt, row, start_run
from tests.tracking.conftest import uri as uri


@pytest.fixture
def runs(tmp_path, monkeypatch):
    for name in ("a", "b-lr=1"):
        run = start_run(tmp_path / "runs" / name, tags={"team": "x"})
        run.append_metrics(row(0, 4.0))
        end_attempt(run, 1)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def tag(*args):
    return CliRunner().invoke(main, ["tag", *args])


def test_tags_are_set_removed_and_shown(runs):
    result = tag("runs/a", "runs/b-lr=1", "kind=demo", "team=", "why=a = b")
    assert (result.exit_code, result.stderr) == (0, "")
    shown = "runs/a: kind=demo, why=a = b\nruns/b-lr=1: kind=demo, why=a = b\n"
    assert result.stdout == shown
    assert tag("runs").stdout == shown
    tag("runs", "kind=", "why=")
    assert tag("runs/a").stdout == "runs/a: no tags\n"
    assert not (runs / "a" / "mirror.json").exists()


def test_the_mlflow_run_gets_them_and_one_that_is_not_there_is_not_made(runs, uri, client):
    run_id = sync(RunDir("runs/a"), uri).run_id
    assert client.get_run(run_id).data.tags["team"] == "x"
    assert tag("runs", "team=", "kind=demo").exit_code == 0
    there = client.get_run(run_id).data.tags
    assert ("team" in there, there["kind"]) == (False, "demo")
    assert not RunDir("runs/b-lr=1").mirror()
    assert len(client.search_runs(["1"])) == 1


def test_mlflow_that_is_away_is_a_warning(runs):
    for name in ("a", "b-lr=1"):
        RunDir(runs / name).write_mirror(
            {"tracking_uri": "http://127.0.0.1:9", "experiment_id": "1", "run_id": "x", "sent_step": None}
        )
    result = tag("runs", "kind=demo")
    assert result.exit_code == 0
    assert result.stderr == (
        "warning: MLflow at http://127.0.0.1:9 cannot be reached (ConnectionError): is the server up?: "
        "python -m harness sync runs sends the tags\n"
    )
    assert tags(RunDir("runs/a"))["kind"] == "demo"


def test_one_that_is_damaged_does_not_keep_the_others_from_it(runs, uri, client):
    run_ids = [sync(RunDir(f"runs/{name}"), uri).run_id for name in ("a", "b-lr=1")]
    damaged = start_run(runs / "aa")
    (damaged / "tags.jsonl").write_text("nonsense\n{}\n")
    result = tag("runs", "kind=demo")
    assert result.exit_code == 2
    assert result.stdout == "runs/a: team=x, kind=demo\nruns/b-lr=1: team=x, kind=demo\n"
    assert result.stderr.startswith(f"error: {damaged.path}/tags.jsonl:1: not a JSON row")
    assert len(result.stderr.splitlines()) == 1
    assert [client.get_run(run_id).data.tags["kind"] for run_id in run_ids] == ["demo", "demo"]


def test_files_of_another_shape_are_one_line(runs, uri, client):
    run_id = sync(RunDir("runs/a"), uri).run_id
    RunDir("runs/a").append_attempt({"attempt": 2, "event": "start", "ts": "then"})
    document = RunDir("runs/b-lr=1").config()
    (runs / "b-lr=1" / "config.json").write_text(json.dumps(document | {"config": {"tags": ["x"]}}))
    result = tag("runs", "kind=demo")
    assert result.exit_code == 2 and result.stdout == "runs/a: team=x, kind=demo\n"
    warning, error = result.stderr.splitlines()
    assert warning.startswith("warning: runs/a: not as the harness writes it (TypeError: ")
    assert warning.endswith("): restore its files: python -m harness sync runs sends the tags")
    assert error.startswith("error: runs/b-lr=1: not as the harness writes it (TypeError: ")
    assert "kind" not in client.get_run(run_id).data.tags


def test_mistakes_are_one_line_and_exit_2(runs):
    for args, error in [
        (["nope", "a=1"], "nope: no such run directory"),
        (["runs/c-lr=1", "a=1"], "runs/c-lr=1: no such run directory"),
        (["a=1", "b=2"], "a=1 b=2: no run among these: python -m harness tag RUN KEY=VALUE"),
        (
            ["runs/a", "two\nlines=1"],
            "'two\\nlines=1': a name is one line, without control characters: write KEY=VALUE",
        ),
        (["runs/a", "=1"], "=1: no name before the =: write KEY=VALUE"),
        (
            ["runs/a", "harness.run_id=1"],
            "harness.run_id=1: names that begin with harness. or mlflow. are not a user's: choose another",
        ),
        (
            ["runs/a", "mlflow.note.content="],
            "mlflow.note.content=: names that begin with harness. or mlflow. are not a user's: choose another",
        ),
    ]:
        result = tag(*args)
        assert (result.exit_code, result.stderr, result.stdout) == (2, f"error: {error}\n", "")
        assert tags(RunDir("runs/a")) == {"team": "x"}
