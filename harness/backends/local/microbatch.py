"""From data to micro-batches: what the model sees of each datum, and which go through it together. Pure numpy."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from harness.exceptions import BackendError

if TYPE_CHECKING:
    import tinker


_UNEVEN = 1.25  # times the mean that the largest part may be: one thread then waits no longer than all would, shared


@dataclasses.dataclass(frozen=True)
class Sequence:
    """A datum as arrays of one length.

    Attributes:
        tokens: int64.
        targets: int64; ``targets[t]`` is predicted from ``tokens[: t + 1]``.
        weights: float32; of each target's log-probability in the loss.
    """

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def until_last_loss(self) -> Sequence:
        """Without what follows the last weighted target: attention is causal, so nothing there reaches the loss."""
        weighted = np.flatnonzero(self.weights)
        end = weighted[-1] + 1 if len(weighted) else 0
        return Sequence(self.tokens[:end], self.targets[:end], self.weights[:end])


def read_datum(index: int, datum: tinker.Datum, *, vocab_size: int, max_length: int | None) -> Sequence:
    """Check a datum and take its arrays.

    Args:
        index: Its place in the request, for the error.
        vocab_size: Tokens that the model has an embedding for.
        max_length: The model's context, None where it has no limit.

    Raises:
        BackendError: for a datum that the model cannot take.
    """
    missing = {"target_tokens", "weights"} - datum.loss_fn_inputs.keys()
    if missing:
        raise BackendError(f"datum {index}: no {' and no '.join(sorted(missing))} in its loss_fn_inputs")
    try:
        tokens = np.array(datum.model_input.to_ints(), dtype=np.int64)
    except ValueError as error:
        raise BackendError(f"datum {index}: the local backend takes text only ({error})") from None
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
    weights = datum.loss_fn_inputs["weights"].to_numpy().astype(np.float32)
    if not tokens.shape == targets.shape == weights.shape:
        shapes = f"{tokens.shape} tokens, {targets.shape} target_tokens, {weights.shape} weights"
        raise BackendError(f"datum {index}: {shapes}: their shapes must agree")
    if max_length is not None and len(tokens) > max_length:
        raise BackendError(
            f"datum {index}: {len(tokens)} tokens, and the model's context is {max_length}: lower max_length"
        )
    ids = np.concatenate([tokens, targets])
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if len(outside):
        raise BackendError(
            f"datum {index}: token {outside[0]} is not among the model's {vocab_size}: is the tokenizer this model's?"
        )
    return Sequence(tokens, targets, weights)


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """Sequences that go through the model together.

    Attributes:
        tokens, positions: int64 ``(rows, width)``; what is padding has 0 in each.
        lengths: Of the sequences that lie end to end in the one row; None where each has a row, padded on the right.
        places: int64 ``(n,)``: where the weighted targets are predicted, as indices into the flattened rows; sequence
            after sequence, from the left.
        targets, weights: ``(n,)``, of these.
    """

    tokens: np.ndarray
    positions: np.ndarray
    lengths: list[int] | None
    places: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def plan(lengths: list[int], max_tokens: int, *, end_to_end: bool) -> list[list[int]]:
    """Group sequences into micro-batches of at most ``max_tokens`` tokens, padding included, or of one sequence.

    Longest first, equal lengths in their order: the micro-batch that needs the most memory comes first. Sequences of
    length 0 are left out.
    """
    batches: list[list[int]] = []
    width = 0  # tokens of the last micro-batch
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[i] == 0:
            break
        more = lengths[i] if end_to_end or not batches else lengths[batches[-1][0]]
        if batches and width + more <= max_tokens:
            batches[-1].append(i)
            width += more
        else:
            batches.append([i])
            width = lengths[i]
    return batches


def share(lengths: list[int], most_parts: int) -> list[list[int]]:
    """Divide a micro-batch into parts of about as many tokens each, as whole sequences allow, for threads to take.

    Args:
        lengths: Of its sequences, longest first, as :func:`plan` has them.
        most_parts: How many threads there are. There are fewer parts where even ones cannot be had.
    """
    for num_parts in range(min(most_parts, len(lengths)), 1, -1):
        parts: list[list[int]] = [[] for _ in range(num_parts)]
        sizes = [0] * num_parts
        for i, length in enumerate(lengths):
            smallest = sizes.index(min(sizes))
            parts[smallest].append(i)
            sizes[smallest] += length
        if max(sizes) * num_parts <= _UNEVEN * sum(sizes):
            return parts
    return [list(range(len(lengths)))]


def lay_out(sequences: list[Sequence], *, end_to_end: bool) -> MicroBatch:
    """Put sequences into one row, or each into a row of its own."""
    lengths = [len(sequence) for sequence in sequences]
    width = sum(lengths) if end_to_end else max(lengths)
    starts = np.cumsum([0, *lengths[:-1]]) if end_to_end else np.arange(len(lengths)) * width
    shape = (1 if end_to_end else len(lengths)), width
    tokens, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for start, sequence in zip(starts, sequences, strict=True):
        here = slice(start, start + len(sequence))
        tokens.flat[here] = sequence.tokens
        positions.flat[here] = np.arange(len(sequence))
    weighted = [np.flatnonzero(sequence.weights) for sequence in sequences]
    return MicroBatch(
        tokens,
        positions,
        lengths if end_to_end else None,
        places=np.concatenate([start + where for start, where in zip(starts, weighted, strict=True)]),
        targets=np.concatenate([sequence.targets[where] for sequence, where in zip(sequences, weighted, strict=True)]),
        weights=np.concatenate([sequence.weights[where] for sequence, where in zip(sequences, weighted, strict=True)]),
    )
