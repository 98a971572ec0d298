"""A report as one HTML page that needs no network, and its tables for a notebook. The only module that loads plotly."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.compare.figures import SYMBOLS, Figure, colour, dash, make_figures, symbol
from harness.compare.report import Report, Section
from harness.times import utc

if TYPE_CHECKING:
    from jinja2 import Environment

MADE_BY = "python -m harness compare"
GENERATOR = f'<meta name="generator" content="{MADE_BY}">'  # stands in the page's head, before its title
_SMOOTHED_OVER = 11  # points, an odd number
_MANY = 10  # runs: with more of them their train curves hide one another
_NAMED = 3  # runs: with more of them the title counts them
_TEMPLATES = Path(__file__).with_name("templates")


def render_page(report: Report) -> str:
    """The whole page, with plotly.js and the points in it."""
    from plotly.offline import get_plotlyjs

    figures = {figure.key: figure for figure in make_figures(report)}
    of_sections = {section.key for section in report.sections}
    states = report.runs.states
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=f"{', '.join(states) if len(states) <= _NAMED else f'{len(states):,} runs'} compared",
            made_by=MADE_BY,
            generator=GENERATOR,
            made_at=f"{utc(time.time() * 1000, 'minutes')} UTC",
            unfinished=[f"{run} ({state})" for run, state in states.items() if state != "FINISHED"],
            legend=[
                {"name": run, "state": state, "colour": colour(i), "symbol": SYMBOLS[symbol(i)], "dash": dash(i)}
                for i, (run, state) in enumerate(states.items())
            ],
            hide_train=len(states) > _MANY,
            smoothed_over=_SMOOTHED_OVER,
            curves=[figure for key, figure in figures.items() if key not in of_sections],
            figures=figures,
            sections=report.sections,
            footnotes=report.footnotes,
            drawings=_json_in_html(figures.values()),
            plotly=get_plotlyjs(),
            css=(_TEMPLATES / "page.css").read_text(),
            js=(_TEMPLATES / "page.js").read_text(),
        )
    )


def render_tables(sections: Iterable[Section], footnotes: Iterable[str]) -> str:
    """The tables of some sections with their notes: a fragment of HTML, without any script."""
    said = [section for section in sections if section.rows or section.notes]
    return _environment().get_template("notebook.html").render(sections=said, footnotes=footnotes)


def _environment() -> "Environment":
    """Whatever stands in the place of a variable is escaped, but for what the template says is ours."""
    from jinja2 import Environment, FileSystemLoader

    return Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)


def _json_in_html(figures: Iterable[Figure]) -> str:
    """As it can stand between script tags: no name in it can end the script."""
    drawings = [{"key": figure.key, "traces": figure.traces, "layout": figure.layout} for figure in figures]
    return json.dumps(drawings, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
