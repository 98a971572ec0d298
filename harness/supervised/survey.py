"""What will be trained, counted before any weights load: conversations, tokens, what was cut and what was dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.text import Text

from harness.exceptions import DataError
from harness.run_dir import QUARANTINE
from harness.supervised.types import EpochEnded, SupervisedDataset

if TYPE_CHECKING:
    import tinker

_MOST = 5_000  # datums that are tokenised to count them all; a larger set is estimated from as many
_SHOWN = 3  # rows set aside that are told with their reasons


@dataclass
class Counts:
    """Counts over a set of examples.

    Attributes:
        num_examples: Examples, those that are dropped among them.
        num_sampled: Examples looked at; fewer than ``num_examples`` makes every other count an estimate.
        longest: Input tokens of the longest example.
        num_tokens: Input tokens of the examples that are not dropped.
        num_loss_tokens: Those that carry loss.
        num_truncated: Examples cut at ``max_length``.
        num_end_cut_off: Examples whose cut took the end-of-turn of a message that is trained in part.
        num_cut_away: Examples dropped because the cut took every token that carries loss.
        num_without_loss: Examples dropped because nothing in them is trained on.
    """

    num_examples: int
    num_sampled: int
    longest: int
    num_tokens: int
    num_loss_tokens: int
    num_truncated: int
    num_end_cut_off: int
    num_cut_away: int
    num_without_loss: int

    def lines(self) -> list[str]:
        """The counts for people."""
        about = "" if self.num_sampled == self.num_examples else "about "
        scale = self.num_examples / self.num_sampled

        def about_all(n: int) -> str:
            return f"{about}{round(n * scale):,}"

        lines = [
            f"{self.num_examples:,} conversations, {about_all(self.num_tokens)} tokens, "
            f"{about_all(self.num_loss_tokens)} of them with loss"
        ]
        if about:
            lines.append(f"estimated from {self.num_sampled:,} conversations")
        if self.num_truncated:
            lines.append(f"{about_all(self.num_truncated)} conversations are cut at max_length")
        if self.num_end_cut_off:
            lines.append(f"{about_all(self.num_end_cut_off)} of them inside what is trained: without its end-of-turn")
        if self.num_cut_away:
            lines.append(f"{about_all(self.num_cut_away)} are dropped: max_length cuts away all that carries loss")
        if self.num_without_loss:
            lines.append(f"{about_all(self.num_without_loss)} are dropped: no assistant message to train on")
        return lines


@dataclass
class Survey(Counts):
    """Counts over one epoch of a training set.

    Attributes:
        num_updates: Of an epoch, as far as it was seen: a stream may end before its length.
        num_left_over: Examples that an epoch leaves out because they do not fill an update.
        quarantined: Rows that the builder set aside as bad.
        shown: One example that is trained.
        data: The examples looked at, in their order.
    """

    num_updates: int
    num_left_over: int
    quarantined: Sequence[Mapping[str, Any]]
    shown: tinker.Datum
    data: list[tinker.Datum]

    def lines(self) -> list[str]:
        first, *lines = super().lines()
        if self.num_left_over:
            lines.append(f"{self.num_left_over:,} are left out of each epoch: they do not fill an update")
        if self.quarantined:
            lines.append(f"{len(self.quarantined):,} bad rows are set aside; a run keeps them in its {QUARANTINE}")
            for row in self.quarantined[:_SHOWN]:
                where = f"{row['file']}:{row['line']}" if "file" in row else f"row {row['row']}"
                lines.append(f"  {where}: {row['reason']}")
            if len(self.quarantined) > _SHOWN:
                lines.append(f"  and {len(self.quarantined) - _SHOWN:,} more")
        return [f"{first}, an epoch", *lines]


def survey(dataset: SupervisedDataset, accumulation: int = 1) -> Survey:
    """Look at a training set, in its own order; an update takes ``accumulation`` of its batches.

    Raises:
        DataError: where it fills no update, or nothing in it carries loss.
    """
    from harness.supervised.batches import steps_per_epoch
    from harness.supervised.datum import loss_weights

    num_used = steps_per_epoch(dataset, accumulation) * accumulation
    all_batches = len(dataset)
    batches: list[list[tinker.Datum]] = []
    num_seen = 0
    while len(batches) < all_batches and num_seen < _MOST:
        try:
            batches.append(dataset.get_batch(len(batches)))
        except EpochEnded:
            all_batches = len(batches)
            num_used = all_batches - all_batches % accumulation
        else:
            num_seen += len(batches[-1])
    data = [datum for batch in batches[:num_used] for datum in batch]
    if not data:
        raise DataError("the training set is empty: none of its batches holds an example; give other data")
    trained = [datum for datum in data if loss_weights(datum).any()]
    if not trained:
        raise DataError(
            f"none of the {len(data):,} training examples carries loss: give conversations with assistant messages, "
            "or a larger max_length"
        )
    a_batch = len(data) / min(len(batches), num_used)
    is_whole = len(batches) == all_batches
    num_passed_over = num_seen - len(data) if is_whole else round(a_batch * (all_batches - num_used))
    return Survey(
        **vars(count(data, round(a_batch * num_used))),
        num_updates=num_used // accumulation,
        num_left_over=dataset.num_left_over + num_passed_over,
        quarantined=dataset.quarantined,
        shown=trained[0],
        data=data,
    )


def count(data: Sequence[tinker.Datum], num_examples: int | None = None) -> Counts:
    """The counts over ``data``, which stands for ``num_examples`` where it is not all there is."""
    from harness.supervised.datum import loss_weights

    trained = [datum for datum in data if loss_weights(datum).any()]
    truncated = [datum for datum in data if getattr(datum, "num_truncated", 0)]
    num_dropped = len(data) - len(trained)
    num_cut_away = sum(not loss_weights(datum).any() for datum in truncated)
    return Counts(
        num_examples=len(data) if num_examples is None else num_examples,
        num_sampled=len(data),
        longest=max((datum.model_input.length for datum in trained), default=0),
        num_tokens=sum(datum.model_input.length for datum in trained),
        num_loss_tokens=sum(int((loss_weights(datum) != 0).sum()) for datum in trained),
        num_truncated=len(truncated),
        num_end_cut_off=sum(getattr(datum, "end_cut_off", False) for datum in truncated),
        num_cut_away=num_cut_away,
        num_without_loss=num_dropped - num_cut_away,
    )


def caption(number: int, datum: tinker.Datum) -> str:
    """What stands over an example that is shown."""
    from harness.supervised.datum import loss_weights

    num_loss_tokens = int((loss_weights(datum) != 0).sum())
    cut = ", cut at max_length" if getattr(datum, "num_truncated", 0) else ""
    return f"example {number}: {datum.model_input.length + 1} tokens, {num_loss_tokens} with loss{cut}"


def coloured(datum: tinker.Datum, tokenizer: Any, *, brackets: bool = False) -> Text:
    """The datum's text with what is trained on in green; ``brackets`` marks it where there are no colours."""
    from harness.supervised.datum import loss_weights, target_tokens

    tokens = [datum.model_input.to_ints()[0], *target_tokens(datum).tolist()]
    trained = [False, *(loss_weights(datum) != 0).tolist()]
    text = Text()
    start = 0
    for end in range(1, len(tokens) + 1):
        if end == len(tokens) or trained[end] != trained[start]:
            run = tokenizer.decode(tokens[start:end])
            if not trained[start]:
                text.append(run, style="dim")
            elif brackets:
                text.append(f"⟦{run}⟧")
            else:
                text.append(run, style="bold green")
            start = end
    return text
