"""Rows of metrics.jsonl, each step once: written, or proven against what an earlier attempt wrote.

A run that was killed has rows beyond its last checkpoint. Their steps are trained again, and each new row is held
against the recorded one on what the config cannot change. Equal rows prove the resume: the recorded one stays. A
different one is moved aside with all that follow it, and the run is marked inexact.

The limit: an optimiser that was not restored shows only from the second replayed row on.
"""

import logging
import math

from harness import run_dir
from harness.exceptions import BackendError
from harness.run_dir import Row, RunDir

logger = logging.getLogger(__name__)

_HELD_EQUAL = (
    run_dir.BATCH_DIGEST,
    run_dir.NUM_SEQUENCES,
    run_dir.NUM_TOKENS,
    run_dir.NUM_LOSS_TOKENS,
    run_dir.TRAIN_NLL,
    run_dir.LEARNING_RATE,
)


class Ledger:
    """Writes the rows of one attempt.

    Attributes:
        num_verified: Rows that this attempt made again and found equal.
        exact: None while nothing was replayed, True while all of it was equal, False after a difference.
        best_step: The step with the lowest test NLL, on the first of several test sets; None before any evaluation.
    """

    def __init__(self, run: RunDir, *, next_step: int, attempt: int):
        self._run = run
        self._attempt = attempt
        gap = run.num_steps_recorded()
        if any(row[run_dir.STEP] > gap for row in run.metrics()):
            logger.warning("%s: no step %d in metrics.jsonl: the rows after it are moved aside", run, gap)
            run.supersede(gap, attempt)
        rows = run.metrics()
        self._tested = {row[run_dir.STEP]: nll for row in rows if (nll := run_dir.first_test_nll(row)) is not None}
        self._recorded = {row[run_dir.STEP]: row for row in rows if row[run_dir.STEP] >= next_step}
        run.cut_eval_examples(from_step=rows[-1][run_dir.STEP] + 1 if rows else 0)
        self._evaluated = {_evaluation(row) for row in run.eval_examples()}  # a power cut can take one from its row
        self.num_verified = 0
        self.exact: bool | None = None

    @property
    def best_step(self) -> int | None:
        return min(self._tested, key=self._tested.__getitem__, default=None)

    def write(self, row: Row, eval_rows: list[Row]) -> None:
        """Write a row and what was evaluated for it, or keep the equal row that is there.

        Raises:
            BackendError: where a number in it is not finite: nothing is written then.
        """
        for key, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise BackendError(
                    f"{self._run}: {key} is {value} at step {row[run_dir.STEP]}: lower learning_rate or set "
                    "grad_clip_norm, and give another log_path"
                )
        eval_rows = [{run_dir.STEP: row[run_dir.STEP]} | r for r in eval_rows]
        recorded = self._recorded.pop(row[run_dir.STEP], None)
        if recorded is not None:
            difference = _first_difference(recorded, row)
            if difference is None:
                self._run.append_eval_examples([r for r in eval_rows if _evaluation(r) not in self._evaluated])
                if run_dir.BATCH_DIGEST in row:
                    self.num_verified += 1
                    self.exact = self.exact is not False
                return
            self._supersede(row[run_dir.STEP], difference)
        self._run.append_eval_examples(eval_rows)
        self._run.append_metrics(row)
        if (nll := run_dir.first_test_nll(row)) is not None:
            self._tested[row[run_dir.STEP]] = nll

    def _supersede(self, step: int, difference: tuple[str, object, object]) -> None:
        key, before, now = difference
        logger.warning(
            "%s: step %d came out differently than before the interruption: %s was %s and is %s. The rows from there "
            "on are kept in metrics.superseded.jsonl and written anew; the run is marked inexact",
            self._run,
            step,
            key,
            before,
            now,
        )
        self._run.supersede(step, self._attempt)
        self._recorded.clear()
        self._tested = {tested: nll for tested, nll in self._tested.items() if tested < step}
        self.exact = False


def _evaluation(eval_row: Row) -> tuple[int, str]:
    return eval_row[run_dir.STEP], eval_row["set"]


def _first_difference(recorded: Row, row: Row) -> tuple[str, object, object] | None:
    for key in (*_HELD_EQUAL, *filter(run_dir.is_test_nll, row)):
        if key in recorded or key in row:
            before, now = recorded.get(key), row.get(key)
            if before != now:
                return key, before, now
    return None
