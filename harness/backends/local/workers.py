"""Threads that compute side by side, each with its share of the processors.

Where threads share each operation, they wait for each other after every one of tens of thousands; where each computes
with sequences of its own, only at the end. What they share of a model must not change while they compute.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from peft.tuners.lora.layer import ParamWrapper

T = TypeVar("T")

_MOST = 4  # Python itself runs on one thread at a time: docs/performance.md


class Workers:
    """Threads for parts of a micro-batch.

    Attributes:
        number: How many compute side by side at most.
    """

    def __init__(self, num_threads: int):
        """``num_threads``: of torch, for all together."""
        self._num_threads = num_threads
        self.number = min(num_threads, _MOST)
        self._executor = concurrent.futures.ThreadPoolExecutor(self.number, thread_name_prefix="local-backend-part")

    def run(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """The tasks' answers in their order; all have ended by then. One alone runs on this thread.

        Raises:
            What the first of them raised.
        """
        if len(tasks) == 1:
            return [tasks[0]()]
        futures = [self._submit(i, tasks) for i in range(len(tasks))]
        concurrent.futures.wait(futures)
        set_num_threads(self._num_threads)  # torch gives the number set last to threads that are new
        return [future.result() for future in futures]

    def _submit(self, i: int, tasks: Sequence[Callable[[], T]]) -> concurrent.futures.Future[T]:
        def run() -> T:
            set_num_threads(self._num_threads // len(tasks) + (i < self._num_threads % len(tasks)))
            return tasks[i]()

        try:
            return self._executor.submit(run)
        except RuntimeError:  # the interpreter is ending: what was submitted before is worked off on this thread alone
            done: concurrent.futures.Future[T] = concurrent.futures.Future()
            try:
                done.set_result(run())
            except BaseException as error:
                done.set_exception(error)
            return done

    def close(self) -> None:
        self._executor.shutdown()


def set_num_threads(number: int) -> None:
    """Of torch, on this thread. Unasked, a new thread would take what another has set last, at its first operation."""
    torch.get_num_threads()
    torch.set_num_threads(number)


def is_changed_by(compute: Callable[[], Any], model: torch.nn.Module) -> bool:
    """Whether ``compute``, which is run, writes to the model: such a model computes on one thread at a time.

    Some keep a recurrent state in a module, and some the frequencies of rotary positions, which follow the longest
    sequence. Two kinds are known by name, since it cannot be seen afterwards: frequencies that follow the sequence
    beyond a length alone, and PEFT's LoRA of parameters, as experts have them, which is put in place for each pass.
    """
    before = _state(model)
    compute()
    after = _state(model)
    return (
        before.keys() != after.keys()
        or any(after[key][0] is not value or after[key][1] != version for key, (value, version) in before.items())
        or any("dynamic" in str(getattr(module, "rope_type", "")) for module in model.modules())
        or any(isinstance(module, ParamWrapper) for module in model.modules())
    )


def _state(model: torch.nn.Module) -> dict[tuple[str, str], tuple[Any, int]]:
    """Each attribute and buffer of each module, and how often a tensor was written to."""
    return {
        (name, key): (value, value._version if isinstance(value, torch.Tensor) else 0)
        for name, module in model.named_modules()
        for key, value in (vars(module) | module._buffers).items()
    }
