"""How far a run is: a bar in a terminal, plain lines elsewhere."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from harness import metric_keys
from harness.run_dir import Row

_POLL_SECONDS = 1.0
_FIRST_TOLD = 30.0  # seconds without an answer, before a line says so; then at twice as many, and so on


@dataclass(frozen=True)
class Awaited:
    """An answer that is waited for, since when on ``time.monotonic``'s clock."""

    what: str
    since: float


class ProgressDisplay:
    """Shows each row of metrics as it is made. Use it as a context manager."""

    def __init__(self, console: Console, *, total_steps: int, next_step: int):
        self._console = console
        self._total = total_steps
        self._first = next_step
        self._started = time.monotonic()
        self._tested = ""  # what the last evaluation said
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[shown]}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("train", total=total_steps, completed=next_step, shown="")

    def __enter__(self) -> "ProgressDisplay":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        (self._bar.console if self._bar else self._console).print(line)

    @contextlib.contextmanager
    def watching(self, awaited: Callable[[], Awaited | None]) -> Iterator[None]:
        """Show what is waited for where that takes long, while the context lasts."""
        task = asyncio.get_running_loop().create_task(self._watch(awaited))
        try:
            yield
        finally:
            task.cancel()

    async def _watch(self, awaited: Callable[[], Awaited | None]) -> None:
        told: Awaited | None = None
        tell_at = _FIRST_TOLD
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            now = awaited()
            if now is None:
                continue
            if now is not told:
                told, tell_at = now, _FIRST_TOLD
            waited = time.monotonic() - now.since
            if waited >= tell_at or (self._bar and waited >= _FIRST_TOLD):
                self.waiting(now.what, waited)
                while waited >= tell_at:
                    tell_at *= 2

    def waiting(self, what: str, seconds: float) -> None:
        """Show that the answer to something is waited for, in the place of what was shown last."""
        line = f"waiting for {what} for {duration(seconds)}"
        if self._bar:
            self._bar.update(self._task, shown=line)
        else:
            self._console.print(line)

    def update(self, row: Row) -> None:
        """Show a row: a step that was trained, or the last evaluation."""
        step = row[metric_keys.STEP]
        is_trained = metric_keys.TRAIN_NLL in row
        train = f"train {row[metric_keys.TRAIN_NLL]:.4f}" if is_trained else ""
        test = "  ".join(f"{key.removesuffix('/nll')} {row[key]:.4f}" for key in row if metric_keys.is_test_nll(key))
        others = "  ".join(f"{key} {row[key]:.4g}" for key in row if not metric_keys.is_own(key))  # of evaluators
        speed = f"{row[metric_keys.NUM_TOKENS] / row[metric_keys.TIME_STEP]:,.0f} tokens/s" if is_trained else ""
        done = step + is_trained
        if self._bar:
            self._tested = test or self._tested
            self._bar.update(self._task, completed=done, shown=_joined(train, self._tested, speed))
            if test or others:
                self._bar.console.print(_joined(f"step {step}", train, test, others))
        else:
            left = (time.monotonic() - self._started) / max(1, done - self._first) * (self._total - done)
            remaining = f"{duration(left)} left" if done < self._total else ""
            self._console.print(_joined(f"step {step}/{self._total}", train, test, others, speed, remaining))


def _joined(*parts: str) -> str:
    return "  ".join(filter(None, parts))


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
