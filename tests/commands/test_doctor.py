import shutil

from click.testing import CliRunner

from harness.__main__ import main
from tests.tracking.conftest import client as client
from tests.tracking.conftest import database as database
from tests.tracking.conftest import mirror_to, row, start_run
from tests.tracking.conftest import uri as uri


def test_doctor_says_a_line_a_run_and_closes_what_nobody_trains(tmp_path, uri, client, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    ids = {}
    for name in ("a", "b"):
        run_dir = start_run(tmp_path / "runs" / name)
        run_dir.append_metrics(row(0, 4.0))
        with run_dir.lock():
            mirror = mirror_to(run_dir, uri)
            mirror.send()
        ids[name] = mirror.run_id
    shutil.rmtree(tmp_path / "runs" / "b")

    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "runs/a: KILLED, 1 updates; its files are whole; its MLflow run said RUNNING: brought up to date, KILLED",
        f"{tmp_path}/runs/b: its MLflow run {ids['b']} said RUNNING: closed as KILLED",
    ]
    assert {client.get_run(run_id).info.status for run_id in ids.values()} == {"KILLED"}
    assert CliRunner().invoke(main, ["doctor", "runs"]).stdout == "runs/a: KILLED, 1 updates; its files are whole\n"


def test_what_remains_to_mend_is_exit_code_1(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:s3cret@127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["doctor"])
    reason = "MLflow at http://127.0.0.1:9 cannot be reached (ConnectionError): is the server up?\n"
    assert (result.exit_code, result.stdout) == (1, reason)
    assert CliRunner().invoke(main, ["doctor", "nope"]).exit_code == 2

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (start_run(tmp_path / "runs" / "a") / "metrics.jsonl").write_text("x\ny\n")
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert result.stdout.startswith(f"runs/a: UNREADABLE, 0 updates; {tmp_path}/runs/a/metrics.jsonl:1: not a JSON row")
