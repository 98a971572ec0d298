"""Datasets of conversations: from any rows, from Hugging Face, from a JSONL file."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import chz
import numpy as np

from harness.exceptions import DataError
from harness.renderers import Renderer, TrainOnWhat
from harness.renderers.messages import Message, trained_messages
from harness.supervised.conversation_files import read_conversations as read_conversations
from harness.supervised.conversation_files import split_by_content
from harness.supervised.mapping import FlatmapFn, MapFn, Mapper, OnBadRow, Row, as_text, beginning, fingerprint
from harness.supervised.stream_seek import is_of_datasets, one_line
from harness.supervised.streaming import (
    StreamingSupervisedDatasetFromHFDataset as StreamingSupervisedDatasetFromHFDataset,
)
from harness.supervised.types import ChatDatasetBuilder, SupervisedDataset

if TYPE_CHECKING:
    import datasets
    import tinker

    from harness.supervised.datum import ConversationDatum

logger = logging.getLogger(__name__)


def conversation_to_datum(
    messages: Sequence[Message] | None = None,
    renderer: Renderer | None = None,
    max_length: int | None = None,
    train_on_what: TrainOnWhat | None = None,
    *,
    conversation: Sequence[Message] | None = None,
    example_id: str = "",
    slice: str | None = None,
    where: str = "",
) -> ConversationDatum:
    """A conversation as a training datum.

    Args:
        messages: Roles and contents; ``conversation=`` is another name for it.
        renderer: Turns them into tokens and weights.
        max_length: Tokens at which the conversation is cut; None never cuts.
        train_on_what: Which messages carry loss; None is all assistant messages.
        example_id: Names the example in evaluations; "" stands for the digest of its content.
        slice: A part of the data that the example belongs to.
        where: The file and line that it stands on.

    Returns:
        A datum of at most ``max_length - 1`` positions. Its weights are all 0 where nothing trainable is left: the
        training loop drops and counts such a datum.

    Raises:
        RendererError: for messages that are malformed, or that the renderer has no way to say.
    """
    from harness.supervised.datum import datum_from_example

    if renderer is None:
        raise TypeError("conversation_to_datum needs a renderer")
    given: Any = messages if messages is not None else conversation  # the renderer refuses None: a row without any
    example = renderer.build_supervised_example(given, train_on_what or TrainOnWhat.ALL_ASSISTANT_MESSAGES)
    return datum_from_example(example, max_length, example_id, slice, where)


class SupervisedDatasetFromRows(SupervisedDataset):
    """Rows in memory, each mapped when its batch is asked for.

    An epoch is a permutation of the rows that its seed alone decides; before ``set_epoch`` they keep their order.
    Training leaves out the rows that do not fill a batch, other ones every epoch; ``all_batches`` has every row.
    ``flatmap_fn`` makes any number of datums of a row: a batch is ``batch_size`` rows then, and what they become.

    A row that cannot be used is an error. With ``on_bad_row="quarantine"`` every row is mapped once beforehand, and the
    bad ones are set aside with their number, reason and text.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        batch_size: int,
        map_fn: MapFn | None = None,
        flatmap_fn: FlatmapFn | None = None,
        on_bad_row: OnBadRow = "error",
    ):
        self._rows = rows
        self._batch_size = batch_size
        self._mapper = Mapper(map_fn, flatmap_fn)
        self._kept = np.arange(len(rows))
        self._num_tokens = np.full(len(rows), -1)  # that each row trains; -1 until it is mapped
        if on_bad_row == "quarantine":
            self._set_bad_rows_aside()
        self._order = self._kept

    def get_batch(self, index: int) -> list[tinker.Datum]:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        return self._batch(index)

    def __len__(self) -> int:
        return len(self._kept) // self._batch_size

    def set_epoch(self, seed: int = 0) -> None:
        self._order = np.random.default_rng(seed).permutation(self._kept)

    def num_tokens(self, index: int) -> int:
        """A row is mapped for it once in the life of the dataset."""
        indices = self._indices(index)
        for i in indices[self._num_tokens[indices] < 0].tolist():
            self._datums(i)
        return int(self._num_tokens[indices].sum())

    def all_batches(self) -> list[list[tinker.Datum]]:
        return [self._batch(index) for index in range(-(-len(self._kept) // self._batch_size))]

    @property
    def num_left_over(self) -> int:
        return len(self._kept) % self._batch_size

    def contents(self) -> Iterable[Any]:
        return (self._row(i) for i in self._kept.tolist())

    def fingerprint(self) -> str:
        return fingerprint(self.contents())

    def _batch(self, index: int) -> list[tinker.Datum]:
        return [datum for i in self._indices(index).tolist() for datum in self._datums(i)]

    def _indices(self, index: int) -> np.ndarray:
        return self._order[index * self._batch_size : (index + 1) * self._batch_size]

    def _datums(self, index: int) -> list[tinker.Datum]:
        from harness.supervised.datum import num_trained_tokens

        row = self._row(index)
        datums = self._mapper(row, lambda: self._where(index, row))
        self._num_tokens[index] = num_trained_tokens(datums)
        return datums

    def _row(self, index: int) -> Row:
        return self._rows[index]

    def _where(self, index: int, row: Row) -> str:
        return f"{self._name(index)}, {beginning(row)}"

    def _name(self, index: int) -> str:
        return f"row {index}"

    def _set_bad_rows_aside(self) -> None:
        reasons: dict[int, str] = {}
        for i in range(len(self._rows)):
            try:
                self._datums(i)
            except DataError as error:
                reasons[i] = str(error)
        if not reasons:
            return
        first = next(iter(reasons.values()))
        if len(reasons) == len(self._rows):
            raise DataError(f"all of the {len(reasons)} rows are bad; {first}")
        logger.warning("%d of %d rows are bad and set aside; %s", len(reasons), len(self._rows), first)
        self._kept = np.array([i for i in range(len(self._rows)) if i not in reasons])
        self.quarantined = [{"row": i, "reason": reason, "text": self._text(i)} for i, reason in reasons.items()]

    def _text(self, index: int) -> str | None:
        try:
            return as_text(self._row(index))
        except DataError:  # it cannot even be read, which is its reason
            return None


class SupervisedDatasetFromHFDataset(SupervisedDatasetFromRows):
    """A Hugging Face ``datasets.Dataset``: see :class:`SupervisedDatasetFromRows`."""

    def __init__(
        self,
        hf_dataset: datasets.Dataset,
        batch_size: int,
        map_fn: MapFn | None = None,
        flatmap_fn: FlatmapFn | None = None,
        on_bad_row: OnBadRow = "error",
    ):
        if not hasattr(hf_dataset, "__len__"):
            raise DataError(
                f"hf_dataset is a {type(hf_dataset).__name__}, which has no length: "
                "use StreamingSupervisedDatasetFromHFDataset"
            )
        rows: Any = hf_dataset  # len() and [i] are enough
        super().__init__(rows, batch_size, map_fn, flatmap_fn, on_bad_row)

    def _row(self, index: int) -> Row:
        try:
            return self._rows[index]
        except Exception as error:
            if not is_of_datasets(error):
                raise
            raise DataError(f"{self._name(index)} cannot be read ({one_line(error)}): mend it in its file") from error

    def _name(self, index: int) -> str:
        hf_dataset: Any = self._rows
        known = [hf_dataset.builder_name, hf_dataset.split and f"split {hf_dataset.split}"]
        return f"row {index} of hf_dataset ({', '.join(filter(None, known)) or 'made in memory'})"


@chz.chz
class FromConversationFileBuilder(ChatDatasetBuilder):
    """Conversations from a JSONL file, gzipped or not: an object with ``messages`` on every line, and ``id`` and
    ``slice`` where the conversation has them.

    The test set is ``test_file_path``, or ``test_size`` conversations of ``file_path`` chosen by their content: their
    order in the file does not matter, equal conversations always fall on the same side, and one that is added takes the
    place of one of the others at most.
    """

    file_path: str = chz.field(doc="JSONL file of conversations.", metadata={"place": True})
    test_file_path: str | None = chz.field(default=None, doc="JSONL file to test on.", metadata={"place": True})
    test_size: int = chz.field(default=0, doc="Conversations of file_path held out to test on; 0 holds out none.")
    shuffle_seed: int = chz.field(default=0, doc="Decides which conversations are held out.")
    on_bad_row: OnBadRow = chz.field(
        default="error",
        doc="A line that cannot be used stops the run, or goes to quarantine.jsonl of the run with its reason; "
        "quarantine renders every conversation once before the run starts.",
    )

    @chz.validate
    def _check(self) -> None:
        if self.test_size < 0:
            raise ValueError(f"test_size={self.test_size}: must not be negative")
        if self.test_size and self.test_file_path:
            raise ValueError("test_size and test_file_path are two test sets: give one of them")

    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset | None]:
        quarantined: list[Row] | None = [] if self.on_bad_row == "quarantine" else None
        train = self._read(self.file_path, quarantined)
        test: list[Row] = []
        if self.test_file_path:
            test = self._read(self.test_file_path, quarantined)
        elif self.test_size:
            if self.test_size >= len(train):
                raise DataError(
                    f"test_size={self.test_size} leaves nothing to train on of the {len(train)} conversations in "
                    f"{self.file_path}: make it smaller, or give a test_file_path"
                )
            train, test = split_by_content(train, self.test_size, self.shuffle_seed)
        train_set = self._dataset(train)
        train_set.quarantined = quarantined or ()
        return train_set, self._dataset(test) if test else None

    def _read(self, path: str, quarantined: list[Row] | None) -> list[Row]:
        return read_conversations(path, quarantined, check=self._trained if quarantined is None else self._datum)

    def _trained(self, row: Row) -> list[int]:
        """What is known of a row without rendering it."""
        return trained_messages(row["messages"], self.common_config.train_on_what or TrainOnWhat.ALL_ASSISTANT_MESSAGES)

    def _datum(self, row: Row) -> tinker.Datum:
        common = self.common_config
        return conversation_to_datum(
            row["messages"],
            self.renderer,
            common.max_length,
            common.train_on_what,
            example_id=row["id"],
            slice=row["slice"],
            where=row["where"],
        )

    def _dataset(self, rows: list[Row]) -> SupervisedDatasetFromRows:
        return _ConversationRows(rows, self.common_config.batch_size, self._datum)


class _ConversationRows(SupervisedDatasetFromRows):
    def contents(self) -> Iterable[Any]:
        """The conversations alone, not the file and the lines they stood on."""
        return (row["messages"] for row in self._rows)

    def _where(self, index: int, row: Row) -> str:
        return row["where"]
