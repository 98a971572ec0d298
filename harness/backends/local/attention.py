"""Attention within each of several sequences that lie end to end in one row.

transformers builds masks and calls attention through two registries. An entry of ours in both asks transformers' own
functions for one sequence at a time, so that windows, chunks and scalings are the model's. Outside :func:`end_to_end`
it does what they do.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from harness.backends.local import causal_attention

NAME = "by_sequence"
_lengths: contextvars.ContextVar[list[int] | None] = contextvars.ContextVar("lengths", default=None)

# What models hand to attention without effect: windows are in the masks, positions in queries and keys.
_WITHOUT_EFFECT = {
    "sliding_window",
    "position_ids",
    "use_cache",
    "cache_position",
    "output_attentions",
    "output_router_logits",
}


@dataclasses.dataclass(frozen=True)
class _Masks:
    """What a model carries from layer to layer as its attention mask: of each sequence the length and the mask, None
    where that is plainly causal."""

    lengths: list[int]
    of_each: list[torch.Tensor | None]


@contextlib.contextmanager
def end_to_end(lengths: list[int] | None) -> Iterator[None]:
    """A forward pass in here takes one row as sequences of these lengths; None: as the model ever does."""
    token = _lengths.set(lengths)
    try:
        yield
    finally:
        _lengths.reset(token)


def _mask(*, q_length: int, kv_length: int, attention_mask: torch.Tensor | None = None, **arguments: Any) -> Any:
    lengths = _lengths.get()
    if lengths is None:
        return sdpa_mask(q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **arguments)
    masks = {n: sdpa_mask(q_length=n, kv_length=n, **arguments) for n in set(lengths)}
    return _Masks(lengths, [masks[n] for n in lengths])


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | _Masks | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """``query``, ``key``, ``value``: ``(rows, heads, tokens, size)``. Returns ``(rows, tokens, heads, size)``."""
    options = {k: v for k, v in options.items() if k not in _WITHOUT_EFFECT and v is not None}
    if unknown := options.keys() - {"dropout", "scaling", "is_causal", "softcap"}:
        raise NotImplementedError(f"attention with {', '.join(sorted(unknown))}")
    if not isinstance(attention_mask, _Masks):
        return _attend(module, attention_mask, options, query, key, value), None
    of_each = zip(*(tensor.split(attention_mask.lengths, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = [_attend(module, mask, options, *qkv) for qkv, mask in zip(of_each, attention_mask.of_each, strict=True)]
    return torch.cat(outputs, dim=1), None


def _attend(
    module: torch.nn.Module,
    mask: torch.Tensor | None,
    options: dict[str, Any],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
) -> torch.Tensor:
    if "softcap" in options:
        return _softcapped(module, query, key, value, mask, **options)
    is_causal = mask is None and options.get("is_causal", getattr(module, "is_causal", True))
    if is_causal and not options.get("dropout") and causal_attention.is_faster(query, key, value):
        return causal_attention.attend(module, query, key, value, options.get("scaling"))
    return sdpa_attention_forward(module, query, key, value, mask, **options)[0]


def _softcapped(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    softcap: float,
    scaling: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Scores through ``softcap * tanh(score / softcap)``, which SDPA has not. ``mask``: True where to attend."""
    key, value = (repeat_kv(tensor, module.num_key_value_groups) for tensor in (key, value))
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * (scaling / softcap))
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = torch.nn.functional.dropout(scores.softmax(-1, dtype=torch.float32).to(query.dtype), dropout)
    return (weights @ value).transpose(1, 2).contiguous()


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
