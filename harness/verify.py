"""The full proof of a resume: the same recipe trained twice, once killed on the way, and held against itself.

Where both come out equal to the bit, that is the proof. Where they do not (a service computes with noise), a third run
goes on from the same checkpoint with a fresh optimiser: a resume that lost the optimiser is as far from the
uninterrupted run as that one is, one that restored it is nearer.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import cli, metric_keys
from harness.config_io import from_json
from harness.exceptions import BackendError, ConfigError
from harness.run_dir import CheckpointRecord, RunDir

_POLL_SECONDS = 0.02
_NEARER = 3  # times nearer to the uninterrupted run than the cold one is: then the optimiser was restored
_ALWAYS_DIFFERENT = (metric_keys.TS, metric_keys.TIME_STEP, metric_keys.TIME_DATA, metric_keys.TIME_EVAL)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What :func:`verify_resume` found.

    Attributes:
        is_exact: Batches, schedule, metrics, evaluated examples and saved states are equal to the bit.
        was_restored: Exact, or by far nearer to the uninterrupted run than a continuation with a fresh optimiser.
        lines: In words, a line each.
    """

    is_exact: bool
    was_restored: bool
    lines: list[str]


def verify_resume(
    recipe: str, overrides: Sequence[str], kill_at: int, folder: Path, say: Callable[[str], None]
) -> Verdict:
    """Train ``recipe`` in ``folder``/whole, and in ``folder``/killed with a SIGKILL once row ``kill_at`` is written.

    Args:
        recipe: A module as after ``python -m``.
        overrides: What follows it, without a ``log_path``.
        say: Told in a line what is begun.

    Raises:
        ConfigError: where the run ends before the kill.
        BackendError: where one of the runs fails.
    """
    if any(override.lstrip("-").startswith("log_path") for override in overrides):
        raise ConfigError("verify-resume trains in directories of its own: leave log_path out (--dir says where)")

    cli.import_from_here()  # what the recipe defines is made again here

    def command(name: str) -> list[str]:
        return [sys.executable, "-m", recipe, *overrides, f"log_path={folder / name}", "mirror=false", "keep=all"]

    whole, killed = RunDir(folder / "whole"), RunDir(folder / "killed")
    say(f"1/3 an uninterrupted run: {whole}")
    _run(command("whole"), folder / "whole.log")
    say(f"2/3 a run that is killed after row {kill_at}: {killed}")
    _kill(command("killed"), killed, kill_at, folder / "killed.log")
    say("3/3 the same command again")
    _run(command("killed"), folder / "resumed.log")

    _, *resumes = [row for row in killed.attempts() if row["event"] == "start"]
    if not resumes or resumes[-1]["resumed_from"] is None:
        raise ConfigError(
            f"{killed} had no checkpoint by row {kill_at}: give a larger --kill-at, or a smaller save_every"
        )
    start, end = resumes[-1], killed.attempts()[-1]
    lines = [
        f"killed after row {kill_at}, resumed at step {start['next_step']} from checkpoint {start['resumed_from']}; "
        f"{end['verified_rows']} rows beyond it were verified"
    ]
    difference = first_difference(whole, killed)
    if difference is None:
        num_states = sum(_state_digest(killed, record) is not None for record in _usable(killed).values())
        lines.append(f"exact: {len(whole.metrics())} rows, their evaluations and {num_states} saved states are equal")
        return Verdict(True, True, lines)
    lines.append(f"first difference: {difference}")
    say("and one that goes on with a fresh optimiser")
    cold = RunDir(folder / "cold")
    at = str(start["next_step"])
    fork = ["fork", str(whole), "--at", at, "--weights-only", f"log_path={cold}", "mirror=false", "keep=all"]
    _run([sys.executable, "-m", "harness", *fork], folder / "cold.log")
    restored_by, cold_by = distance(whole, killed, start["next_step"]), distance(whole, cold, start["next_step"])
    was_restored = restored_by * _NEARER <= cold_by
    was_lost = distance(cold, killed, start["next_step"]) * _NEARER <= cold_by
    verdict = "the optimiser was restored" if was_restored else "the optimiser was not restored"
    if was_restored == was_lost:  # noise hides it, or no row shows it
        verdict = "that does not tell whether the optimiser was restored: train more steps after --kill-at"
    lines.append(
        f"from there on the resumed run differs by {restored_by:.1e} nats a token, one with a fresh optimiser by "
        f"{cold_by:.1e}: {verdict}"
    )
    return Verdict(False, was_restored, lines)


def first_difference(whole: RunDir, other: RunDir) -> str | None:
    """Where two runs part: the first row, evaluation or saved state that differs, in words; None where none does."""
    rows, others = ({row[metric_keys.STEP]: row for row in run.metrics()} for run in (whole, other))
    for step in sorted(rows.keys() | others.keys()):
        if step not in rows or step not in others:
            return f"step {step} stands in {whole if step in rows else other} alone"
        for key in rows[step] | others[step]:
            if key not in _ALWAYS_DIFFERENT and rows[step].get(key) != others[step].get(key):
                return f"step {step}, {key}: {rows[step].get(key)} and {others[step].get(key)}"
    for evaluation, again in itertools.zip_longest(whole.eval_examples(), other.eval_examples()):
        if evaluation != again:
            one = evaluation or again
            return f"step {one[metric_keys.STEP]}, an evaluated example of test set {one['set']!r}"
    states, others = _usable(whole), _usable(other)
    if states.keys() and max(states) not in others:
        return f"the state saved at step {max(states)} stands in {whole} alone"
    for step in sorted(states.keys() & others.keys()):
        if _state_digest(whole, states[step]) != _state_digest(other, others[step]):
            return f"the state saved at step {step}"
    return None


def _usable(run: RunDir) -> dict[int, CheckpointRecord]:
    return {record.step: record for record in run.checkpoints() if record.is_usable}


def _state_digest(run: RunDir, record: CheckpointRecord) -> str | None:
    return from_json(run.config()["config"]["backend"]).state_digest(run.path, record.state_path)


def distance(whole: RunDir, other: RunDir, from_step: int) -> float:
    """Root mean square of the differences of train NLL after ``from_step``, nats a token. The row at ``from_step``
    itself is of the weights that both began with."""

    def losses(run: RunDir) -> dict[int, float]:
        return {
            row[metric_keys.STEP]: row[metric_keys.TRAIN_NLL] for row in run.metrics() if metric_keys.TRAIN_NLL in row
        }

    ours, theirs = losses(whole), losses(other)
    squares = [(ours[step] - theirs[step]) ** 2 for step in ours.keys() & theirs.keys() if step > from_step]
    return math.sqrt(sum(squares) / len(squares)) if squares else math.nan


def _run(command: list[str], log: Path) -> None:
    with log.open("ab") as out:
        code = subprocess.run(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, check=False).returncode
    if code:
        raise BackendError(f"{' '.join(command[1:])} ended with exit code {code}: {last_line(log)} (all of it: {log})")


def _kill(command: list[str], run: RunDir, after_step: int, log: Path) -> None:
    """Start ``command`` and kill it, with all that it started, once ``after_step`` has a row."""
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        while not _has_row(run, after_step):
            if process.poll() is not None:
                raise ConfigError(
                    f"{run} ended before row {after_step} was followed by another (exit code {process.returncode}: "
                    f"{last_line(log)}): give a smaller --kill-at"
                )
            time.sleep(_POLL_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode != -signal.SIGKILL:
        raise ConfigError(f"{run} ended before it could be killed after row {after_step}: give a smaller --kill-at")


def _has_row(run: RunDir, step: int) -> bool:
    last = run.last_row()
    return last is not None and last[metric_keys.STEP] >= step


def last_line(log: Path, start: int = 0) -> str:
    """The last words of a process, of what ``log`` holds from byte ``start`` on."""
    lines = log.read_bytes()[start:].decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
