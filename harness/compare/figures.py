"""What a page draws, in the words of plotly.js: plain dicts, which become JSON.

Where plotly.js wants a colour stands the name of one that page.css defines, for light and for dark: ``run-0`` to
``run-9``, ``ink``, ``grid``, … Plotly reads a little HTML in every text: whatever a user named is escaped.
"""

import dataclasses
import html
import itertools
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from harness.compare.curves import AXIS_TITLES, INCOMPARABLE, Curves, Resume, curves, resumes
from harness.compare.paired import BETTER, NO_VERDICT, NOT_TOLD_APART, WORSE
from harness.compare.report import Report, verdict_cells
from harness.compare.stats import comparable

if TYPE_CHECKING:
    import numpy as np

NUM_COLOURS = 10
SYMBOLS = {"circle": "●", "square": "■", "diamond": "◆", "triangle-up": "▲", "cross": "✚", "x": "✖", "star": "★"}
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MAX_TRAIN_POINTS = 200_000  # of a page: with more it is neither small nor quick
_LOOKS = {  # colour and symbol, which say the same
    BETTER: ("better", "circle"),
    WORSE: ("worse", "square"),
    NOT_TOLD_APART: ("soft", "diamond"),
    NO_VERDICT: ("soft", "circle-open"),
}
_ROW = 62  # pixels, of a difference
_NAME = 30  # characters of a run's name above its difference: there is room for them on a phone
_TEXT = 13  # pixels

Trace = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One drawing.

    Attributes:
        key: That of the section above whose table it stands; ``curves`` and ``gap``, which no section has, come first.
        title, notes: What a reader has to know.
        traces, layout: Plotly's. A trace of one run has a ``meta``: ``run``, its number, and ``kind``: train, test,
            gap, resume.
    """

    key: str
    title: str
    notes: list[str]
    traces: list[Trace]
    layout: dict[str, Any]


def make_figures(report: Report) -> list[Figure]:
    """The curves, the generalisation gap, the differences between runs and those between configs: what there is."""
    judgement = report.judgement
    drawn = curves(report.runs, judgement.x, report.on)
    configs = judgement.configs.set_index("runs").iloc[1:]
    nll = _nll_figure(drawn, resumes(report.runs), judgement.x)
    if not comparable(report.summary):
        nll.notes.insert(0, f"{INCOMPARABLE}.".capitalize())
    figures = [
        nll,
        _gap_figure(drawn, judgement.x),
        _differences_figure("against", judgement.against.to_dict("index"), judgement.baseline),
        _differences_figure("configs", configs.to_dict("index"), f"the config of {judgement.baseline}"),
    ]
    return [figure for figure in figures if figure.traces]


def _nll_figure(drawn: dict[str, Curves], again: dict[str, list[Resume]], x: str) -> Figure:
    num_batches = sum(len(of_run.train_nll) for of_run in drawn.values())
    share = min(1.0, MAX_TRAIN_POINTS / max(1, num_batches))
    num_drawn = 0
    traces = []
    for i, (run, of_run) in enumerate(drawn.items()):
        kept = thin(of_run.train_nll, int(share * len(of_run.train_nll)))
        num_drawn += len(kept)
        train = (of_run.train_x[kept], of_run.train_nll[kept], of_run.train_step[kept])
        test = (of_run.test_x, of_run.test_nll, of_run.test_step)
        traces += [
            _trace(i, run, "train", x, *train, "train NLL %{y:.4f}")
            | {"mode": "lines", "opacity": 0.5, "line": _line(i, 1)},
            _trace(i, run, "test", x, *test, "test NLL %{y:.4f}") | _dotted(i, len(drawn)),
            *_resume_trace(i, run, of_run, again.get(run, [])),
        ]
    notes = ["Lines with symbols: test NLL; each symbol is an evaluation, and what lies between two was not measured."]
    notes += ["Thin lines: train NLL, each update's one batch."]
    if num_drawn < num_batches:
        notes.append(
            f"Of {num_batches:,} batches {num_drawn:,} are drawn, the lowest and the highest of each stretch; of the "
            "evaluations all are."
        )
    if any(trace["meta"]["kind"] == "resume" for trace in traces):
        notes.append("Triangles that point right: an attempt went on here.")
    if unplaced := [run for run, of_run in drawn.items() if of_run.num_unplaced]:
        notes.append(f"Not drawn, for want of a place on these axes, are points of: {', '.join(unplaced)}.")
    is_drawn = any(len(trace["x"]) for trace in traces)
    layout = _layout(AXIS_TITLES[x], "NLL (nats per token)", 460)
    return Figure("curves", "Test and train NLL", notes, traces if is_drawn else [], layout)


def _gap_figure(drawn: dict[str, Curves], x: str) -> Figure:
    import numpy as np

    traces = []
    for i, (run, of_run) in enumerate(drawn.items()):
        known = np.isfinite(of_run.gap)
        points = (of_run.test_x[known], of_run.gap[known], of_run.test_step[known])
        traces.append(_trace(i, run, "gap", x, *points, "gap %{y:+.4f}") | _dotted(i, len(drawn)))
    notes = ["Test NLL minus that of the last train batch, at each evaluation: above 0, test is worse than train."]
    is_drawn = any(len(trace["x"]) for trace in traces)
    layout = _layout(AXIS_TITLES[x], "gap (nats per token)", 320)
    return Figure("gap", "Generalisation gap", notes, traces if is_drawn else [], layout)


def thin(values: "np.ndarray", num: int) -> "np.ndarray":
    """Indices of about ``num`` of ``(num_values,)``, in order: the lowest and the highest of each of ``num / 2``
    stretches; all where there are no more."""
    import numpy as np

    if len(values) <= max(num, 2):
        return np.arange(len(values))
    ends = np.linspace(0, len(values), max(1, num // 2) + 1).astype(int)
    stretches = [(a, values[a:b]) for a, b in itertools.pairwise(ends)]
    return np.unique([a + i for a, stretch in stretches for i in (stretch.argmin(), stretch.argmax())])


def _trace(
    i: int, run: str, kind: str, axis: str, x: "np.ndarray", y: "np.ndarray", step: "np.ndarray", hover: str
) -> Trace:
    at = "step %{x:,}" if axis == "step" else f"step %{{customdata:,}}, {axis} %{{x:,.10~g}}"
    return {
        "type": "scatter",
        "name": html.escape(run),
        "meta": {"run": i, "kind": kind},
        "x": step.tolist() if axis == "step" else x.tolist(),
        "y": y.tolist(),
        "hovertemplate": f"<b>%{{fullData.name}}</b><br>{at}<br>{hover}<extra></extra>",
    } | ({} if axis == "step" else {"customdata": step.tolist()})


def _resume_trace(i: int, run: str, of_run: Curves, again: list[Resume]) -> list[Trace]:
    import numpy as np

    rows = np.searchsorted(of_run.train_step, [resume.step for resume in again])
    there = [(row, resume) for row, resume in zip(rows, again, strict=True) if row < len(of_run.train_step)]
    if not there:
        return []
    texts = [
        f"attempt {resume.attempt} went on at step {resume.step:,}"
        + (f"<br>rows put aside: {resume.num_superseded:,}" if resume.num_superseded else "")
        for _, resume in there
    ]
    at = [row for row, _ in there]
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": html.escape(run),
            "meta": {"run": i, "kind": "resume"},
            "x": of_run.train_x[at].tolist(),
            "y": of_run.train_nll[at].tolist(),
            "text": texts,
            "hovertemplate": "<b>%{fullData.name}</b><br>%{text}<extra></extra>",
            "marker": {"color": colour(i), "symbol": "triangle-right-open", "size": 13, "line": {"width": 2}},
        }
    ]


def _differences_figure(key: str, rows: Mapping[Hashable, Mapping[Hashable, Any]], baseline: str) -> Figure:
    """Each difference from the baseline with its interval, a row each from the top; those that have none are left out.

    Args:
        rows: Of a table of a judgement, by run or by runs.
    """
    known = [(str(name), row) for name, row in rows.items() if row["difference"] == row["difference"]]
    by_verdict: dict[str, list[tuple[int, str, Mapping[Hashable, Any]]]] = {}
    for i, (name, row) in enumerate(known):
        by_verdict.setdefault(row["verdict"], []).append((i, name, row))
    x_title = "difference in test NLL (nats per token)<br>← better · worse →"
    layout = _layout(x_title, "", _ROW * len(known) + 110)
    layout["margin"] |= {"l": 12, "r": 12}
    layout["xaxis"] |= {"rangemode": "tozero"}
    layout["yaxis"] = {"visible": False, "fixedrange": True, "range": [len(known) - 0.7, -0.9]}
    layout["shapes"] = [{"type": "line", "x0": 0, "x1": 0, "yref": "paper", "y0": 0, "y1": 1, "line": {"color": "ink"}}]
    layout["annotations"] = [_label(i, name, row["verdict"]) for i, (name, row) in enumerate(known)]
    notes = ["Symbols: differences; the lines through them: their intervals."]
    traces = [_intervals(verdict, found) for verdict, found in by_verdict.items()]
    return Figure(key, f"Differences from {baseline}", notes, traces, layout)


def _intervals(verdict: str, found: list[tuple[int, str, Mapping[Hashable, Any]]]) -> Trace:
    """The rows of one verdict; where that is none there are no intervals."""
    role, symbol = _LOOKS[verdict]
    texts = []
    for _, name, row in found:
        difference, interval, p, said = verdict_cells(row)
        texts.append(f"<b>{html.escape(name)}</b> {said}<br>{difference} ({interval})<br>Holm p {html.escape(p)}")
    ends = {
        "type": "data",
        "symmetric": False,
        "array": [row["high"] - row["difference"] for _, _, row in found],
        "arrayminus": [row["difference"] - row["low"] for _, _, row in found],
        "color": role,
        "thickness": 2,
        "width": 5,
    }
    return {
        "type": "scatter",
        "mode": "markers",
        "name": verdict,
        "x": [row["difference"] for _, _, row in found],
        "y": [i for i, _, _ in found],
        "text": texts,
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": role, "symbol": symbol, "size": 10, "line": {"width": 2, "color": role}},
    } | ({} if verdict == NO_VERDICT else {"error_x": ends})


def _label(i: int, name: str, verdict: str) -> dict[str, Any]:
    """Left above its interval: there is room for a long name, on a phone too."""
    return {
        "text": f"<b>{html.escape(_short(name))}</b><br>{verdict}",
        "align": "left",
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "y": i,
        "yanchor": "bottom",
        "yshift": 7,
        "bgcolor": "paper",
        "showarrow": False,
    }


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME // 2]}…{name[-_NAME // 2 :]}"


def colour(i: int) -> str:
    """The name of a run's colour, by its number."""
    return f"run-{i % NUM_COLOURS}"


def symbol(i: int) -> str:
    """Plotly's name of a run's symbol."""
    return list(SYMBOLS)[i % len(SYMBOLS)]


def dash(i: int) -> str:
    """Plotly's name of how a run's lines are dashed: otherwise once the colours are used up."""
    return _DASHES[i // NUM_COLOURS % len(_DASHES)]


def _line(i: int, width: float) -> dict[str, Any]:
    return {"color": colour(i), "width": width, "dash": dash(i)}


def _dotted(i: int, num_runs: int) -> Trace:
    """A line with its evaluations; finer where there are many."""
    width, size = (2, 8) if num_runs <= NUM_COLOURS else (1, 5)
    return {
        "mode": "lines+markers",
        "line": _line(i, width),
        "marker": {"color": colour(i), "symbol": symbol(i), "size": size},
    }


def _layout(x_title: str, y_title: str, height: int) -> dict[str, Any]:
    axis = {"gridcolor": "grid", "linecolor": "rule", "automargin": True}
    return {
        "height": height,
        "margin": {"l": 56, "r": 16, "t": 32, "b": 48},
        "showlegend": False,
        "hovermode": "closest",
        "uirevision": "kept",  # the part that is looked at, when something is hidden or the colours change
        "font": {"family": "system-ui, sans-serif", "size": _TEXT, "color": "ink"},
        "paper_bgcolor": "paper",
        "plot_bgcolor": "paper",
        "hoverlabel": {"bgcolor": "paper", "font": {"color": "ink"}, "align": "left", "namelength": -1},
        "modebar": {"bgcolor": "paper", "color": "soft", "activecolor": "ink"},
        "xaxis": axis | {"title": {"text": x_title, "font": {"size": _TEXT}}, "zeroline": False},
        "yaxis": axis | {"title": {"text": y_title, "font": {"size": _TEXT}}, "zerolinecolor": "rule"},
    }
