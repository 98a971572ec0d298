"""A Hugging Face stream from any row on: exactly the rows that follow, at the price of the source's own seek.

``IterableDataset.skip`` and ``load_state_dict`` read and decode every row that they pass over. Here the innermost
iterable of the stream is replaced by one that begins later:

- local JSONL files: by counting newlines;
- parquet, local or not: by the row counts in the files' footers, to the row group;
- ``Dataset.to_iterable_dataset``: at once; local Arrow files: whole files at once, within a file without decoding;
- ``map`` (not batched, without indices), ``take`` and ``skip`` on top of these keep their price;
- everything else is read from its beginning, which is said.

datasets has no public way to do this: its private parts are used in this file alone, and what is not known here to
be exact is read from the beginning.
"""

from __future__ import annotations

import copy
import itertools
import json
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from harness.exceptions import DataError, HarnessError
from harness.supervised import jsonl
from harness.supervised.mapping import Row

if TYPE_CHECKING:
    import datasets
    import pyarrow

logger = logging.getLogger(__name__)

_WORTH_SAYING = 10_000  # rows that are read in vain before it is said


def rows_from(stream: datasets.IterableDataset, start: int) -> Iterator[Row]:
    """What iterating ``stream`` gives after its first ``start`` rows; each call begins anew and disturbs no other.

    Raises:
        DataError: where the source cannot be read, with the row at which that was.
    """
    import pyarrow

    positioned = stream.skip(0)  # a new one: what iterating it changes is not shared with ``stream``
    positioned._epoch = stream._epoch
    passed = 0
    if stream.epoch or stream._distributed or stream._formatting:  # which rows come when is settled by iterating it
        positioned._ex_iterable = _fresh(stream._ex_iterable)
        passed = start
        _say_that_it_cannot_seek(stream._ex_iterable, start)
    else:
        positioned._ex_iterable = _after(stream._ex_iterable, start, stream.features)
    row = start
    failures = (OSError, ValueError, pyarrow.ArrowException)  # a local name: the process may end in the midst of this
    try:
        for example in itertools.islice(positioned, passed, None):
            yield example
            row += 1
    except failures as error:
        if isinstance(error, HarnessError):
            raise
        raise DataError(f"row {row} of the stream, or one soon after it, cannot be read: {error}") from error


def _after(iterable: Any, start: int, features: Any) -> Any:
    """``iterable`` without its first ``start`` rows, and without any state in common with it."""
    from datasets import iterable_dataset as hf

    kind = type(iterable)
    if kind is hf.ArrowExamplesIterable:
        if files := _local_jsonl(iterable, features):
            return hf.ExamplesIterable(_jsonl_examples, {"files": files, "start": start})
        iterable, left = _without_whole_parts(iterable, start)
        return hf.ArrowExamplesIterable(_tables_after, {"source": iterable, "start": left}) if left else iterable
    if kind is hf.TakeExamplesIterable:
        return hf.TakeExamplesIterable(_after(iterable.ex_iterable, start, features), max(0, iterable.n - start))
    if kind is hf.SkipExamplesIterable:
        return _after(iterable.ex_iterable, iterable.n + start, features)
    if kind is hf.ExamplesIterable and start:
        source = _fresh(iterable)
        return hf.ExamplesIterable(_examples_after, {"source": source, "start": start})
    is_row_for_row = (
        (kind is hf.MappedExamplesIterable and not iterable.batched and not iterable.with_indices)
        or (kind is hf.FormattedExamplesIterable and not iterable.formatting)
        or (kind is hf.RebatchedArrowExamplesIterable and iterable.batch_size == 1)
    )
    if is_row_for_row:
        wrapper = copy.copy(iterable)
        inner_features = features if kind is hf.RebatchedArrowExamplesIterable else iterable.features
        wrapper.ex_iterable = _after(iterable.ex_iterable, start, inner_features)
        return wrapper
    return _read_past(_fresh(iterable), start)


def _fresh(iterable: Any) -> Any:
    """A copy that shares no position with ``iterable``: datasets keeps it in the iterables themselves."""
    iterable = copy.copy(iterable)
    iterable._state_dict = None
    if hasattr(iterable, "ex_iterable"):
        iterable.ex_iterable = _fresh(iterable.ex_iterable)
    if hasattr(iterable, "ex_iterables"):
        iterable.ex_iterables = [_fresh(inner) for inner in iterable.ex_iterables]
    return iterable


# ---- JSONL


def _local_jsonl(iterable: Any, features: Any) -> tuple[str, ...]:
    """The files of a stream whose every row is a line of a plain local file; none where it is any other stream."""
    from datasets.packaged_modules.json.json import Json

    owner: Any = getattr(iterable.generate_tables_fn, "__self__", None)
    if type(owner) is not Json or "files_iterables" not in iterable.kwargs:
        return ()
    config: Any = owner.config
    if config.field is not None or config.encoding_errors or config.encoding.lower() != "utf-8":
        return ()
    if config.features is not None or features is None or features != owner.info.features:
        return ()  # the user has the columns cast
    if any(kind in str(features.arrow_schema) for kind in ("timestamp", "date", "time", "duration")):
        return ()  # datasets reads such text as a date
    files = tuple(file for files in iterable.kwargs["files_iterables"] for file in files)
    return files if all(_is_jsonl(file, features) for file in files) else ()


def _is_jsonl(file: Any, features: Any) -> bool:
    """Whether the file's first line is a row: not so in an array, an object over many lines, or a compressed file."""
    if not isinstance(file, str) or not os.path.isfile(file):
        return False
    with open(file, "rb") as opened:
        offset = jsonl.offset_of_row(opened, 0)[0]
        if offset is None:
            return False
        opened.seek(offset)
        try:
            first = json.loads(opened.readline())
        except ValueError:
            return False
    return isinstance(first, dict) and first.keys() <= features.keys()


def _jsonl_examples(files: tuple[str, ...], start: int) -> Iterator[tuple[str, Row]]:
    for file in files:
        with open(file, "rb") as opened:
            offset, left = jsonl.offset_of_row(opened, start)
        if offset is not None:
            yield from ((file, row) for row in jsonl.objects_from(file, offset))
        start = left


# ---- parts that are passed over whole


def _without_whole_parts(iterable: Any, start: int) -> tuple[Any, int]:
    """The iterable from the part on that holds row ``start``, and the index of that row in it."""
    from datasets import Dataset
    from datasets import iterable_dataset as hf
    from datasets.packaged_modules.arrow.arrow import Arrow
    from datasets.packaged_modules.parquet.parquet import Parquet

    kwargs = iterable.kwargs
    owner: Any = getattr(iterable.generate_tables_fn, "__self__", None)
    config: Any = getattr(owner, "config", None)
    if iterable.generate_tables_fn is Dataset._generate_tables_from_shards:
        kwargs, start = _datasets_after(kwargs, start)
    elif type(owner) is Parquet and kwargs.keys() == {"files", "row_groups_list"}:
        if config.filters is None and config.on_bad_files == "error":
            kwargs, start = _row_groups_after(kwargs, start)
    elif type(owner) is Arrow and all(isinstance(file, str) and os.path.isfile(file) for file in kwargs["files"]):
        files = list(kwargs["files"])
        while len(files) > 1 and start >= (num_rows := _num_arrow_rows(files[0])):
            start -= num_rows
            del files[0]
        kwargs = kwargs | {"files": files}
    return hf.ArrowExamplesIterable(iterable.generate_tables_fn, kwargs, iterable.generate_more_kwargs_fn), start


def _datasets_after(kwargs: Row, start: int) -> tuple[Row, int]:
    shards = list(kwargs["shards"])
    while len(shards) > 1 and start >= len(shards[0]):
        start -= len(shards.pop(0))
    kept = range(start, len(shards[0]))
    shards[0] = shards[0].select(kept or range(0))
    return kwargs | {"shards": shards}, 0


def _row_groups_after(kwargs: Row, start: int) -> tuple[Row, int]:
    import pyarrow.parquet
    from datasets.utils.file_utils import xopen

    files, row_groups = list(kwargs["files"]), list(kwargs["row_groups_list"])
    while start:
        with xopen(files[0], "rb") as file:
            metadata = pyarrow.parquet.read_metadata(file)
        groups = list(range(metadata.num_row_groups) if row_groups[0] is None else row_groups[0])
        while groups and start >= (num_rows := metadata.row_group(groups[0]).num_rows):
            start -= num_rows
            del groups[0]
        if groups or len(files) == 1:
            row_groups[0] = tuple(groups)
            break
        del files[0], row_groups[0]
    return kwargs | {"files": files, "row_groups_list": row_groups}, start


def _num_arrow_rows(file: str) -> int:
    import pyarrow

    with pyarrow.memory_map(file) as source:
        try:
            return sum(batch.num_rows for batch in pyarrow.ipc.open_stream(source))
        except pyarrow.ArrowInvalid:
            reader = pyarrow.ipc.open_file(source)
            return sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))


# ---- rows that are read in vain


def _read_past(iterable: Any, start: int) -> Any:
    from datasets import iterable_dataset as hf

    if not start:
        return iterable
    _say_that_it_cannot_seek(iterable, start)
    return hf.SkipExamplesIterable(iterable, start)


def _examples_after(source: Any, start: int) -> Iterator[tuple[Any, Row]]:
    passed = _Passed(source, start)
    for number, example in enumerate(source):
        if number >= start:
            yield example
        else:
            passed.rows(1)


def _tables_after(source: Any, start: int) -> Iterator[tuple[Any, pyarrow.Table]]:
    passed = _Passed(source, start)
    for key, table in source.iter_arrow():
        skipped = min(start, len(table))
        passed.rows(skipped)
        start -= skipped
        if len(table) > skipped:
            yield key, table.slice(skipped)


class _Passed:
    """Says every tenth of the rows that are read in vain."""

    def __init__(self, source: Any, total: int):
        self._total = total
        self._num_rows = 0
        _say_that_it_cannot_seek(source, total)

    def rows(self, count: int) -> None:
        tenths = self._num_rows * 10 // self._total
        self._num_rows += count
        if self._total >= _WORTH_SAYING and self._num_rows * 10 // self._total > tenths:
            logger.warning("passed over %s of %s rows", f"{self._num_rows:,}", f"{self._total:,}")


def _say_that_it_cannot_seek(source: Any, num_rows: int) -> None:
    if num_rows >= _WORTH_SAYING:
        kind = type(source).__name__.removesuffix("Iterable").removesuffix("Examples") or "generated"
        logger.warning(
            "this stream cannot seek (%s): its first %s rows are read and passed over", kind.lower(), f"{num_rows:,}"
        )
