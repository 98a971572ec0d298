"""Causal attention with a backward of its own, for short sequences in bfloat16 on a processor: batched products over
blocks of queries, where torch's takes up to three times as long. The forward is torch's."""

from __future__ import annotations

from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

_BLOCK = 128  # queries at a time: their scores stay in the cache, and most of those that look ahead are not computed
_LONGEST = 512  # tokens; beyond, torch's is as fast


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
        grad_queries = torch.empty_like(queries)
        grad_keys, grad_values = (torch.zeros(part.shape, dtype=torch.float32) for part in (keys, values))
        ahead = torch.full((_BLOCK, _BLOCK), -torch.inf).triu(1)
        for start in range(0, num_tokens, _BLOCK):
            end = min(start + _BLOCK, num_tokens)
            block = slice(start, end)
            q, g = (part[:, :, block].flatten(1, 2) for part in (queries, grads))
            k, v = keys[:, :end], values[:, :end]
            scores = torch.bmm(q, k.mT).float().mul_(ctx.scaling)
            scores.unflatten(1, (-1, end - start))[..., block] += ahead[: end - start, : end - start]
            with torch.enable_grad():
                weights = scores.requires_grad_().softmax(-1)
            (grad_scores,) = torch.autograd.grad(weights, scores, torch.bmm(g, v.mT).float())
            grad_scores = grad_scores.mul_(ctx.scaling).to(q.dtype)
            grad_queries[:, :, block] = torch.bmm(grad_scores, k).unflatten(1, (-1, end - start))
            grad_keys[:, :end] += torch.bmm(grad_scores.mT, q)
            grad_values[:, :end] += torch.bmm(weights.detach().to(g.dtype).mT, g)
        return (
            grad_queries.view_as(query),
            grad_keys.to(key).view_as(key),
            grad_values.to(value).view_as(value),
            None,
            None,
        )
