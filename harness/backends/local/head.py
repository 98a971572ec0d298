"""From hidden states to log-probabilities through the model's own head, a chunk of rows at a time."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import torch

from harness.backends.local.logprobs import token_logprobs

_ROWS = 128  # at once, of each thread: their logits take 25 MB for 49,152 tokens in float32, for a few temporaries
_CLOSE = 2e-2  # of logits, relative: more than rounding in bfloat16
_answer: contextvars.ContextVar[Any] = contextvars.ContextVar("answer", default=None)  # of the decoder, if it has one


class Head:
    """What a causal language model does after its decoder: the head with whatever scalings and soft-caps follow it.

    Attributes:
        parameters: Those of it that are trained.
    """

    def __init__(self, model: Any):
        """``model``: of transformers, with a head."""
        self._model = model
        of_decoder = set(model.base_model.parameters())
        self.parameters = [p for p in model.parameters() if p.requires_grad and p not in of_decoder]
        _let_answer(model.base_model)

    def is_right(self, vocab_size: int) -> bool:
        """Whether :meth:`logits` of the decoder's answer are those of the model, tried on some tokens."""
        tokens = (torch.arange(24, device=next(self._model.parameters()).device) % vocab_size)[None]
        with torch.no_grad():
            expected = self._model(input_ids=tokens, use_cache=False).logits
            output = self._model.base_model(input_ids=tokens, use_cache=False)
            logits = self.logits(output.last_hidden_state[0], output)
        return logits.shape == expected.shape and bool((logits - expected).norm() <= _CLOSE * expected.norm())

    def logits(self, hidden: torch.Tensor, like: Any) -> torch.Tensor:
        """Of ``hidden``, ``(n, size)``; ``like`` is an output of the decoder. Returns ``(1, n, vocab)``."""
        with _answering(type(like)(last_hidden_state=hidden[None])):
            return self._model(input_ids=torch.zeros((1, len(hidden)), dtype=torch.long), use_cache=False).logits

    def logprobs(
        self,
        hidden: torch.Tensor,
        like: Any,
        targets: torch.Tensor,
        weights: torch.Tensor,
        *,
        backward: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Log-probabilities of ``targets``, float32; with ``backward`` also the gradients of
        ``-sum(logprobs * weights)``.

        Logits and their gradient are in memory for one chunk alone.

        Args:
            hidden: ``(n, size)``.
            like: An output of the decoder.
            targets, weights: ``(n,)``.

        Returns:
            ``(n,)``; the gradient with respect to ``hidden``, and those with respect to :attr:`parameters`.
        """
        gradient = torch.empty_like(hidden)
        of_parameters = [torch.zeros_like(parameter) for parameter in self.parameters]
        answers = []
        for start in range(0, len(hidden), _ROWS):
            part = slice(start, start + _ROWS)
            leaf = hidden[part].detach().requires_grad_(backward)
            logits = self.logits(leaf, like)
            answer, grad = token_logprobs(logits.detach()[0], targets[part], weights[part] if backward else None)
            answers.append(answer)
            if backward:
                assert grad is not None
                gradient[part], *grads = torch.autograd.grad(
                    logits, [leaf, *self.parameters], grad[None], materialize_grads=True
                )
                for total, more in zip(of_parameters, grads, strict=True):
                    total += more
        return torch.cat(answers), gradient, of_parameters


def _let_answer(decoder: torch.nn.Module) -> None:
    """Make it return what :func:`_answering` says, on the thread that says so."""
    own = decoder.forward

    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        answer = _answer.get()
        return own(*args, **kwargs) if answer is None else answer

    decoder.forward = forward


@contextlib.contextmanager
def _answering(output: Any) -> Iterator[None]:
    """In here decoders answer with ``output`` whatever they are asked."""
    token = _answer.set(output)
    try:
        yield
    finally:
        _answer.reset(token)
