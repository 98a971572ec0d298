"""The curves: train and test NLL over steps, a colour a run."""

import os
from pathlib import Path

from harness.compare.load import RUN, Runs
from harness.compare.stats import comparable, summarise, test_nll_key
from harness.exceptions import ConfigError
from harness.plot import Curve, draw_nll
from harness.run_dir import STEP, TRAIN_NLL

_SUFFIXES = (".png", ".svg", ".pdf")


def plot(runs: Runs, path: str | os.PathLike[str], on: str = "") -> None:
    """Draw train and test NLL over steps into ``path``, a .png, .svg or .pdf file; one that is there is replaced.

    Args:
        on: The test set: "" is the unnamed one.

    Raises:
        ConfigError: for another suffix, a path that cannot be written, a test set that no run has, and where no run
            holds an NLL yet.
    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise ConfigError(f"{path}: a figure is a {', '.join(_SUFFIXES)} file: end its name in one of these")
    test_nll = test_nll_key(runs, on)
    metrics = runs.metrics.reindex(columns=[RUN, STEP, TRAIN_NLL, test_nll])
    if metrics[[TRAIN_NLL, test_nll]].isna().to_numpy().all():
        raise ConfigError("no run holds a train or test NLL yet: nothing to draw")

    curves = []
    for name in runs.states:
        rows = metrics.loc[metrics[RUN] == name]
        train, test = rows.dropna(subset=TRAIN_NLL), rows.dropna(subset=test_nll)
        curves.append(Curve(name, (train[STEP], train[TRAIN_NLL]), (test[STEP], test[test_nll])))
    differ = "" if comparable(summarise(runs, on)) else "test sets differ or are unknown: test curves do not compare"
    title = f"train (thin) and test (dots){f', test set {on}' if on else ''}"
    try:
        draw_nll(path, curves, title=title, warning=differ)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}): choose another file") from None
