"""Datasets that only iterate: ``__len__`` and ``__iter__`` that yields datums, and no ``get_batch``.

What they need to be trained is a batch size and the meaning of their length. The batch size is the dataset's own
(``dataset.batch_size``, or ``dataset.config.batch_size``), else the builder's. The length is held against the number
of datums n that one pass yields, counted once before the run starts:

| ``len``                                  | means   | batches an epoch                           |
| ---------------------------------------- | ------- | ------------------------------------------ |
| n                                        | samples | ``n // batch_size``                        |
| ``n // batch_size``, or that rounded up  | batches | ``len``; rounded up, the last one is small |
| anything else                            |         | refused: half of the data may be meant     |

A batch is found by iterating up to it, so every pass must yield the same datums in the same order, unless the dataset
has a ``set_epoch`` that decides it: Python's, NumPy's and torch's random numbers are the same in each pass, and what it
yields is held against the first.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.exceptions import DataError
from harness.supervised.types import SupervisedDataset

if TYPE_CHECKING:
    import tinker


def by_index(dataset: Any, builder: Any) -> SupervisedDataset:
    """``dataset``, or where it only iterates, one that has its batches by index. The batches of a class that is not
    ours are checked.

    Raises:
        DataError: where it is no dataset, and where its length and its batch size do not fit what it yields.
    """
    kind = type(dataset)
    if not isinstance(dataset, SupervisedDataset):
        raise DataError(
            f"{type(builder).__name__} gave a {kind.__name__} as a dataset: derive its class from "
            "harness.supervised.types.SupervisedDataset"
        )
    if (length := kind.__len__(dataset)) < 0:
        raise DataError(f"{kind.__name__}: its length is {length}: it must have at least one batch")
    if kind.get_batch is not SupervisedDataset.get_batch:
        is_ours = kind.get_batch.__module__.startswith("harness.")  # it checks row by row
        return dataset if is_ours else CheckedDataset(dataset)
    if not hasattr(kind, "__iter__"):
        raise DataError(f"{kind.__name__} has neither get_batch nor __iter__: define one of them")
    return IteratedDataset(dataset, _batch_size(dataset, builder))


class CheckedDataset(SupervisedDataset):
    """A dataset whose batches somebody else makes: what cannot be trained on is refused, with where it came from."""

    def __init__(self, dataset: SupervisedDataset):
        self._dataset = dataset

    def get_batch(self, index: int) -> list[tinker.Datum]:
        return self._checked(self._dataset.get_batch(index), f"get_batch({index})")

    def __len__(self) -> int:
        return len(self._dataset)

    def set_epoch(self, seed: int = 0) -> None:
        self._dataset.set_epoch(seed)

    def num_tokens(self, index: int) -> int:
        from harness.supervised.datum import num_trained_tokens

        return num_trained_tokens(self.get_batch(index))

    def all_batches(self) -> list[list[tinker.Datum]]:
        return [self._checked(batch, "all_batches()") for batch in self._dataset.all_batches()]

    @property
    def num_left_over(self) -> int:
        return self._dataset.num_left_over

    @property
    def quarantined(self) -> Sequence[Mapping[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._dataset.quarantined

    def fingerprint(self) -> str | None:
        return self._dataset.fingerprint()

    def _checked(self, batch: Any, call: str) -> list[tinker.Datum]:
        from harness.supervised.datum import fault

        datums = list(batch) if isinstance(batch, Iterable) else [batch]
        found = next(filter(None, map(fault, datums)), None)
        if found or not isinstance(batch, Iterable):
            raise DataError(
                f"{type(self._dataset).__name__}: {call} gave {found or 'a single datum'}: it must give a list of "
                "tinker.Datums with a target and a weight for each token of its input"
            )
        return datums


class IteratedDataset(SupervisedDataset):
    """The batches of a dataset that only iterates, in its own order."""

    def __init__(self, dataset: SupervisedDataset, batch_size: int):
        from harness.supervised.datum import digest

        self._dataset: Any = dataset
        self._batch_size = batch_size
        self._name = type(dataset).__name__
        self._has_epochs = type(dataset).set_epoch is not SupervisedDataset.set_epoch
        self._random_state = _random_state()  # in which every pass begins
        declared = len(dataset)
        most = (declared + 1) * batch_size  # whatever yields more, its length means neither
        counting = _Pass((digest([datum]) for datum in self._yielded()), self._random_state)
        self._digests = counting.read(0, most)
        n = len(self._digests)
        if declared == n:
            self._num_batches = n // batch_size
        elif declared in (n // batch_size, -(-n // batch_size)):
            self._num_batches = declared
        else:
            raise DataError(
                f"{self._name}: its length is {declared}, but it yields {'at least ' if n == most else ''}{n} datums: "
                f"neither so many samples nor batches of {batch_size}; make __len__ return one of these"
            )
        self._restart()

    def get_batch(self, index: int) -> list[tinker.Datum]:
        if not 0 <= index < self._num_batches:
            raise IndexError(f"batch {index} of {self._num_batches}")
        start = index * self._batch_size
        if start < self._pass.position:
            self._restart()
        batch = self._pass.read(start - self._pass.position, self._batch_size)
        if index == self._num_batches - 1:
            self._pass.read(len(self._digests), 0)  # to its end, should it go on after the first one's
        return batch

    def __len__(self) -> int:
        return self._num_batches

    def set_epoch(self, seed: int = 0) -> None:
        self._dataset.set_epoch(seed)
        self._restart()

    def num_tokens(self, index: int) -> int:
        from harness.supervised.datum import num_trained_tokens

        return num_trained_tokens(self.get_batch(index))

    def all_batches(self) -> list[list[tinker.Datum]]:
        return [_Pass(self._as_before(), self._random_state).read(0, len(self._digests) + 1)]

    @property
    def num_left_over(self) -> int:
        return max(0, len(self._digests) - self._num_batches * self._batch_size)

    def fingerprint(self) -> str:
        return hashlib.sha256("".join(self._digests).encode()).hexdigest()[:16]

    def _restart(self) -> None:
        self._pass = _Pass(self._as_before(), self._random_state)

    def _yielded(self) -> Iterator[tinker.Datum]:
        from harness.supervised.datum import fault

        for datum in self._dataset:
            if found := fault(datum):
                raise DataError(
                    f"{self._name}: __iter__ yields {found}: it must yield a tinker.Datum at a time, with a target "
                    "and a weight for each token of its input (for batches define get_batch)"
                )
            yield datum

    def _as_before(self) -> Iterator[tinker.Datum]:
        """The datums of a later pass, held against the first."""
        from harness.supervised.datum import digest

        n = len(self._digests)
        number = -1
        for number, datum in enumerate(self._yielded()):
            if number == n:
                raise self._differs(f"more than the {n} datums of the first")
            if not self._has_epochs and digest([datum]) != self._digests[number]:
                raise self._differs(f"another datum {number} than the first")
            yield datum
        if number + 1 < n:
            raise self._differs(f"fewer than the {n} datums of the first")

    def _differs(self, how: str) -> DataError:
        return DataError(
            f"{self._name}: a later pass yields {how}: __iter__ must begin anew each time and keep its order (shuffle "
            "a copy, never in place; for another order each epoch define set_epoch(seed))"
        )


class _Pass:
    """An iteration with random numbers of its own: they go on from ``random_state``, whoever else draws some."""

    def __init__(self, items: Iterator[Any], random_state: dict[str, Any]):
        self._items = items
        self._random_state = random_state
        self.position = 0

    def read(self, passed: int, count: int) -> list[Any]:
        """Up to ``count`` items after the next ``passed``."""
        outside = _random_state()
        _set_random_state(self._random_state)
        try:
            items = list(itertools.islice(self._items, passed, passed + count))
        finally:
            self._random_state = _random_state()
            _set_random_state(outside)
        self.position += passed + count
        return items


def _random_state() -> dict[str, Any]:
    """Where the global generators of Python, NumPy and, if it is loaded, torch stand."""
    state = {"random": random.getstate(), "numpy": np.random.get_state()}
    if "torch" in sys.modules:
        state["torch"] = sys.modules["torch"].random.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["random"])
    np.random.set_state(state["numpy"])
    if "torch" in state:
        sys.modules["torch"].random.set_rng_state(state["torch"])


def _batch_size(dataset: Any, builder: Any) -> int:
    places = {
        "dataset.batch_size": getattr(dataset, "batch_size", None),
        "dataset.config.batch_size": getattr(getattr(dataset, "config", None), "batch_size", None),
        "dataset_builder.common_config.batch_size": getattr(
            getattr(builder, "common_config", None), "batch_size", None
        ),
        "dataset_builder.batch_size": getattr(builder, "batch_size", None),
    }
    given = {place: size for place, size in places.items() if size is not None}
    name = type(dataset).__name__
    if not given:
        raise DataError(f"{name} yields single datums, and nothing says how many make a batch: give it a batch_size")
    if len(set(given.values())) > 1:
        listed = ", ".join(f"{place}={size}" for place, size in given.items())
        raise DataError(f"{name}: two batch sizes ({listed}): make them one")
    return next(iter(given.values()))
