"""The sole owner of a run's files: their names, their formats, how they are appended, read back and locked.

A run directory is the truth about a run; MLflow is a mirror of it. Every ``*.jsonl`` file holds one JSON object a
line. Lines are appended; only a resume moves, completes or marks earlier ones (``supersede``, ``complete_row``, …). One
that a crash tore is dropped by readers and cut off by the next writer.

| file                | holds                                                                            |
| ------------------- | -------------------------------------------------------------------------------- |
| config.json         | run id, config, argv, versions, numerics, git commit, data fingerprints; once    |
| metrics.jsonl       | a row a step                                                                     |
| checkpoints.jsonl   | a row a checkpoint, after its state is durable; later rows may mark it deleted, … |
| samples.jsonl       | a row a sample of an evaluator: prompt, sample, stop reason, scores              |
| eval_examples.jsonl | a row an evaluation of one test set: each example's id, summed NLL, token count  |
| later_evaluations.jsonl | the same, with its means, of a checkpoint scored on another test set after training |
| attempts.jsonl      | a row at the start and a row at the end of every attempt to train the run        |
| tags.jsonl          | a row for each tag that was set or removed after the start: see ``run_tags``       |
| mirror.json         | where in MLflow the run is mirrored, and how far                                 |
| examples.txt        | a few training examples as they are trained, what carries loss between ⟦ and ⟧; once   |
| quarantine.jsonl    | rows of the data that were set aside as bad: file and line or row, reason, text; once      |
| logs.log            | the log                                                                          |
| checkpoints/        | what the local backend saved                                                     |

``metrics``, ``eval_examples`` and ``samples.superseded.jsonl`` hold rows that a resume could not reproduce.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.checkpoint_record import CheckpointRecord as CheckpointRecord
from harness.exceptions import RunDirError
from harness.files import (
    Row,
    append_jsonl,
    count_lines,
    cut_from,
    cut_torn_line,
    iter_jsonl,
    read_jsonl,
    read_tail,
    replace_from,
    rewrite_jsonl,
    start_of_tail,
    sync_path,
    write_json,
    write_text,
)
from harness.metric_keys import EPOCH, STEP, TRAIN_NLL, TS, first_test_nll

CONFIG = "config.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints.jsonl"
EVAL_EXAMPLES = "eval_examples.jsonl"
SAMPLES = "samples.jsonl"
LATER_EVALUATIONS = "later_evaluations.jsonl"
EVALUATIONS = (EVAL_EXAMPLES, LATER_EVALUATIONS)
_BEFORE_METRICS = (SAMPLES, EVAL_EXAMPLES)  # what a row of metrics.jsonl is the sign of: appended before it
ATTEMPTS = "attempts.jsonl"
TAGS = "tags.jsonl"
MIRROR = "mirror.json"
QUARANTINE = "quarantine.jsonl"
EXAMPLES = "examples.txt"
LOG = "logs.log"
CHECKPOINTS_DIR = "checkpoints"
LOCK = ".lock"
SUPERSEDED_BY = "superseded_by_attempt"


class RunDir:
    """One run's directory. Reading needs no lock and never the writer's process; writing needs :meth:`lock`."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).expanduser().absolute()

    def __str__(self) -> str:
        try:
            return str(self.path.relative_to(Path.cwd()))
        except ValueError:
            return str(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    # ---- reading

    def exists(self) -> bool:
        """Whether a run was ever started here."""
        return (self / CONFIG).exists()

    def config(self) -> Row:
        """The document config.json.

        Raises:
            RunDirError: where there is none or it cannot be read.
        """
        try:
            document = json.loads((self / CONFIG).read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise RunDirError(f"{self}: no {CONFIG}: not a run directory") from None
        except ValueError as error:
            raise RunDirError(f"{self / CONFIG}: not JSON ({error}): restore it or use another log_path") from None
        if not isinstance(document, dict) or "run_id" not in document:
            raise RunDirError(f"{self / CONFIG}: not a run's: restore it or use another log_path")
        return document

    def metrics(self) -> list[Row]:
        return self._rows(METRICS, STEP)

    def eval_examples(self, step: int | None = None, files: Sequence[str] = EVALUATIONS) -> list[Row]:
        """Every evaluation, then those made after training; given a step, those of it: the others are not parsed."""
        having = "" if step is None else f'"{STEP}": {step},'
        rows = [row for name in files for row in self._rows(name, STEP, "set", having=having, only=step is not None)]
        return [row for row in rows if step in (None, row[STEP]) and SUPERSEDED_BY not in row]

    def evaluations(self, *, later: bool = True) -> list[Row]:
        """Every evaluation's step, set name and fingerprint, without its examples; not ``later``: those of training."""
        rows = self._rows(EVAL_EXAMPLES, STEP, "set", "fingerprint", until="ids")
        made_later = self.later_evaluations() if later else []
        return rows + [row for row in made_later if SUPERSEDED_BY not in row]

    def later_evaluations(self) -> list[Row]:
        """Those made after training, in the order in which they were made, without their examples. One that a resume
        marked superseded does not count: it is of weights of a history that was left."""
        return self._rows(LATER_EVALUATIONS, STEP, TS, "metrics", "set", "fingerprint", until="ids")

    def eval_examples_from(self, step: int) -> list[Row]:
        """The evaluations in training of ``step`` and later; those before are not read."""
        return self._tail(EVAL_EXAMPLES, step)[0]

    def samples(self, from_step: int = 0) -> list[Row]:
        """Every sample of ``from_step`` and later; those before are not read."""
        return self._tail(SAMPLES, from_step)[0]

    def attempts(self) -> list[Row]:
        return self._rows(ATTEMPTS, "attempt", "event")

    def metrics_from(self, step: int) -> list[Row]:
        """The rows of ``step`` and later. Rows stand in the order of their steps: those before are not read."""
        return self._tail(METRICS, step)[0]

    def iter_metrics(self, from_step: int = 0) -> Iterator[Row]:
        """The rows of ``from_step`` and later, one at a time: those of a long run are many."""
        start = start_of_tail(self / METRICS, lambda row: self._step(METRICS, row) >= from_step) if from_step else 0
        for row in iter_jsonl(self / METRICS, start):
            self._step(METRICS, row)
            yield row

    def superseded_metrics(self) -> list[Row]:
        """The rows that a resume could not reproduce."""
        return self._rows(_superseded(METRICS), STEP)

    def last_row(self) -> Row | None:
        """The row of the highest step."""
        row = None

        def is_last(candidate: Row) -> bool:
            nonlocal row
            row = row or candidate
            return False

        read_tail(self / METRICS, is_last)
        return row

    def tested_rows(self) -> list[Row]:
        """The rows of metrics.jsonl that hold an evaluation; the others are not parsed."""
        return self._rows(METRICS, STEP, having='"test/')

    def test_nlls(self, tested: list[Row] | None = None) -> dict[int, float]:
        """The mean NLL on the test set, the first of several, by the step of its evaluation; of a fork, those that are
        its own. It reads :meth:`tested_rows`, where they are not given."""
        first = (self.config().get("parent") or {}).get("step", 0) if self.exists() else 0
        tested = self.tested_rows() if tested is None else tested
        found = {row[STEP]: first_test_nll(row) for row in tested if row[STEP] >= first}
        return {step: nll for step, nll in found.items() if nll is not None}

    def num_steps_recorded(self) -> int:
        """Steps 0, 1, … that have a row, up to the first that has none."""
        last = self.last_row()
        if last is None:
            return 0
        if count_lines(self / METRICS) == last.get(STEP, -1) + 1:
            return last[STEP] + 1
        steps = {row[STEP] for row in self.metrics()}
        return next(step for step in range(len(steps) + 1) if step not in steps)

    def num_steps_trained(self) -> int:
        """Updates that have a row; the last row of a complete run may be of an evaluation alone."""
        last = self.last_row()
        return 0 if last is None else last[STEP] + (TRAIN_NLL in last)

    def checkpoints(self) -> list[CheckpointRecord]:
        """Every checkpoint that was ever logged, oldest first; of several rows of one name the last one counts."""
        latest: dict[str, Row] = {}
        for row in self._rows(CHECKPOINTS, "name", STEP, EPOCH, "batch", "state_path"):
            earlier = latest.pop(row["name"], {})
            latest[row["name"]] = earlier | row
        return sorted((CheckpointRecord.from_row(row) for row in latest.values()), key=lambda r: r.step)

    def changed_extents(self) -> Row:
        """What the last attempt asked for otherwise than config.json says: how long the run goes on."""
        starts = [row for row in self.attempts() if row["event"] == "start"]
        return starts[-1].get("changed") or {} if starts else {}

    def mirror(self) -> Row | None:
        """The document mirror.json, or None where the run was never mirrored."""
        try:
            document = json.loads((self / MIRROR).read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise RunDirError(f"{self / MIRROR}: not JSON ({error}): remove it and sync again") from None
        if not isinstance(document, dict) or not all(
            isinstance(document.get(key), str) for key in ("tracking_uri", "run_id")
        ):
            raise RunDirError(f"{self / MIRROR}: does not name an MLflow run: remove it and sync again")
        return document

    def state(self) -> str:
        """RUNNING, FINISHED, FAILED, KILLED (its process is gone without a word) or NEW."""
        if self.is_locked():
            return "RUNNING"
        attempts = self.attempts()
        if not attempts:
            return "NEW"
        return attempts[-1].get("state") or "KILLED"

    def is_finished(self) -> bool:
        """Whether the run is complete, and its rows are."""
        attempts = self.attempts()
        if not attempts or attempts[-1].get("state") != "FINISHED":
            return False
        return all(record.step <= self.num_steps_recorded() for record in self.checkpoints() if record.final)

    def is_locked(self) -> bool:
        """Whether a living process is writing here."""
        import filelock

        if not (self / LOCK).exists():
            return False
        lock = filelock.FileLock(self / LOCK, timeout=0)
        try:
            with lock:
                return False
        except filelock.Timeout:
            return True
        except OSError:  # a read-only copy: nobody can be writing to it
            return False

    def _rows(self, name: str, *keys: str, having: str = "", until: str = "", only: bool = False) -> list[Row]:
        rows = read_jsonl(self / name, having, until, only=only)
        for number, row in enumerate(rows, start=1):
            for key in keys:
                if key not in row:
                    raise RunDirError(f"{self / name}:{number}: no {key!r} in it: remove or mend that line")
        return rows

    def _tail(self, name: str, from_step: int) -> tuple[list[Row], int]:
        return read_tail(self / name, lambda row: self._step(name, row) >= from_step)

    def _step(self, name: str, row: Row) -> int:
        if STEP not in row:
            raise RunDirError(f"{self / name}: a row without {STEP!r}: remove or mend that line")
        return row[STEP]

    # ---- writing

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the one writer. The lock dies with its process; torn last lines are cut off once it is held.

        Raises:
            RunDirError: where another process holds it, or nothing can be written here.
        """
        import filelock

        try:
            made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self / LOCK, timeout=1)  # a reader may be asking is_locked() just now
            lock.acquire()
        except filelock.Timeout:
            raise RunDirError(
                f"{self}: another process is writing to this run: wait for it, or choose another log_path"
            ) from None
        except OSError as error:
            raise RunDirError(f"{self}: cannot be written ({error.strerror}): choose another log_path") from None
        try:
            for name in (METRICS, CHECKPOINTS, *_BEFORE_METRICS, LATER_EVALUATIONS, ATTEMPTS):
                cut_torn_line(self / name)
            yield
        finally:
            if made and not self.exists():  # nothing was started: leave nothing behind
                with contextlib.suppress(OSError):
                    for name in (LOG, EXAMPLES, QUARANTINE, LOCK):
                        (self / name).unlink(missing_ok=True)
                    self.path.rmdir()
            lock.release()

    def write_config(self, document: Row) -> None:
        """Write config.json, once in the life of a run."""
        assert not self.exists(), "config.json is written once"
        write_json(self / CONFIG, document)

    def write_quarantine(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write what of the data was set aside, before config.json; no file where that is nothing."""
        (self / QUARANTINE).unlink(missing_ok=True)
        append_jsonl(self / QUARANTINE, [dict(row) for row in rows])

    def write_examples(self, text: str) -> None:
        """Write a few training examples for people, before config.json."""
        write_text(self / EXAMPLES, text)

    def write_mirror(self, document: Row) -> None:
        write_json(self / MIRROR, document)

    def append_attempt(self, row: Row) -> None:
        append_jsonl(self / ATTEMPTS, [row], sync=True)

    def append_eval_examples(self, rows: list[Row]) -> None:
        """Append what was evaluated at a step; call it before that step's metrics row is appended."""
        append_jsonl(self / EVAL_EXAMPLES, rows)

    def append_samples(self, rows: list[Row]) -> None:
        """Append what was sampled at a step; call it before that step's metrics row is appended."""
        append_jsonl(self / SAMPLES, rows)

    def append_later_evaluation(self, row: Row) -> None:
        append_jsonl(self / LATER_EVALUATIONS, [row], sync=True)

    def append_metrics(self, row: Row) -> None:
        append_jsonl(self / METRICS, [row])

    def append_checkpoint(self, record: CheckpointRecord) -> None:
        """Log a checkpoint whose state is complete. The rows before it are made durable first: a record never
        outruns its row."""
        for name in (*_BEFORE_METRICS, METRICS):
            sync_path(self / name)
        append_jsonl(self / CHECKPOINTS, [record.to_row()], sync=True)

    def complete_row(self, row: Row) -> None:
        """Put ``row`` in the place of the one of its step, to which it adds."""
        rows = self.metrics()
        rewrite_jsonl(self / METRICS, [row if old[STEP] == row[STEP] else old for old in rows])

    def supersede(self, from_step: int, attempt: int) -> None:
        """Move the rows of ``from_step`` and later aside, because this attempt could not reproduce them.

        They are appended to ``*.superseded.jsonl`` and made durable there before they are cut here, so that a crash
        in between loses nothing; moving the same rows twice writes them once.
        """
        for name in (*_BEFORE_METRICS, METRICS):
            rows, start = self._tail(name, from_step)
            aside = self / _superseded(name)
            cut_torn_line(aside)
            there = [{k: v for k, v in row.items() if k != SUPERSEDED_BY} for row in read_jsonl(aside)]
            moved = [row | {SUPERSEDED_BY: attempt} for row in rows if row not in there]
            append_jsonl(aside, moved, sync=True)
            replace_from(self / name, start)

    def supersede_later_evaluations(self, after_step: int, attempt: int) -> None:
        """Mark those of checkpoints after ``after_step``, because this attempt had to go back there. Rows keep their
        places: how many of them were mirrored stays true."""
        if any(row[STEP] > after_step and SUPERSEDED_BY not in row for row in self.later_evaluations()):
            mark = {SUPERSEDED_BY: attempt}
            rows = [mark | row if row[STEP] > after_step else row for row in self._rows(LATER_EVALUATIONS)]
            rewrite_jsonl(self / LATER_EVALUATIONS, rows)

    def is_superseded(self) -> bool:
        """Whether a resume could not reproduce some rows of an earlier attempt."""
        return (self / _superseded(METRICS)).exists()

    def cut_evaluations(self, from_step: int) -> None:
        """Drop evaluations whose metrics row a crash prevented: they are about to be made again."""
        for name in _BEFORE_METRICS:
            cut_from(self / name, self._tail(name, from_step)[1])


def _superseded(name: str) -> str:
    return name.replace(".jsonl", ".superseded.jsonl")
