"""Samples with a LoRA as it was at one moment: tinker's requests to sequences, the same bits each time.

What is asked for together goes through the model together, padded on the left; its lengths alone decide the batches.
Each sequence has random numbers of its own: where a request has a seed, from that one, the prompt and the sample's
number; else from the run's seed, the updates made, the prompt and how often it was asked for without a seed.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import inspect
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tinker
import torch

from harness.backends.base import temperature_fault
from harness.backends.local.stops import Stop
from harness.exceptions import BackendError

if TYPE_CHECKING:
    from harness.backends.local.engine import Engine

_MICRO_BATCHES = 4  # tokens of prompts and samples that are kept at once, in training's micro-batches


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt, and how it is continued.

    Attributes:
        tokens: Of the prompt.
        seeds: One for each sample.
        max_tokens: Most that are generated.
        temperature: 0 takes the likeliest token.
        top_k: Of how many tokens one is chosen; 0 of all.
        top_p: Of the likeliest tokens of this probability together one is chosen; 1.0 of all.
    """

    tokens: list[int]
    seeds: list[int]
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    stop: Stop


class _Row:
    """A sequence under way."""

    def __init__(self, request: Request, seed: int):
        self.request = request
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.stop_reason: str | None = None
        self._random = random.Random(seed)

    def take(self, logprobs: torch.Tensor) -> None:
        """Choose the next token by ``logprobs``, of shape (vocabulary,); once it has stopped, nothing more."""
        if self.stop_reason:
            return
        token = self._choose(logprobs)
        self.tokens.append(token)
        self.logprobs.append(logprobs[token].item())
        if self.request.stop.is_reached(self.tokens):
            self.stop_reason = "stop"
        elif len(self.tokens) == self.request.max_tokens:
            self.stop_reason = "length"

    def _choose(self, logprobs: torch.Tensor) -> int:
        request = self.request
        if request.temperature == 0:
            return int(logprobs.argmax())
        probabilities = logprobs.double().exp()
        if request.top_k or request.top_p < 1:
            _, order = logprobs.sort(descending=True, stable=True)
            sorted_ = probabilities[order]
            sorted_[request.top_k or len(order) :] = 0
            before = sorted_.cumsum(0) - sorted_
            sorted_[1:][before[1:] >= request.top_p * sorted_.sum()] = 0
            probabilities = torch.zeros_like(probabilities).index_put((order,), sorted_)
        until = probabilities.cumsum(0)
        return int(torch.searchsorted(until, self._random.random() * until[-1], right=True))


class Sampler:
    """Samples with the weights that the engine has when this is made, whatever it is trained to later."""

    def __init__(self, engine: Engine, model: Any, *, seed: int, max_length: int | None, batch_tokens: int):
        """
        Args:
            model: The engine's, with its LoRA.
            seed: The run's.
            max_length: The model's context; None where it has no limit.
            batch_tokens: Of a micro-batch in training.
        """
        self._engine = engine
        self._model = model
        self._seed = seed
        self._max_length = max_length
        self._most_tokens = _MICRO_BATCHES * batch_tokens
        self._step = engine.num_steps
        self._weights = {name: parameter.detach().clone() for name, parameter in engine.parameters.items()}
        self._asked: collections.Counter[tuple[int, ...]] = collections.Counter()  # each prompt without a seed
        self._takes_positions = "position_ids" in inspect.signature(model.get_base_model().forward).parameters

    def request(self, prompt: tinker.ModelInput, num_samples: int, params: tinker.SamplingParams) -> Request:
        """A request, checked.

        Raises:
            BackendError: for what cannot be sampled.
        """
        tokens = _checked_tokens(prompt, self._model.get_input_embeddings().num_embeddings)
        for name, value, least, most in (
            ("num_samples", num_samples, 1, None),
            ("top_p", params.top_p, 0, 1),
            ("top_k", params.top_k, -1, None),
        ):
            if not value >= least or (most is not None and value > most):
                raise BackendError(f"{name}={value}: must be at least {least}{f' and at most {most}' if most else ''}")
        if fault := temperature_fault(params.temperature):
            raise BackendError(fault)
        room = None if self._max_length is None else self._max_length - len(tokens)
        if room is not None and room < 1:
            raise BackendError(
                f"a prompt of {len(tokens)} tokens, and the model's context is {self._max_length}: shorten it"
            )
        limits = [limit for limit in (params.max_tokens, room) if limit is not None]
        if not limits or min(limits) < 1:
            raise BackendError(f"max_tokens={params.max_tokens}: must be at least 1")
        origin = params.seed
        if origin is None:
            key = tuple(tokens)
            origin = f"{self._seed} {self._step} {self._asked[key]}"
            self._asked[key] += 1
        return Request(
            tokens=tokens,
            seeds=[_seed(f"{origin} {number} {tokens}") for number in range(num_samples)],
            max_tokens=min(limits),
            temperature=params.temperature,
            top_k=max(0, params.top_k),
            top_p=params.top_p,
            stop=Stop.of(params.stop, self._engine.model_name, self._model),
        )

    def sample(self, requests: Sequence[Request]) -> list[tinker.SampleResponse]:
        """The answers, in the requests' order.

        Raises:
            CancelledError: once the engine is closing.
        """
        rows = [[_Row(request, seed) for seed in request.seeds] for request in requests]
        with self._own_weights(), torch.no_grad():
            for batch in self._batches([row for of_request in rows for row in of_request]):
                self._run(batch)
        return [
            tinker.SampleResponse(sequences=[_sequence(row, i) for i, row in enumerate(of_request)])
            for of_request in rows
        ]

    def _batches(self, rows: list[_Row]) -> Iterator[list[_Row]]:
        """Those of like length together, as many as have room."""
        batch: list[_Row] = []
        for row in sorted(rows, key=lambda row: (len(row.request.tokens), row.request.max_tokens)):
            longest = len(row.request.tokens) + max(other.request.max_tokens for other in [*batch, row])
            if batch and (len(batch) + 1) * longest > self._most_tokens:
                yield batch
                batch = []
            batch.append(row)
        yield batch

    def _run(self, rows: list[_Row]) -> None:
        longest = max(len(row.request.tokens) for row in rows)
        tokens, mask = np.zeros((2, len(rows), longest), np.int64)
        for i, row in enumerate(rows):
            tokens[i, longest - len(row.request.tokens) :] = row.request.tokens
            mask[i, longest - len(row.request.tokens) :] = 1
        temperatures = self._tensor(np.array([[row.request.temperature or 1.0] for row in rows], np.float32))
        inputs, attention_mask = self._tensor(tokens), self._tensor(mask)
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        cache = None
        while True:
            if self._engine.closing.is_set():
                raise concurrent.futures.CancelledError
            output = self._model(
                input_ids=inputs,
                attention_mask=attention_mask,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                **({"position_ids": positions} if self._takes_positions else {}),
            )
            cache = output.past_key_values
            logprobs = torch.log_softmax(output.logits[:, -1].float() / temperatures, dim=-1).cpu()
            for row, of_row in zip(rows, logprobs, strict=True):
                row.take(of_row)
            if all(row.stop_reason for row in rows):
                return
            inputs = self._tensor(np.array([[row.tokens[-1]] for row in rows], np.int64))
            attention_mask = torch.nn.functional.pad(attention_mask, (0, 1), value=1)
            positions = positions[:, -1:] + 1
            if self._max_length:
                positions = positions.clamp(max=self._max_length - 1)

    @contextlib.contextmanager
    def _own_weights(self) -> Iterator[None]:
        """With the weights of its moment in the model; those of training are back afterwards, bit for bit."""
        if self._engine.num_steps == self._step:
            yield
            return
        of_training = {name: parameter.detach().clone() for name, parameter in self._engine.parameters.items()}
        self._put(self._weights)
        try:
            yield
        finally:
            self._put(of_training)

    def _put(self, weights: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._engine.parameters.items():
                parameter.copy_(weights[name])

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._model.device)


def _checked_tokens(prompt: tinker.ModelInput, vocab_size: int) -> list[int]:
    try:
        tokens = prompt.to_ints()
    except ValueError as error:
        raise BackendError(f"the local backend takes text only ({error})") from None
    if not tokens:
        raise BackendError("an empty prompt: give at least one token")
    if outside := [token for token in tokens if not 0 <= token < vocab_size]:
        raise BackendError(f"token {outside[0]} is not among the model's {vocab_size}: is the tokenizer this model's?")
    return tokens


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _sequence(row: _Row, number: int) -> tinker.SampledSequence:
    stop_reason: Any = row.stop_reason
    return tinker.SampledSequence(
        stop_reason=stop_reason,
        sequence_id=f"{row.request.seeds[number]:016x}",
        tokens_np=np.array(row.tokens, np.int32),
        logprobs_np=np.array(row.logprobs, np.float32),
    )
