"""Runs in a list: a row each, quickly read, filtered and sorted."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import operator
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from harness.config_io import flatten
from harness.disk_usage import in_words, size_of
from harness.exceptions import ConfigError, HarnessError, as_written
from harness.metric_keys import NUM_TOKENS, STEP, first_test_nll
from harness.run_dir import METRICS, Row, RunDir
from harness.run_tags import tags
from harness.times import utc

if TYPE_CHECKING:
    from rich.table import Table

DAMAGED = "DAMAGED"
_TEXTS = ("run", "state", "model", "started", "tags")  # the other columns are numbers
_LEFT_OUT_FIRST = ("tokens", "model", "started", "checkpoints", "best_step", "tags", "size")
_GAP = 2  # characters between columns
_TAGS_WIDTH = 40  # characters, at most
_OF_TAG = "tags."
_TOKENS = re.compile(rb'"%s"\s*:\s*(\d+)' % NUM_TOKENS.encode())
_CONDITION = re.compile(r"([^<>=!]+)(<=|>=|!=|==?|<|>)(.*)", re.DOTALL)
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclasses.dataclass(frozen=True)
class ListedRun:
    """What a list says of a run; None where it does not hold that.

    Attributes:
        run: Its path.
        state: As ``RunDir.state``; DAMAGED where it could not be read.
        steps: Updates made; ``planned`` are all that it makes.
        last: Test NLL of the last evaluation, on the first test set; ``best`` is the lowest, of step ``best_step``; of
            a fork, among its own.
        tokens: In the batches of its updates.
        size: Bytes on disk.
        checkpoints: As many as are kept.
        started: UTC, ``2026-11-22 21:06:05``.
        tags: The user's, ``team=x other=y``.
        fields: Its config by dotted path, and its tags as ``tags.<key>``.
        problem: Why it could not be read.
    """

    run: str
    state: str
    steps: int | None = None
    planned: int | None = None
    last: float | None = None
    best: float | None = None
    best_step: int | None = None
    model: str | None = None
    tokens: int | None = None
    size: int | None = None
    checkpoints: int | None = None
    started: str | None = None
    tags: str = ""
    fields: Row = dataclasses.field(default_factory=dict)
    problem: str | None = None

    def __post_init__(self):
        for column in COLUMNS:
            value, kind = getattr(self, column), str if column in _TEXTS else int | float
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"its {column} is {value!r}")

    def value(self, key: str) -> Any:
        """Of a column, or of a field of its config."""
        return getattr(self, key) if key in COLUMNS else self.fields.get(key)


COLUMNS = tuple(f.name for f in dataclasses.fields(ListedRun) if f.name not in ("fields", "problem"))


def list_run(run: RunDir) -> ListedRun:
    """A row of the list; of a run that is damaged too, so that the others are listed."""
    from harness.compare import tinker_cookbook

    try:
        with as_written(run):
            theirs = tinker_cookbook.config(run)
            return _read(run) if theirs is None else _read_theirs(run, theirs, tinker_cookbook.state(run))
    except HarnessError as error:
        return ListedRun(str(run), DAMAGED, size=size_of(run.path), problem=str(error))


def _read(run: RunDir) -> ListedRun:
    document = run.config() if run.exists() else {}
    config = (document.get("config") or {}) | run.changed_extents()
    own_tags = tags(run) if document else {}
    starts = [row for row in run.attempts() if row["event"] == "start"]
    nlls = run.test_nlls()
    best_step = min(nlls, key=nlls.__getitem__, default=None)
    fields = flatten({key: value for key, value in config.items() if key != "tags"}) if config else {}
    return ListedRun(
        run=str(run),
        state=run.state(),
        steps=run.num_steps_trained(),
        planned=starts[-1].get("total_steps") if starts else None,
        last=nlls[max(nlls)] if nlls else None,
        best=None if best_step is None else nlls[best_step],
        best_step=best_step,
        model=config.get("model_name"),
        tokens=_num_tokens(run),
        size=size_of(run.path),
        checkpoints=sum(record.is_usable for record in run.checkpoints()),
        started=utc(document["started"]) if "started" in document else None,
        tags=" ".join(f"{key}={value}" for key, value in own_tags.items()),
        fields=fields | {f"{_OF_TAG}{key}": value for key, value in own_tags.items()},
    )


def _read_theirs(run: RunDir, config: Row, state: str) -> ListedRun:
    """A run directory of tinker-cookbook."""
    nlls = {row[STEP]: nll for row in run.tested_rows() if (nll := first_test_nll(row)) is not None}
    best_step = min(nlls, key=nlls.__getitem__, default=None)
    return ListedRun(
        run=str(run),
        state=state,
        steps=run.num_steps_trained(),
        last=nlls[max(nlls)] if nlls else None,
        best=None if best_step is None else nlls[best_step],
        best_step=best_step,
        model=config.get("model_name"),
        size=size_of(run.path),
        fields=flatten(config),
    )


def _num_tokens(run: RunDir) -> int:
    """From the text of the rows: to parse them all would take longer than everything else."""
    try:
        text = (run / METRICS).read_bytes()
    except FileNotFoundError:
        return 0
    return sum(map(int, _TOKENS.findall(text, 0, text.rfind(b"\n") + 1)))


# ---- which, in which order


def filtered(runs: Sequence[ListedRun], conditions: Sequence[str]) -> list[ListedRun]:
    """The runs for which all ``conditions`` hold.

    Args:
        conditions: ``state=FINISHED``, ``best<3.5``, ``learning_rate=1e-4``, ``tags.team!=x``: a column or a field of
            the config, and a value, whose ``*`` and ``?`` stand for any characters.

    Raises:
        ConfigError: for a condition of another form, a key that no run has, or no number where one is compared.
    """
    left = list(runs)
    for condition in conditions:
        match = _CONDITION.fullmatch(condition)
        if not match:
            raise ConfigError(f"--filter {condition}: no condition: write KEY=VALUE, with =, !=, <, <=, > or >=")
        key, compared, wanted = (part.strip() for part in match.groups())
        if not (key.startswith(_OF_TAG) and wanted.lower() == "none"):  # a tag that no run has is None in all
            _check_key("--filter", key, runs)
        left = [run for run in left if _holds(condition, run.value(key), compared, wanted)]
    return left


def ordered(runs: Sequence[ListedRun], column: str) -> list[ListedRun]:
    """The runs by a column or a field of the config, from the highest down where ``-`` precedes it; those without it
    come last.

    Raises:
        ConfigError: for one that no run has.
    """
    key = column.removeprefix("-")
    _check_key("--sort", key, runs)
    there = [run for run in runs if run.value(key) is not None]
    there.sort(key=lambda run: _rank(run.value(key)), reverse=column.startswith("-"))
    return there + [run for run in runs if run.value(key) is None]


def _check_key(option: str, key: str, runs: Sequence[ListedRun]) -> None:
    known = [*COLUMNS, *dict.fromkeys(path for run in runs for path in run.fields)]
    if key not in known:
        near = [path for path in known if path.endswith(f".{key}")] or difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(
            f"{option} {key}: no column, and no field of these runs' configs{hint} (columns: {', '.join(COLUMNS)})"
        )


def _holds(condition: str, there: Any, compared: str, wanted: str) -> bool:
    number, wanted_number = _number(there), _number(wanted)
    if compared not in _COMPARED:
        if number is None or wanted_number is None:
            is_equal = fnmatch.fnmatchcase(str(there).lower(), wanted.lower())
        else:
            is_equal = number == wanted_number
        return is_equal != (compared == "!=")
    if there is None:
        return False
    if number is None:
        return _COMPARED[compared](str(there), wanted)
    if wanted_number is None:
        raise ConfigError(f"--filter {condition}: {wanted!r} is not a number")
    return _COMPARED[compared](number, wanted_number)


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def _rank(value: Any) -> tuple[bool, float, str]:
    number = _number(value)
    return number is None, number or 0.0, str(value)


# ---- shown


def tab_separated(runs: Sequence[ListedRun]) -> str:
    """For programs: a line of columns, then a line a run with the values as they are, and nothing for None."""
    rows = [[run.value(column) for column in COLUMNS] for run in runs]
    return "".join("\t".join("" if v is None else _one_line(v) for v in row) + "\n" for row in [COLUMNS, *rows])


def _one_line(value: Any) -> str:
    return re.sub(r"\s", " ", str(value))


def table(runs: Sequence[ListedRun], width: int) -> Table:
    """For people. Columns for which there is no room are left out, and named below.

    Args:
        width: Of the terminal, in characters.
    """
    from rich.table import Table

    cells = {column: [column, *(_cell(run, column) for run in runs)] for column in COLUMNS if column != "planned"}
    widths = {column: max(map(len, texts)) + _GAP for column, texts in cells.items()}
    widths["tags"] = min(widths["tags"], _TAGS_WIDTH + _GAP)
    left_out: list[str] = []
    while sum(widths.values()) - _GAP > width and len(left_out) < len(_LEFT_OUT_FIRST):
        left_out.append(_LEFT_OUT_FIRST[len(left_out)])
        del widths[left_out[-1]]
    note = f"no room for {', '.join(left_out)}: widen the window, or | cat" if left_out else None
    shown = Table(
        box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold", caption=note, caption_justify="left"
    )
    for column in widths:
        is_folded = column in ("run", "tags")
        justify = "left" if column in _TEXTS else "right"
        most = _TAGS_WIDTH if column == "tags" else None
        shown.add_column(column, justify=justify, no_wrap=not is_folded, overflow="fold", max_width=most)
    for i, run in enumerate(runs, start=1):
        shown.add_row(*(cells[column][i] for column in widths), style="red" if run.problem else None)
    return shown


def _cell(run: ListedRun, column: str) -> str:
    value = run.value(column)
    if value is None:
        return "-"
    match column:
        case "steps" if run.planned is not None:
            return f"{value}/{run.planned}"
        case "last" | "best":
            return f"{value:.4f}"
        case "model":
            return value.rpartition("/")[2]
        case "tokens":
            return f"{value:,}"
        case "size":
            return in_words(value)
        case "started":
            return value[:-3]  # no seconds
    return str(value)
