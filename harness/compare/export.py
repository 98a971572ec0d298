"""A report as files: the suffix of a path says in which form."""

import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.compare.load import RUN
from harness.compare.page import GENERATOR, MADE_BY, render_page
from harness.compare.paired import CONFIDENCE
from harness.compare.plot import SUFFIXES as FIGURES
from harness.compare.plot import plot
from harness.compare.report import Report, Section
from harness.compare.stats import SUMMARY, best_runs
from harness.exceptions import ConfigError
from harness.files import write_bytes
from harness.plot import is_drawn_here

if TYPE_CHECKING:
    import pandas as pd

_VERSION = 1  # of the JSON document: another where a key is gone or means something else
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~])")


def to_json(report: Report) -> str:
    """What a program reads: numbers as they are, null where there is none. ``docs/comparing.md`` has the keys."""
    judgement = report.judgement
    best = best_runs(report.summary)
    judged = judgement.chosen.join(judgement.against.drop(columns="step"))
    document = {
        "made_by": MADE_BY,
        "version": _VERSION,
        "test_set": report.on,
        "runs": [row | {"is_best": row[RUN] in best} for row in _records(report.summary.reset_index())],
        "judgement": {
            "baseline": judgement.baseline,
            "at": judgement.at,
            "x": judgement.x,
            "confidence": CONFIDENCE,
            "runs": _records(judged.reset_index()),
            "configs": _records(judgement.configs),
        },
        "config_differences": [
            {"path": path, "values": {str(run): _plain(value) for run, value in values.items()}}
            for path, values in report.differences.to_dict("index").items()
        ],
        "notes": [note for section in report.sections for note in section.notes],
        "footnotes": report.footnotes,
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def to_csv(report: Report) -> str:
    """:func:`harness.compare.stats.summarise`, a row a run."""
    return report.summary.to_csv()


def to_markdown(report: Report) -> str:
    """The tables, for a pull request."""
    parts = [f"<!-- {MADE_BY} -->", *map(_markdown_section, report.sections)]
    parts += ["<br>\n".join(map(_literal, text.splitlines())) for text in report.footnotes]
    return "\n\n".join(parts) + "\n"


_FORMS: dict[str, Callable[[Report], str]] = {
    ".html": render_page,
    ".json": to_json,
    ".csv": to_csv,
    ".md": to_markdown,
}
_SUFFIXES = (*_FORMS, *FIGURES)
_HEADS = {  # how a report begins, and nothing else does
    ".json": f'{{\n  "made_by": "{MADE_BY}"',
    ".csv": ",".join((RUN, *SUMMARY)) + "\n",
    ".md": f"<!-- {MADE_BY} -->\n",
}


def check_outputs(paths: Iterable[Path]) -> None:
    """Whether :func:`write_report` can write there: asked before anything is computed.

    Raises:
        ConfigError: for a suffix that is no form of a report, a folder that is not there, and a file that is there and
            was not written here: a report is replaced by the next one, and nothing else is.
    """
    for path in paths:
        if path.suffix not in _SUFFIXES:
            named = f"{path}: no form of a report" if path.name else "--out names no file"
            raise ConfigError(f"{named}: end its name in {', '.join(_SUFFIXES)}")
        if not path.parent.is_dir():
            raise ConfigError(f"{path}: there is no folder {path.parent}: make it, or choose another file")
        try:
            is_ours = not path.exists() or _is_report(path.read_bytes(), path.suffix)
        except OSError as error:
            raise _cannot_write(path, error) from None
        if not is_ours:
            raise ConfigError(f"{path}: there already, and no report: choose another file, or remove it")


def write_report(report: Report, path: Path) -> None:
    """Write the form of a report that the path's suffix names; what is there is replaced.

    Raises:
        ConfigError: for a path that cannot be written, and for an image where there is nothing to draw.
    """
    if path.suffix in FIGURES:
        plot(report.runs, path, report.on, report.judgement.x)
        return
    text = _FORMS[path.suffix](report)
    try:
        write_bytes(path, text.encode())
    except OSError as error:
        raise _cannot_write(path, error) from None


def _is_report(content: bytes, suffix: str) -> bool:
    """Whether a file was written here: that it names this program anywhere does not tell."""
    if suffix in FIGURES:
        return is_drawn_here(content, suffix)
    if suffix == ".html":
        return GENERATOR.encode() in content.partition(b"<title>")[0]
    return content.startswith(_HEADS[suffix].encode())


def _cannot_write(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path}: cannot be written ({error.strerror}): choose another file")


def _records(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    return [{str(key): _plain(value) for key, value in row.items()} for row in frame.to_dict("records")]


def _plain(value: Any) -> Any:
    """A value of a frame in JSON's types; what is missing, or no number, is null."""
    import numpy as np
    import pandas as pd

    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.generic):
        value = value.item()
    return None if pd.isna(value) or value in (math.inf, -math.inf) else value


def _markdown_section(section: Section) -> str:
    lines = [f"### {_literal(section.title)}"]
    if section.rows:
        rule = ["---" if column in section.words else "---:" for column in section.columns]
        rows = [[_literal(cell.strip()) for cell in row] for row in section.rows]
        for i in section.best:
            rows[i][0] = f"**{rows[i][0]}**"
        lines += ["", *(f"| {' | '.join(cells)} |" for cells in (section.columns, rule, *rows))]
    if section.notes:
        lines += ["", *(f"{'  ' if note.startswith(' ') else ''}- {_literal(note.strip())}" for note in section.notes)]
    return "\n".join(lines)


def _literal(text: str) -> str:
    """One line in which Markdown finds no marks."""
    return _MARKS.sub(r"\\\1", " ".join(text.splitlines()))
