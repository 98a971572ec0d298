import pytest
import torch

from harness.backends.local import logprobs
from harness.backends.local.logprobs import TokenLogprobs


@pytest.mark.parametrize("chunk_elements", [1, 40, 1 << 24])  # a row at once, four rows, all
def test_values_and_gradient_equal_the_plain_log_softmax(chunk_elements: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logprobs, "_CHUNK_ELEMENTS", chunk_elements)
    torch.manual_seed(0)
    logits = torch.randn(9, 10, dtype=torch.float32, requires_grad=True)
    rows, targets, weights = torch.tensor([0, 2, 3, 5, 6, 8]), torch.tensor([1, 9, 0, 4, 4, 7]), torch.randn(6)

    chosen = TokenLogprobs.apply(logits, rows, targets)
    (gradient,) = torch.autograd.grad(chosen @ weights, logits)
    expected = logits.log_softmax(-1)[rows, targets]
    (expected_gradient,) = torch.autograd.grad(expected @ weights, logits)

    torch.testing.assert_close(chosen, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-6)
    assert not gradient[[1, 4, 7]].any()


def test_bfloat16_logits_are_normalised_in_float32():
    logits = torch.tensor([[300.0, 1.0, 2.0], [0.5, 0.25, -1.0]], dtype=torch.bfloat16)
    chosen = TokenLogprobs.apply(logits, torch.tensor([0, 1]), torch.tensor([1, 0]))
    assert chosen.dtype == torch.float32
    torch.testing.assert_close(chosen, logits.float().log_softmax(-1)[[0, 1], [1, 0]])
