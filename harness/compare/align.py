"""Several runs on one x axis. An evaluation is a point; what lies between two is marked, and never taken for one."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.compare.load import RUN, Runs
from harness.compare.stats import fingerprints, test_nll_key
from harness.exceptions import ConfigError
from harness.metric_keys import EPOCH, NUM_LOSS_TOKENS, NUM_TOKENS, PROGRESS, STEP, TIME_STEP, TRAIN_NLL

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

LAST, BEST, COMMON = "last", "best", "common"  # points of a run; a number is an x
AT, BETWEEN, AFTER, BEFORE = "at", "between", "after", "before"


class Point(NamedTuple):
    """One evaluation: of the weights after ``step`` updates, at ``x``, in nats per token."""

    step: int
    x: float
    test_nll: float


def _sum_before(values: "np.ndarray") -> "np.ndarray":
    import numpy as np

    if np.isnan(values).all():
        return values
    return np.concatenate([[0.0], np.nancumsum(values)[:-1]])


def _epochs(epoch: "np.ndarray") -> "np.ndarray":
    import numpy as np

    first = np.nanmin(epoch, initial=np.inf)
    per_epoch = np.count_nonzero(epoch == first)
    if not (epoch > first).any():
        return np.full(len(epoch), np.nan)  # how many updates an epoch makes shows when the first is over
    begun = np.searchsorted(epoch, epoch)  # the row with which each row's epoch began
    return epoch + (np.arange(len(epoch)) - begun) / per_epoch


def _fractions(step: "np.ndarray", progress: "np.ndarray") -> "np.ndarray":
    import numpy as np

    planned = progress > 0
    return step / (np.round(step[planned][-1] / progress[planned][-1]) if planned.any() else np.nan)


# The x of a row, from its run's columns: what was done before its update, hence to the weights that it evaluates.
_AXES: dict[str, Callable[[dict[str, "np.ndarray"]], "np.ndarray"]] = {
    "step": lambda column: column[STEP],
    "tokens": lambda column: _sum_before(column[NUM_TOKENS]),
    "loss-tokens": lambda column: _sum_before(column[NUM_LOSS_TOKENS]),
    "epoch": lambda column: _epochs(column[EPOCH]),
    "fraction": lambda column: _fractions(column[STEP], column[PROGRESS]),
    "time": lambda column: _sum_before(column[TIME_STEP]),
}


def positions(runs: Runs, x: str = "step") -> "np.ndarray":
    """``(num_rows,)``: where each row of ``runs.metrics`` lies on the axis ``x``; NaN where a run's rows do not tell.

    | axis        | is, before the row's update                                                  |
    | ----------- | ---------------------------------------------------------------------------- |
    | step        | updates made                                                                 |
    | tokens      | trained on                                                                   |
    | loss-tokens | of these, those that carry loss                                              |
    | epoch       | passes over the training set, with fractions; known once the first is over   |
    | fraction    | of the updates that the run makes, as its last row plans them                |
    | time        | seconds of training and evaluation; what lies between two attempts is no time |

    Raises:
        ConfigError: for another axis.
    """
    import numpy as np

    if x not in _AXES:
        raise ConfigError(f'no x axis "{x}": choose one of {", ".join(_AXES)}')
    columns = (STEP, NUM_TOKENS, NUM_LOSS_TOKENS, EPOCH, PROGRESS, TIME_STEP)
    metrics = runs.metrics.reindex(columns=[RUN, *columns])
    there = {name: metrics[name].to_numpy(dtype=float) for name in columns}
    found = np.full(len(metrics), np.nan)
    for rows in metrics.groupby(RUN).indices.values():
        found[rows] = _AXES[x]({name: values[rows] for name, values in there.items()})
    return found


def evaluations(runs: Runs, x: str = "step", on: str = "") -> dict[str, list[Point]]:
    """Each run's evaluations in the order of their steps.

    Args:
        x: See :func:`positions`.
        on: The test set: "" is the unnamed one.
    """
    nll = test_nll_key(runs, on)
    rows = runs.metrics.reindex(columns=[RUN, STEP, nll]).assign(x=positions(runs, x)).dropna(subset=nll)
    found: dict[str, list[Point]] = {run: [] for run in runs.states}
    for run, step, test_nll, at in rows.itertuples(index=False, name=None):
        found[run].append(Point(int(step), float(at), float(test_nll)))
    return found


def align(
    runs: Runs, at: Iterable[float], x: str = "step", on: str = "", *, interpolate: bool = False
) -> "pd.DataFrame":
    """A row a run and value of ``at``: each run's test NLL there.

    | column   | is                                                                                               |
    | -------- | ------------------------------------------------------------------------------------------------ |
    | run, x   |                                                                                                  |
    | test_nll | nats per token, of the last evaluation at or before x                                            |
    | step     | of that evaluation                                                                               |
    | where    | "at" x; "between" two evaluations; "after" the last; "before" the first, where there is no value |

    Args:
        x: See :func:`positions`.
        on: The test set: "" is the unnamed one.
        interpolate: Draw a straight line between two evaluations, for a curve: such a value was measured on no weights,
            has no ``step``, and says "between". Beyond the last evaluation there is none then.
    """
    import pandas as pd

    at = list(at)
    rows: list[dict[str, Any]] = []
    for run, points in evaluations(runs, x, on).items():
        for value in at:
            point, where = _until(points, value)
            row = {RUN: run, "x": value, "test_nll": math.nan, "step": None, "where": where}
            if point and (where == AT or not interpolate):
                row |= {"test_nll": point.test_nll, "step": point.step}
            elif where == BETWEEN:
                row["test_nll"] = _on_the_line(points, value)
            rows.append(row)
    types = {"x": float, "test_nll": float, "step": "Int64"}
    return pd.DataFrame(rows, columns=[RUN, "x", "test_nll", "step", "where"]).astype(types)


def _until(points: list[Point], x: float) -> tuple[Point | None, str]:
    """The last point at or before ``x``, and where ``x`` lies."""
    known = [point for point in points if not math.isnan(point.x)]
    before = [point for point in known if point.x <= x]
    if not before:
        return None, BEFORE
    return before[-1], AT if before[-1].x == x else BETWEEN if len(before) < len(known) else AFTER


def _on_the_line(points: list[Point], x: float) -> float:
    a, b = next((a, b) for a, b in itertools.pairwise(points) if a.x < x < b.x)
    return a.test_nll + (x - a.x) / (b.x - a.x) * (b.test_nll - a.test_nll)


def find_point(runs: Runs, at: str | float, x: str = "step", on: str = "") -> str | float:
    """The point at which runs are judged: "last", "best" or a number.

    Args:
        at: "last"; "best": lowest test NLL, chosen on the very set that it is then reported on; "common": the largest x
            that every run which was evaluated reached; or an x.

    Raises:
        ConfigError: for another point, axis or test set, and where no common x is known.
    """
    if at == COMMON:
        reached = [points[-1].x for points in evaluations(runs, x, on).values() if points]
        if not reached:
            raise ConfigError("no run was evaluated yet: they have no common point")
        if any(map(math.isnan, reached)):
            raise ConfigError(f"not every run's evaluations have a place on the {x} axis: choose another --x")
        return min(reached)
    if at in (LAST, BEST):
        return at
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(at)):
            return number
    raise ConfigError(f'--at "{at}": choose last, best, common, or a number on the {x} axis')


def choose(runs: Runs, at: str | float = LAST, x: str = "step", on: str = "") -> "pd.DataFrame":
    """The evaluation of each run that is judged: a row a run, indexed by ``run``. Evaluations whose ``point`` is one
    compare: what lies before or between is not taken for what stands at an x.

    | column      | is                                                                                           |
    | ----------- | -------------------------------------------------------------------------------------------- |
    | point       | "last", "best", or the x where the evaluation stands at it, else its step                    |
    | of_num      | evaluations of the run on this test set, of which it is one                                  |
    | step        | of the evaluation: updates made                                                              |
    | where       | "at" x, "between" that evaluation and another, or "after" the run's last (:func:`align`)     |
    | test_nll    | nats per token                                                                               |
    | train_nll   | of the one batch of step ``train_step``: of ``step``, or the last before where that has none |
    | gap         | ``test_nll - train_nll``                                                                     |
    | fingerprint | of the test set that it was made on; None: unknown                                           |

    Args:
        at: See :func:`find_point`. At an x it is the last evaluation at or before it.
        x: See :func:`positions`.
        on: The test set: "" is the unnamed one.

    Raises:
        ConfigError: for another point, axis or test set.
    """
    import pandas as pd

    asked = find_point(runs, at, x, on)
    tested_on = fingerprints(runs, on)
    trained = runs.metrics.reindex(columns=[RUN, STEP, TRAIN_NLL]).dropna(subset=TRAIN_NLL)
    batches = {run: rows[[STEP, TRAIN_NLL]].to_numpy(dtype=float) for run, rows in trained.groupby(RUN)}
    rows: dict[str, dict[str, Any]] = {}
    for run, points in evaluations(runs, x, on).items():
        if asked == LAST:
            point, where = points[-1] if points else None, AT
        elif asked == BEST:
            point, where = min(points, key=lambda point: point.test_nll, default=None), AT  # the first of equals
        else:
            point, where = _until(points, float(asked))
        rows[run] = {"of_num": len(points), "fingerprint": tested_on.get(run)}
        if point:
            train_step, train_nll = _last_batch(batches.get(run), point.step)
            rows[run] |= {
                "point": asked
                if isinstance(asked, str)
                else words(x, asked)
                if where == AT
                else words(STEP, point.step),
                "step": point.step,
                "where": where,
                "test_nll": point.test_nll,
                "train_nll": train_nll,
                "train_step": train_step,
                "gap": point.test_nll - train_nll,
            }
    columns = ["point", "of_num", "step", "where", "test_nll", "train_nll", "train_step", "gap", "fingerprint"]
    means = dict.fromkeys(("test_nll", "train_nll", "gap"), float)
    frame = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns).rename_axis(index=RUN)
    return frame.astype(means | dict.fromkeys(("of_num", "step", "train_step"), "Int64"))


def have_choice(chosen: "pd.DataFrame") -> bool:
    """Whether some run was evaluated more than once on the test set: else each one's last evaluation is its best.

    Args:
        chosen: As :func:`choose` gives it.
    """
    return bool((chosen["of_num"] > 1).any())


def words(x: str, at: float) -> str:
    """A place on an axis."""
    return f"{x} {at:,.10g}"


def _last_batch(batches: "np.ndarray | None", step: int) -> tuple[float, float]:
    """Step and NLL of the last of ``(num_rows, 2)`` batches until ``step``; NaN where there is none."""
    until = [] if batches is None else batches[batches[:, 0] <= step]
    return (float(until[-1][0]), float(until[-1][1])) if len(until) else (math.nan, math.nan)
