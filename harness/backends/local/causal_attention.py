"""Causal attention with a backward of its own, for short sequences in bfloat16 on a processor: batched products over
blocks of queries, where torch's takes up to three times as long. The forward is torch's."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

_BLOCK = 128  # queries at a time: their scores stay in the cache, and most of those that look ahead are not computed
_LONGEST = 1024  # tokens; beyond, torch's is as fast


def is_faster(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether :func:`attend` is what to use. Shapes as there."""
    return (
        query.requires_grad
        and query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and query.shape[2] == key.shape[2] <= _LONGEST
        and query.shape[3] == value.shape[3]
    )


def attend(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """What transformers' ``sdpa_attention_forward`` answers without a mask.

    Args:
        query: ``(rows, heads, tokens, size)``.
        key, value: The same, of as many heads or fewer.
        scaling: Of the scores; None: ``size ** -0.5``.

    Returns:
        ``(rows, tokens, heads, size)``.
    """
    return _Attend.apply(query, key, value, module, query.shape[3] ** -0.5 if scaling is None else scaling)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, module: torch.nn.Module, scaling: float
    ) -> torch.Tensor:
        output, _ = sdpa_attention_forward(module, query, key, value, None, scaling=scaling, is_causal=True)
        ctx.save_for_backward(query, key, value)
        ctx.scaling = scaling
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        num_tokens, size = query.shape[2:]
        keys, values = key.flatten(0, 1), value.flatten(0, 1)
        queries, grads = (  # (key heads, heads of each, tokens, size)
            part.reshape(len(keys), -1, num_tokens, size) for part in (query, grad_outputs[0].transpose(1, 2))
        )
        grads_of_blocks = []
        for start in range(0, num_tokens, _BLOCK):
            end = min(start + _BLOCK, num_tokens)
            q, g = (part[:, :, start:end].flatten(1, 2) for part in (queries, grads))
            k, v = keys[:, :end], values[:, :end]
            weights = torch.baddbmm(_ahead(start, end, queries.shape[1]), q, k.mT, alpha=ctx.scaling).softmax(-1)
            grad_weights = torch.bmm(g, v.mT)
            grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_q = torch.bmm(grad_scores, k).unflatten(1, (-1, end - start))
            grads_of_blocks.append((grad_q, torch.bmm(grad_scores.mT, q), torch.bmm(weights.mT, g)))
        grad_queries, grad_keys, grad_values = zip(*grads_of_blocks, strict=True)
        return (
            torch.cat(grad_queries, dim=2).mul_(ctx.scaling).view_as(query),
            _sum(grad_keys).mul_(ctx.scaling).view_as(key),
            _sum(grad_values).view_as(value),
            None,
            None,
        )


def _sum(grads: Sequence[torch.Tensor]) -> torch.Tensor:
    """Each is of the first keys, the last one of all."""
    *others, last = grads
    if not others:
        return last
    total = last.float()
    for grad in others:
        total[:, : grad.shape[1]] += grad
    return total.to(last.dtype)


@functools.lru_cache(maxsize=32)  # a micro-batch's, from layer to layer
def _ahead(start: int, end: int, num_heads: int) -> torch.Tensor:
    """What masks the scores of the queries from ``start`` to ``end``: minus infinity for keys that are ahead of them.

    Returns:
        ``(num_heads * (end - start), end)``, bfloat16.
    """
    mask = torch.full((end - start, end), -torch.inf, dtype=torch.bfloat16).triu_(start + 1)
    return mask.repeat(num_heads, 1)
