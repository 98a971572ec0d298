"""Rows of metrics.jsonl -> MLflow's points, a pure function of the file, and how far they were sent.

MLflow's run table shows the last value of each key only. So a row of an update also shows what the run has come to with
it (``total_tokens``, ``wall_seconds``), and a row of an evaluation the best so far (``best_test_nll``, ``best_step``).
The row of the last evaluation alone shows nothing of the updates: when an extended run completes it, points are added
and none changes.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Mapping

from harness.run_dir import NUM_TOKENS, STEP, TIME_STEP, TRAIN_NLL, TS, Row, RunDir, first_test_nll

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
    """The last row that was sent, for mirror.json.

    Attributes:
        step, ts: Whose row it is: a resume can have put another in its place.
        num_points: As many as it had; the last evaluation's grows when a run is extended.
        before: What the run had come to before it, so that it can be sent again.
    """

    step: int
    ts: int
    num_points: int
    before: Totals

    def to_row(self) -> Row:
        return {
            "sent_step": self.step,
            "sent_ts": self.ts,
            "sent_points": self.num_points,
            "totals_before": dataclasses.asdict(self.before),
        }

    @classmethod
    def from_row(cls, row: Row) -> Cursor | None:
        """The cursor in mirror.json; None where nothing was sent, or what is noted is not of this form."""
        try:
            return cls(int(row["sent_step"]), row["sent_ts"], row["sent_points"], Totals(**row["totals_before"]))
        except (KeyError, TypeError, ValueError):
            return None


@dataclasses.dataclass(frozen=True)
class RowPoints:
    """A row's numbers by MLflow key; its step and its time are the axes."""

    step: int
    ts: int
    values: Mapping[str, float]
    before: Totals

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.step, self.ts, len(self.values), self.before)


def points(rows: Iterable[Row], before: Totals | None = None) -> Iterator[RowPoints]:
    """Each row's points.

    Args:
        before: What the run had come to before the first of ``rows``.
    """
    totals = before or Totals()
    for row in rows:
        before, totals = totals, totals.plus(row)
        yield RowPoints(row[STEP], row[TS], _numbers(row) | _shown(row, totals), before)


def unsent(run_dir: RunDir, cursor: Cursor | None) -> Iterator[RowPoints]:
    """The points of the rows after the cursor, of its own where that grew; all where a resume superseded its row."""
    if cursor is not None:
        found = points(run_dir.iter_metrics(cursor.step), cursor.before)
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
