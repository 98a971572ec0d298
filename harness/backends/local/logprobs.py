"""Log-probabilities of chosen tokens, and their gradient, from logits."""

import torch


def token_logprobs(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``log_softmax(logits)[arange, targets]`` in float32, with one exponential for each logit.

    Args:
        logits: ``(n, vocab)``, without a graph.
        targets: ``(n,)``.
        weights: ``(n,)`` float32; None where no gradient is asked for.

    Returns:
        ``(n,)`` float32, and the gradient of ``-sum(logprobs * weights)`` with respect to ``logits``, in its dtype.
    """
    targets = targets[:, None]
    values = logits.float()
    chosen = values.gather(-1, targets)
    probabilities = values.softmax(-1)
    largest = values.amax(-1, keepdim=True)
    log_normaliser = largest - probabilities.amax(-1, keepdim=True).log_()  # of that one: at least 1 / vocab
    logprobs = (chosen - log_normaliser)[:, 0]
    if weights is None:
        return logprobs, None
    gradient = probabilities.mul_(weights[:, None]).scatter_add_(-1, targets, -weights[:, None])
    return logprobs, gradient.to(logits.dtype)
