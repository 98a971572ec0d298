"""What figures draw of each run: its train and test NLL on one x axis, and where an attempt went on."""

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.compare.align import positions
from harness.compare.load import RUN, Runs
from harness.compare.stats import test_nll_key
from harness.exceptions import RunDirError
from harness.metric_keys import STEP, TRAIN_NLL
from harness.run_dir import SUPERSEDED_BY, RunDir

if TYPE_CHECKING:
    import numpy as np

AXIS_TITLES = {
    "step": "step (updates made)",
    "tokens": "tokens trained on",
    "loss-tokens": "loss-carrying tokens trained on",
    "epoch": "epochs (passes over the training set)",
    "fraction": "fraction of the run's updates",
    "time": "training time (seconds)",
}
INCOMPARABLE = "test sets differ or are unknown: test curves do not compare"


class Resume(NamedTuple):
    """An attempt that went on where an earlier one, or a fork's parent, had come to.

    Attributes:
        attempt: Its number.
        step: The first that it trained.
        num_superseded: Rows of earlier attempts that it could not reproduce, and put aside.
    """

    attempt: int
    step: int
    num_superseded: int


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """One run's points, in the order of its steps. NLLs are in nats per token.

    Attributes:
        train_step, train_x, train_nll: ``(num_updates,)`` each: of each update's one batch.
        test_step, test_x, test_nll: ``(num_evaluations,)`` each.
        gap: ``(num_evaluations,)``, test NLL minus that of the last batch until then; NaN before the first.
        num_unplaced: Points of either kind that are left out: they have no place on the axis, or are infinite.
    """

    train_step: "np.ndarray"
    train_x: "np.ndarray"
    train_nll: "np.ndarray"
    test_step: "np.ndarray"
    test_x: "np.ndarray"
    test_nll: "np.ndarray"
    gap: "np.ndarray"
    num_unplaced: int


def curves(runs: Runs, x: str = "step", on: str = "") -> dict[str, Curves]:
    """What is drawn of each run.

    Args:
        x: See :func:`harness.compare.align.positions`.
        on: The test set: "" is the unnamed one.

    Raises:
        ConfigError: for an axis that is not known, or a test set that no run has.
    """
    import numpy as np

    metrics = runs.metrics.reindex(columns=[RUN, STEP, TRAIN_NLL, test_nll_key(runs, on)])
    columns = np.column_stack([metrics.drop(columns=RUN).to_numpy(float, na_value=np.nan), positions(runs, x)])
    rows_of = metrics.groupby(RUN).indices
    return {run: _curves(columns[rows_of.get(run, [])]) for run in runs.states}


def _curves(rows: "np.ndarray") -> Curves:
    """Of ``(num_rows, 4)``: step, train NLL, test NLL, x."""
    import numpy as np

    trained, tested = (rows[~np.isnan(rows[:, column])] for column in (1, 2))
    until = np.searchsorted(trained[:, 0], tested[:, 0], side="right")
    gap = tested[:, 2] - np.concatenate([[np.nan], trained[:, 1]])[until]
    is_drawn = np.isfinite(tested[:, 2:]).all(axis=1)
    train, test = trained[np.isfinite(trained[:, [1, 3]]).all(axis=1)], tested[is_drawn]
    return Curves(
        *(train[:, 0].astype(int), train[:, 3], train[:, 1]),
        *(test[:, 0].astype(int), test[:, 3], test[:, 2], gap[is_drawn]),
        num_unplaced=len(trained) - len(train) + len(tested) - len(test),
    )


def resumes(runs: Runs) -> dict[str, list[Resume]]:
    """The attempts of each run that went on; a run that was trained in one piece, has no directory, or whose files do
    not tell (``runs.notes`` say so) is left out."""
    found: dict[str, list[Resume]] = {}
    for run, directory in runs.directories.items():
        with contextlib.suppress(RunDirError, OSError):
            if again := _resumes(directory):
                found[run] = again
    return found


def _resumes(directory: RunDir) -> list[Resume]:
    starts = [row for row in directory.attempts() if row["event"] == "start"]
    again = [row for i, row in enumerate(starts) if i or row.get("next_step")]
    superseded: list[Any] = [row.get(SUPERSEDED_BY) for row in directory.superseded_metrics()] if again else []
    return [Resume(row["attempt"], row.get("next_step") or 0, superseded.count(row["attempt"])) for row in again]
