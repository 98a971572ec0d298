"""Whether sequences may lie end to end in one row of a model: tried on the model itself, when it is loaded."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from harness.backends.local import attention
from harness.backends.local.microbatch import Sequence, lay_out

logger = logging.getLogger(__name__)

_LENGTHS = (23, 5, 37)
_ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of hidden states, relative; a wrong position or mask: > 0.1


def decode(decoder: torch.nn.Module, sequences: list[Sequence], *, end_to_end: bool) -> tuple[Any, Any]:
    """Run the model's decoder. Padding needs no mask: it stands on the right, where causal models do not look.

    Returns:
        The micro-batch, and the decoder's output; its ``last_hidden_state`` is ``(rows, width, size)``.
    """
    batch = lay_out(sequences, end_to_end=end_to_end)
    device = next(decoder.parameters()).device

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    tokens, more = tensor(batch.tokens), {}
    if end_to_end:  # with a mask transformers leaves it to us to find where sequences begin
        more = {"position_ids": tensor(batch.positions), "attention_mask": torch.ones_like(tokens)}
    with attention.end_to_end(batch.lengths):
        output = decoder(input_ids=tokens, use_cache=False, **more)
    return batch, output


def goes_end_to_end(model: Any, vocab_size: int) -> bool:
    """Set the model's attention so that sequences may lie end to end, where that is right; else leave it.

    Right is: the hidden states of each are those that it has by itself, within rounding, and not one bit of them
    depends on what the others say. A recurrent state fails that, and an attention of the model's own.
    """
    decoder, own = model.base_model, model.config._attn_implementation
    sequences = [_sequence(n, i, vocab_size) for i, n in enumerate(_LENGTHS)]
    others = [_sequence(n, i if i == 1 else i + 7, vocab_size) for i, n in enumerate(_LENGTHS)]
    with torch.no_grad():
        decode(decoder, sequences, end_to_end=False)  # the first use of the kernels in this process: discarded
        alone = [decode(decoder, [one], end_to_end=False)[1].last_hidden_state[0] for one in sequences]
        try:
            model.set_attn_implementation(attention.NAME)
            together, beside_others = (
                decode(decoder, row, end_to_end=True)[1].last_hidden_state[0].split(_LENGTHS)
                for row in (sequences, others)
            )
        except Exception as error:  # whatever a model makes of an input that it was not written for
            return _padded(model, own, f"{type(error).__name__}: {error}")
    if not torch.equal(together[1], beside_others[1]):
        return _padded(model, own, "one sequence changes another")
    error = max(float((a - b).norm() / a.norm()) for a, b in zip(alone, together, strict=True))
    if error > _ROUNDING[alone[0].dtype]:
        return _padded(model, own, f"hidden states differ by {error:.1e}")
    return True


def _padded(model: Any, own: str, reason: str) -> bool:
    model.set_attn_implementation(own)
    logger.info("sequences are padded, since end to end they would not be exact (%s)", reason)
    return False


def _sequence(length: int, seed: int, vocab_size: int) -> Sequence:
    tokens = np.random.default_rng(seed).integers(vocab_size, size=length)
    return Sequence(tokens, tokens, np.zeros(length, np.float32))
