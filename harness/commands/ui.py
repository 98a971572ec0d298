"""``python -m harness ui``: the MLflow UI over the runs of this directory."""

import os
import socket
import subprocess
import sys
import tempfile
import time

import click

_HOST = "127.0.0.1"  # it asks for no password: nobody else on the network may open it


@click.command()
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
def command(port: int) -> None:
    """Show the runs of this directory in the MLflow UI, on 127.0.0.1, until Ctrl-C.

    MLFLOW_TRACKING_URI names another store. A server has the UI already: its address is printed.
    """
    from harness.config_io import redact
    from harness.exceptions import TrackingError
    from harness.supervised.interrupts import interruptible
    from harness.tracking import mlflow_store

    uri = mlflow_store.uri_here()
    if uri.startswith("http"):
        click.echo(f"MLflow is at {redact(uri)}")
        return
    if not mlflow_store.unless_gone(uri):
        raise TrackingError(f"{uri}: no such database: train a run first, or go where one was trained")
    _check_port(port)
    with mlflow_store.one_line_errors(uri):
        mlflow_store.open_store(uri)  # what is wrong with it is said here, in a line
    with interruptible(), tempfile.TemporaryFile() as log:
        server = subprocess.Popen(_server(port), env=_environment(uri), stdout=log, stderr=log)
        try:
            while server.poll() is None and not _answers(port):
                time.sleep(0.1)
            if server.poll() is None:
                click.echo(f"MLflow is at http://{_HOST}:{port} (Ctrl-C ends it)")
            code = server.wait()
        finally:
            server.terminate()
            server.wait()
        log.seek(0)
        last_line = log.read().decode(errors="replace").strip().rpartition("\n")[2]
        raise TrackingError(f"the MLflow server ended with exit code {code}: {redact(last_line)}")


def _server(port: int) -> list[str]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", _HOST, "--port", str(port)]
    return [*command, "--workers", "1", "--uvicorn-opts", "--log-level warning"]


def _environment(uri: str) -> dict[str, str]:
    """The store, which may have a password that a command line would show to everybody; and no job runners: nobody
    asked for their seven processes, some of which outlive the server."""
    from harness.tracking.mlflow_store import artifact_location

    environment = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    if location := artifact_location(uri):
        environment["MLFLOW_DEFAULT_ARTIFACT_ROOT"] = location
    return os.environ | environment


def _check_port(port: int) -> None:
    from harness.exceptions import ConfigError

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: one just ended is no harm
        try:
            listener.bind((_HOST, port))
        except OSError as error:
            raise ConfigError(f"{_HOST}:{port}: {error.strerror}: choose another --port") from error


def _answers(port: int) -> bool:
    try:
        socket.create_connection((_HOST, port), timeout=1).close()
    except OSError:
        return False
    return True
