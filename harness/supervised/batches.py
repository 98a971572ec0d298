"""Tokenised batches in training order, made ahead of the loop on a thread of their own."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import tinker

from harness.exceptions import DataError
from harness.supervised.datum import Scorer, digest, loss_weights
from harness.supervised.types import EpochEnded, SupervisedDataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """Where a batch stands in the data: it is what a resume needs to know, and all of it."""

    epoch: int
    batch: int


@dataclass(frozen=True)
class Batch:
    """The datums of one update.

    Attributes:
        position: Of its first batch in the dataset.
        following: Position of the next update's.
        digest: Of its tokens and weights.
        scorer: Turns the backend's answer into NLL.
    """

    data: list[tinker.Datum]
    position: Position
    following: Position
    digest: str
    scorer: Scorer


def trainable(data: list[tinker.Datum]) -> list[tinker.Datum]:
    """``data`` without the datums that carry no loss: they would be trained as zero."""
    return [datum for datum in data if loss_weights(datum).any()]


def steps_per_epoch(dataset: SupervisedDataset, accumulation: int) -> int:
    """Updates an epoch, where one takes ``accumulation`` batches.

    Raises:
        DataError: where there is none.
    """
    if len(dataset) >= accumulation:
        return len(dataset) // accumulation
    if not len(dataset) and dataset.num_left_over:
        raise DataError(
            f"the training set has {dataset.num_left_over} examples, fewer than one batch: make batch_size "
            f"{dataset.num_left_over} or smaller, or add data"
        )
    raise DataError(
        f"the training set fills {len(dataset)} batches and an update takes {accumulation}: "
        "make batch_size or gradient_accumulation_steps smaller, or add data"
    )


class Batches:
    """The batches of a run.

    One update takes ``accumulation`` consecutive batches of the dataset; such a group never straddles epochs, what is
    left over at an epoch's end is passed over. A group in which no datum carries loss is passed over too. Where the
    data of an epoch ends before the dataset's length, the next epoch begins.
    """

    def __init__(self, dataset: SupervisedDataset, *, tokenizer: Any, num_epochs: int, accumulation: int, seed: int):
        self.dataset = dataset
        self._tokenizer = tokenizer
        self.num_epochs = num_epochs
        self.accumulation = accumulation
        self._seed = seed
        self.steps_per_epoch = steps_per_epoch(dataset, accumulation)

    async def after(self, start: Position, *, ahead: int) -> AsyncGenerator[Batch]:
        """The batches from ``start`` on, ``ahead`` of them made before they are asked for."""
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenise")
        loop = asyncio.get_running_loop()
        made = self._made(start)  # runs on the one tokenising thread

        def make() -> asyncio.Future[Batch | None]:
            return loop.run_in_executor(executor, next, made, None)

        making = deque(make() for _ in range(ahead + 1))
        try:
            while (batch := await making.popleft()) is not None:
                making.append(make())
                if batch.data:
                    yield batch
                else:
                    where = batch.position
                    logger.warning("epoch %d, batch %d: nothing carries loss, passed over", where.epoch, where.batch)
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

    def lengths(self, start: Position, num_updates: int) -> list[int] | None:
        """Input tokens of each update from ``start`` on, ``num_updates`` or as many as there are. None where the
        dataset does not say."""
        found: list[int] = []
        for _, groups in self._epochs(start):
            for indices in groups:
                if len(found) == num_updates:
                    return found
                lengths = [self.dataset.num_tokens(i) for i in indices]
                known = [length for length in lengths if length is not None]
                if len(known) < len(lengths):
                    return None
                if any(known):  # else it is passed over
                    found.append(sum(known))
        return found

    def _epochs(self, start: Position) -> Iterator[tuple[int, Iterator[range]]]:
        """Each epoch from ``start`` on, once it is set, and the batches of each of its updates."""
        for epoch in range(start.epoch, self.num_epochs):
            self.dataset.set_epoch(self._seed * 1_000_003 + epoch)
            first = start.batch if epoch == start.epoch else 0
            starts = range(first, self.steps_per_epoch * self.accumulation, self.accumulation)
            yield epoch, (range(index, index + self.accumulation) for index in starts)

    def _made(self, start: Position) -> Iterator[Batch]:
        for epoch, groups in self._epochs(start):
            for indices in groups:
                data: list[tinker.Datum] = []
                try:
                    for i in indices:
                        data += self.dataset.get_batch(i)
                except EpochEnded as ended:
                    logger.info("epoch %d: %s; left over, as they fill no update: %d", epoch, ended, len(data))
                    break
                yield self._batch(trainable(data), Position(epoch, indices.start))

    def _batch(self, data: list[tinker.Datum], position: Position) -> Batch:
        end = position.batch + self.accumulation
        ended = end >= self.steps_per_epoch * self.accumulation
        return Batch(
            data=data,
            position=position,
            following=Position(position.epoch + 1, 0) if ended else Position(position.epoch, end),
            digest=digest(data),
            scorer=Scorer(data, self._tokenizer),
        )
