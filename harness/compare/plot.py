"""The curves: train and test NLL over steps, a colour a run. The only room that loads matplotlib."""

import os
from pathlib import Path

from harness.compare.load import RUN, Runs
from harness.compare.stats import comparable, summarise, test_nll_key
from harness.exceptions import ConfigError
from harness.run_dir import STEP, TRAIN_NLL

_SUFFIXES = (".png", ".svg", ".pdf")
_DASHES = ("-", "--", ":", "-.")  # once the colours are used up


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

    from matplotlib import colormaps
    from matplotlib.figure import Figure  # without pyplot: no display, no state

    names = list(runs.states)
    columns = 2 if len(names) > 3 and max(map(len, names)) < 50 else 1
    figure = Figure(figsize=(9, 5 + 0.2 * len(names) / columns), layout="constrained")
    axes = figure.add_subplot()
    colours = colormaps["tab10"]
    lines = []
    for i, name in enumerate(names):
        rows = metrics.loc[metrics[RUN] == name]
        train, test = rows.dropna(subset=TRAIN_NLL), rows.dropna(subset=test_nll)
        look = {"color": colours(i % colours.N), "linestyle": _DASHES[i // colours.N % len(_DASHES)]}
        axes.plot(train[STEP], train[TRAIN_NLL], linewidth=0.8, alpha=0.4, **look)
        lines += axes.plot(test[STEP], test[test_nll], linewidth=1.8, marker="o", markersize=4, **look)
    axes.set_xlabel("step (updates made)")
    axes.set_ylabel("NLL (nats per token)")
    axes.set_title(
        f"train (thin) and test (dots){f', test set {_literal(on)}' if on else ''}", loc="left", fontsize="medium"
    )
    if not comparable(summarise(runs, on)):
        warning = "test sets differ or are unknown: test curves do not compare"
        axes.set_title(warning, loc="right", color="firebrick", fontsize="small")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        lines,
        map(_literal, names),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize="small",
        handlelength=4,
    )
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}): choose another file") from None


def _literal(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib sets what stands between two dollars as mathematics
