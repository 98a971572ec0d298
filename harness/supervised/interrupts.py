"""Ctrl-C and SIGTERM: heard at once while nothing is awaited, after the step in flight while a run is trained."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_Handler = Callable[[int, FrameType | None], object]


class Terminated(KeyboardInterrupt):
    """SIGTERM, where Ctrl-C raises KeyboardInterrupt."""


class StopRequest:
    """Whether a signal asked the run to stop.

    Attributes:
        signal: The one that did; None while none has.
    """

    signal: signal.Signals | None = None

    def raise_if_made(self) -> None:
        """Raise what the signal would have raised at once."""
        if self.signal is not None:
            _raise(self.signal, None)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal raise at once.

    ``asyncio.run`` cancels the running task on Ctrl-C instead, which a task learns at its next ``await``: a long
    stretch of plain code would go on to its end first. And of SIGTERM it knows nothing: the process would just die.
    """
    with _handling(_raise):
        yield


@contextlib.contextmanager
def finishing_the_step(announce: Callable[[str], None]) -> Iterator[StopRequest]:
    """Let the first signal only be noted, and said to ``announce`` in a line; a second one does what it did before."""
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request.signal is None:
            request.signal = signal.Signals(number)
            announce("stopping: the step in flight is finished and saved; Ctrl-C again leaves at once")
        elif callable(earlier := before.get(number)):
            earlier(number, frame)
        else:
            _raise(number, frame)

    with _handling(handle) as before:
        yield request


def _raise(number: int, frame: FrameType | None) -> None:
    raise (Terminated if number == signal.SIGTERM else KeyboardInterrupt)


@contextlib.contextmanager
def _handling(handler: _Handler) -> Iterator[dict[int, Any]]:
    """Gives what the signals did before. Only the main thread may say what they do: elsewhere nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return
    before: dict[int, Any] = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield before
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
