"""The curves as an image: train and test NLL on one x axis, a colour a run."""

import os
from pathlib import Path

from harness.compare.curves import AXIS_TITLES, INCOMPARABLE, curves
from harness.compare.load import Runs
from harness.compare.stats import comparable, summarise
from harness.exceptions import ConfigError
from harness.plot import Curve, draw_nll

SUFFIXES = (".png", ".svg", ".pdf")


def plot(runs: Runs, path: str | os.PathLike[str], on: str = "", x: str = "step") -> None:
    """Draw train and test NLL into ``path``, a .png, .svg or .pdf file; one that is there is replaced.

    Args:
        on: The test set: "" is the unnamed one.
        x: See :func:`harness.compare.align.positions`.

    Raises:
        ConfigError: for another suffix or axis, a path that cannot be written, a test set that no run has, and where
            no run holds an NLL yet that has a place on the axis.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: a figure is a {', '.join(SUFFIXES)} file: end its name in one of these")
    found = curves(runs, x, on)
    if not any(len(of_run.train_nll) + len(of_run.test_nll) for of_run in found.values()):
        if any(of_run.num_unplaced for of_run in found.values()):
            raise ConfigError(f"no run's NLLs have a place on the {x} axis: choose another --x")
        raise ConfigError("no run holds a train or test NLL yet: nothing to draw")
    lines = [
        Curve(run, (c.train_x.tolist(), c.train_nll.tolist()), (c.test_x.tolist(), c.test_nll.tolist()))
        for run, c in found.items()
    ]
    warning = "" if comparable(summarise(runs, on)) else INCOMPARABLE
    title = f"train (thin) and test (dots){f', test set {on}' if on else ''}"
    try:
        draw_nll(path, lines, title=title, warning=warning, x_title=AXIS_TITLES[x])
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}): choose another file") from None
