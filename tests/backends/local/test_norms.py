from typing import Any

import pytest
import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from harness.backends.local.norms import use_own_backward


class HalvedRMSNorm(LlamaRMSNorm):
    """Of a family that nobody has seen."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) * hidden_states.tanh()


@pytest.mark.parametrize(("kind", "is_known"), [(LlamaRMSNorm, True), (Gemma2RMSNorm, True), (HalvedRMSNorm, False)])
def test_answer_and_gradient_are_those_of_the_norm(kind: Any, is_known: bool):
    torch.manual_seed(0)
    norm = kind(12, eps=0.1)
    norm.weight.data.copy_(torch.randn(12))
    norm.requires_grad_(False)
    x, grad = torch.randn(2, 3, 12, requires_grad=True), torch.randn(2, 3, 12)
    expected = norm(x)
    (expected_gradient,) = torch.autograd.grad(expected, x, grad)

    use_own_backward(norm)
    answer = norm(x)
    (gradient,) = torch.autograd.grad(answer, x, grad)

    assert ("forward" in vars(norm)) == is_known
    assert torch.equal(answer, expected)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)
