"""Runs -> tables for the terminal."""

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from harness.compare.align import AFTER, BEST, BETWEEN, COMMON, LAST, choose, evaluations, find_point, words
from harness.compare.judge import Judgement, judge, turned_up
from harness.compare.load import Runs
from harness.compare.stats import best_runs, by_test_set, config_differences, summarise

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

_FOOTNOTE = """
gap = best test - train NLL at that step; the train NLL is that of one batch.
The best step was chosen on the test set that it is reported on: its NLL looks better than it is."""
_OF_PAIRS = """
diff = test NLL - that of {baseline}, nats per token, on the same {examples} examples; its interval ({level}) and p \
are by a bootstrap over these. better, worse: the whole interval is below, above 0. lower = examples with a lower NLL; \
sign p = exact sign test of as many lower as higher. Each p is Holm-corrected.
This is about these checkpoints, on other examples like these."""
_OF_SEEDS = """
Configs: Welch's t interval ({level}) and t test (Holm-corrected) over the test NLLs of their seeds.
This is about other seeds of these configs, on this test set."""
_OF_CHECKPOINTS = """
One run of each config compares these checkpoints, not the configs. Two or more seeds of each, at one step, compare \
those."""
_VERDICT = ("diff", "95 % interval", "Holm p", "verdict")
_MARKED = {  # by its first character
    BETWEEN: "~ the last evaluation before",
    AFTER: "! the run's last evaluation",
}


def print_report(runs: Runs, console: "Console", on: str = "", judgement: Judgement | None = None) -> None:
    """Print NLLs, what was trained, verdicts, and config differences, with what has to be known to read them.

    Args:
        on: The test set: "" is the unnamed one.
        judgement: What :func:`harness.compare.judge.judge` gave; None: of the last evaluations, against the first run.

    Raises:
        ConfigError: where no run has that test set and some have another.
    """
    summary = summarise(runs, on)
    judgement = judgement or judge(runs, on=on)
    tables = [_nll_table(summary, on), _training_table(summary)]
    if point := _point_table(runs, judgement, on):
        tables.append(point)
    if len(judgement.against.dropna(subset="difference")):
        tables.append(_pairs_table(judgement))
    if len(judgement.configs):
        tables.append(_configs_table(judgement))
    if not console.is_terminal:  # nothing ends where a line of a pipe does: rather a long line than a broken name
        unlimited = console.options.update(max_width=10_000)
        console.width = max(console.width, *(console.measure(table, options=unlimited).maximum for table in tables))
    console.print(tables[0])
    for note in _notes(runs, summary, on):
        console.print(note, markup=False, highlight=False)
    for table in tables[1:]:
        console.print()
        console.print(table)
    for i, note in enumerate(_reasons(judgement)):
        console.print(note if i else f"\n{note}", markup=False, highlight=False)
    _print_differences(runs, console)
    for text in _footnotes(judgement):
        console.print(text, style="dim", markup=False, highlight=False)


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


def _point_table(runs: Runs, judgement: Judgement, on: str) -> "Table | None":
    """NLLs at the x that is judged; where none is and runs end at different steps, at the last that all reached."""
    at, x, chosen = judgement.at, judgement.x, judgement.chosen
    if isinstance(at, str):
        if len({points[-1].step for points in evaluations(runs, on=on).values() if points}) < 2:
            return None
        at, x = float(find_point(runs, COMMON, on=on)), "step"
        chosen = choose(runs, at, x, on)
    table = _table(f"At {words(x, at)}", "run", "test", "step", "train", "step", "gap")
    for run, row in chosen.to_dict("index").items():
        cells = [_nll(row["test_nll"]), _count(row["step"]) + _MARKED.get(row["where"], " ")[0]]
        _add_row(table, str(run), *cells, _nll(row["train_nll"]), _count(row["train_step"]), _nll(row["gap"], "+.4f"))
    table.caption = "\n".join(text for where, text in _MARKED.items() if where in set(chosen["where"]))
    return table


def _pairs_table(judgement: Judgement) -> "Table":
    title = f"Against {judgement.baseline}: {_point(judgement)}"
    table = _table(title, "run", "step", *_VERDICT, "lower", "sign p")
    step = judgement.chosen["step"][judgement.baseline]
    _add_row(table, judgement.baseline, _count(step), "-", "-", "-", "baseline", "-", "-")
    for run, row in judgement.against.to_dict("index").items():
        lower = _nll(row["lower"], ".0%")
        _add_row(table, str(run), _count(row["step"]), *_verdict_cells(row), lower, _p(row["sign_p"]))
    return table


def _point(judgement: Judgement) -> str:
    named = {LAST: "last evaluations", BEST: "best evaluations (chosen on this test set)"}
    return named[judgement.at] if isinstance(judgement.at, str) else f"at {words(judgement.x, judgement.at)}"


def _configs_table(judgement: Judgement) -> "Table":
    title = f"Configs, by the spread between their seeds: {_point(judgement)}"
    table = _table(title, "runs", "seeds", "test", *_VERDICT)
    for row in judgement.configs.to_dict("records"):
        _add_row(table, row["runs"], _count(row["num_seeds"]), _nll(row["test_nll"]), *_verdict_cells(row))
    return table


def _verdict_cells(row: Mapping[Hashable, Any]) -> list[str]:
    interval = "-" if row["low"] != row["low"] else f"{row['low']:+.4f} to {row['high']:+.4f}"
    return [_nll(row["difference"], "+.4f"), interval, _p(row["p"]), row["verdict"]]


def _p(value: float) -> str:
    return "<.0001" if value < 1e-4 else _nll(value)


def _reasons(judgement: Judgement) -> list[str]:
    if not len(judgement.chosen.dropna(subset="step")):
        return []  # no run was evaluated
    reasons = judgement.against["reason"].to_dict()
    return [f"{run}: no verdict: {reason}" for run, reason in reasons.items() if reason]


def _footnotes(judgement: Judgement) -> list[str]:
    texts = [_FOOTNOTE]
    if num := len(judged := judgement.against.dropna(subset="difference")):
        examples = _count(judged["num_examples"].iloc[0])
        texts.append(_OF_PAIRS.format(baseline=judgement.baseline, examples=examples, level=_level(num)))
    num_configs = len(judgement.configs) - 1
    return [*texts, _OF_SEEDS.format(level=_level(num_configs)) if num_configs > 0 else _OF_CHECKPOINTS]


def _level(num_comparisons: int) -> str:
    return "95 %" if num_comparisons == 1 else f"95 % for all {num_comparisons} together"


def _notes(runs: Runs, summary: "pd.DataFrame", on: str) -> list[str]:
    notes = []
    if best := best_runs(summary):
        notes.append(f"* best: {', '.join(best)}")
    if any(_rose(row) for row in summary.to_dict("records")):
        notes.append("^ test NLL is higher at the last evaluation than at the best step")
    if turns := turned_up(runs, on):
        after = ", ".join(f"{run} (after step {step})" for run, step in turns.items())
        notes.append(f"test NLL turned up while train NLL fell: {after}")
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
            by_value.setdefault("-" if value is None else str(value), []).append(str(run))
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
        caption_justify="left",
        caption_style="",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in columns:
        text = column in ("run", "state", "path", "value", "runs", "verdict")
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
