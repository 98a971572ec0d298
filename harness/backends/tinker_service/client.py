"""The SDK's training client as the loop uses it: what it raises is in plain words, what it saves says what it is."""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from harness.backends.base import Saved
from harness.backends.tinker_service import failures, waiting
from harness.backends.tinker_service.server import Server
from harness.exceptions import ServiceError

if TYPE_CHECKING:
    import tinker

T = TypeVar("T")

_COPY_TTL_SECONDS = 3600  # the least that the service takes


class ServiceFuture(Generic[T]):
    """The answer to a request. Giving up on it leaves the request in the queue: those after it rely on it."""

    def __init__(
        self,
        future: concurrent.futures.Future[T],
        doing: str,
        where: str,
        limit: float | None,
        examples: Examples | None = None,
    ):
        """
        Args:
            doing: The request, in words.
            limit: Seconds that it is waited for; None: for ever.
            examples: What it sends.
        """
        self._future = future
        self._doing = doing
        self._where = where
        self._limit = limit
        self._examples = examples

    def result(self, timeout: float | None = None) -> T:
        """Block for the answer."""
        with failures.in_plain_words(self._doing, self._where):
            return self._checked(waiting.wait(self._future, self._doing, self._where, timeout or self._limit))

    async def result_async(self, timeout: float | None = None) -> T:
        """The same without blocking the event loop.

        Raises:
            ServiceError: for what the service refused or failed, or did not answer in time.
        """
        with failures.in_plain_words(self._doing, self._where):
            try:
                return self._checked(await waiting.answer(self._future, timeout or self._limit))
            except Exception as error:
                if self._examples and failures.is_rejection(error) and (found := await self._examples.find_rejected()):
                    raise ServiceError(f"{self._where}: {self._doing}: {found}") from error
                raise

    def __await__(self) -> Generator[Any, None, T]:
        return self.result_async().__await__()

    def _checked(self, answer: T) -> T:
        if self._examples:
            self._examples.check(answer)
        return answer


class Examples:
    """The examples of a request: whether an answer is of them, and which of them the server rejects."""

    def __init__(self, client: tinker.TrainingClient, data: Sequence[tinker.Datum], limit: float | None):
        self._client = client
        self._data = data
        self._limit = limit

    def check(self, answer: Any) -> None:
        """Raise ValueError where ``answer`` has not one log-probability for each token of each example."""
        outputs = answer.loss_fn_outputs
        if len(outputs) != len(self._data):
            raise ValueError(f"its answer has {len(outputs)} outputs, not {len(self._data)}")
        for number, (output, datum) in enumerate(zip(outputs, self._data, strict=True), start=1):
            length = len(output["logprobs"].to_numpy()) if "logprobs" in output else 0
            if length != datum.model_input.length:
                raise ValueError(
                    f"its answer has {length} log-probabilities for the {datum.model_input.length} tokens of example "
                    f"{number}"
                )

    async def find_rejected(self) -> str | None:
        """The first one that is rejected, and why, in words: each is asked for alone. None where it is none of them, or
        all of several: then it is not the data."""
        answers = [self._client.forward([datum], "cross_entropy") for datum in self._data]
        reasons = [await self._reason(answer) for answer in answers]
        if not any(reasons) or (all(reasons) and len(reasons) > 1):
            return None
        number, reason = next((number, reason) for number, reason in enumerate(reasons, start=1) if reason)
        datum = self._data[number - 1]
        known = [getattr(datum, name, "") for name in ("example_id", "where")]
        described = ", ".join([*filter(None, known), f"{datum.model_input.length} tokens"])
        return (
            f"example {number} of {len(self._data)} ({described}) was rejected: {reason}: leave it out, or lower "
            "max_length"
        )

    async def _reason(self, answer: tinker.APIFuture[Any]) -> str | None:
        try:
            await waiting.answer(answer.future(), self._limit)
        except Exception as error:
            if failures.is_rejection(error):
                return failures.said(error)
            raise
        return None


class ServiceTrainingClient:
    """A ``TrainingClient`` (see :mod:`harness.backends.base`) over the SDK's. Requests are submitted at once and run in
    their order, saves among them."""

    def __init__(
        self,
        service: tinker.ServiceClient,
        client: tinker.TrainingClient,
        server: Server,
        *,
        ttl_seconds: int,
        limit: float | None,
        describe: Callable[[], Mapping[str, str]],
        caution: str | None = None,
    ):
        """
        Args:
            ttl_seconds: After which what is saved is deleted by the service; 0: never.
            limit: Seconds that an answer is waited for; None: for ever.
            describe: Metadata for what is saved now.
            caution: What is said when the model is first trained.
        """
        self.service = service
        self._client = client
        self._server = server
        self._ttl_seconds = ttl_seconds or None
        self._limit = limit
        self._describe = describe
        self._caution = caution

    def forward(self, data: list[tinker.Datum], loss_fn: Any) -> ServiceFuture[tinker.ForwardBackwardOutput]:
        return self._on_data("forward", self._client.forward(data, loss_fn), data)

    def forward_backward(self, data: list[tinker.Datum], loss_fn: Any) -> ServiceFuture[tinker.ForwardBackwardOutput]:
        return self._on_data("forward_backward", self._client.forward_backward(data, loss_fn), data)

    def optim_step(self, adam_params: tinker.AdamParams) -> ServiceFuture[Any]:
        self._server.tell_once("caution", self._caution)
        if adam_params.grad_clip_norm > 0 and not self._server.is_hosted_service:
            self._server.tell_once("clipping", "it does not say whether it heeds grad_clip_norm (SkyRL does not)")
        return self._future(self._client.optim_step(adam_params), "optim_step")

    def save_state(self, name: str) -> ServiceFuture[Saved]:
        """Save weights and optimiser; the answer's path begins with ``tinker://``."""
        metadata = dict(self._describe())
        saved = self._client.save_state(name, ttl_seconds=self._ttl_seconds, user_metadata=metadata)
        return self._saved(saved, f"save_state {name}")

    def save_weights_for_sampler(self, name: str) -> ServiceFuture[Saved]:
        """Save weights alone. The SDK takes its place in the queue a moment after this returns: ask for nothing more
        before it is answered."""
        metadata = dict(self._describe())
        saved = self._client.save_weights_for_sampler(name, ttl_seconds=self._ttl_seconds, user_metadata=metadata)
        return self._saved(saved, f"save_weights_for_sampler {name}")

    def save_weights_external(self, name: str) -> ServiceFuture[Saved]:
        """Save a copy of the weights as files that can be fetched, for an hour."""
        saved = self._client.save_weights_external(name, ttl_seconds=_COPY_TTL_SECONDS)
        return self._future(saved, f"save_weights_external {name}")

    def save_weights_and_get_sampling_client(self) -> ServiceFuture[ServiceSamplingClient]:
        """What samples with the weights as they are after every request submitted so far; the SDK takes its place in
        the queue at once."""
        made = self._client.save_weights_and_get_sampling_client().future()
        client: concurrent.futures.Future[ServiceSamplingClient] = concurrent.futures.Future()
        made.add_done_callback(lambda done: self._wrap(done, client))
        doing = "save_weights_and_get_sampling_client"
        return ServiceFuture(client, doing, self._server.address, self._limit)

    async def forward_async(
        self, data: list[tinker.Datum], loss_fn: Any
    ) -> ServiceFuture[tinker.ForwardBackwardOutput]:
        """:meth:`forward` by the name that it had in older SDKs."""
        return self.forward(data, loss_fn)

    def _wrap(
        self,
        done: concurrent.futures.Future[tinker.SamplingClient],
        client: concurrent.futures.Future[ServiceSamplingClient],
    ) -> None:
        if error := done.exception():
            client.set_exception(error)
        else:
            client.set_result(ServiceSamplingClient(self.service, done.result(), self._server.address, self._limit))

    def _on_data(
        self, request: str, future: tinker.APIFuture[Any], data: list[tinker.Datum]
    ) -> ServiceFuture[tinker.ForwardBackwardOutput]:
        examples = Examples(self._client, data, self._limit)
        doing = f"{request} of {len(data)} example{'s' * (len(data) != 1)}"
        return ServiceFuture(future.future(), doing, self._server.address, self._limit, examples)

    def _saved(self, future: tinker.APIFuture[Any], doing: str) -> ServiceFuture[Saved]:
        future.future().add_done_callback(self._note)
        return self._future(future, doing)

    def _note(self, done: concurrent.futures.Future[Any]) -> None:
        if not done.cancelled() and not done.exception():
            self._server.saved.add(done.result().path)

    def _future(self, future: tinker.APIFuture[Any], doing: str) -> ServiceFuture[Any]:
        return ServiceFuture(future.future(), doing, self._server.address, self._limit)


class ServiceSamplingClient:
    """A ``SamplingClient`` (see :mod:`harness.backends.base`) over the SDK's, which has all that this one has not."""

    def __init__(self, service: tinker.ServiceClient, client: tinker.SamplingClient, where: str, limit: float | None):
        logging.getLogger("tinker.lib.retry_handler").setLevel(logging.CRITICAL)  # it would tell a failure once more
        self.service = service
        self._client = client
        self._where = where
        self._limit = limit

    def sample(
        self, prompt: tinker.ModelInput, num_samples: int, sampling_params: tinker.SamplingParams, **more: Any
    ) -> ServiceFuture[tinker.SampleResponse]:
        """Continue ``prompt`` ``num_samples`` times; ``more`` as the SDK's ``sample`` has it."""
        answer = self._client.sample(prompt, num_samples, sampling_params, **more)
        doing = f"a sample after {prompt.length} tokens"
        return ServiceFuture(answer.future(), doing, self._where, self._limit)

    async def sample_async(
        self, prompt: tinker.ModelInput, num_samples: int, sampling_params: tinker.SamplingParams, **more: Any
    ) -> tinker.SampleResponse:
        """:meth:`sample` by the name that it had in older SDKs."""
        return await self.sample(prompt, num_samples, sampling_params, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)
