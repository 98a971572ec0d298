"""What nests one MLflow run under another: a fork under its parent's, a run of a sweep under that of the sweep.

A sweep's has no points. Whichever of its runs is mirrored first makes it; :func:`sync_sweep` in ``mlflow_sweep`` keeps
its status. It lies in the experiment of that first run, since MLflow nests within one.
"""

from __future__ import annotations

import shlex
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from harness.exceptions import RunDirError
from harness.run_dir import Row, RunDir
from harness.sweep_record import SweepRecord, lock_record, read_record
from harness.tracking import mlflow_run, mlflow_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SWEEP_ID = "harness.sweep_id"  # sweep.json's; a sweep's run has no harness.run_id
VALUES = "harness.sweep."  # followed by a parameter's name: the values that it was given
_MLFLOW_PARENT = "mlflow.parentRunId"
_SHARED = ("mlflow.user", "mlflow.source.git.commit")  # of a sweep and its runs


def parent_tags(client: MlflowClient, run: Run, run_dir: RunDir, document: Row) -> dict[str, str]:
    """What nests ``run``; nothing where that is done, or where a fork's parent is not in this store (yet).

    Args:
        run: The MLflow run of ``run_dir``.
        document: ``RunDir.config()``.
    """
    if parent := document.get("parent"):
        parents = [found for found in mlflow_run.runs_of(client, parent["run_id"]) if not mlflow_run.is_deleted(found)]
    elif record := _record(run_dir.path.parent):
        parents = [sweep_run(client, run_dir.path.parent, record, run)]
        if run_dir.is_locked() and parents[0].info.status != "RUNNING":  # the sweep goes on
            client.update_run(parents[0].info.run_id, status="RUNNING")
    else:
        parents = []
    ids = [found.info.run_id for found in parents]
    is_done = run.data.tags.get(_MLFLOW_PARENT) in ids
    return {_MLFLOW_PARENT: ids[0]} if ids and not is_done else {}


def _record(root: Path) -> SweepRecord | None:
    try:
        return read_record(root)
    except RunDirError:  # sync_sweep says so; a run is mirrored without a parent
        return None


def sweep_run(client: MlflowClient, root: Path, record: SweepRecord, child: Run) -> Run:
    """The MLflow run of the sweep in ``root``; made where it is missing or was deleted, for it holds no points. A
    folder that was moved keeps its own, a copy has one for itself.

    Args:
        child: One of the sweep's runs.
    """
    with lock_record(root):
        if found := sweep_runs(client, root, record):
            return found[0]
        tags = sweep_tags(root, record) | {key: child.data.tags[key] for key in _SHARED if key in child.data.tags}
        tags["mlflow.note.content"] = _description(root, record)  # only now: a user may edit it there
        return client.create_run(
            child.info.experiment_id,
            start_time=record.started,
            tags={key: value[: mlflow_run.TAG_LENGTH] for key, value in tags.items()},
            run_name=root.absolute().name,
        )


def sweep_runs(client: MlflowClient, root: Path, record: SweepRecord) -> list[Run]:
    """The MLflow run of the sweep in ``root``; none where there is none yet."""
    here = str(root.absolute())
    found = [run for run in mlflow_run.runs_having(client, SWEEP_ID, record.sweep_id) if not mlflow_run.is_deleted(run)]
    own = [run for run in found if run.data.tags.get(mlflow_tags.LOG_PATH) == here]
    return own or [run for run in found if not _is_there(run, record)]


def _is_there(run: Run, record: SweepRecord) -> bool:
    """Whether the folder that ``run`` was made for still holds the sweep, on this machine."""
    tags = run.data.tags
    there = _record(Path(tags.get(mlflow_tags.LOG_PATH, "")))
    return (
        tags.get(mlflow_run.LOG_HOST) == socket.gethostname()
        and there is not None
        and there.sweep_id == record.sweep_id
    )


def sweep_tags(root: Path, record: SweepRecord) -> dict[str, str]:
    """Where the sweep lies, and what it was last asked for."""
    return {
        SWEEP_ID: record.sweep_id,
        "harness.recipe": record.recipe,
        mlflow_tags.LOG_PATH: str(root.absolute()),
        mlflow_run.LOG_HOST: socket.gethostname(),
        **{f"{VALUES}{name}": ", ".join(values) for name, values in record.grid.items()},
    }


def _description(root: Path, record: SweepRecord) -> str:
    lines = [
        f"Sweep of `{record.recipe}`: a run for each combination of the values in the tags `{VALUES}…`.\n",
        f"- First command: `{shlex.join(record.argv)}`",
        f"- Directory: `{root.absolute()}`",
    ]
    return "\n".join(lines)
