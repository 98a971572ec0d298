"""RMS norms with a backward of their own: autograd's keeps and makes a float32 tensor for each operation of theirs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

_CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of a gradient, relative; another kind of norm: > 0.1


def use_own_backward(model: torch.nn.Module) -> None:
    """For the norms of a frozen model whose gradient is the one below; what they answer stays their own."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and isinstance(getattr(module, "weight", None), torch.Tensor):
            scale = _scale(module)
            if scale is not None:
                module.forward = functools.partial(_normed, module.forward, scale, _eps(module))


def _scale(module: Any) -> torch.Tensor | None:
    """What the normalised input is multiplied with, float32: the weight, or one more in some families. None where with
    neither the gradient is right, as tried on a random input."""
    weight = module.weight.detach()
    draw = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(4, len(weight), generator=draw).to(weight) for _ in range(2))
    x.requires_grad_()
    try:
        answer = module(x)
    except TypeError:  # it takes more than an input
        return None
    (expected,) = torch.autograd.grad(answer, x, grad)
    for scale in (weight.float(), 1 + weight.float()):
        error = _gradient(grad, x.detach(), scale, _eps(module)) - expected
        if error.norm() <= _CLOSE[weight.dtype] * expected.norm():
            return scale
    return None


def _eps(module: Any) -> float:
    return getattr(module, "variance_epsilon", getattr(module, "eps", 0.0))


def _gradient(grad: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """Of ``scale * x / rms`` with respect to ``x``, where ``rms`` is ``sqrt(mean(x**2) + eps)``."""
    values, scaled = x.float(), grad.float() * scale
    inverse = (torch.linalg.vecdot(values, values) / x.shape[-1] + eps).rsqrt()[..., None]
    along = torch.linalg.vecdot(scaled, values)[..., None] * (inverse.square() / x.shape[-1])
    return scaled.addcmul_(values, along, value=-1).mul_(inverse).to(x.dtype)


def _normed(norm: Callable[..., torch.Tensor], scale: torch.Tensor, eps: float, x: torch.Tensor) -> torch.Tensor:
    return _Normed.apply(x, norm, scale, eps)


class _Normed(torch.autograd.Function):
    """``norm(x)``, keeping ``x`` alone."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, norm: Callable[..., torch.Tensor], scale: torch.Tensor, eps: float
    ) -> torch.Tensor:
        ctx.save_for_backward(x, scale)
        ctx.eps = eps
        return norm(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        return _gradient(grad_outputs[0], x, scale, ctx.eps), None, None, None
