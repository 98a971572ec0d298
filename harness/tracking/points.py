"""Rows of metrics.jsonl and later_evaluations.jsonl -> MLflow's points, a pure function of the files, and how far they
were sent.

MLflow's run table shows the last value of each key only. So a row of an update also shows what the run has come to with
it (``total_tokens``, ``wall_seconds``), and a row of an evaluation the best so far (``best_test_nll``, ``best_step``).
The row of the last evaluation alone shows nothing of the updates: when an extended run completes it, points are added
and none changes. What was evaluated after training shows itself alone.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Mapping

from harness.metric_keys import NUM_TOKENS, STEP, TIME_STEP, TRAIN_NLL, TS, first_test_nll
from harness.run_dir import SUPERSEDED_BY, Row, RunDir

TOTAL_TOKENS = "total_tokens"
WALL_SECONDS = "wall_seconds"
BEST_TEST_NLL = "best_test_nll"
BEST_STEP = "best_step"

_KEY_LENGTH = 250  # MLflow's limit


@dataclasses.dataclass(frozen=True)
class Totals:
    """What a run has come to.

    Attributes:
        tokens: In the batches of its updates.
        seconds: That its updates took.
        best_test_nll: The lowest, on the first of several test sets; None before any evaluation.
        best_step: Where it was first reached.
    """

    tokens: int = 0
    seconds: float = 0.0
    best_test_nll: float | None = None
    best_step: int | None = None

    def plus(self, row: Row) -> Totals:
        totals = self
        if TRAIN_NLL in row:
            totals = dataclasses.replace(
                totals,
                tokens=totals.tokens + row.get(NUM_TOKENS, 0),
                seconds=totals.seconds + row.get(TIME_STEP, 0.0),
            )
        nll = first_test_nll(row)
        if nll is not None and (totals.best_test_nll is None or nll < totals.best_test_nll):
            totals = dataclasses.replace(totals, best_test_nll=nll, best_step=row[STEP])
        return totals


@dataclasses.dataclass(frozen=True)
class Cursor:
    """How far the files were sent, for mirror.json: the last row of metrics.jsonl, and how many of
    later_evaluations.jsonl.

    Attributes:
        step, ts: Whose row it is: a resume can have put another in its place.
        num_points: As many as it had; the last evaluation's grows when a run is extended.
        before: What the run had come to before it, so that it can be sent again.
        num_later: Evaluations that were made after training.
    """

    step: int
    ts: int
    num_points: int
    before: Totals
    num_later: int = 0

    def to_row(self) -> Row:
        return {
            "sent_step": self.step,
            "sent_ts": self.ts,
            "sent_points": self.num_points,
            "totals_before": dataclasses.asdict(self.before),
            "sent_later": self.num_later,
        }

    @classmethod
    def from_row(cls, row: Row) -> Cursor | None:
        """The cursor in mirror.json; None where nothing was sent, or what is noted is not of this form."""
        try:
            before = Totals(**row["totals_before"])
            return cls(int(row["sent_step"]), row["sent_ts"], row["sent_points"], before, row.get("sent_later", 0))
        except (KeyError, TypeError, ValueError):
            return None


@dataclasses.dataclass(frozen=True)
class RowPoints:
    """A row's numbers by MLflow key; its step and its time are the axes.

    Attributes:
        cursor: Once they are sent.
    """

    step: int
    ts: int
    values: Mapping[str, float]
    cursor: Cursor


def points(rows: Iterable[Row], before: Totals | None = None, num_later: int = 0) -> Iterator[RowPoints]:
    """The points of each row of metrics.jsonl.

    Args:
        before: What the run had come to before the first of ``rows``.
        num_later: Of the cursors.
    """
    totals = before or Totals()
    for row in rows:
        before, totals = totals, totals.plus(row)
        values = _numbers(row) | _shown(row, totals)
        yield RowPoints(row[STEP], row[TS], values, Cursor(row[STEP], row[TS], len(values), before, num_later))


def later_points(rows: Iterable[Row], cursor: Cursor) -> Iterator[RowPoints]:
    """The points of each row of later_evaluations.jsonl: none of one that was superseded, which still counts as sent.

    Args:
        cursor: Before they are sent.
    """
    for number, row in enumerate(rows, start=cursor.num_later + 1):
        values = {} if SUPERSEDED_BY in row else _numbers(row["metrics"])
        yield RowPoints(row[STEP], row[TS], values, dataclasses.replace(cursor, num_later=number))


def unsent(run_dir: RunDir, cursor: Cursor | None) -> Iterator[RowPoints]:
    """The points of the rows after the cursor, of its own where that grew; all where a resume superseded its row."""
    for row in _unsent_metrics(run_dir, cursor):
        yield row
        cursor = row.cursor
    if cursor is not None:  # a checkpoint has rows before it, so an evaluation of one has
        yield from later_points(run_dir.later_evaluations()[cursor.num_later :], cursor)


def _unsent_metrics(run_dir: RunDir, cursor: Cursor | None) -> Iterator[RowPoints]:
    if cursor is not None:
        found = points(run_dir.iter_metrics(cursor.step), cursor.before, cursor.num_later)
        at_cursor = next(found, None)
        if at_cursor is not None and (at_cursor.step, at_cursor.ts) == (cursor.step, cursor.ts):
            if at_cursor.cursor != cursor:
                yield at_cursor
            yield from found
            return
    yield from points(run_dir.iter_metrics())


def sent_row(run_dir: RunDir, cursor: Cursor) -> RowPoints | None:
    """The points of the cursor's row; None where it was superseded."""
    found = next(points(run_dir.iter_metrics(cursor.step), cursor.before), None)
    return found if found and (found.step, found.ts) == (cursor.step, cursor.ts) else None


@functools.cache
def clean_key(key: str) -> str:
    """``key`` as MLflow takes it on every system: other characters become ``_``, empty and dotted path parts go."""
    parts = re.sub(r"[^/\w.\- ]", "_", key).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:_KEY_LENGTH] or "_"


def _numbers(row: Row) -> dict[str, float]:
    return {
        clean_key(key): float(value)
        for key, value in row.items()
        if key not in (STEP, TS) and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _shown(row: Row, totals: Totals) -> dict[str, float]:
    """What of the totals with this row it shows."""
    shown: dict[str, float] = {}
    if TRAIN_NLL in row and NUM_TOKENS in row:
        shown[TOTAL_TOKENS] = float(totals.tokens)
    if TRAIN_NLL in row and TIME_STEP in row:
        shown[WALL_SECONDS] = totals.seconds
    if totals.best_test_nll is not None and totals.best_step is not None and first_test_nll(row) is not None:
        shown |= {BEST_TEST_NLL: totals.best_test_nll, BEST_STEP: float(totals.best_step)}
    return shown
