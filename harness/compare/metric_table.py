"""metrics.jsonl -> an Arrow table, typed, in the order of the file.

Arrow's own reader is some fifteen times faster than json, and takes what json refuses: two rows on one line, a line of
blanks, ``Inf``. It is believed where it cannot differ from json; :func:`read_rows`, line by line, reads the rest.

A column is of whole numbers (int64), of numbers (float64), of text, or of nothing (null).
"""

import collections
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.files import Row
from harness.metric_keys import STEP

if TYPE_CHECKING:
    import pyarrow as pa

_NOTES = b"notes"  # key of a table's metadata
_INT64 = range(-(2**63), 2**63)


def read_table(path: Path) -> "pa.Table":
    """The rows of a metrics.jsonl, for what it holds. A torn last line is dropped; a damaged one before it, and one
    without a step, is left out and noted.

    Raises:
        OSError: where it cannot be read; a missing file has no rows.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""
    whole = data[: data.rfind(b"\n") + 1]  # what follows the last newline is nothing, or torn
    return _read_by_arrow(whole) or read_rows(whole.split(b"\n")[:-1], path.name)


def notes_of(table: "pa.Table") -> list[str]:
    """What had to be left out of :func:`read_table`'s rows, in words."""
    return json.loads((table.schema.metadata or {}).get(_NOTES, b"[]"))


def _read_by_arrow(lines: bytes) -> "pa.Table | None":
    """None where json might read something else."""
    import pyarrow as pa
    import pyarrow.json

    num_lines = _num_objects(lines)
    if not num_lines or not lines.isascii():
        return None
    # In one block, on this thread: a file is small, and a row that lies in two blocks is refused.
    options = pyarrow.json.ReadOptions(use_threads=False, block_size=len(lines))
    try:
        table = pyarrow.json.read_json(pa.BufferReader(lines), read_options=options)
    except (pa.ArrowException, OverflowError):  # a block has less than 2 GiB
        return None
    known = (pa.int64(), pa.float64(), pa.string(), pa.null())  # a date is a text that looks like one
    if table.num_rows != num_lines or not all(field.type in known for field in table.schema):
        return None
    has_steps = STEP in table.column_names and table.schema.field(STEP).type == pa.int64()
    return table if has_steps and not table[STEP].null_count and _is_finite(table) else None


def _num_objects(lines: bytes) -> int:
    """How many lines there are, where each begins and ends as an object does; else 0."""
    import numpy as np

    if not (lines.startswith(b"{") and lines.endswith(b"}\n")):
        return 0
    characters = np.frombuffer(lines, np.uint8)
    ends = np.flatnonzero(characters[:-1] == ord("\n"))
    between = (characters[ends - 1] == ord("}")) & (characters[ends + 1] == ord("{"))
    return len(ends) + 1 if between.all() else 0


def _is_finite(table: "pa.Table") -> bool:
    """Whether there is no NaN and no infinity, for which Arrow knows more names than json."""
    import pyarrow as pa
    import pyarrow.compute

    numbers = (table[field.name] for field in table.schema if field.type == pa.float64())
    return all(math.isfinite(pyarrow.compute.call_function("sum", [column]).as_py() or 0.0) for column in numbers)


def read_rows(lines: Sequence[bytes], name: str) -> "pa.Table":
    """The same from the lines of a file ``name``, by json."""
    rows: list[Row] = []
    damaged: list[int] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            if number < len(lines):  # else torn: a power cut can leave zeros and a newline
                damaged.append(number)
            continue
        if isinstance(row, dict) and _is_whole(row.get(STEP)):
            rows.append(row)
        else:
            damaged.append(number)
    notes = []
    if damaged:
        first = f"line {damaged[0]}" if len(damaged) == 1 else f"{len(damaged)} lines, the first of them {damaged[0]},"
        notes.append(f"{name}: {first} left out: not a row with a {STEP!r}")
    return table_of(rows, notes)


def table_of(rows: Sequence[Row], notes: Iterable[str] = ()) -> "pa.Table":
    """Rows that have a step each, as a table.

    Args:
        notes: What had to be left out of them already.
    """
    import pyarrow as pa

    notes = list(notes)
    names = dict.fromkeys(key for row in rows for key in row)
    columns = {}
    for name in names:
        columns[name], num_other = _column([row.get(name) for row in rows])
        if num_other:
            notes.append(f"{name}: {num_other} {'value' if num_other == 1 else 'values'} left out: no number")
    table = pa.table(columns if rows else {STEP: pa.array([], pa.int64())})
    return table.replace_schema_metadata({_NOTES: json.dumps(notes)} if notes else None)


def _column(values: list[Any]) -> "tuple[pa.Array, int]":
    """Typed, and how many values had to be left out: a column that has a number is of numbers."""
    import pyarrow as pa

    present = [value for value in values if value is not None]
    if not any(_is_number(value) for value in present):
        texts = [None if value is None else _text(value) for value in values]
        return pa.array(texts, pa.string() if present else pa.null()), 0
    numbers = [value if _is_number(value) else None for value in values]
    num_other = len(present) - sum(number is not None for number in numbers)
    if all(number is None or _is_whole(number) for number in numbers):
        return pa.array(numbers, pa.int64()), num_other
    return pa.array([None if number is None else float(number) for number in numbers], pa.float64()), num_other


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode(errors="replace").decode()  # half a surrogate pair is a text to json, and to nobody else


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in _INT64


def _is_number(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 1 << 1023  # json reads whole numbers of any size
    return isinstance(value, float)


def sorted_by_step(table: "pa.Table") -> "pa.Table":
    """Rows of one step stay in their order."""
    import numpy as np

    steps = table[STEP].to_numpy()
    return table if (steps[:-1] <= steps[1:]).all() else table.take(np.argsort(steps, kind="stable"))


def concat(tables: Sequence["pa.Table"]) -> "tuple[pa.Table, list[list[str]]]":
    """Tables one below the other, the step first, and of each the columns whose text had to be left out, because
    others have numbers there."""
    import pyarrow as pa

    tables = [table.replace_schema_metadata(None) for table in tables]
    schemas = dict.fromkeys(table.schema for table in tables)  # few: runs of one recipe share theirs
    found: dict[str, set[pa.DataType]] = collections.defaultdict(set)
    for schema in schemas:
        for field in schema:
            found[field.name].add(field.type)
    types = {name: _common_type(of_name) for name, of_name in found.items()}
    differing = {schema: [field.name for field in schema if field.type != types[field.name]] for schema in schemas}
    text_left_out = [
        [name for name in differing[table.schema] if table.schema.field(name).type == pa.string()] for table in tables
    ]
    cast = [_cast(table, {name: types[name] for name in differing[table.schema]}) for table in tables]
    return pa.concat_tables([table_of([]), *cast], promote_options="default"), text_left_out


def _common_type(types: "set[pa.DataType]") -> "pa.DataType":
    import pyarrow as pa

    return next((one for one in (pa.float64(), pa.int64(), pa.string()) if one in types), pa.float64())


def _cast(table: "pa.Table", types: "dict[str, pa.DataType]") -> "pa.Table":
    import pyarrow as pa

    for name, wanted in types.items():
        column = table[name]
        if column.type == pa.string():
            column = pa.nulls(len(column))
        # Not safe: a whole number beyond 2**53 is rounded, as Python's float() does it.
        table = table.set_column(table.column_names.index(name), name, column.cast(wanted, safe=False))
    return table
