"""The mistakes; tests/e2e/test_browser.py opens the UI that is served."""

import contextlib
import shutil
import socket
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.__main__ import main
from harness.tracking.mlflow_store import embedded_uri, open_store


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Empty; made once, which takes seconds."""
    folder = tmp_path_factory.mktemp("made")
    open_store(embedded_uri(folder))
    return folder / "mlruns" / "mlflow.db"


@pytest.fixture
def store(database, folder):
    (folder / "mlruns").mkdir()
    return Path(shutil.copy(database, folder / "mlruns"))


def error_of(*arguments):
    result = CliRunner().invoke(main, ["ui", *map(str, arguments)])
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    return line


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_a_server_has_its_ui_already(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.team.example/")
    result = CliRunner().invoke(main, ["ui"])
    assert (result.exit_code, result.stdout) == (0, "MLflow is at https://mlflow.team.example/\n")


def test_nothing_trained_here_yet(folder):
    assert error_of() == (
        f"error: {embedded_uri(folder)}: no such database: train a run first, or go where one was trained"
    )
    assert not (folder / "mlruns").exists()


def test_a_relative_address_is_taken_from_here(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert error_of().startswith(f"error: sqlite:///{folder}/other.db: no such database")


def test_a_port_that_is_taken(store):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert error_of("--port", port) == f"error: 127.0.0.1:{port}: Address already in use: choose another --port"


def test_a_store_of_an_older_mlflow(store):
    with contextlib.closing(sqlite3.connect(store)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'bd07f7e963c5'")
    line = error_of("--port", free_port())
    assert "out-of-date database schema (found version bd07f7e963c5" in line
    assert "Take a backup of your database, then run 'mlflow db upgrade" in line


def test_a_server_that_ends_by_itself(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_GUNICORN_OPTS", "--threads 2")  # a choice for another kind of server than ours
    line = error_of("--port", free_port())
    assert line.startswith("error: the MLflow server ended with exit code 2: Error: Cannot specify multiple server")
