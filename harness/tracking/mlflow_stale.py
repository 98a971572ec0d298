"""MLflow runs that say RUNNING though no process writes them: a SIGKILL or a power cut lets nobody say otherwise."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.exceptions import RunDirError
from harness.run_dir import RunDir
from harness.tracking import mlflow_run, mlflow_store, mlflow_tags
from harness.tracking.mlflow_mirror import destination, locate, sync
from harness.tracking.mlflow_store import one_line_errors

if TYPE_CHECKING:
    from mlflow.entities import Run


def close_stale(run_dir: RunDir) -> bool:
    """Bring the MLflow run of ``run_dir`` up to date where it says RUNNING and no process writes; whether it did.

    Raises:
        TrackingError, RunDirError: as ``sync``.
    """
    uri, mirrored = locate(run_dir, destination(run_dir), Path.cwd())
    if run_dir.is_locked() or not mirrored or mlflow_store.unless_gone(uri) is None:
        return False
    with one_line_errors(uri):
        client = mlflow_store.open_store(uri)
        run, _ = mlflow_run.find_run(client, run_dir, mirrored["run_id"])
    if run is None or mlflow_run.is_deleted(run) or run.info.status != "RUNNING":
        return False
    sync(run_dir)
    return True


def stores_of(run_dirs: Iterable[RunDir]) -> list[str]:
    """Where runs that are there were mirrored, and where one started here would be; with their user info."""
    found: list[str] = []
    for run_dir in run_dirs:
        with contextlib.suppress(RunDirError):  # its diagnosis says so
            if run_dir.mirror():
                found.append(locate(run_dir, destination(run_dir), Path.cwd())[0])
    return [uri for uri in dict.fromkeys([*found, mlflow_store.uri_here()]) if mlflow_store.unless_gone(uri)]


def close_orphans(uri: str) -> list[str]:
    """Close the runs of a store that say RUNNING and whose directory, on this machine, is gone or written by nobody.

    Args:
        uri: The store, with its user info.

    Returns:
        What was closed, each in words.

    Raises:
        TrackingError: where MLflow cannot be reached or written.
    """
    closed: list[str] = []
    with one_line_errors(uri):
        client = mlflow_store.open_store(uri)
        for run in mlflow_run.running(client):
            state = _state(run) if _is_ours(run, uri) else None
            if state is not None:
                last = max((metric.timestamp for metric in run.data.to_proto().metrics), default=run.info.start_time)
                client.set_terminated(run.info.run_id, state, end_time=last)
                path = run.data.tags[mlflow_tags.LOG_PATH]
                closed.append(f"{path}: its MLflow run {run.info.run_id} said RUNNING: closed as {state}")
    return closed


def _is_ours(run: Run, uri: str) -> bool:
    """Whether its directory is of this machine; in a database file one without a word on it is taken to be."""
    host = run.data.tags.get(mlflow_run.LOG_HOST)
    is_file = mlflow_store.artifact_location(uri) is not None
    return mlflow_tags.LOG_PATH in run.data.tags and (host == socket.gethostname() if host else is_file)


def _state(run: Run) -> str | None:
    """What became of the run; None where a process is writing it, or might: where one cannot look."""
    run_dir = RunDir(run.data.tags[mlflow_tags.LOG_PATH])
    try:
        if run_dir.config()["run_id"] != run.data.tags[mlflow_tags.RUN_ID]:
            return "KILLED"
        state = run_dir.state()
    except RunDirError:
        is_mounted = run_dir.path.parent.is_dir()  # or a container's, which has this host's name and another disk
        return "KILLED" if is_mounted and not run_dir.exists() else None
    except OSError:
        return None
    return {"RUNNING": None, "NEW": "KILLED"}.get(state, state)
