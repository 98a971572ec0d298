"""Answers of the SDK, waited for: by a coroutine, or by a thread that says what it waits for.

The SDK works on a thread of its own; its concurrent futures are what is waited on. Giving up on one does not cancel it:
the requests after it rely on it.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
logger = logging.getLogger(__name__)

_FIRST_TOLD = 30.0  # seconds without an answer; then at twice as many, and so on
_END_SECONDS = 1.0
_SETTLE_SECONDS = 0.2


class Worker:
    """Runs what blocks, one call after another, on a thread that nothing waits for at exit."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, call: Callable[[], T]) -> concurrent.futures.Future[T]:
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)

        self._calls.put(run)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="tinker-service", daemon=True)
            self._thread.start()
        return future

    def _work(self) -> None:
        while True:
            self._calls.get()()


@functools.cache
def end_at_exit(loop: asyncio.AbstractEventLoop) -> None:
    """Register that the SDK's work ends before the interpreter does: what its thread, which runs ``loop``, waits for.

    The SDK's HTTP client answers on threads that are not Python's. One that comes with an answer while the interpreter
    is taken down aborts the process, as the SDK's own daemon thread may: one exit of ten, with tinker 0.38.
    """
    atexit.register(_end, loop)


def _end(loop: asyncio.AbstractEventLoop) -> None:
    async def drop_all() -> threading.Thread:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_END_SECONDS)
            await asyncio.sleep(_SETTLE_SECONDS)  # the HTTP client's threads still tell of what was dropped
        return threading.current_thread()

    try:
        thread = asyncio.run_coroutine_threadsafe(drop_all(), loop).result(2 * _END_SECONDS)
    except concurrent.futures.TimeoutError:
        return  # it hangs: then it is not at work either
    loop.call_soon_threadsafe(loop.stop)
    thread.join(_END_SECONDS)


def wait(future: concurrent.futures.Future[T], doing: str, where: str, limit: float | None = None) -> T:
    """Block for the answer, and say from time to time that it is waited for.

    Raises:
        TimeoutError: after ``limit`` seconds.
    """
    started, tell_at = time.monotonic(), _FIRST_TOLD
    while True:
        waited = time.monotonic() - started
        until = tell_at if limit is None else min(tell_at, limit)
        if concurrent.futures.wait([future], max(0.0, until - waited)).done:
            return future.result()
        if until == limit:
            raise TimeoutError
        logger.warning("%s: waiting for %s for %.0f s", where, doing, tell_at)
        tell_at *= 2


async def answer(future: concurrent.futures.Future[T], limit: float | None = None) -> T:
    """The same without blocking the event loop, and without a word: the loop shows what it waits for."""
    wrapped = asyncio.wrap_future(future)
    wrapped.add_done_callback(_retrieve)  # of one that was given up, asyncio would report the error that nobody took
    return await asyncio.wait_for(asyncio.shield(wrapped), limit)


def _retrieve(wrapped: asyncio.Future[Any]) -> None:
    if not wrapped.cancelled():
        wrapped.exception()
