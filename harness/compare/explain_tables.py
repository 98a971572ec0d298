"""An explanation in words and tables of cells, and in the terminal."""

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.compare.explain import Explanation
from harness.compare.load import RUN
from harness.compare.paired import NO_VERDICT

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from harness.renderers.messages import Message

_SHOWN = 80  # characters of a message
_WORDS = ("run", "batches", "train NLL on these", "slice", "id", "text")
_JOINERS = "\u200c\u200d"  # invisible, and part of how some scripts and emoji are written
_OF_SLICES = """\
part = what the slice adds to the difference on the whole test set: its difference times its share of the tokens. The \
intervals hold all together with 95 %; of fewer than 20 examples there is none."""
_OF_EXAMPLES = """\
diff = NLL summed over the example's loss-carrying tokens - the baseline's, in nats: long examples weigh more. These \
were picked for their size: they show where to look, and prove nothing."""


class Part(NamedTuple):
    """A table and what is said under it; where it has no row, its notes alone.

    Attributes:
        title: Of the table.
        columns: Their heads.
        rows: Cells as they are shown, one a column.
        notes: Lines under it.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]
    notes: list[str]


def parts(explanation: Explanation) -> list[Part]:
    """All but the config differences, in the order in which they are shown."""
    found = [_parted(explanation), *_slices(explanation)]
    if len(explanation.examples):
        found.append(_examples(explanation))
    if reasons := [f"{run}: no examples to hold against: {reason}" for run, reason in explanation.reasons.items()]:
        found.append(Part("", (), [], reasons))
    return found


def print_explanation(explanation: Explanation, console: "Console") -> None:
    """Print where runs parted, and the slices and examples on which they differ."""
    made = [(_table(part) if part.rows else None, part.notes) for part in parts(explanation)]
    if not console.is_terminal:  # nothing ends where a line of a pipe does
        unlimited = console.options.update(max_width=10_000)
        console.width = max(console.width, *(console.measure(t, options=unlimited).maximum for t, _ in made if t))
    for table, notes in made:
        console.print()
        if table:
            console.print(table)
        for note in notes:
            console.print(note, markup=False, highlight=False)


def words_of_parted(row: Mapping[Hashable, Any]) -> tuple[str, str]:
    """How far two runs trained on the same batches, and had the same train NLL on them.

    Args:
        row: Of :func:`harness.compare.explain.parted`.
    """
    import pandas as pd

    steps, same = row["steps"], row["same_batches"]
    if not steps:
        return "no step that both trained", "-"
    if pd.isna(same):
        return "not known: no digests", "-"
    batches = f"the same in all {steps:,} steps" if same == steps else f"the same before step {same:,} of {steps:,}"
    if not same:
        return "other ones from the first step on", "-"
    if pd.isna(row["nll_parts"]):
        return batches, "equal to the bit"
    nll = f"equal to the bit before step {row['nll_parts']:,}"
    if math.isnan(row["tolerance"]):
        return batches, f"{nll}; how much rounding makes is not known"
    if row["tolerance"]:
        nll += f", within rounding ({row['tolerance']:g}) "
        nll += "from there on" if pd.isna(row["beyond"]) else f"before step {row['beyond']:,}"
    return batches, nll


def _parted(explanation: Explanation) -> Part:
    rows = [[str(run), *words_of_parted(row)] for run, row in explanation.parted.to_dict("index").items()]
    return Part(f"Training, beside {explanation.baseline}", ("run", "batches", "train NLL on these"), rows, [])


def _slices(explanation: Explanation) -> list[Part]:
    columns = ("slice", "examples", "tokens", "baseline", "NLL", "diff", "95 % interval", "part")
    found = []
    by_run: dict[str, list[Mapping[Hashable, Any]]] = {}
    for row in explanation.slices.to_dict("records"):
        by_run.setdefault(row[RUN], []).append(row)
    for run, of_run in by_run.items():
        rows = [_slice_cells(row) for row in of_run]
        tokens, total = (sum(row[key] for row in of_run) for key in ("num_loss_tokens", "contribution"))
        rows.append(["all", "", f"{tokens:,}", "", "", f"{total:+.4f}", "", f"{total:+.4f}"])
        found.append(Part(f"{run} and {explanation.baseline}, by slice", columns, rows, []))
    if found:
        found[-1].notes.append(_OF_SLICES)
    return found


def _slice_cells(row: Mapping[Hashable, Any]) -> list[str]:
    return [
        _name(row["slice"]),
        f"{row['num_examples']:,}",
        f"{row['num_loss_tokens']:,}",
        f"{row['baseline_nll']:.4f}",
        f"{row['nll']:.4f}",
        f"{row['difference']:+.4f}",
        "-" if row["verdict"] == NO_VERDICT else f"{row['low']:+.4f} to {row['high']:+.4f}",
        f"{row['contribution']:+.4f}",
    ]


def _examples(explanation: Explanation) -> Part:
    frame = explanation.examples
    has_slices, has_text = bool(frame["slice"].notna().any()), not explanation.no_text
    rows = [
        [
            f"{row['difference']:+.2f}",
            f"{row['num_loss_tokens']:,}",
            f"{row['baseline_nll']:.4f}",
            f"{row['nll']:.4f}",
            *([_name(row["slice"])] if has_slices else []),
            harmless(row["id"]),
            *([shortened(row["messages"])] if has_text else []),
        ]
        for row in frame.to_dict("records")
    ]
    columns = ("diff", "tokens", "baseline", "NLL", *(["slice"] * has_slices), "id", *(["text"] * has_text))
    notes = [_OF_EXAMPLES] if has_text else [f"Their text is not at hand: {explanation.no_text}", _OF_EXAMPLES]
    return Part(f"Examples on which {explanation.run} and {explanation.baseline} differ most", columns, rows, notes)


def shortened(messages: "Sequence[Message] | None") -> str:
    """The last answer and what the user had said, on one line: the beginnings of them."""
    from harness.renderers.messages import plain_messages

    if messages is None:
        return "-"
    plain = plain_messages(messages)
    answers = [i for i, message in enumerate(plain) if message["role"] == "assistant"]
    last = answers[-1] if answers else len(plain) - 1
    asked = [message for message in plain[:last] if message["role"] == "user"]
    return " → ".join(f"{message['role']}: {_beginning(message)}" for message in (*asked[-1:], plain[last]))


def _beginning(message: "Message") -> str:
    text = message["content"] or json.dumps(message.get("tool_calls", ""), ensure_ascii=False)
    text = " ".join(text.split())
    return harmless(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def harmless(text: str) -> str:
    """``text`` with what a terminal would obey, or not show, in the form ``\\x1b``."""
    return "".join(c if c.isprintable() or c in _JOINERS else c.encode("unicode_escape").decode() for c in text)


def _name(of_slice: str | None) -> str:
    return "-" if of_slice is None else harmless(of_slice)


def _table(part: Part) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    style: dict[str, Any] = {"box": box.SIMPLE_HEAD, "show_edge": False, "padding": (0, 1, 0, 0)}
    table = Table(title=part.title, title_justify="left", title_style="bold", **style)
    for column in part.columns:
        words = column in _WORDS
        table.add_column(column, justify="left" if words else "right", overflow="fold", no_wrap=not words)
    for row in part.rows:
        table.add_row(*map(Text, row))  # Text: a name may hold [brackets], which are markup in a str
    return table
