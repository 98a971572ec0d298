"""Clients for evaluators of the config: what is asked of them is counted, since nobody knows it beforehand."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from harness.backends.base import Future

if TYPE_CHECKING:
    import tinker

    from harness.supervised.usage import Usage

T = TypeVar("T")


class _Answer(Generic[T]):
    """An answer of which something is made when it is first read."""

    def __init__(self, answer: Future[Any], make: Callable[[Any], T]):
        self._answer = answer
        self._make: Callable[[Any], T] | None = make

    def result(self, timeout: float | None = None) -> T:
        return self._made(self._answer.result(timeout))

    async def result_async(self, timeout: float | None = None) -> T:
        return self._made(await self._answer.result_async(timeout))

    def __await__(self) -> Generator[Any, None, T]:
        return self.result_async().__await__()

    def _made(self, answer: Any) -> T:
        if self._make:
            self._value, self._make = self._make(answer), None
        return self._value


class CountedSamplingClient:
    """A ``SamplingClient`` (see :mod:`harness.backends.base`) that adds what it is asked to ``used``: a prompt when it
    is submitted, the samples after it when they are read."""

    def __init__(self, client: Any, used: Usage):
        self._client = client
        self._used = used

    def sample(
        self, prompt: tinker.ModelInput, num_samples: int, sampling_params: tinker.SamplingParams, **more: Any
    ) -> _Answer[tinker.SampleResponse]:
        answer = self._client.sample(prompt, num_samples, sampling_params, **more)
        self._used.asked += prompt.length
        return _Answer(answer, self._count)

    async def sample_async(
        self, prompt: tinker.ModelInput, num_samples: int, sampling_params: tinker.SamplingParams, **more: Any
    ) -> tinker.SampleResponse:
        return await self.sample(prompt, num_samples, sampling_params, **more)

    def compute_logprobs(self, prompt: tinker.ModelInput, **more: Any) -> Any:
        """As the SDK's client has it."""
        answer = self._client.compute_logprobs(prompt, **more)
        self._used.asked += prompt.length
        return answer

    async def compute_logprobs_async(self, prompt: tinker.ModelInput, **more: Any) -> Any:
        return await self.compute_logprobs(prompt, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def _count(self, answer: tinker.SampleResponse) -> tinker.SampleResponse:
        self._used.sampled += sum(len(sequence.tokens) for sequence in answer.sequences)
        return answer


class CountedTrainingClient:
    """A ``TrainingClient`` (see :mod:`harness.backends.base`) whose forward passes are added to ``used``, and what is
    sampled with its weights."""

    def __init__(self, client: Any, used: Usage):
        self._client = client
        self._used = used

    def forward(self, data: list[tinker.Datum], loss_fn: Any) -> Future[tinker.ForwardBackwardOutput]:
        answer = self._client.forward(data, loss_fn)
        self._used.asked += sum(datum.model_input.length for datum in data)
        return answer

    async def forward_async(self, data: list[tinker.Datum], loss_fn: Any) -> Future[tinker.ForwardBackwardOutput]:
        return self.forward(data, loss_fn)

    def save_weights_and_get_sampling_client(self) -> _Answer[CountedSamplingClient]:
        answer = self._client.save_weights_and_get_sampling_client()
        return _Answer(answer, lambda client: CountedSamplingClient(client, self._used))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)
