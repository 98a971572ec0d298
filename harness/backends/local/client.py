"""The local backend's training client: tinker's requests, run in the order of submission on one thread.

A save is a copy there; a second thread writes the copies, one after another, while training goes on.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import re
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from harness.backends.local import checkpoint
from harness.backends.local.sampling_client import LocalSamplingClient
from harness.exceptions import BackendError
from harness.run_dir import CHECKPOINTS_DIR

if TYPE_CHECKING:
    import tinker

    from harness.backends.local.engine import Engine

T = TypeVar("T")
Failure = tuple[str, BaseException]  # the request and its error
Write = Callable[[Path], None]  # what was copied, to a folder


class LocalFuture(Generic[T]):
    """The answer to a request: ``await`` it, or block on :meth:`result`.

    Giving up on it (a timeout, a cancelled task) does not take the request out of the queue: those after it rely on
    it. tinker's ``APIFuture`` would, so this is not one.
    """

    def __init__(self, future: concurrent.futures.Future[T]):
        self._future = future

    def result(self, timeout: float | None = None) -> T:
        """Block for the answer, at most ``timeout`` seconds; raise what the request raised, or TimeoutError."""
        return self._future.result(timeout)

    async def result_async(self, timeout: float | None = None) -> T:
        """The same without blocking the event loop."""
        answer = asyncio.wrap_future(self._future)
        answer.add_done_callback(_retrieve)  # of one that was given up, asyncio would report the error that nobody took
        return await asyncio.wait_for(asyncio.shield(answer), timeout)

    def __await__(self) -> Generator[Any, None, T]:
        return self.result_async().__await__()


@dataclasses.dataclass(frozen=True)
class Saved:
    """The answer to a save. ``path`` is relative to the run directory, with ``/`` on every system."""

    path: str


class LocalTrainingClient:
    """A ``TrainingClient`` (see :mod:`harness.backends.base`) whose model lives in this process.

    Once a request has failed, those after it fail too: no step is made with half a gradient. Where it is a write that
    fails, they are those that have not run by then. A sample changes nothing: where one fails, it does so alone.
    """

    def __init__(self, make_engine: Callable[[], Engine], run_path: Path):
        """``make_engine`` runs on the thread that will serve the requests: torch counts its threads by thread."""
        self._run_path = run_path
        self._failed: Failure | None = None  # set by the worker
        self._unwritten: Failure | None = None  # set by the writer: requests after it are under way meanwhile
        self._last_state: tuple[str, int] | None = None  # name and step of the state copied last
        checkpoint.clean(run_path)
        self._worker = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="local-backend")
        self._writer = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="local-backend-writer")
        try:
            self._engine = self._worker.submit(make_engine).result()
        except BaseException:
            self._worker.shutdown()
            raise

    def forward(self, data: list[tinker.Datum], loss_fn: str) -> LocalFuture[tinker.ForwardBackwardOutput]:
        """Log-probabilities of each datum's targets. Where the weight is 0 none is computed: 0.0 stands there."""
        return self._submit("forward", lambda: self._engine.forward(data, loss_fn, backward=False))

    def forward_backward(self, data: list[tinker.Datum], loss_fn: str) -> LocalFuture[tinker.ForwardBackwardOutput]:
        """The same, and add the gradient of ``-sum(logprobs * weights)`` over all of ``data``."""
        return self._submit("forward_backward", lambda: self._engine.forward(data, loss_fn, backward=True))

    def optim_step(self, adam_params: tinker.AdamParams) -> LocalFuture[tinker.OptimStepResponse]:
        """One AdamW update with the summed gradient, then cleared. The answer's metrics have its ``grad_norm``
        before clipping."""
        return self._submit("optim_step", lambda: self._engine.optim_step(adam_params))

    def save_state(self, name: str) -> LocalFuture[Saved]:
        """Save weights and optimiser to ``checkpoints/<name>`` in the run directory. Requests after it run as soon as
        they are copied; the answer comes once they are durable."""
        return self._submit_save("save_state", lambda: self._copy_state(name))

    def save_weights_for_sampler(self, name: str) -> LocalFuture[Saved]:
        """Save weights alone. A state is a PEFT adapter already: where the one of this name was just saved, that is
        the answer; else they go to ``checkpoints/<name>-weights``, since they must not replace a state."""
        return self._submit_save("save_weights_for_sampler", lambda: self._copy_weights(name))

    def save_weights_and_get_sampling_client(self) -> LocalFuture[LocalSamplingClient]:
        """What samples with the weights as they are after every request submitted so far. It keeps a copy of the LoRA
        in memory; what it is asked for runs in its place among the other requests."""

        def make() -> LocalSamplingClient:
            return LocalSamplingClient(self._engine.sampler(), self._enqueue_sample, self.close)

        return self._submit("save_weights_and_get_sampling_client", make)

    async def forward_async(self, data: list[tinker.Datum], loss_fn: str) -> LocalFuture[tinker.ForwardBackwardOutput]:
        """:meth:`forward` by the name that it had in older SDKs."""
        return self.forward(data, loss_fn)

    def close(self) -> None:
        """Finish a write under way, and no more than the micro-batch of what else runs; drop the other requests."""
        for thread in (self._writer, self._worker):
            thread.shutdown(wait=False, cancel_futures=True)
        self._engine.closing.set()  # last: what waits is dropped by then, and does not fail for what ends here
        for thread in (self._worker, self._writer):
            thread.shutdown()
        self._engine.close()

    def _submit(self, request: str, run: Callable[[], T]) -> LocalFuture[T]:
        return LocalFuture(self._enqueue(request, run))

    def _enqueue_sample(self, run: Callable[[], T]) -> concurrent.futures.Future[T]:
        def run_unless_failed() -> T:
            _raise_after(self._failed or self._unwritten, "sample")
            return run()

        return self._worker.submit(run_unless_failed)

    def _enqueue(self, request: str, run: Callable[[], T]) -> concurrent.futures.Future[T]:
        def run_unless_failed() -> T:
            _raise_after(self._failed or self._unwritten, request)
            try:
                return run()
            except BaseException as error:
                self._failed = request, error
                raise

        return self._worker.submit(run_unless_failed)

    def _submit_save(self, request: str, copy: Callable[[], tuple[str, Write | None]]) -> LocalFuture[Saved]:
        """``copy`` answers with the checkpoint's name, and what writes it unless a save before this one does."""
        copied = self._submit(request, copy)

        def write_unless_failed() -> Saved:
            name, write = copied.result()
            _raise_after(self._unwritten, request)
            assert re.fullmatch(checkpoint.NAME, name), f"{name!r} is not the name of a folder"
            path = f"{CHECKPOINTS_DIR}/{name}"
            if write is not None:
                try:
                    write(self._run_path / path)
                except BaseException as error:
                    self._unwritten = request, error
                    raise
            return Saved(path)

        return LocalFuture(self._writer.submit(write_unless_failed))

    def _copy_state(self, name: str) -> tuple[str, Write]:
        self._last_state = name, self._engine.num_steps
        self._engine.last_state = f"{CHECKPOINTS_DIR}/{name}"
        return name, self._engine.snapshot(with_optimizer=True)

    def _copy_weights(self, name: str) -> tuple[str, Write | None]:
        if self._last_state == (name, self._engine.num_steps):
            return name, None
        return f"{name}-weights", self._engine.snapshot(with_optimizer=False)


def _retrieve(answer: asyncio.Future[Any]) -> None:
    if not answer.cancelled():
        answer.exception()


def _raise_after(failure: Failure | None, request: str) -> None:
    if failure is not None:
        earlier, error = failure
        raise BackendError(f"{error} (in {earlier}; {request} after it was not run)") from error
