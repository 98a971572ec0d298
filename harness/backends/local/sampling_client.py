"""The local backend's sampling client. What is asked for before an answer is waited for is sampled together.

Which requests these are hangs on the order in which they are asked for alone, not on time, so that the same bits come
out: tasks that begin together ask together, and go on together.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tinker

    from harness.backends.local.sampler import Request, Sampler

    Answers = list[tinker.SampleResponse]
    Submit = Callable[[Callable[[], Answers]], concurrent.futures.Future[Answers]]


class _Batch:
    """Requests, sent together."""

    def __init__(self, send: Callable[[_Batch], concurrent.futures.Future[Answers]]):
        self.requests: list[Request] = []
        self.sent: concurrent.futures.Future[Answers] | None = None
        self.send = lambda: send(self)
        self._answers: asyncio.Future[Answers] | None = None

    async def answers(self) -> Answers:
        """All who wait go on in one turn of the event loop."""
        if self._answers is None:
            self._answers = asyncio.wrap_future(self.send())
            self._answers.add_done_callback(lambda done: done.cancelled() or done.exception())  # as LocalFuture does
        return await asyncio.shield(self._answers)


class SampleFuture:
    """The answer to a request: ``await`` it, or block on :meth:`result`. Until that is done nothing is sampled."""

    def __init__(self, batch: _Batch, number: int):
        self._batch = batch
        self._number = number

    def result(self, timeout: float | None = None) -> tinker.SampleResponse:
        return self._batch.send().result(timeout)[self._number]

    async def result_async(self, timeout: float | None = None) -> tinker.SampleResponse:
        await asyncio.sleep(0)  # the tasks that began with this one ask first
        return (await asyncio.wait_for(self._batch.answers(), timeout))[self._number]

    def __await__(self) -> Generator[Any, None, tinker.SampleResponse]:
        return self.result_async().__await__()


class LocalSamplingClient:
    """A ``SamplingClient`` (see :mod:`harness.backends.base`) whose model lives in this process."""

    def __init__(self, sampler: Sampler, submit: Submit, close: Callable[[], None]):
        """
        Args:
            submit: Runs what samples on the thread that has the model.
            close: Lets go of that thread, and of the training client with it.
        """
        self._sampler = sampler
        self._submit = submit
        self._lock = threading.Lock()
        self._batch = _Batch(self._send)
        self.close = close

    def sample(
        self, prompt: tinker.ModelInput, num_samples: int, sampling_params: tinker.SamplingParams
    ) -> SampleFuture:
        """Continue ``prompt`` ``num_samples`` times.

        Raises:
            BackendError: for what cannot be sampled.
        """
        with self._lock:
            self._batch.requests.append(self._sampler.request(prompt, num_samples, sampling_params))
            return SampleFuture(self._batch, len(self._batch.requests) - 1)

    async def sample_async(
        self, prompt: tinker.ModelInput, num_samples: int, sampling_params: tinker.SamplingParams
    ) -> tinker.SampleResponse:
        """:meth:`sample` by the name that it had in older SDKs."""
        return await self.sample(prompt, num_samples, sampling_params)

    def _send(self, batch: _Batch) -> concurrent.futures.Future[Answers]:
        """Send it, unless it is sent; what is asked for from now on is another batch."""
        with self._lock:
            if batch.sent is None:
                self._batch = _Batch(self._send)
                batch.sent = self._submit(lambda: self._sampler.sample(batch.requests))
            return batch.sent
