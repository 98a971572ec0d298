"""The state of run directories: what became of each, whether its files are whole, whether MLflow knows."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from harness.checkpoint_record import is_remote
from harness.exceptions import HarnessError, RunDirError
from harness.files import iter_jsonl
from harness.run_dir import ATTEMPTS, CHECKPOINTS, EVAL_EXAMPLES, LATER_EVALUATIONS, METRICS, SAMPLES, TAGS, RunDir
from harness.tracking.mlflow_stale import close_stale

_LINES = (METRICS, CHECKPOINTS, EVAL_EXAMPLES, SAMPLES, LATER_EVALUATIONS, ATTEMPTS, TAGS)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What :func:`examine` found.

    Attributes:
        state: As ``RunDir.state``; UNREADABLE where attempts.jsonl is damaged.
        num_updates: That have a row.
        notes: What is mended, or mends itself.
        problems: What the user must mend.
    """

    state: str
    num_updates: int
    notes: tuple[str, ...]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        whole = [] if self.problems else ["its files are whole"]
        return "; ".join([f"{self.state}, {self.num_updates} updates", *whole, *self.notes, *self.problems])


def examine(run_dir: RunDir) -> Diagnosis:
    """Look at the files of a run, and close its MLflow run where that says RUNNING and no process writes."""
    problems: list[str] = []
    for look in (_damaged_lines, _missing_rows, _missing_states):
        try:
            problems += look(run_dir)
        except HarnessError as error:
            problems.append(str(error))
    try:
        state, num_updates = run_dir.state(), run_dir.num_steps_trained()
    except RunDirError:  # and a line is damaged
        state, num_updates = "UNREADABLE", 0
    notes = [] if state == "RUNNING" else _torn_lines(run_dir)
    try:
        if close_stale(run_dir):
            notes.append(f"its MLflow run said RUNNING: brought up to date, {state}")
    except HarnessError as error:
        problems.append(str(error))
    return Diagnosis(state, num_updates, tuple(notes), tuple(dict.fromkeys(problems)))


def _damaged_lines(run_dir: RunDir) -> list[str]:
    run_dir.config()
    for name in _LINES:
        for _ in iter_jsonl(run_dir / name):
            pass
    return []


def _torn_lines(run_dir: RunDir) -> list[str]:
    """Lines that a crash cut short; whoever writes next cuts them off."""
    return [f"the torn end of {name} does not count" for name in _LINES if _is_torn(run_dir / name)]


def _is_torn(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _missing_rows(run_dir: RunDir) -> list[str]:
    first = run_dir.num_steps_recorded()
    there = next(run_dir.iter_metrics(first), None)
    return [f"{run_dir / METRICS}: no row of step {first}: a resume trains on from there"] if there else []


def _missing_states(run_dir: RunDir) -> list[str]:
    """Checkpoints that are logged and not there; those of a service lie elsewhere."""
    gone = [
        record.name
        for record in run_dir.checkpoints()
        if record.is_usable and not is_remote(record.state_path) and not (run_dir / record.state_path).exists()
    ]
    named = ", ".join(gone)
    return [f"{run_dir}: no state of checkpoint {named}: restore it, or resume from one before"] if gone else []
