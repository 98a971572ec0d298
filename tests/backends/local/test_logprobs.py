import pytest
import torch

from harness.backends.local.logprobs import token_logprobs


def test_values_and_gradient_equal_the_plain_log_softmax():
    torch.manual_seed(0)
    logits, targets, weights = torch.randn(6, 10, requires_grad=True), torch.tensor([1, 9, 0, 4, 4, 7]), torch.randn(6)

    chosen, gradient = token_logprobs(logits.detach(), targets, weights)
    expected = logits.log_softmax(-1)[torch.arange(6), targets]
    (expected_gradient,) = torch.autograd.grad(-(expected @ weights), logits)

    torch.testing.assert_close(chosen, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-6)
    assert token_logprobs(logits.detach(), targets, None)[1] is None


@pytest.mark.parametrize("gap", [0.0, 1e-3, 20.0, 200.0])
def test_an_improbable_token_is_exact_too(gap: float):
    logits = torch.tensor([[gap, 0.0, -3.0]])
    chosen, _ = token_logprobs(logits, torch.tensor([1]), None)
    torch.testing.assert_close(chosen.double(), logits.double().log_softmax(-1)[:, 1], rtol=1e-6, atol=1e-7)


def test_bfloat16_logits_are_normalised_in_float32():
    logits = torch.tensor([[300.0, 1.0, 2.0], [0.5, 0.25, -1.0]], dtype=torch.bfloat16)
    chosen, gradient = token_logprobs(logits, torch.tensor([1, 0]), torch.ones(2))
    assert chosen.dtype == torch.float32
    assert gradient is not None
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(chosen, logits.float().log_softmax(-1)[[0, 1], [1, 0]])
