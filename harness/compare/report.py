"""Runs -> what a comparison says of them: tables of words and numbers with their notes, made once for the terminal, a
page and files."""

import dataclasses
import shlex
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from harness.compare.align import (
    AFTER,
    BEST,
    BETWEEN,
    COMMON,
    LAST,
    choose,
    evaluations,
    find_point,
    have_choice,
    words,
)
from harness.compare.curves import resumes
from harness.compare.judge import Judgement, judge, turned_up
from harness.compare.load import Runs
from harness.compare.paired import CONFIDENCE
from harness.compare.stats import best_runs, by_test_set, config_differences, evaluated_sets, summarise

if TYPE_CHECKING:
    import pandas as pd

_OF_NLLS = "gap = best test - train NLL at that step; the train NLL is that of one batch."
_OF_BEST = """\

The best step of several was chosen on the test set that it is reported on: its NLL looks better than it is."""
_OF_PAIRS = """\
diff = test NLL - that of {baseline}, nats per token, on the same {examples} examples; its interval ({level}) and p \
are by a bootstrap over these. better, worse: the whole interval is below, above 0. lower = examples with a lower NLL; \
sign p = exact sign test of as many lower as higher. Each p is Holm-corrected.
This is about these checkpoints, on other examples like these."""
_OF_SEEDS = """\
Configs: Welch's t interval ({level}) and t test (Holm-corrected) over the test NLLs of their seeds.
This is about other seeds of these configs, on this test set."""
_OF_CHECKPOINTS = """\
One run of each config compares these checkpoints, not the configs. Two or more seeds of each, at one step, compare \
those."""
_VERDICT = ("diff", "95 % interval", "Holm p", "verdict")
_OF_BOTH = """\
interval and p do not agree on 0: {runs}: all intervals hold at once, p are corrected one after another; better and \
worse take both"""
_MARKED = {  # by its first character
    BETWEEN: "~ the last evaluation before",
    AFTER: "! the run's last evaluation",
}
_JOINERS = "\u200c\u200d"  # invisible, and part of how some scripts and emoji are written
_WORDS = ("run", "runs", "state", "path", "value", "verdict")


@dataclasses.dataclass(frozen=True)
class Section:
    """A table, and what has to be known to read it; where there is no row, its notes alone.

    Attributes:
        key: What it is about, for who looks for one.
        title: Of the table.
        columns: Their heads.
        rows: Cells as they are shown, one a column.
        notes: Lines under the table; one that is indented belongs to the one before.
        best: Indices of the rows that stand out.
        words: The columns that hold words; the others hold numbers.
    """

    key: str
    title: str
    columns: tuple[str, ...] = ()
    rows: list[list[str]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    best: frozenset[int] = frozenset()
    words: tuple[str, ...] = _WORDS


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """What a comparison says.

    Attributes:
        runs: Those that were compared.
        on: The test set: "" is the unnamed one.
        summary: :func:`harness.compare.stats.summarise`.
        judgement: :func:`harness.compare.judge.judge`.
        differences: :func:`harness.compare.stats.config_differences`.
        sections: In the order in which they are shown; a part of the report that is made elsewhere is appended.
        footnotes: What the columns mean, and what the verdicts are about.
    """

    runs: Runs
    on: str
    summary: "pd.DataFrame"
    judgement: Judgement
    differences: "pd.DataFrame"
    sections: list[Section]
    footnotes: list[str]


def make_report(runs: Runs, on: str = "", judgement: Judgement | None = None) -> Report:
    """NLLs, what was trained, verdicts and config differences, with what has to be known to read them.

    Args:
        on: The test set: "" is the unnamed one.
        judgement: What :func:`harness.compare.judge.judge` gave; None: of the last evaluations, against the first run.

    Raises:
        ConfigError: where no run has that test set and some have another.
    """
    summary = summarise(runs, on)
    judgement = judgement or judge(runs, on=on)
    differences = config_differences(runs)
    sections = [
        *summary_sections(runs, summary, on),
        _point_section(runs, judgement, on),
        *verdict_sections(judgement),
        _differences_section(differences),
    ]
    said = [section for section in sections if section.rows or section.notes]
    return Report(runs, on, summary, judgement, differences, said, [nll_footnote(runs, on), *footnotes(judgement)])


def harmless(text: str) -> str:
    """``text`` with what a terminal would obey, or not show, in the form ``\\x1b``."""
    return "".join(c if c.isprintable() or c in _JOINERS else c.encode("unicode_escape").decode() for c in text)


def summary_sections(runs: Runs, summary: "pd.DataFrame", on: str = "") -> list[Section]:
    """What each run came to by itself.

    Args:
        summary: :func:`harness.compare.stats.summarise`.
        on: The test set: "" is the unnamed one.
    """
    return [_nll_section(runs, summary, on), _training_section(runs, summary)]


def verdict_sections(judgement: Judgement) -> list[Section]:
    """How the runs, and their configs, compare."""
    return [_pairs_section(judgement), _configs_section(judgement)]


def nll_footnote(runs: Runs, on: str = "") -> str:
    """What has to be known of :func:`summary_sections`."""
    if not any(len(points) > 1 for points in evaluations(runs, on=on).values()):
        return _OF_NLLS
    others = [f"--on {shlex.quote(name)}" for name in evaluated_sets(runs) if name != on]
    return _OF_NLLS + _OF_BEST + (f" There is another one: {' or '.join(others)}." if others else "")


def _nll_section(runs: Runs, summary: "pd.DataFrame", on: str) -> Section:
    best = best_runs(summary)
    rows = [
        [
            str(run),
            nll_cell(row["last_test_nll"]) + ("^" if _rose(row) else " "),
            _count(row["last_test_step"]),
            nll_cell(row["best_test_nll"]) + ("*" if run in best else " "),
            _count(row["best_step"]),
            nll_cell(row["train_nll"]),
            _count(row["train_step"]),
            nll_cell(row["gap"], "+.4f"),
        ]
        for run, row in summary.to_dict("index").items()
    ]
    return Section(
        "nll",
        f"NLL in nats per token{f', test set {on}' if on else ''}",
        ("run", "last test", "step", "best test", "step", "train", "step", "gap"),
        rows,
        _notes(runs, summary, on),
        frozenset(i for i, row in enumerate(rows) if row[0] in best),
    )


def _training_section(runs: Runs, summary: "pd.DataFrame") -> Section:
    rows = []
    for run, row in summary.to_dict("index").items():
        counts = [_count(row[column]) for column in ("steps", "num_tokens", "num_loss_tokens")]
        rows.append([str(run), row["state"], *counts, nll_cell(row["last_train_nll"])])
    columns = ("run", "state", "steps", "tokens", "loss tokens", "last train NLL")
    return Section("training", "Trained", columns, rows, _resumed(runs))


def _resumed(runs: Runs) -> list[str]:
    found = resumes(runs)
    went_on = [f"{run} (at step {', '.join(_count(r.step) for r in again)})" for run, again in found.items()]
    superseded = {run: sum(resume.num_superseded for resume in again) for run, again in found.items()}
    rows = [f"{run} ({_count(num)})" for run, num in superseded.items() if num]
    return [
        *([f"resumed: {', '.join(went_on)}"] if went_on else []),
        *([f"rows that a resume could not reproduce, and put aside: {', '.join(rows)}"] if rows else []),
    ]


def _point_section(runs: Runs, judgement: Judgement, on: str) -> Section:
    """NLLs at the x that is judged; where none is and runs end at different steps, at the last that all reached."""
    at, x, chosen = judgement.at, judgement.x, judgement.chosen
    if isinstance(at, str):
        if len({points[-1].step for points in evaluations(runs, on=on).values() if points}) < 2:
            return Section("point", "")
        at, x = float(find_point(runs, COMMON, on=on)), "step"
        chosen = choose(runs, at, x, on)
    rows = [
        [
            str(run),
            nll_cell(row["test_nll"]),
            _count(row["step"]) + _MARKED.get(row["where"], " ")[0],
            nll_cell(row["train_nll"]),
            _count(row["train_step"]),
            nll_cell(row["gap"], "+.4f"),
        ]
        for run, row in chosen.to_dict("index").items()
    ]
    notes = [text for where, text in _MARKED.items() if where in set(chosen["where"])]
    return Section("point", f"At {words(x, at)}", ("run", "test", "step", "train", "step", "gap"), rows, notes)


def _pairs_section(judgement: Judgement) -> Section:
    rows = []
    if len(judgement.against.dropna(subset="difference")):
        step = judgement.chosen["step"][judgement.baseline]
        rows = [[judgement.baseline, _count(step), "-", "-", "-", "baseline", "-", "-"]]
        rows += [
            [str(run), _count(row["step"]), *verdict_cells(row), nll_cell(row["lower"], ".0%"), _p(row["sign_p"])]
            for run, row in judgement.against.to_dict("index").items()
        ]
    title = f"Against {judgement.baseline}: {_point(judgement)}"
    notes = _reasons(judgement) + _disagreeing(judgement.against)
    return Section("against", title, ("run", "step", *_VERDICT, "lower", "sign p"), rows, notes)


def _point(judgement: Judgement) -> str:
    choice = " (chosen on this test set)" if have_choice(judgement.chosen) else ""
    named = {LAST: "last evaluations", BEST: f"best evaluations{choice}"}
    return named[judgement.at] if isinstance(judgement.at, str) else f"at {words(judgement.x, judgement.at)}"


def _configs_section(judgement: Judgement) -> Section:
    rows = [
        [row["runs"], _count(row["num_seeds"]), nll_cell(row["test_nll"]), *verdict_cells(row)]
        for row in judgement.configs.to_dict("records")
    ]
    title = f"Configs, by the spread between their seeds: {_point(judgement)}"
    notes = _disagreeing(judgement.configs.set_index("runs"))
    return Section("configs", title, ("runs", "seeds", "test", *_VERDICT), rows, notes)


def _disagreeing(judged: "pd.DataFrame") -> list[str]:
    rows = judged.dropna(subset="low").to_dict("index")
    excludes_0 = {run: row["low"] > 0 or row["high"] < 0 for run, row in rows.items()}
    runs = [str(run) for run, row in rows.items() if excludes_0[run] != (row["p"] <= 1 - CONFIDENCE)]
    return [_OF_BOTH.format(runs=", ".join(runs))] if runs else []


def verdict_cells(row: Mapping[Hashable, Any]) -> list[str]:
    """Difference, interval, p and verdict."""
    interval = "-" if row["low"] != row["low"] else f"{row['low']:+.4f} to {row['high']:+.4f}"
    return [nll_cell(row["difference"], "+.4f"), interval, _p(row["p"]), row["verdict"]]


def _p(value: float) -> str:
    return "<.0001" if value < 1e-4 else nll_cell(value)


def _reasons(judgement: Judgement) -> list[str]:
    if not any(judgement.chosen["of_num"].tolist()):
        return []  # no run was evaluated
    if isinstance(judgement.at, float) and not len(judgement.chosen.dropna(subset="step")):
        at = words(judgement.x, judgement.at)
        return [f"no run has an evaluation at or before {at}: choose another --at"]
    reasons = judgement.against["reason"].to_dict()
    return [f"{run}: no verdict: {reason}" for run, reason in reasons.items() if reason]


def footnotes(judgement: Judgement) -> list[str]:
    """What verdicts are made of, and what they are about."""
    texts = []
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
        rises = [
            f"{run} (after step {turn.step:,}: {turn.difference:+.4f}, {turn.low:+.4f} to {turn.high:+.4f})"
            for run, turn in turns.items()
        ]
        notes.append(f"test NLL turned up while train NLL fell: {', '.join(rises)}")
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
    return notes + [f"{run}: {note}" for run, of_run in runs.notes.items() for note in of_run]


def _differences_section(differences: "pd.DataFrame") -> Section:
    rows = []
    for path, values in differences.to_dict("index").items():
        by_value: dict[str, list[str]] = {}
        for run, value in values.items():
            by_value.setdefault("-" if value is None else str(value), []).append(str(run))
        for i, (value, names) in enumerate(by_value.items()):
            rows.append(["" if i else str(path), value, ", ".join(names)])
    notes = ["The configs do not differ."] if not rows and len(differences.columns) > 1 else []
    return Section("differences", "Config differences", ("path", "value", "runs"), rows, notes)


def _rose(row: Mapping[Hashable, Any]) -> bool:
    return row["last_test_nll"] > row["best_test_nll"]


def nll_cell(value: float, form: str = ".4f") -> str:
    """A mean in nats per token, "-" where there is none."""
    return "-" if value != value else format(value, form)


def _count(value: Any) -> str:
    import pandas as pd

    return "-" if pd.isna(value) else f"{value:,}"
