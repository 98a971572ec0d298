"""From hidden states to log-probabilities through the model's own head, a chunk of rows at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from harness.backends.local.logprobs import token_logprobs

_CHUNK_ELEMENTS = 1 << 24  # logits at once: 64 MB in float32, for each of the few temporaries


class Head:
    """What a causal language model does after its decoder: the head with whatever scalings and soft-caps follow it."""

    def __init__(self, model: Any):
        """``model``: of transformers, with a head."""
        self._model = model
        self._decoder: torch.nn.Module = model.base_model

    def logits(self, hidden: torch.Tensor, like: Any) -> torch.Tensor:
        """Of ``hidden``, ``(n, size)``; ``like`` is an output of the decoder. Returns ``(n, vocab)``."""
        with _answering(self._decoder, type(like)(last_hidden_state=hidden[None])):
            return self._model(input_ids=torch.zeros((1, len(hidden)), dtype=torch.long), use_cache=False).logits[0]

    def logprobs(
        self, hidden: torch.Tensor, like: Any, targets: torch.Tensor, weights: torch.Tensor, *, backward: bool
    ) -> np.ndarray:
        """Log-probabilities of ``targets``, float32; ``backward`` adds the gradient of ``-sum(logprobs * weights)``
        to all that ``hidden`` and the head were made of.

        Logits and their gradient are in memory for one chunk alone.

        Args:
            hidden: ``(n, size)``.
            like: An output of the decoder.
            targets, weights: ``(n,)``.
        """
        rows = max(1, _CHUNK_ELEMENTS // self._model.get_output_embeddings().weight.shape[0])
        gradient = torch.empty_like(hidden) if backward else None
        answers = []
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            leaf = hidden[part].detach().requires_grad_(backward)
            logits = self.logits(leaf, like)
            answer, grad = token_logprobs(logits.detach(), targets[part], weights[part] if backward else None)
            answers.append(answer)
            if gradient is not None:
                logits.backward(grad)
                assert leaf.grad is not None
                gradient[part] = leaf.grad
        if hidden.requires_grad:  # not where the head alone is trained
            hidden.backward(gradient)
        return torch.cat(answers).cpu().numpy()


@contextlib.contextmanager
def _answering(module: torch.nn.Module, output: Any) -> Iterator[None]:
    """In here ``module`` answers with ``output`` whatever it is asked."""
    module.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del module.forward
