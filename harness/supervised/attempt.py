"""One process's work on a run: logged at its start and at its end, mirrored into MLflow in between."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from types import TracebackType

from rich.console import Console

from harness.checkpoint_record import is_remote
from harness.config_io import redact, to_json
from harness.exceptions import RunDirError
from harness.run_dir import CheckpointRecord, RunDir
from harness.supervised.config import Config
from harness.supervised.plan import Plan
from harness.supervised.provenance import changed_extents, command_line, now_ms
from harness.supervised.replay import Ledger
from harness.supervised.usage import Estimate, Usage
from harness.tracking.live_mirror import LiveMirror
from harness.tracking.mlflow_store import Destination


class Attempt:
    """A context in which a run is trained: its end is logged, whatever ends it.

    Attributes:
        used: So far.
    """

    ledger: Ledger

    def __init__(self, run: RunDir, config: Config, console: Console):
        self._run = run
        self._config = config
        self._console = console
        self._begun = False
        self.used = Usage()
        self._mirror: LiveMirror | None = None

    def __enter__(self) -> Attempt:
        return self

    def begin(
        self, resumed_from: CheckpointRecord | None, plan: Plan, tolerance: float | None, estimate: Estimate
    ) -> None:
        """Log that training starts, from a checkpoint or from nothing; open the ledger; start the mirror.

        Args:
            tolerance: See :class:`Ledger`.
        """
        self._number = sum(row["event"] == "start" for row in self._run.attempts()) + 1
        next_step = resumed_from.step if resumed_from else 0
        for record in self._run.checkpoints():
            if record.step > next_step and record.is_usable:  # damaged, or after one that is; made again on the way
                self._run.append_checkpoint(dataclasses.replace(record, superseded=True))
            elif record.final and record.step < plan.total_steps:  # the run goes on
                self._run.append_checkpoint(dataclasses.replace(record, final=False))
            elif record.deleted and not is_remote(record.state_path):  # a crash may have come before it was removed
                for path in record.own_paths:
                    self._config.backend.remove_checkpoint(self._run.path, path)
        self._run.supersede_later_evaluations(next_step, self._number)
        self.ledger = Ledger(self._run, next_step=next_step, attempt=self._number, tolerance=tolerance)
        self._run.append_attempt(
            {
                "attempt": self._number,
                "event": "start",
                "ts": now_ms(),
                **command_line(),
                "backend": self._config.backend.described,
                "resumed_from": resumed_from.name if resumed_from else None,
                "next_step": next_step,
                "changed": changed_extents(self._run, self._config),
            }
            | plan.to_row()
            | estimate.to_row()
        )
        self._estimate = estimate
        self._begun = True
        self.start_mirror()

    def start_mirror(self) -> None:
        """Let MLflow follow the run's files, unless the config says not to."""
        if self._config.mirror:
            document = {"config": to_json(self._config)}
            self._mirror = LiveMirror(
                self._run,
                Destination.of(document, self._config.tracking_uri),  # not redacted
                system_metrics=self._config.system_metrics and self._begun,
            )
            self._mirror.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            state = "FINISHED"
        elif issubclass(kind, (KeyboardInterrupt, asyncio.CancelledError, SystemExit)):
            state = "KILLED"
        else:
            state = "FAILED"
        text = redact(f"{type(error).__name__}: {error}") if state == "FAILED" else None
        if self._begun:
            try:
                self._log_end(state, text)
            except RunDirError:  # a full disk; the error under way says so, and a run without an end row resumes
                if error is None:
                    raise
        if self._mirror:
            self._mirror.finish(state, text)
            if where := self._mirror.where():
                self._console.print(f"MLflow: {where}")

    def _log_end(self, state: str, error: str | None) -> None:
        ledger = self.ledger
        self._run.append_attempt(
            {
                "attempt": self._number,
                "event": "end",
                "ts": now_ms(),
                "state": state,
                "error": error,
                "verified_rows": ledger.num_verified,
                "exact": ledger.exact,
                "largest_difference": ledger.largest_difference if math.isfinite(ledger.largest_difference) else None,
                "is_inexact": ledger.is_inexact,
            }
            | self._estimate.used_row(self.used)
        )
