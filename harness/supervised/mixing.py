"""Several sources in one training set, in given proportions."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import chz
import numpy as np

from harness.exceptions import ConfigError, DataError
from harness.supervised.custom import by_index
from harness.supervised.types import ChatDatasetBuilder, ChatDatasetBuilderCommonConfig, SupervisedDataset

if TYPE_CHECKING:
    import tinker

logger = logging.getLogger(__name__)

_STRETCH = 1024  # draws that are shuffled at a time


class MixedDataset(SupervisedDataset):
    """Draws from several datasets, each draw one batch of one of them: give them a batch size of 1.

    An epoch has as many draws from each source as its weight says, and lasts until every source was seen whole. A
    source that runs out before begins again, in another order: with a weight twice its share of the data it is seen
    twice. Without weights every source is seen once. A stream that ends before its length ends the epoch.

    Which source comes when is decided by the epoch's seed and the position alone, so a batch can be had at any index.
    Every stretch of 1,024 draws holds the sources in their proportions. Sources are taken in the order of their names.

    Args:
        sources: By name; the name becomes the slice of datums that have none.
        weights: By the same names, above 0; only their ratios count. None: in proportion to the sources' lengths.
        batch_size: Draws a batch.
    """

    def __init__(
        self, sources: Mapping[str, SupervisedDataset], batch_size: int, weights: Mapping[str, float] | None = None
    ):
        self._names = sorted(sources)  # the same order in every process, however the mapping came about
        self._sources = [sources[name] for name in self._names]
        self._batch_size = batch_size
        self._lengths = [len(source) for source in self._sources]
        for name, length in zip(self._names, self._lengths, strict=True):
            if not length:
                raise DataError(f"{name}: no examples to mix in: add some, or leave it out")
        self._counts = _draws(self._lengths, _weights(self._names, weights) or self._lengths)
        self._total = sum(self._counts)
        self._pass = [-1] * len(self._sources)  # that each source is set to
        self.quarantined = [row for source in self._sources for row in source.quarantined]
        self.set_epoch()

    def get_batch(self, index: int) -> list[tinker.Datum]:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        start = index * self._batch_size
        return [datum for position in range(start, start + self._batch_size) for datum in self._draw(position)]

    def __len__(self) -> int:
        return self._total // self._batch_size

    def set_epoch(self, seed: int = 0) -> None:
        self._seed = seed
        self._pass = [-1] * len(self._sources)
        self._drawn = -1  # the stretch whose draws are held

    def num_tokens(self, index: int) -> int | None:
        start = index * self._batch_size
        drawn = map(self._drawn_at, range(start, start + self._batch_size))
        counts = [self._sources[source].num_tokens(batch) for source, batch in drawn]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def all_batches(self) -> list[list[tinker.Datum]]:
        """Every example of every source once."""
        return [
            [self._named(i, datum) for datum in batch]
            for i, source in enumerate(self._sources)
            for batch in source.all_batches()
        ]

    @property
    def num_left_over(self) -> int:
        return self._total % self._batch_size

    def fingerprint(self) -> str | None:
        parts = [source.fingerprint() for source in self._sources]
        if None in parts:
            return None
        return hashlib.sha256(repr(list(zip(self._names, parts, strict=True))).encode()).hexdigest()[:16]

    def proportions(self) -> list[str]:
        """For people: how often each source is seen in an epoch."""
        return [
            f"{name}: {count:,} of {self._total:,} draws an epoch, seen {count / length:.3g} times"
            for name, count, length in zip(self._names, self._counts, self._lengths, strict=True)
        ]

    def _draw(self, position: int) -> list[tinker.Datum]:
        source, batch = self._drawn_at(position)
        return [self._named(source, datum) for datum in self._sources[source].get_batch(batch)]

    def _drawn_at(self, position: int) -> tuple[int, int]:
        """The source that is drawn from at ``position``, and which of its batches; it is set to the pass of that."""
        stretch, offset = divmod(position, _STRETCH)
        if stretch != self._drawn:
            self._shuffle(stretch)
        source = int(self._order[offset])
        number, index = divmod(int(self._numbers[offset]), self._lengths[source])
        if self._pass[source] != number:
            self._pass[source] = number
            self._sources[source].set_epoch(int(np.random.SeedSequence((self._seed, number)).generate_state(1)[0]))
        return source, index

    def _shuffle(self, stretch: int) -> None:
        """The draws of a stretch: ``_order`` the source of each, ``_numbers`` how many came before it from there."""
        before = self._before(stretch * _STRETCH)
        counts = self._before(min((stretch + 1) * _STRETCH, self._total)) - before
        self._order = np.random.default_rng((self._seed, stretch)).permutation(np.repeat(range(len(counts)), counts))
        self._numbers = np.empty(len(self._order), dtype=np.int64)
        for source, first in enumerate(before):
            self._numbers[self._order == source] = first + np.arange(counts[source])
        self._drawn = stretch

    def _before(self, position: int) -> np.ndarray:
        """Draws from each source among the first ``position``, rounded so that none ever falls: each source takes its
        share of what those before it leave."""
        before, left, total = [], position, self._total
        for count in self._counts:
            before.append(left * count // total)
            left, total = left - before[-1], total - count
        return np.array(before)

    def _named(self, source: int, datum: tinker.Datum) -> tinker.Datum:
        from harness.supervised.datum import ConversationDatum

        if getattr(datum, "slice", None) is not None:
            return datum
        if isinstance(datum, ConversationDatum):
            return dataclasses.replace(datum, slice=self._names[source])
        return ConversationDatum(datum.model_input, datum.loss_fn_inputs, slice=self._names[source])


@chz.chz
class MixedDatasetBuilder(ChatDatasetBuilder):
    """Mixes what several builders of chat datasets build: see :class:`MixedDataset`.

    ``common_config`` holds for all of them: its values replace those in their own, what a subclass of it adds stays.
    Their test sets stay apart: ``test/<source>/nll``, ``test/<source>.<name>/nll`` where a source has several.
    """

    sources: dict[str, ChatDatasetBuilder] = chz.field(doc="Builders by name.")
    weights: dict[str, float] | None = chz.field(
        default=None,
        doc="Weights by the same names; only their ratios count. None: every source is seen once an epoch.",
    )

    @chz.validate
    def _check(self) -> None:
        if not self.sources:
            raise ValueError("sources is empty: give builders by name")
        _weights(list(self.sources), self.weights)

    def __call__(self) -> tuple[SupervisedDataset, dict[str, SupervisedDataset] | None]:
        train_sets: dict[str, SupervisedDataset] = {}
        test_sets: dict[str, SupervisedDataset] = {}
        common_fields = chz.chz_fields(ChatDatasetBuilderCommonConfig)
        single = {field: getattr(self.common_config, field) for field in common_fields} | {"batch_size": 1}
        for name, source in sorted(self.sources.items()):
            builder: Any = chz.replace(source, common_config=chz.replace(source.common_config, **single))
            train_set, tests = builder()
            train_sets[name] = by_index(train_set, builder)
            named = {"": tests} if isinstance(tests, SupervisedDataset) else tests or {}
            for test_name, test in named.items():
                test_sets[f"{name}.{test_name}" if test_name else name] = by_index(test, builder)
        mixed = MixedDataset(train_sets, self.common_config.batch_size, self.weights)
        for line in mixed.proportions():
            logger.info("mix: %s", line)
        return mixed, test_sets or None


def _weights(names: list[str], weights: Mapping[str, float] | None) -> list[float] | None:
    """The weights in the order of ``names``; None where there are none.

    Raises:
        ConfigError: for other names, and for a weight that is not above 0.
    """
    if weights is None:
        return None
    if weights.keys() != set(names):
        given, needed = ", ".join(sorted(weights)), ", ".join(sorted(names))
        raise ConfigError(f"weights name {given}, sources name {needed}: give each source one weight")
    for name, weight in weights.items():
        if not 0 < weight < math.inf:
            raise ConfigError(f"weights.{name}={weight}: must be greater than 0")
    return [weights[name] for name in names]


def _draws(lengths: list[int], weights: list[float] | list[int]) -> list[int]:
    """Draws an epoch from each source: in proportion to its weight, and so many that each is seen whole."""
    an_epoch = max(length / weight for length, weight in zip(lengths, weights, strict=True))
    return [max(length, round(an_epoch * weight)) for length, weight in zip(lengths, weights, strict=True)]
