"""What will be trained, counted before any weights load: conversations, tokens, what was cut and what was dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.text import Text

from harness.exceptions import DataError
from harness.run_dir import QUARANTINE
from harness.supervised.types import EpochEnded, SupervisedDataset

if TYPE_CHECKING:
    import tinker

_MOST = 5_000  # datums that are tokenised to count them all; a larger set is estimated from as many


@dataclass
class Survey:
    """Counts over one epoch.

    Attributes:
        num_examples: Examples, those that are dropped among them.
        num_sampled: Examples looked at; fewer than ``num_examples`` makes every other count an estimate.
        longest: Input tokens of the longest example.
        num_tokens: Input tokens of the examples that are trained.
        num_loss_tokens: Those that carry loss.
        num_truncated: Examples cut at ``max_length``.
        num_end_cut_off: Examples whose cut took the end-of-turn of a message that is trained in part.
        num_cut_away: Examples dropped because the cut took every token that carries loss.
        num_without_loss: Examples dropped because nothing in them is trained on.
        num_left_over: Examples an epoch that do not fill a batch.
        num_quarantined: Rows that the builder set aside as bad.
        shown: One example that is trained.
        data: The examples looked at, in their order.
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
    num_left_over: int
    num_quarantined: int
    shown: tinker.Datum
    data: list[tinker.Datum]

    def lines(self) -> list[str]:
        """The counts for people."""
        about = "" if self.num_sampled == self.num_examples else "about "
        scale = self.num_examples / self.num_sampled

        def count(n: int) -> str:
            return f"{about}{round(n * scale):,}"

        lines = [
            f"{self.num_examples:,} conversations, {count(self.num_tokens)} tokens, "
            f"{count(self.num_loss_tokens)} of them with loss, an epoch"
        ]
        if about:
            lines.append(f"estimated from {self.num_sampled:,} conversations")
        if self.num_truncated:
            lines.append(f"{count(self.num_truncated)} conversations are cut at max_length")
        if self.num_end_cut_off:
            lines.append(f"{count(self.num_end_cut_off)} of them inside what is trained: without its end-of-turn")
        if self.num_cut_away:
            lines.append(f"{count(self.num_cut_away)} are dropped: max_length cuts away all that carries loss")
        if self.num_without_loss:
            lines.append(f"{count(self.num_without_loss)} are dropped: no assistant message to train on")
        if self.num_left_over:
            lines.append(f"{self.num_left_over:,} are left out of each epoch: they do not fill a batch")
        if self.num_quarantined:
            lines.append(f"{self.num_quarantined:,} bad rows are set aside, with their reasons, in {QUARANTINE}")
        return lines


def survey(dataset: SupervisedDataset) -> Survey:
    """Look at a training set, in its own order.

    Raises:
        DataError: where nothing in it carries loss.
    """
    from harness.supervised.datum import loss_weights

    data: list[tinker.Datum] = []
    num_batches, all_batches = 0, len(dataset)
    while num_batches < all_batches and len(data) < _MOST:
        try:
            data += dataset.get_batch(num_batches)
        except EpochEnded:
            all_batches = num_batches
        else:
            num_batches += 1
    if not data:
        raise DataError("the training set is empty: none of its batches holds an example; give other data")
    trained = [datum for datum in data if loss_weights(datum).any()]
    if not trained:
        raise DataError(
            f"none of the {len(data):,} training examples carries loss: give conversations with assistant messages, "
            "or a larger max_length"
        )
    truncated = [datum for datum in data if getattr(datum, "num_truncated", 0)]
    num_dropped = len(data) - len(trained)
    num_cut_away = sum(not loss_weights(datum).any() for datum in truncated)
    return Survey(
        num_examples=len(data) if num_batches == all_batches else round(len(data) * all_batches / num_batches),
        num_sampled=len(data),
        longest=max(datum.model_input.length for datum in trained),
        num_tokens=sum(datum.model_input.length for datum in trained),
        num_loss_tokens=sum(int((loss_weights(datum) != 0).sum()) for datum in trained),
        num_truncated=len(truncated),
        num_end_cut_off=sum(getattr(datum, "end_cut_off", False) for datum in truncated),
        num_cut_away=num_cut_away,
        num_without_loss=num_dropped - num_cut_away,
        num_left_over=dataset.num_left_over,
        num_quarantined=len(dataset.quarantined),
        shown=trained[0],
        data=data,
    )


def num_in(data: Sequence[tinker.Datum], tested: Sequence[tinker.Datum]) -> int:
    """How many of ``data`` are, token for token, in ``tested`` as well."""
    from harness.supervised.datum import digest

    digests = {digest([datum]) for datum in tested}
    return sum(digest([datum]) in digests for datum in data)


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
