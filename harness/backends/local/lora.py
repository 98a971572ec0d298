"""PEFT's LoRA of a linear layer with a forward and backward of its own: fewer passes over memory, less kept."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners import lora


class LoraLinear(lora.Linear):
    """Computes in the dtype of what goes in; the LoRA's weights and their gradients stay in float32.

    PEFT's own forward converts the input of every layer to float32, keeps that for the backward pass, and makes
    four more tensors of the output's size.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        base: Any = self.get_base_layer()
        weights = base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight
        return _LoraLinear.apply(x, *weights, self.scaling[name])


class _LoraLinear(torch.autograd.Function):
    """``x @ weight.T + bias + scaling * x @ a.T @ b.T``, the gradient of ``weight`` and ``bias`` left out."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        rows = x.flatten(0, -2)
        inner = rows @ a.to(x.dtype).T
        output = torch.nn.functional.linear(rows, weight, bias).addmm_(inner, b.to(x.dtype).T, alpha=scaling)
        ctx.save_for_backward(rows, inner, weight, a, b)
        ctx.scaling = scaling
        return torch.ops.aten._unsafe_view(output, [*x.shape[:-1], -1])  # which may be changed in place, as some do

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_output,) = grad_outputs
        rows, inner, weight, a, b = ctx.saved_tensors
        grad = grad_output.flatten(0, -2)
        grad_inner = (grad @ b.to(grad.dtype)).mul_(ctx.scaling)
        grad_a = (grad_inner.T @ rows).to(a.dtype)
        grad_b = (grad.T @ inner).to(b.dtype).mul_(ctx.scaling)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_inner, a.to(grad.dtype)).view(*grad_output.shape[:-1], -1)
        return grad_x, None, None, grad_a, grad_b, None
