"""How the runs of a sweep are trained: with processes that do in a line what a recipe does in minutes."""

import contextlib
import os
import signal
import sys

import pytest

from harness.run_dir import RunDir
from harness.supervised.interrupts import Terminated
from harness.sweep import LOGS, Sweep, SweepRun
from harness.sweep_jobs import train
from tests.supervised.runs import config, run

SAVE_AND_END = """
import os, signal, sys
heard = []
def handle(*_):
    heard.append(1)
    print("heard", len(heard), flush=True)
    if len(heard) == NUM:
        sys.exit(130)
    os.kill(os.getppid(), signal.SIGINT)
signal.signal(signal.SIGINT, handle)
os.kill(os.getppid(), FIRST)
while True:
    signal.pause()
"""


@pytest.fixture
def sweep(tmp_path):
    """A sweep of runs that are told by name what their process does, in Python."""

    def make(**scripts):
        (tmp_path / LOGS).mkdir()
        runs = [
            SweepRun(RunDir(tmp_path / name), config(tmp_path / name), {}, [sys.executable, "-c", script])
            for name, script in scripts.items()
        ]
        return Sweep(tmp_path, dict(os.environ), runs)

    return make


def test_a_failure_is_told_and_stops_nobody(sweep):
    said = []
    sweep = sweep(
        a="print('before'); raise ValueError('too large')",
        b="import os; os.kill(os.getpid(), 9)",
        c="raise SystemExit(2)",
        d="print('well')",
    )
    outcome = train(sweep, 1, said.append)
    log = {name: sweep.root / LOGS / f"{name}.log" for name in "abcd"}
    assert outcome.failed == {
        "a": f"ValueError: too large (exit code 1; all of it: {log['a']})",
        "b": f"it said nothing (killed by SIGKILL; all of it: {log['b']})",
        "c": f"it said nothing (exit code 2; all of it: {log['c']})",
    }
    assert said == [
        "1/4 a: starts",
        f"1/4 a: failed: {outcome.failed['a']}",
        "2/4 b: starts",
        f"2/4 b: failed: {outcome.failed['b']}",
        "3/4 c: starts",
        f"3/4 c: failed: {outcome.failed['c']}",
        "4/4 d: starts",
        "4/4 d: finished",
    ]
    assert log["d"].read_text() == "well\n"
    assert not outcome.stop.signal and not outcome.elsewhere


def test_the_last_words_are_those_of_this_time(sweep):
    sweep = sweep(a="raise SystemExit('first')", b="raise SystemExit(1)")
    (sweep.root / LOGS / "b.log").write_text("of another day\n")
    failed = train(sweep, 1, lambda _: None).failed
    assert failed["a"].startswith("first (") and failed["b"].startswith("it said nothing (")
    assert (sweep.root / LOGS / "b.log").read_text() == "of another day\n"


ALONE = "import os; os.mkdir('PATH'); os.rmdir('PATH')"
MEET = "open('PATH', 'MODE')"  # a FIFO is not open for the one before it is for the other


def test_as_many_as_jobs_says_at_a_time(sweep, tmp_path):
    script = ALONE.replace("PATH", str(tmp_path / "alone"))
    assert not train(sweep(a=script, b=script, c=script), 1, lambda _: None).failed


def test_two_at_a_time_meet(sweep, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    script = MEET.replace("PATH", str(tmp_path / "fifo"))
    assert not train(sweep(a=script.replace("MODE", "r"), b=script.replace("MODE", "w")), 2, lambda _: None).failed


def test_what_is_complete_is_not_started(sweep, tmp_path):
    said = []
    done = run(config(tmp_path / "done"))
    nll = done.metrics()[-1]["test/nll"]
    sweep = sweep(done="raise SystemExit(1)", new="pass")
    assert not train(sweep, 1, said.append).failed
    assert said == [
        f"1/2 done: complete already, test NLL {nll:.4f} at step 15",
        "2/2 new: starts",
        "2/2 new: finished",
    ]


def test_a_run_that_was_asked_for_more_goes_on(tmp_path):
    (tmp_path / LOGS).mkdir()
    asked = config(tmp_path / "a", max_steps=4)
    run(asked)
    said = []
    longer = SweepRun(RunDir(tmp_path / "a"), config(tmp_path / "a", max_steps=8), {}, [sys.executable, "-c", "pass"])
    train(Sweep(tmp_path, dict(os.environ), [longer]), 1, said.append)
    assert said[0] == "1/1 a: goes on"


def test_what_another_process_trains_is_left_to_it(sweep):
    """Before it would be started, or by another that was quicker."""
    said = []
    sweep = sweep(a="raise SystemExit(9)", b="raise SystemExit(2)", c="pass")
    with contextlib.ExitStack() as held:
        held.enter_context(sweep.runs[0].run.lock())

        def say(line):
            said.append(line)
            if line == "2/3 b: starts":
                held.enter_context(sweep.runs[1].run.lock())

        outcome = train(sweep, 1, say)
    assert (outcome.elsewhere, outcome.failed) == (["a", "b"], {})
    assert said == [
        "1/3 a: another process is training it: left to that one",
        "2/3 b: starts",
        "2/3 b: another process is training it: left to that one",
        "3/3 c: starts",
        "3/3 c: finished",
    ]


def test_a_damaged_run_is_a_failure_of_its_own(sweep, tmp_path):
    run(config(tmp_path / "a"))
    path = tmp_path / "a" / "attempts.jsonl"
    path.write_text("{}\n" + path.read_text())
    outcome = train(sweep(a="pass", b="pass"), 1, lambda _: None)
    assert list(outcome.failed) == ["a"] and "attempts.jsonl:1: no 'attempt' in it" in outcome.failed["a"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_and_nothing_more_is_started(sweep, number):
    said = []
    script = SAVE_AND_END.replace("NUM", "1").replace("FIRST", str(int(number)))
    sweep = sweep(a=script, b="pass")
    outcome = train(sweep, 1, said.append)
    assert said == [
        "1/2 a: starts",
        "stopping: the step in flight is finished and saved; Ctrl-C again leaves at once",
        "1/2 a: stopped",
    ]
    assert (sweep.root / LOGS / "a.log").read_text() == "heard 1\n"
    assert not outcome.failed
    with pytest.raises(KeyboardInterrupt) as raised:
        outcome.stop.raise_if_made()
    assert isinstance(raised.value, Terminated) == (number == signal.SIGTERM)


def test_a_second_signal_is_passed_on_and_leaves_at_once(sweep):
    sweep = sweep(a=SAVE_AND_END.replace("NUM", "2").replace("FIRST", "signal.SIGINT"))
    with pytest.raises(KeyboardInterrupt):
        train(sweep, 1, lambda _: None)
    _, status = os.wait()
    assert os.waitstatus_to_exitcode(status) == 130
    assert (sweep.root / LOGS / "a.log").read_text() == "heard 1\nheard 2\n"
