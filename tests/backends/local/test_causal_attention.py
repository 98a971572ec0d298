from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from harness.backends.local import causal_attention

SIZE = 16


def qkv(num_tokens: int, heads: tuple[int, int], rows: int) -> list[torch.Tensor]:
    """Query, key, value, and a gradient of the answer."""
    torch.manual_seed(num_tokens)
    shapes = [(rows, n, num_tokens, SIZE) for n in (heads[0], heads[1], heads[1])] + [
        (rows, num_tokens, heads[0], SIZE)
    ]
    return [torch.randn(shape).bfloat16() for shape in shapes]


@pytest.mark.parametrize("scaling", [None, 0.5])
@pytest.mark.parametrize(("heads", "rows"), [((4, 4), 1), ((6, 2), 1), ((6, 2), 3)])
@pytest.mark.parametrize("num_tokens", [1, 7, 128, 129, 300])
def test_answer_and_gradients_are_those_of_attention(
    num_tokens: int, heads: tuple[int, int], rows: int, scaling: float | None
):
    module: Any = SimpleNamespace(num_key_value_groups=heads[0] // heads[1], is_causal=True)
    *parts, grad = qkv(num_tokens, heads, rows)
    plain = [part.clone().requires_grad_() for part in parts]
    answer, _ = sdpa_attention_forward(module, *plain, attention_mask=None, scaling=scaling)
    exact = [part.double().requires_grad_() for part in parts]
    expected = torch.autograd.grad(
        sdpa_attention_forward(module, *exact, attention_mask=None, scaling=scaling)[0], exact, grad.double()
    )

    own = [part.clone().requires_grad_() for part in parts]
    own_answer = causal_attention.attend(module, *own, scaling=scaling)
    gradients = torch.autograd.grad(own_answer, own, grad)

    assert torch.equal(own_answer, answer)
    for gradient, value, part in zip(gradients, expected, parts, strict=True):
        assert gradient.dtype == part.dtype and gradient.shape == part.shape
        assert (gradient.double() - value).norm() <= 1e-2 * value.norm() + 1e-2  # bfloat16: 8 bits


def test_it_is_for_short_sequences_in_bfloat16_that_are_trained():
    query, key, value, _ = qkv(20, (4, 4), 1)
    assert not causal_attention.is_faster(query, key, value)
    assert causal_attention.is_faster(query.requires_grad_(), key, value)
    assert not causal_attention.is_faster(query.float(), key, value)
    assert not causal_attention.is_faster(query[:, :, -1:], key, value)  # one more token of a sequence
    assert not causal_attention.is_faster(*qkv(1025, (4, 4), 1)[:3])
