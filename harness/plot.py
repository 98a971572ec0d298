"""Figures: NLL over steps, and over the values of parameters. The only module that loads matplotlib."""

from __future__ import annotations

import dataclasses
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CREATOR = "sft-harness"
_SAYS_SO = {  # in a figure that was drawn here, by suffix
    ".png": f"tEXtSoftware\0{_CREATOR}",
    ".svg": f"<dc:title>{_CREATOR}</dc:title>",
    ".pdf": f"/Creator ({_CREATOR})",
}
_DASHES = ("-", "--", ":", "-.")  # once the colours are used up
_FONTS = (  # that have what matplotlib's own lacks, where one of them is installed: Chinese, Japanese, Korean, …
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "PingFang SC", "Hiragino Sans", "Arial Unicode MS"),
)


@dataclasses.dataclass(frozen=True)
class Curve:
    """One colour of the figure and one line of its legend.

    Attributes:
        train: x, steps as a rule, and the train NLL at each, drawn thin.
        test: x and the test NLL at each, drawn with dots.
    """

    name: str
    train: tuple[Sequence[float], Sequence[float]]
    test: tuple[Sequence[float], Sequence[float]]


def draw_nll(
    path: Path,
    curves: Sequence[Curve],
    *,
    title: str,
    warning: str = "",
    x_title: str = "step (updates made)",
) -> None:
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
    axes.set_xlabel(x_title)
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
    _save(figure, path)


@dataclasses.dataclass(frozen=True)
class Response:
    """Test NLL over values of one parameter, of runs that were tested on one set: one colour of a panel.

    Attributes:
        values: Numbers, or words that stand side by side.
        best: One a value, drawn thick.
        seed_sd: The length of the bar below and above ``best``; NaN for none.
        mean: One a value, drawn thin with a dash.
        runs: Each run's value and NLL, drawn as a dot.
    """

    values: Sequence[Any]
    best: Sequence[float]
    seed_sd: Sequence[float]
    mean: Sequence[float]
    runs: tuple[Sequence[Any], Sequence[float]]


def draw_responses(path: Path, panels: Mapping[str, Sequence[Response]], *, warning: str = "") -> None:
    """Draw a panel a parameter into ``path``, whose suffix says the format; all have one NLL axis.

    Args:
        panels: By the parameter's name.
        warning: Stands in red above them.

    Raises:
        OSError: where the file cannot be written.
    """
    from matplotlib.figure import Figure

    num_columns = min(3, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure = Figure(figsize=(max(6.5, 4.2 * num_columns), 0.8 + 3.4 * num_rows), layout="constrained")
    grid = list(figure.subplots(num_rows, num_columns, sharey=True, squeeze=False).flat)
    for axes, (parameter, responses) in zip(grid, panels.items(), strict=False):
        _draw_panel(axes, responses)
        axes.set_xlabel(_literal(parameter))
        axes.tick_params(labelleft=True)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.supylabel("test NLL (nats per token)", fontsize="medium")
    if warning:
        figure.suptitle(_literal(warning), color="firebrick", fontsize="small")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles[:3], labels[:3], loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    _save(figure, path)


def _draw_panel(axes: Axes, responses: Sequence[Response]) -> None:
    from matplotlib import colormaps

    values = list(dict.fromkeys(value for response in responses for value in response.values))
    is_numeric = not any(isinstance(value, str) for value in values)
    place = {value: value if is_numeric else i for i, value in enumerate(values)}
    if is_numeric and min(values) > 0 and max(values) >= 10 * min(values):
        axes.set_xscale("log")
    line = "-" if is_numeric else "none"  # nothing lies between two words
    colours = colormaps["tab10"]
    for i, response in enumerate(responses):
        look = {"color": colours(i % colours.N), "linestyle": line}
        x = [place[value] for value in response.values]
        dots = [place[value] for value in response.runs[0]]
        axes.plot(dots, response.runs[1], "o", color=look["color"], alpha=0.35, markersize=4, label="run")
        axes.plot(x, response.mean, linewidth=0.8, marker="_", markersize=14, label="mean over the others", **look)
        bars = [0.0 if math.isnan(sd) else sd for sd in response.seed_sd]
        thick = {"linewidth": 1.8, "marker": "o", "markersize": 5, "capsize": 3}
        axes.errorbar(x, response.best, bars, label="best of the others ± sd of its seeds", **thick, **look)
    axes.set_xticks(list(place.values()), [_literal(f"{v:g}" if is_numeric else str(v)) for v in values])
    axes.minorticks_off()
    if not is_numeric:
        axes.margins(x=0.2)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def is_drawn_here(image: bytes, suffix: str) -> bool:
    """Whether the content of a .png, .svg or .pdf file says that it was drawn by this module."""
    return _SAYS_SO[suffix].encode() in image


def _save(figure: Figure, path: Path) -> None:
    from matplotlib import rcParams
    from matplotlib.font_manager import fontManager
    from matplotlib.text import Text

    there = {font.name for font in fontManager.ttflist}
    families = [*rcParams["font.family"], *(name for name in _FONTS if name in there)]
    for text in figure.findobj(Text):
        text.set_fontfamily(families)
    image = io.BytesIO()
    metadata = {"Software" if path.suffix == ".png" else "Creator": _CREATOR}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # a box says so as well
        figure.savefig(image, format=path.suffix[1:], dpi=150, metadata=metadata)
    write_bytes(path, image.getvalue())


def _literal(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib sets what stands between two dollars as mathematics
