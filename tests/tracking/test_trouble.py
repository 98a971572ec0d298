"""What goes wrong with MLflow, for real: training is not held up, one line says what to do, a sync completes it."""

import http.server
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from harness.exceptions import TrackingError
from harness.run_dir import RunDir
from harness.tracking.mlflow_check import check
from harness.tracking.mlflow_mirror import sync
from harness.tracking.mlflow_store import open_store
from tests.tracking.conftest import end_attempt, row, start_run

ROOT = Path(__file__).parents[2]
MIRRORED = textwrap.dedent(
    """
    import logging, sys
    from harness.run_dir import RunDir
    from harness.tracking.live_mirror import LiveMirror
    from harness.tracking.mlflow_store import Destination

    path, uri, patience = sys.argv[1:]
    logging.basicConfig(format="%(message)s")
    run_dir = RunDir(path)
    with run_dir.lock():
        mirror = LiveMirror(run_dir, Destination.of(run_dir.config(), uri), interval=0.01, patience=float(patience))
        mirror.start()
        for step in range(3):
            run_dir.append_metrics({"step": step, "ts": 1790000000000 + step, "train_mean_nll": 4.0 - step})
        run_dir.append_attempt(
            {"attempt": 1, "event": "end", "ts": 1790000060000, "state": "FINISHED", "verified_rows": 0, "exact": None}
        )
        mirror.finish("FINISHED")
    """
)


def train(path: Path, uri: str, patience: float = 60.0, limit: int | None = None) -> subprocess.Popen[str]:
    """A process that trains a run of three steps and mirrors it.

    Args:
        limit: Bytes that a file of it may have.
    """

    def limited() -> None:
        assert limit is not None
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-B", "-c", MIRRORED, str(path), uri, str(patience)]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=limited if limit is not None else None
    )


@pytest.fixture
def answer():
    """A server that answers everything alike: ``answer(status, text)`` gives its URI."""
    servers = []

    def start(status: int, text: str) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            do_POST = do_GET

            def log_message(self, format, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "text", "reason"),
    [
        (401, "You are not authenticated.", "refuses the user or the password: set MLFLOW_TRACKING_USER"),
        (403, "Invalid Host header - possible DNS rebinding", "does not answer to this name: start it with it among"),
        (403, '{"error_code": "PERMISSION_DENIED", "message": "no"}', "does not let you do this: ask whoever keeps it"),
        (200, "<html>a router's page</html>", "failed (MlflowException: API request to endpoint was successful but"),
    ],
)
def test_a_server_that_refuses(tmp_path, answer, status, text, reason):
    uri = answer(status, text)
    with pytest.raises(TrackingError) as raised:
        sync(start_run(tmp_path / "run"), uri.replace("http://", "http://bob:s3cret@"))
    assert str(raised.value).startswith(f"MLflow at {uri} {reason}")


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("foo://host/x", "names no store: give sqlite:///FILE, postgresql://…, or the http(s)://… of a server"),
        ("http://no-such-host.invalid:5000", "cannot be reached (ConnectionError): is the server up?"),
        ("http://127.0.0.1:9", "cannot be reached (ConnectionError): is the server up?"),
        ("mysql://bob:s3cret@host/x", "needs a database driver that is not installed (MySQLdb): install it, or name"),
    ],
)
def test_a_wrong_uri(tmp_path, uri, reason, capfd):
    with pytest.raises(TrackingError) as raised:
        sync(start_run(tmp_path / "run"), uri)
    assert str(raised.value).startswith(f"MLflow at {uri.replace('bob:s3cret@', '')} {reason}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "mlruns", "sqlite:///", "sqlite://", "sqlite://two/slashes.db"])
def test_a_uri_that_names_no_store(tmp_path, monkeypatch, uri):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrackingError, match=f"^{re.escape(uri)}: names no store: give sqlite:///FILE"):
        sync(start_run(tmp_path / "run"), uri)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_database_that_may_not_be_written(uri):
    path = Path(uri.removeprefix("sqlite:///"))
    path.chmod(0o444)
    command = [sys.executable, "-c", f"from harness.tracking.mlflow_store import open_store; open_store({uri!r})"]
    if os.geteuid() == 0:  # may write it all the same, unless it is told not to
        caps = "-dac_override,-dac_read_search,-fowner"
        command = ["setpriv", f"--bounding-set={caps}", f"--inh-caps={caps}", *command]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    path.chmod(0o644)
    assert said.endswith("cannot be opened (attempt to write a readonly database): choose another tracking URI\n")


def test_a_read_only_database(tmp_path, uri):
    run_dir = start_run(tmp_path / "run")
    run_dir.append_metrics(row(0, 4.0))
    with Path(uri.removeprefix("sqlite:///")).open("r+b") as file:
        file.seek(18)
        file.write(b"\3")  # the format that is needed to write it, and SQLite knows 1 and 2
        file.flush()
        with pytest.raises(TrackingError) as raised:
            sync(run_dir, uri)
        reason = "cannot be opened (attempt to write a readonly database): choose another tracking URI"
        assert str(raised.value) == f"{uri}: {reason}"
        file.seek(18)
        file.write(b"\1")
    assert sync(run_dir, uri).num_points == 1


def test_a_full_disk(tmp_path, uri):
    """One that takes the run's files, and no more of the database's."""
    run_dir = start_run(tmp_path / "run")
    process = train(run_dir.path, uri, limit=20_000)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0
    (line,) = said.splitlines()
    assert line.startswith(f"MLflow at {uri} failed (")
    assert "autoflush" not in line
    assert f"python -m harness sync {run_dir}" in line
    assert sync(run_dir, uri).num_points == 3
    assert check(run_dir).is_equal


def test_a_server_that_hangs_holds_nobody_up(tmp_path, uri):
    run_dir = start_run(tmp_path / "run")
    with socket.create_server(("127.0.0.1", 0)) as server:  # it takes connections and never answers
        hanging = f"http://127.0.0.1:{server.getsockname()[1]}"
        _, said = train(run_dir.path, hanging, patience=0.1).communicate(timeout=60)
    assert said == f"MLflow was not done within 0.1 s: python -m harness sync {run_dir} completes the MLflow run\n"
    assert sync(run_dir, uri).num_points == 3


def test_two_runs_started_at_the_same_moment_on_a_fresh_store(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    runs = [start_run(tmp_path / name) for name in ("a", "b")]
    processes = [train(run_dir.path, uri) for run_dir in runs]
    assert [process.communicate(timeout=120)[1] for process in processes] == ["", ""]
    for run_dir in runs:
        assert check(run_dir, uri).is_equal
    (experiment,) = {run.info.experiment_id for run in open_store(uri).search_runs(["1"])}
    assert experiment == "1"


# ---- a run made offline


def test_a_run_made_offline_goes_to_a_server_later_and_stays_there(tmp_path, uri, serve, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run_dir = start_run(tmp_path / "run", experiment="offline")
    run_dir.append_metrics(row(0, 4.0))
    end_attempt(run_dir, 1)
    sync(run_dir, uri)  # the embedded store had it before
    server = f"127.0.0.1:{serve(0).server_port}"

    there = sync(run_dir, f"http://bob:s3cret@{server}")
    assert (there.num_points, there.tracking_uri) == (1, f"http://{server}")
    assert "s3cret" not in (run_dir / "mirror.json").read_text()
    again = sync(run_dir)
    assert (again.num_points, again.run_id, again.tracking_uri) == (0, there.run_id, f"http://{server}")
    assert check(run_dir).is_equal and check(run_dir, uri).is_equal
    assert sync(RunDir(shutil.move(run_dir.path, tmp_path / "moved"))).run_id == there.run_id
