"""Ctrl-C and SIGTERM while a run is trained."""

import os
import signal

import pytest

from harness.exceptions import BackendError
from harness.run_dir import RunDir
from harness.supervised.interrupts import Terminated, finishing_the_step
from tests.fakes import FakeBackend, FakeClient
from tests.supervised.runs import config, run, same


def send_at(monkeypatch, name, *numbers, after=0):
    """Send signals to this process while the backend works at the request ``name``, after so many of them."""
    work = FakeClient.work
    left = [after]

    def work_and_send(self):
        request = self._queue[0][1]
        work(self)
        if request == name:
            if left[0] == 0:
                for number in numbers:
                    signal.raise_signal(number)
            left[0] -= 1

    monkeypatch.setattr(FakeClient, "work", work_and_send)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
@pytest.mark.parametrize("submit_ahead", [0, 2])
def test_the_step_in_flight_is_finished_and_saved(tmp_path, monkeypatch, capsys, number, error, submit_ahead):
    with monkeypatch.context() as patch, pytest.raises(error):
        send_at(patch, "optim_step", number, after=6)
        run(config(tmp_path / "r", submit_ahead=submit_ahead))
    assert "stopping: the step in flight is finished and saved" in capsys.readouterr().out
    stopped = RunDir(tmp_path / "r")
    num_trained = len(stopped.metrics())
    assert num_trained == 7 + submit_ahead
    assert stopped.checkpoints()[-1].step == num_trained
    assert not stopped.checkpoints()[-1].final
    end = stopped.attempts()[-1]
    assert (end["state"], end["error"]) == ("KILLED", None)
    assert not stopped.is_locked()
    resumed = run(config(tmp_path / "r", submit_ahead=submit_ahead))
    assert resumed.attempts()[-2]["next_step"] == num_trained
    assert same(resumed.metrics()) == same(run(config(tmp_path / "whole")).metrics())


def test_a_second_signal_leaves_at_once(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        send_at(patch, "optim_step", signal.SIGINT, signal.SIGINT, after=7)
        run(config(tmp_path / "r", submit_ahead=0))
    stopped = RunDir(tmp_path / "r")
    assert (len(stopped.metrics()), stopped.checkpoints()[-1].step) == (7, 6)  # the step in flight is let go
    assert stopped.attempts()[-1]["state"] == "KILLED"
    assert same(run(config(tmp_path / "r")).metrics()) == same(run(config(tmp_path / "whole")).metrics())


def test_a_signal_during_the_last_evaluation_lets_the_run_end(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        send_at(patch, "save_state 000015", signal.SIGTERM)
        with pytest.raises(Terminated):
            run(config(tmp_path / "r"))
    assert run(config(tmp_path / "r")).state() == "FINISHED"
    with monkeypatch.context() as patch:
        send_at(patch, "forward", signal.SIGTERM, after=4)
        finished = run(config(tmp_path / "s"))
    assert finished.state() == "FINISHED"
    assert finished.metrics()[-1]["step"] == 15


def test_a_stop_before_anything_was_trained_saves_nothing(tmp_path, monkeypatch):
    """The first request is the evaluation; the update after it is in flight and is finished."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        send_at(patch, "forward", signal.SIGINT)
        run(config(tmp_path / "r", submit_ahead=0))
    assert [r.step for r in RunDir(tmp_path / "r").checkpoints()] == [1]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FakeBackend, "tolerance", lambda self, numerics: os.kill(os.getpid(), signal.SIGINT) or 0.0)
        run(config(tmp_path / "s"))
    assert RunDir(tmp_path / "s").checkpoints() == []


def test_what_signals_did_before_they_do_again(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run(config(tmp_path / "r", max_steps=1))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_only_the_first_signal_is_noted():
    said = []
    with pytest.raises(Terminated), finishing_the_step(said.append) as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        assert len(said) == 1
        signal.raise_signal(signal.SIGTERM)
    stop.signal = None
    stop.raise_if_made()


def test_a_save_that_fails_stops_the_run_and_is_not_logged(tmp_path, monkeypatch):
    def fail(self, name):
        def request():
            raise BackendError("checkpoints/000003: cannot be written (No space left on device): make room")

        return self._submit(f"save_state {name}", request)

    with monkeypatch.context() as patch, pytest.raises(BackendError, match="No space left"):
        patch.setattr(FakeClient, "save_state", fail)
        run(config(tmp_path / "r"))
    failed = RunDir(tmp_path / "r")
    assert failed.checkpoints() == []
    assert failed.attempts()[-1]["state"] == "FAILED"
    assert same(run(config(tmp_path / "r")).metrics()) == same(run(config(tmp_path / "whole")).metrics())
