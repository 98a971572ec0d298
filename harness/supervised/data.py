"""Datasets of conversations: from Hugging Face, from any rows, from a JSONL file."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chz
import numpy as np

from harness.exceptions import DataError, DataFileNotFoundError, RendererError
from harness.renderers import Renderer, TrainOnWhat
from harness.renderers.base import Message, check_messages
from harness.supervised.types import ChatDatasetBuilder, SupervisedDataset

if TYPE_CHECKING:
    import datasets
    import tinker

    from harness.supervised.datum import ConversationDatum

logger = logging.getLogger(__name__)

Row = dict[str, Any]
MapFn = Callable[[Row], "tinker.Datum"]


def conversation_to_datum(
    messages: Sequence[Message] | None = None,
    renderer: Renderer | None = None,
    max_length: int | None = None,
    train_on_what: TrainOnWhat | None = None,
    *,
    conversation: Sequence[Message] | None = None,
) -> ConversationDatum:
    """A conversation as a training datum.

    Args:
        messages: Roles and contents; ``conversation=`` is another name for it.
        renderer: Turns them into tokens and weights.
        max_length: Tokens at which the conversation is cut; None never cuts.
        train_on_what: Which messages carry loss; None is all assistant messages.

    Returns:
        A datum of at most ``max_length - 1`` positions. Its weights are all 0 where nothing trainable is left: the
        training loop drops and counts such a datum.

    Raises:
        RendererError: for messages that are malformed, or that the renderer has no way to say.
    """
    from harness.supervised.datum import datum_from_example

    given = messages if messages is not None else conversation
    if given is None or renderer is None:
        raise TypeError("conversation_to_datum needs messages and a renderer")
    example = renderer.build_supervised_example(given, train_on_what or TrainOnWhat.ALL_ASSISTANT_MESSAGES)
    return datum_from_example(example, max_length)


class SupervisedDatasetFromRows(SupervisedDataset):
    """Rows in memory, each mapped to a datum when its batch is asked for.

    An epoch is a permutation of the rows that its seed alone decides; before ``set_epoch`` they keep their order.
    Training leaves out the rows that do not fill a batch, other ones every epoch; ``all_batches`` has every row.
    """

    def __init__(self, rows: Sequence[Row], batch_size: int, map_fn: MapFn):
        self._rows = rows
        self._batch_size = batch_size
        self._map_fn = map_fn
        self._order = np.arange(len(rows))

    def get_batch(self, index: int) -> list[tinker.Datum]:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        return self._batch(index)

    def __len__(self) -> int:
        return len(self._rows) // self._batch_size

    def set_epoch(self, seed: int = 0) -> None:
        self._order = np.random.default_rng(seed).permutation(len(self._rows))

    def all_batches(self) -> list[list[tinker.Datum]]:
        return [self._batch(index) for index in range(-(-len(self._rows) // self._batch_size))]

    @property
    def num_left_over(self) -> int:
        return len(self._rows) % self._batch_size

    def fingerprint(self) -> str:
        hasher = hashlib.sha256()
        for i in range(len(self._rows)):
            hasher.update(_canonical(self._rows[i]))
        return hasher.hexdigest()[:16]

    def _batch(self, index: int) -> list[tinker.Datum]:
        indices = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        return [self._map_fn(self._rows[int(i)]) for i in indices]


class SupervisedDatasetFromHFDataset(SupervisedDatasetFromRows):
    """A Hugging Face ``datasets.Dataset``, each row mapped to a datum by ``map_fn``."""

    def __init__(self, hf_dataset: datasets.Dataset, batch_size: int, map_fn: MapFn):
        super().__init__(hf_dataset, batch_size, map_fn)  # pyright: ignore[reportArgumentType] # len() and [i] are enough


@chz.chz
class FromConversationFileBuilder(ChatDatasetBuilder):
    """Conversations from a JSONL file: an object with ``messages`` on every line.

    The test set is ``test_file_path``, or ``test_size`` conversations of ``file_path`` chosen by their content: their
    order in the file does not matter, equal conversations always fall on the same side, and one that is added takes the
    place of one of the others at most.
    """

    file_path: str = chz.field(doc="JSONL file of conversations.", metadata={"place": True})
    test_file_path: str | None = chz.field(default=None, doc="JSONL file to test on.", metadata={"place": True})
    test_size: int = chz.field(default=0, doc="Conversations of file_path held out to test on; 0 holds out none.")
    shuffle_seed: int = chz.field(default=0, doc="Decides which conversations are held out.")

    @chz.validate
    def _check(self) -> None:
        if self.test_size < 0:
            raise ValueError(f"test_size={self.test_size}: must not be negative")
        if self.test_size and self.test_file_path:
            raise ValueError("test_size and test_file_path are two test sets: give one of them")

    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset | None]:
        train = read_conversations(self.file_path)
        test: list[Row] = []
        if self.test_file_path:
            test = read_conversations(self.test_file_path)
        elif self.test_size:
            if self.test_size >= len(train):
                raise DataError(
                    f"test_size={self.test_size} leaves nothing to train on of the {len(train)} conversations in "
                    f"{self.file_path}: make it smaller, or give a test_file_path"
                )
            train, test = _split_by_content(train, self.test_size, self.shuffle_seed)
        return self._dataset(train), self._dataset(test) if test else None

    def _dataset(self, rows: list[Row]) -> SupervisedDatasetFromRows:
        renderer, common = self.renderer, self.common_config

        def map_fn(row: Row) -> tinker.Datum:
            try:
                return conversation_to_datum(row["messages"], renderer, common.max_length, common.train_on_what)
            except RendererError as error:
                raise DataError(f"{row['where']}: {error}") from error

        return _ConversationRows(rows, common.batch_size, map_fn)


class _ConversationRows(SupervisedDatasetFromRows):
    def fingerprint(self) -> str:
        """Of the conversations alone, not of the file and the lines they stood on."""
        hasher = hashlib.sha256()
        for row in self._rows:
            hasher.update(_canonical(row["messages"]))
        return hasher.hexdigest()[:16]


def read_conversations(path: str) -> list[Row]:
    """The conversations of a JSONL file, each ``{"messages": [...], "where": "file:line"}``; blank lines are none.

    Raises:
        DataFileNotFoundError: where there is no such file.
        DataError: for a file without conversations, and for the first line that is none, with what was found there.
    """
    file = Path(path).expanduser()
    if not file.exists():
        raise DataFileNotFoundError(f"Data file not found: {path}")
    if not file.is_file():
        raise DataError(f"{path}: not a file: give the path of a JSONL file")
    rows = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{path}:{number}"
                rows.append({"messages": _conversation(line, where), "where": where})
    if not rows:
        raise DataError(f'{path}: no conversations in it: it needs a line {{"messages": [...]}} for each')
    return rows


def _conversation(line: bytes, where: str) -> list[Message]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}): every line must be one JSON object") from None
    if not isinstance(row, dict):
        raise DataError(f'{where}: found {type(row).__name__}, not an object with "messages"')
    if "messages" not in row:
        raise DataError(f'{where}: no "messages" key; found {sorted(row)}')
    try:
        check_messages(row["messages"])
    except RendererError as error:
        raise DataError(f"{where}: {error}") from None
    return row["messages"]


def _split_by_content(rows: list[Row], test_size: int, seed: int) -> tuple[list[Row], list[Row]]:
    """(train, test): test are the ``test_size`` conversations of the smallest seeded hash, and all copies of them."""
    hashes = [hashlib.sha256(b"%d:" % seed + _canonical(row["messages"])).digest() for row in rows]
    bound = sorted(hashes)[test_size - 1]
    train = [row for row, hashed in zip(rows, hashes, strict=True) if hashed > bound]
    test = [row for row, hashed in zip(rows, hashes, strict=True) if hashed <= bound]
    if len(test) > test_size:
        logger.warning("%d copies of test conversations went to the test set too", len(test) - test_size)
    if not train:
        raise DataError(
            f"test_size={test_size}: the others are copies of the conversations held out: add some to train on"
        )
    return train, test


def _canonical(row: Any) -> bytes:
    return json.dumps(row, sort_keys=True, default=repr, ensure_ascii=False).encode("utf-8", "surrogatepass")
