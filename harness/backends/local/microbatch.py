"""From data to micro-batches: what the model sees of each datum, and which go through it together. Pure numpy."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from harness.exceptions import BackendError

if TYPE_CHECKING:
    import tinker


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


def plan(lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Group sequences into micro-batches of at most ``max_tokens`` padded tokens, or of one sequence.

    Longest first, equal lengths in their order: the micro-batch that needs the most memory comes first. Sequences of
    length 0 are left out.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[i] == 0:
            break
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def pad(sequences: list[Sequence]) -> tuple[Sequence, np.ndarray]:
    """Stack sequences with padding on the right.

    Returns:
        Arrays of shape ``(rows, longest)``, zero where padded, and the attention mask: 1 where there is a token.
    """
    shape = len(sequences), max(map(len, sequences))
    tokens, targets, mask = (np.zeros(shape, np.int64) for _ in range(3))
    weights = np.zeros(shape, np.float32)
    for row, sequence in enumerate(sequences):
        n = len(sequence)
        tokens[row, :n], targets[row, :n], weights[row, :n] = sequence.tokens, sequence.targets, sequence.weights
        mask[row, :n] = 1
    return Sequence(tokens, targets, weights), mask
