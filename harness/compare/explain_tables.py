"""An explanation in words and tables of cells."""

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.compare.explain import Explanation
from harness.compare.load import RUN
from harness.compare.paired import NO_VERDICT
from harness.compare.report import Section, harmless

if TYPE_CHECKING:
    from harness.renderers.messages import Message

_SHOWN = 80  # characters of a message
_WORDS = ("run", "batches", "train NLL on these", "slice", "id", "text")
_OF_SLICES = """\
part = what the slice adds to the difference on the whole test set: its difference times its share of the tokens. The \
intervals hold all together with 95 %; of fewer than 20 examples there is none."""
_OF_EXAMPLES = """\
diff = NLL summed over the example's loss-carrying tokens - the baseline's, in nats: long examples weigh more. These \
were picked for their size: they show where to look, and prove nothing."""


def explain_sections(explanation: Explanation) -> list[Section]:
    """All but the config differences, which a report has anyway, in the order in which they are shown."""
    found = [_parted(explanation), *_slices(explanation)]
    if len(explanation.examples):
        found.append(_examples(explanation))
    if reasons := [f"{run}: no examples to hold against: {reason}" for run, reason in explanation.reasons.items()]:
        found.append(Section("explained", "Runs whose examples do not compare", notes=reasons))
    return found


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


def _section(title: str, columns: tuple[str, ...], rows: list[list[str]], notes: Sequence[str] = ()) -> Section:
    return Section("explained", title, columns, rows, list(notes), words=_WORDS)


def _parted(explanation: Explanation) -> Section:
    rows = [[str(run), *words_of_parted(row)] for run, row in explanation.parted.to_dict("index").items()]
    return _section(f"Training, beside {explanation.baseline}", ("run", "batches", "train NLL on these"), rows)


def _slices(explanation: Explanation) -> list[Section]:
    columns = ("slice", "examples", "tokens", "baseline", "NLL", "diff", "95 % interval", "part")
    found = []
    by_run: dict[str, list[Mapping[Hashable, Any]]] = {}
    for row in explanation.slices.to_dict("records"):
        by_run.setdefault(row[RUN], []).append(row)
    for run, of_run in by_run.items():
        rows = [_slice_cells(row) for row in of_run]
        tokens, total = (sum(row[key] for row in of_run) for key in ("num_loss_tokens", "contribution"))
        rows.append(["all", "", f"{tokens:,}", "", "", f"{total:+.4f}", "", f"{total:+.4f}"])
        found.append(_section(f"{run} and {explanation.baseline}, by slice", columns, rows))
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


def _examples(explanation: Explanation) -> Section:
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
    return _section(f"Examples on which {explanation.run} and {explanation.baseline} differ most", columns, rows, notes)


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


def _name(of_slice: str | None) -> str:
    return "-" if of_slice is None else harmless(of_slice)
