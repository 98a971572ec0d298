"""Log-probabilities of chosen tokens from a large matrix of logits, in float32 and little memory."""

from typing import Any

import torch

_CHUNK_ELEMENTS = 1 << 24  # float32 numbers at once: 64 MB, for each of the few temporaries


class TokenLogprobs(torch.autograd.Function):
    """``log_softmax(logits[rows])[arange, targets]``, without the log-softmax of all rows ever being in memory.

    What the graph keeps is the logits themselves, in the model's dtype; the softmax is made again in the backward pass.

    Args:
        logits: ``(n, vocab)``.
        rows: ``(m,)``, each at most once.
        targets: ``(m,)``.

    Returns:
        ``(m,)``, float32.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        log_normalisers, chosen = [], []
        for some, target in _chunks(logits, rows, targets):
            values = logits[some].float()
            log_normalisers.append(values.logsumexp(-1))
            chosen.append(values.gather(-1, target[:, None])[:, 0])
        log_normaliser = torch.cat(log_normalisers)
        ctx.save_for_backward(logits, rows, targets, log_normaliser)
        return torch.cat(chosen) - log_normaliser

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, rows, targets, log_normaliser = ctx.saved_tensors
        gradient = torch.zeros_like(logits)
        for some, target, normaliser, grad in _chunks(logits, rows, targets, log_normaliser, *grad_outputs):
            softmax = (logits[some].float() - normaliser[:, None]).exp_()
            one_hot_minus_softmax = softmax.neg_().scatter_add_(-1, target[:, None], torch.ones_like(softmax[:, :1]))
            gradient[some] = one_hot_minus_softmax.mul_(grad[:, None]).to(gradient.dtype)
        return gradient, None, None


def _chunks(logits: torch.Tensor, *tensors: torch.Tensor) -> zip:
    size = max(1, _CHUNK_ELEMENTS // logits.shape[-1])
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)
