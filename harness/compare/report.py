"""Runs -> tables for the terminal."""

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from harness.compare.load import Runs
from harness.compare.stats import best_runs, by_test_set, config_differences, summarise

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

_FOOTNOTE = """
gap = best test - train NLL at that step; the train NLL is that of one batch.
The best step was chosen on the test set that it is reported on: its NLL looks better than it is.
One run of each config compares these checkpoints, not the configs."""


def print_report(runs: Runs, console: "Console", on: str = "") -> None:
    """Print NLLs, what was trained, and config differences, with what has to be known to read them.

    Args:
        on: The test set: "" is the unnamed one.

    Raises:
        ConfigError: where no run has that test set and some have another.
    """
    summary = summarise(runs, on)
    tables = [_nll_table(summary, on), _training_table(summary)]
    if not console.is_terminal:  # nothing ends where a line of a pipe does: rather a long line than a broken name
        unlimited = console.options.update(max_width=10_000)
        console.width = max(console.width, *(console.measure(table, options=unlimited).maximum for table in tables))
    console.print(tables[0])
    for note in _notes(runs, summary):
        console.print(note, markup=False, highlight=False)
    console.print()
    console.print(tables[1])
    _print_differences(runs, console)
    console.print(_FOOTNOTE, style="dim", highlight=False)


def _nll_table(summary: "pd.DataFrame", on: str) -> "Table":
    columns = ("last test", "step", "best test", "step", "train", "step", "gap")
    table = _table(f"NLL in nats per token{f', test set {on}' if on else ''}", "run", *columns)
    best = best_runs(summary)
    for run, row in summary.to_dict("index").items():
        cells = [
            _nll(row["last_test_nll"]) + ("^" if _rose(row) else " "),
            _count(row["last_test_step"]),
            _nll(row["best_test_nll"]) + ("*" if run in best else " "),
            _count(row["best_step"]),
            _nll(row["train_nll"]),
            _count(row["train_step"]),
            _nll(row["gap"], "+.4f"),
        ]
        _add_row(table, str(run), *cells, style="bold green" if run in best else None)
    return table


def _training_table(summary: "pd.DataFrame") -> "Table":
    table = _table("Trained", "run", "state", "steps", "tokens", "loss tokens", "last train NLL")
    for run, row in summary.to_dict("index").items():
        counts = [_count(row[column]) for column in ("steps", "num_tokens", "num_loss_tokens")]
        _add_row(table, str(run), row["state"], *counts, _nll(row["last_train_nll"]))
    return table


def _notes(runs: Runs, summary: "pd.DataFrame") -> list[str]:
    notes = []
    if best := best_runs(summary):
        notes.append(f"* best: {', '.join(best)}")
    if any(_rose(row) for row in summary.to_dict("records")):
        notes.append("^ test NLL is higher at the last evaluation than at the best step")
    groups = by_test_set(summary)
    if len(groups) > 1:
        notes.append("TEST SETS DIFFER: test NLLs compare only between runs of one line, and no best run is marked:")
        notes += [f"  {fingerprint}: {', '.join(names)}" for fingerprint, names in groups.items()]
    elif len(groups.get("unknown", [])) > 1:
        notes.append("TEST SETS UNKNOWN: no fingerprint says that these runs share one, and no best run is marked")
    tested = [run for names in groups.values() for run in names]
    if tested and (untested := [run for run in runs.states if run not in tested]):
        notes.append(f"not evaluated on this test set: {', '.join(untested)}")
    if bare := [run for run in runs.states if run not in runs.configs.dropna(how="all").index]:
        notes.append(f"no config.json: {', '.join(bare)}")
    return notes


def _print_differences(runs: Runs, console: "Console") -> None:
    differences = config_differences(runs)
    if differences.empty:
        if len(differences.columns) > 1:
            console.print("\nThe configs do not differ.")
        return
    table = _table("Config differences", "path", "value", "runs")
    for path, values in differences.to_dict("index").items():
        by_value: dict[str, list[str]] = {}
        for run, value in values.items():
            by_value.setdefault(str(value), []).append(str(run))
        for i, (value, names) in enumerate(by_value.items()):
            _add_row(table, "" if i else str(path), value, ", ".join(names))
    console.print()
    console.print(table)


def _table(title: str, *columns: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in columns:
        text = column in ("run", "state", "path", "value", "runs")
        table.add_column(column, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    return table


def _add_row(table: "Table", *cells: str, style: str | None = None) -> None:
    from rich.text import Text

    table.add_row(*map(Text, cells), style=style)  # Text: a name may hold [brackets], which are markup in a str


def _rose(row: Mapping[Hashable, Any]) -> bool:
    return row["last_test_nll"] > row["best_test_nll"]


def _nll(value: float, form: str = ".4f") -> str:
    return "-" if value != value else format(value, form)


def _count(value: Any) -> str:
    import pandas as pd

    return "-" if pd.isna(value) else f"{value:,}"
