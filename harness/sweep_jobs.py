"""The runs of a sweep, trained: each in a process of its own, some at a time.

What is complete is not started, so that the same command goes on where a sweep stopped; what another process trains is
left to that one; a run that fails does not stop the others.
"""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable

from harness.config_io import redact
from harness.exceptions import HarnessError
from harness.run_dir import RunDir
from harness.supervised.interrupts import StopRequest, finishing_the_step, interruptible
from harness.sweep import LOGS, Sweep, SweepRun
from harness.verify import last_line

_POLL_SECONDS = 0.1
_Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a sweep.

    Attributes:
        failed: Why and where to read more, by the run's name.
        elsewhere: The runs that another process trains.
        stop: Whether a signal stopped it.
    """

    failed: dict[str, str]
    elsewhere: list[str]
    stop: StopRequest


class _Process:
    """A run's process, in a session of its own: Ctrl-C reaches the sweep alone, which passes it on once."""

    def __init__(self, place: str, run: SweepRun, sweep: Sweep):
        self.place = place
        self.run = run
        self.log = sweep.root / LOGS / f"{run.name}.log"
        with self.log.open("ab") as out:
            self._start = out.tell()
            self._process = subprocess.Popen(
                run.command,
                env=sweep.environment,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def is_well(self) -> bool:
        return self._process.returncode == 0

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def why(self) -> str:
        code = self._process.returncode
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"{redact(last_line(self.log, self._start))} ({how}; all of it: {self.log})"


def train(sweep: Sweep, jobs: int, say: _Say) -> Outcome:
    """Train the runs that are not complete, ``jobs`` at a time, each with the recipe's own command.

    The first Ctrl-C or SIGTERM is passed on to the runs, which save and end; none is started after it. A second one is
    passed on too, and raised.

    Args:
        say: Told in a line what is begun, and what came of it.
    """
    waiting = deque((f"{i}/{len(sweep.runs)} {run.name}", run) for i, run in enumerate(sweep.runs, start=1))
    under_way: list[_Process] = []
    with interruptible(), finishing_the_step(say) as stop:
        outcome = Outcome({}, [], stop)
        is_passed_on = False
        try:
            while under_way or (waiting and not stop.signal):
                while waiting and len(under_way) < jobs and not stop.signal:
                    under_way += _begin(*waiting.popleft(), sweep, outcome, say)
                if stop.signal and not is_passed_on:
                    is_passed_on = True
                    for process in under_way:
                        process.interrupt()
                for process in [process for process in under_way if process.has_ended()]:
                    under_way.remove(process)
                    _end(process, outcome, say)
                time.sleep(_POLL_SECONDS)
        except BaseException:  # nobody will watch over them
            for process in under_way:
                process.interrupt()
            raise
    return outcome


def _begin(place: str, run: SweepRun, sweep: Sweep, outcome: Outcome, say: _Say) -> list[_Process]:
    """Start a run, where there is something to train and nobody does."""
    if run.run.is_locked():
        _leave(place, run, outcome, say)
        return []
    try:
        if run.is_complete():
            say(f"{place}: complete already{_result(run.run)}")
            return []
        say(f"{place}: {'goes on' if run.run.exists() else 'starts'}")
        return [_Process(place, run, sweep)]
    except (HarnessError, OSError) as error:  # a damaged file, no room: the others may be well
        outcome.failed[run.name] = str(error)
        say(f"{place}: failed: {error}")
        return []


def _end(process: _Process, outcome: Outcome, say: _Say) -> None:
    if process.is_well():
        say(f"{process.place}: finished{_result(process.run.run)}")
    elif outcome.stop.signal:
        say(f"{process.place}: stopped")
    elif process.run.run.is_locked():
        _leave(process.place, process.run, outcome, say)
    else:
        outcome.failed[process.run.name] = process.why()
        say(f"{process.place}: failed: {process.why()}")


def _leave(place: str, run: SweepRun, outcome: Outcome, say: _Say) -> None:
    outcome.elsewhere.append(run.name)
    say(f"{place}: another process is training it: left to that one")


def _result(run: RunDir) -> str:
    nlls = run.test_nlls()
    return f", test NLL {nlls[max(nlls)]:.4f} at step {max(nlls)}" if nlls else ""
