"""Datasets that only iterate: ``__len__`` and ``__iter__`` that yields datums, and no ``get_batch``.

What they need to be trained is a batch size and the meaning of their length. The batch size is the dataset's own
(``dataset.batch_size``, or ``dataset.config.batch_size``), else the builder's. The length is held against the number
of datums n that one pass yields, counted once before the run starts:

| ``len``                                  | means   | batches an epoch                           |
| ---------------------------------------- | ------- | ------------------------------------------ |
| n                                        | samples | ``n // batch_size``                        |
| ``n // batch_size``, or that rounded up  | batches | ``len``; rounded up, the last one is small |
| anything else                            |         | refused: half of the data may be meant     |

Every pass must yield the same datums, until ``set_epoch`` says otherwise: a batch is found by iterating up to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from harness.exceptions import DataError
from harness.supervised.types import SupervisedDataset

if TYPE_CHECKING:
    import tinker


def by_index(dataset: SupervisedDataset, builder: Any) -> SupervisedDataset:
    """``dataset``, or where it only iterates, one that has its batches by index.

    Raises:
        DataError: where its length and its batch size do not fit what it yields.
    """
    kind = type(dataset)
    if kind.get_batch is not SupervisedDataset.get_batch:
        return dataset
    if not hasattr(kind, "__iter__"):
        raise DataError(f"{kind.__name__} has neither get_batch nor __iter__: define one of them")
    return IteratedDataset(dataset, _batch_size(dataset, builder))


class IteratedDataset(SupervisedDataset):
    """The batches of a dataset that only iterates, in its own order."""

    def __init__(self, dataset: Any, batch_size: int):
        from harness.supervised.datum import digest

        self._dataset: Any = dataset
        self._batch_size = batch_size
        self._name = type(dataset).__name__
        declared = len(dataset)
        most = (declared + 1) * batch_size  # whatever yields more, its length means neither
        self._fingerprint = digest(self._counted(itertools.islice(dataset, most)))
        n = self._num_datums
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
        if start < self._next:
            self._restart()
        batch = list(itertools.islice(self._datums, start - self._next, start - self._next + self._batch_size))
        self._next = start + self._batch_size
        if len(batch) < min(self._batch_size, self._num_datums - start):
            raise DataError(
                f"{self._name}: a later pass yields fewer than the {self._num_datums} datums of the first: "
                "__iter__ must begin anew each time it is called"
            )
        return batch

    def __len__(self) -> int:
        return self._num_batches

    def set_epoch(self, seed: int = 0) -> None:
        self._dataset.set_epoch(seed)
        self._restart()

    def all_batches(self) -> list[list[tinker.Datum]]:
        return [list(self._dataset)]

    @property
    def num_left_over(self) -> int:
        return max(0, self._num_datums - self._num_batches * self._batch_size)

    def fingerprint(self) -> str:
        return self._fingerprint

    def _restart(self) -> None:
        self._datums: Iterator[tinker.Datum] = iter(self._dataset)
        self._next = 0

    def _counted(self, datums: Iterable[tinker.Datum]) -> Iterator[tinker.Datum]:
        import tinker

        self._num_datums = 0
        for datum in datums:
            if not isinstance(datum, tinker.Datum):
                raise DataError(
                    f"{self._name}: __iter__ yields a {type(datum).__name__}: it must yield a tinker.Datum at a time "
                    "(for batches define get_batch)"
                )
            self._num_datums += 1
            yield datum


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
