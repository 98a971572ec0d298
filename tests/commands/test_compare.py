import json

import pytest
from click.testing import CliRunner

from harness.__main__ import main
from harness.compare.judge import _SAME_DATA
from harness.supervised.mapping import fingerprint
from tests.commands.test_main import run_harness
from tests.compare.made_runs import last_row, make_run, scored, train_row
from tests.tracking.conftest import client as client
from tests.tracking.conftest import database as database
from tests.tracking.conftest import uri as uri


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs in the folder ``runs`` of the current directory."""
    make_run(tmp_path / "runs" / "a", [train_row(0, 4.0, 4.5), last_row(1, 3.0)])
    make_run(tmp_path / "runs" / "b", [train_row(0, 4.0, 4.5), last_row(1, 2.0)], learning_rate=1e-3)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def compare(*args):
    return CliRunner().invoke(main, ["compare", *args])


def test_it_compares_and_draws_and_changes_nothing_in_the_runs(runs, tmp_path):
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    done, imported = run_harness("compare", runs, "--out", tmp_path / "nll.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert "* best: b\n" in done.stdout
    assert "learning_rate" in done.stdout
    assert done.stdout.endswith(f"\nwrote {tmp_path / 'nll.png'}\n")
    assert (tmp_path / "nll.png").read_bytes().startswith(b"\x89PNG")
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before
    assert {"pandas", "matplotlib"} <= imported
    assert not imported & {"tinker", "torch", "transformers", "mlflow", "datasets", "peft"}


def test_a_report_is_written_in_every_form_that_is_asked_for(runs, tmp_path):
    done, imported = run_harness(
        "compare", runs, "--out", tmp_path / "r.html", "--out", tmp_path / "r.json", "--x", "tokens"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"\nwrote {tmp_path / 'r.html'}, {tmp_path / 'r.json'}\n")
    assert "tokens trained on" in (tmp_path / "r.html").read_text()
    assert json.loads((tmp_path / "r.json").read_text())["judgement"]["x"] == "tokens"
    assert "plotly" in imported and not imported & {"matplotlib", "mlflow", "torch", "tinker"}


def test_the_page_is_logged_to_mlflow(runs, uri, client, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    result = compare("runs", "--log", "exp")
    (run,) = client.search_runs([client.get_experiment_by_name("exp").experiment_id])
    assert result.stdout.endswith(f"\nlogged report.html to run {run.info.run_id} of experiment exp at {uri}\n")
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["report.html"]


def test_without_out_nothing_is_drawn(runs):
    done, imported = run_harness("compare", runs / "a", runs / "b")
    assert done.returncode == 0
    assert "wrote" not in done.stdout
    assert not imported & {"matplotlib", "plotly", "mlflow"}


def test_mistakes_are_one_line_and_exit_2(runs):
    for args, error in [
        (["runs", "nope"], "error: nope: no such run directory\n"),
        (
            ["nope", "--out", "x.txt"],  # said before a run is read
            "error: x.txt: no form of a report: end its name in .html, .json, .csv, .md, .png, .svg, .pdf\n",
        ),
        (
            ["runs", "--on", "math"],
            'error: no run has a test set named "math": choose one with --on: "" (2 of 2 runs)\n',
        ),
    ]:
        result = compare(*args)
        assert (result.exit_code, result.stderr, result.stdout) == (2, error, "")


def test_no_run_named_is_a_usage_error(runs):
    result = compare()
    assert result.exit_code == 2
    assert "Missing argument 'RUN...'" in result.stderr


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Three runs on the same thirty examples: b is better than a by 0.1 nats a token, c is worse."""
    for name, nll in (("a", 2.0), ("b", 1.9), ("c", 2.1)):
        make_run(tmp_path / name, [train_row(0, 4.0), last_row(1, nll)], examples=scored([nll * 5] * 30, [5] * 30))
    monkeypatch.chdir(tmp_path)


def test_a_run_that_is_worse_fails_where_that_is_asked_for(judged):
    better, worse = compare("a", "b", "--fail-if", "worse"), compare("a", "c", "--fail-if", "worse")
    assert (better.exit_code, worse.exit_code) == (0, 1)
    assert "worse    " in worse.stdout and worse.stderr == ""
    assert compare("a", "c").exit_code == 0
    assert compare("a", "c", "--baseline", "c", "--fail-if", "worse").exit_code == 0


def test_a_run_that_cannot_be_judged_is_a_mistake_where_worse_should_fail(judged, tmp_path):
    make_run(tmp_path / "d", [last_row(1, 1.0)], test={"": "dead"}, examples=scored([5.0] * 30, [5] * 30))
    result = compare("a", "d", "--fail-if", "worse")
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: no verdict on d: tested on other data (dead, the baseline on feed): {_SAME_DATA}\n"
    )
    assert "NLL in nats per token" in result.stdout  # what there is to see is shown first


def test_it_explains_where_that_is_asked_for(tmp_path, monkeypatch):
    messages = [{"role": "user", "content": "what of the sea"}, {"role": "assistant", "content": "wide"}]
    (tmp_path / "d.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    data = {"train": "beef", "test": {"": "feed"}, "test_contents": {"": fingerprint([messages])}}
    for name, nll in (("a", 2.0), ("b", 1.9)):
        make_run(
            tmp_path / name,
            [train_row(0, 4.0), last_row(1, nll)],
            examples=scored([nll], [1]),
            document={"data": data},
            dataset_builder__test_file_path=str(tmp_path / "d.jsonl"),
        )
    monkeypatch.chdir(tmp_path)
    assert "Training, beside" not in compare("a", "b").stdout
    done, imported = run_harness("compare", tmp_path / "a", tmp_path / "b", "--explain")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nTraining, beside a" in done.stdout
    assert "user: what of the sea → assistant: wide" in done.stdout
    assert not imported & {"tinker", "torch", "transformers", "mlflow", "datasets", "peft"}
    result = compare("a", "--explain")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: there is no run beside a to differ from it: name another\n"


def test_baseline_point_and_axis_are_the_users(judged):
    assert "\nAgainst b: last evaluations " in compare("a", "b", "--baseline", "b").stdout
    at = compare("a", "b", "--at", "40", "--x", "loss-tokens")
    assert "Against a: at loss-tokens 40" in at.stdout
    for args, error in [
        (["--baseline", "z"], 'error: no run "z" among those compared: choose one with --baseline: a, b\n'),
        (["--at", "end"], 'error: --at "end": choose last, best, common, or a number on the step axis\n'),
        (
            ["--x", "steps"],
            'error: no x axis "steps": choose one of step, tokens, loss-tokens, epoch, fraction, time\n',
        ),
    ]:
        result = compare("a", "b", *args)
        assert (result.exit_code, result.stderr, result.stdout) == (2, error, "")
