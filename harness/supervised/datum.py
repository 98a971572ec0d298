"""Datums: shift, truncate, digest; log-probabilities to mean NLL and bits per byte.

Imports tinker: import this module only where datums are made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tinker

from harness.exceptions import ServiceError
from harness.renderers import SupervisedExample

_HIGHEST = 1e-3  # log-probability, of which rounding can make more than 0


@dataclasses.dataclass(frozen=True)
class ConversationDatum(tinker.Datum):
    """A datum that knows where it came from.

    Attributes:
        example_id: Names the example in evaluations; "" stands for the digest of its content.
        slice: A part of the data that the example belongs to, or None.
        where: The file and line that it stands on, or "".
        num_truncated: Tokens that ``max_length`` cut off.
        end_cut_off: Whether the cut took the end-of-turn of a message that is trained in part.
    """

    example_id: str = ""
    slice: str | None = None
    where: str = ""
    num_truncated: int = 0
    end_cut_off: bool = False


def datum_from_example(
    example: SupervisedExample,
    max_length: int | None = None,
    example_id: str = "",
    slice: str | None = None,
    where: str = "",
) -> ConversationDatum:
    """Shift for next-token prediction: ``target_tokens[i]`` and ``weights[i]`` belong to the token after input i.

    Args:
        example: n tokens and their weights.
        max_length: Keep the first ``max_length`` tokens.
        example_id, slice, where: See :class:`ConversationDatum`.

    Returns:
        A datum of at most ``min(n, max_length) - 1`` positions: int64 ``target_tokens`` and float32 ``weights``.
    """
    example = example.truncated(max_length)
    return ConversationDatum(
        model_input=tinker.ModelInput.from_ints(example.tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData.from_numpy(np.array(example.target_tokens, dtype=np.int64)),
            "weights": tinker.TensorData.from_numpy(example.weights),
        },
        example_id=example_id,
        slice=slice,
        where=where,
        num_truncated=example.num_truncated,
        end_cut_off=example.end_cut_off,
    )


def fault(datum: Any) -> str | None:
    """What it is, where it is nothing that can be trained on: text that goes on after "gave"."""
    if not isinstance(datum, tinker.Datum):
        return f"a {type(datum).__name__}"
    num_tokens = datum.model_input.length
    for name in ("target_tokens", "weights"):
        if name not in datum.loss_fn_inputs:
            return f"a datum without {name}"
        if (found := len(datum.loss_fn_inputs[name].data)) != num_tokens:
            return f"a datum of {num_tokens} input tokens and {found} {name}"
    return None


def loss_weights(datum: tinker.Datum) -> np.ndarray:
    """The float32 loss weight of each position."""
    return datum.loss_fn_inputs["weights"].to_numpy()


def target_tokens(datum: tinker.Datum) -> np.ndarray:
    """The int64 target of each position."""
    return datum.loss_fn_inputs["target_tokens"].to_numpy()


def num_trained_tokens(data: Iterable[tinker.Datum]) -> int:
    """Input tokens of the datums that carry loss."""
    return sum(datum.model_input.length for datum in data if loss_weights(datum).any())


def digest(data: Iterable[tinker.Datum]) -> str:
    """16 hexadecimal digits over the input tokens, target tokens and weights of ``data``, in their order."""
    hasher = hashlib.sha256()
    for datum in data:
        tokens = np.array(datum.model_input.to_ints(), dtype=np.int64)
        hasher.update(len(tokens).to_bytes(8, "little"))
        for array in (tokens, target_tokens(datum), loss_weights(datum)):
            hasher.update(np.ascontiguousarray(array).tobytes())
    return hasher.hexdigest()[:16]


def example_id(datum: tinker.Datum) -> str:
    """The id that the dataset gave the example, else the digest of its content."""
    return getattr(datum, "example_id", "") or digest([datum])


@dataclasses.dataclass(frozen=True)
class Score:
    """What a model scored on some datums.

    Attributes:
        mean_nll: Nats per loss-carrying token, weighted by its loss weight.
        bits_per_byte: Of the trained text, special tokens aside; None where there is no such text.
        nll: Each datum's summed, weighted NLL in nats.
    """

    mean_nll: float
    bits_per_byte: float | None
    nll: list[float]


class Scorer:
    """Turns the log-probabilities of ``data`` into scores.

    Mean NLL depends on the tokenizer: a coarser one puts more text into a token. Bits per byte does not: it divides
    the loss on the text by the bytes of that text. Special tokens (the end of a turn) are no text and count on
    neither side.
    """

    def __init__(self, data: Sequence[tinker.Datum], tokenizer: Any):
        self.num_tokens = sum(datum.model_input.length for datum in data)
        self._weights = [loss_weights(datum).astype(np.float64) for datum in data]
        self.num_loss_tokens = [int(np.count_nonzero(weights)) for weights in self._weights]
        special = np.array(sorted(tokenizer.all_special_ids), dtype=np.int64)
        self._text: list[np.ndarray] = []
        self._num_bytes = 0
        for datum, weights in zip(data, self._weights, strict=True):
            targets = target_tokens(datum)
            text = (weights != 0) & ~np.isin(targets, special)
            self._text.append(text)
            self._num_bytes += sum(len(tokenizer.decode(run).encode()) for run in _runs(targets, text))

    def score(self, output: tinker.ForwardBackwardOutput) -> Score:
        """Score what ``forward`` or ``forward_backward`` returned for the same data.

        Raises:
            ServiceError: where these are no log-probabilities.
        """
        logprobs = [record["logprobs"].to_numpy().astype(np.float64) for record in output.loss_fn_outputs]
        highest = max(float(lp[w != 0].max(initial=-math.inf)) for lp, w in zip(logprobs, self._weights, strict=True))
        if highest > _HIGHEST:
            raise ServiceError(
                f"what was answered are no log-probabilities: {highest:.4g} is one, and none is greater than 0: "
                "use a server that gives them"
            )
        nll = [float(-(lp @ w)) for lp, w in zip(logprobs, self._weights, strict=True)]
        text_nll = math.fsum(float(-lp[text].sum()) for lp, text in zip(logprobs, self._text, strict=True))
        return Score(
            mean_nll=math.fsum(nll) / math.fsum(float(w.sum()) for w in self._weights),
            bits_per_byte=text_nll / math.log(2) / self._num_bytes if self._num_bytes else None,
            nll=nll,
        )


def _runs(tokens: np.ndarray, mask: np.ndarray) -> list[list[int]]:
    """The unbroken runs of ``tokens`` where ``mask`` holds."""
    positions = np.flatnonzero(mask)
    breaks = np.flatnonzero(np.diff(positions) > 1) + 1
    return [tokens[run].tolist() for run in np.split(positions, breaks) if run.size]
