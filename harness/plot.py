"""The figure of train and test NLL over steps. The only module that loads matplotlib."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

_DASHES = ("-", "--", ":", "-.")  # once the colours are used up


@dataclasses.dataclass(frozen=True)
class Curve:
    """One colour of the figure and one line of its legend.

    Attributes:
        train: Steps and the train NLL at each, drawn thin.
        test: Steps and the test NLL at each, drawn with dots.
    """

    name: str
    train: tuple[Sequence[float], Sequence[float]]
    test: tuple[Sequence[float], Sequence[float]]


def draw_nll(path: Path, curves: Sequence[Curve], *, title: str, warning: str = "") -> None:
    """Draw ``curves`` into ``path``, whose suffix says the format.

    Args:
        warning: Stands in red beside the title.

    Raises:
        OSError: where the file cannot be written.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # without pyplot: no display, no state

    names = [curve.name for curve in curves]
    columns = 2 if len(names) > 3 and max(map(len, names)) < 50 else 1
    figure = Figure(figsize=(9, 5 + 0.2 * len(names) / columns), layout="constrained")
    axes = figure.add_subplot()
    colours = colormaps["tab10"]
    lines = []
    for i, curve in enumerate(curves):
        look = {"color": colours(i % colours.N), "linestyle": _DASHES[i // colours.N % len(_DASHES)]}
        axes.plot(*curve.train, linewidth=0.8, alpha=0.4, **look)
        lines += axes.plot(*curve.test, linewidth=1.8, marker="o", markersize=4, **look)
    axes.set_xlabel("step (updates made)")
    axes.set_ylabel("NLL (nats per token)")
    axes.set_title(_literal(title), loc="left", fontsize="medium")
    if warning:
        axes.set_title(_literal(warning), loc="right", color="firebrick", fontsize="small")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        lines,
        [_literal(name) for name in names],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize="small",
        handlelength=4,
    )
    figure.savefig(path, dpi=150)


def _literal(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib sets what stands between two dollars as mathematics
