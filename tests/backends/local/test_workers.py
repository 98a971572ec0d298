import threading
from collections.abc import Iterator

import pytest
import torch

from harness.backends.local.workers import Workers


@pytest.fixture
def workers() -> Iterator[Workers]:
    before = torch.get_num_threads()
    made = Workers(num_threads=2)
    yield made
    made.close()
    torch.set_num_threads(before)


@pytest.mark.parametrize(("num_threads", "number"), [(1, 1), (2, 2), (3, 3), (4, 4), (64, 4)])
def test_four_at_most(num_threads: int, number: int):
    workers = Workers(num_threads)
    assert workers.number == number
    workers.close()


def test_no_thread_is_left_idle():
    before = torch.get_num_threads()
    workers = Workers(7)
    assert workers.run([torch.get_num_threads] * 4) == [2, 2, 2, 1]
    assert workers.run([torch.get_num_threads] * 2) == [4, 3]
    workers.close()
    torch.set_num_threads(before)


def test_once_threads_take_nothing_new_all_runs_here(workers: Workers):
    """As when the interpreter ends while what was submitted is worked off."""
    workers.close()
    here = threading.current_thread()
    assert workers.run([lambda: (threading.current_thread(), torch.get_num_threads())] * 2) == [(here, 1)] * 2
    with pytest.raises(ZeroDivisionError):
        workers.run([lambda: 1 // 0] * 2)
    assert torch.get_num_threads() == 2


def test_they_run_at_the_same_time_and_answer_in_order(workers: Workers):
    both = threading.Barrier(2)

    def task(name: str) -> tuple[str, str, int]:
        both.wait(60)
        return name, threading.current_thread().name, torch.get_num_threads()

    answers = workers.run([lambda: task("first"), lambda: task("second")])
    assert [(name, threads) for name, _, threads in answers] == [("first", 1), ("second", 1)]
    assert len({thread for _, thread, _ in answers}) == 2


def test_one_alone_runs_here_with_all_threads(workers: Workers):
    torch.set_num_threads(2)
    assert workers.run([lambda: (threading.current_thread(), torch.get_num_threads())]) == [
        (threading.current_thread(), 2)
    ]


def test_this_thread_and_new_ones_have_all_threads_again(workers: Workers):
    workers.run([lambda: None] * 2)
    seen = []
    new = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    new.start()
    new.join()
    assert [torch.get_num_threads(), *seen] == [2, 2]


def test_what_fails_is_raised_once_all_have_ended(workers: Workers):
    failed, ended = threading.Event(), threading.Event()

    def fail() -> None:
        failed.set()
        raise ValueError("no")

    def go_on() -> None:
        assert failed.wait(60)
        ended.set()

    with pytest.raises(ValueError, match="no"):
        workers.run([fail, go_on])
    assert ended.is_set()
