"""Files that a crash leaves whole: JSON documents that are replaced, JSONL that is appended to.

A line that a crash tore is dropped by readers and cut off by the next writer.
"""

import contextlib
import json
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.exceptions import RunDirError

Row = dict[str, Any]

_CHUNK = 1 << 20  # bytes


def read_jsonl(path: Path, having: str = "", until: str = "", *, only: bool = False) -> list[Row]:
    """Every whole line of a JSONL file; a missing file has none, a torn last line is dropped.

    Args:
        having: Lines without this text are left out; of them it is only looked whether they begin and end as a row.
        until: A key; of a line that was written here, what stands from there on is not parsed and is left out.
        only: Of lines without ``having`` nothing is looked at: damage there spoils none of the others.

    Raises:
        RunDirError: for a line that is not a JSON object and is not the last.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is nothing, or torn
    except FileNotFoundError:
        return []
    rows: list[Row] = []
    wanted, rest = having.encode(), f', "{until}": '.encode()
    for number, line in enumerate(lines, start=1):
        if wanted not in line and (only or (line[:1] == b"{" and line[-1:] == b"}")):
            continue
        if until and rest in line:
            line = line.partition(rest)[0] + b"}"
        try:
            row = _parse_line(line)
        except ValueError as error:
            if number == len(lines):  # torn as well: a power cut can leave zeros and a newline
                break
            raise _not_a_row(path, number, error) from None
        if wanted in line:
            rows.append(row)
    return rows


def append_jsonl(path: Path, rows: list[Row], *, sync: bool = False) -> None:
    """Append rows in one write; where the disk is full the file is cut back to what it was.

    Raises:
        RunDirError: where they cannot be written.
    """
    if not rows:
        return
    data = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
    created = not path.exists()
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            before = os.fstat(fd).st_size
            try:
                if os.write(fd, data) != len(data):
                    raise OSError(28, "No space left on device")
                if sync:
                    os.fsync(fd)
            except OSError:
                os.ftruncate(fd, before)
                raise
        finally:
            os.close(fd)
        if created and sync:
            sync_path(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error


def write_json(path: Path, document: Row) -> None:
    """Write a JSON document whole or not at all: temp, fsync, rename."""
    _replace(path, json.dumps(document, indent=2, allow_nan=False).encode() + b"\n")


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all, as :func:`write_json` does."""
    _replace(path, text.encode())


def sync_path(path: Path) -> None:
    """Make a file's content, or a folder's list of names, durable; nothing where there is none."""
    if path.exists() and not (os.name == "nt" and path.is_dir()):  # Windows cannot open a folder, and needs not
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def rewrite_jsonl(path: Path, rows: list[Row]) -> None:
    if path.exists():
        _replace(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())


def read_tail(path: Path, belongs: Callable[[Row], bool]) -> tuple[list[Row], int]:
    """The last rows of a JSONL file, back to the first for which ``belongs`` does not hold, and the byte at which they
    begin. What lies before them is not read: the end of a long run's file costs what that of a short one does.

    Raises:
        RunDirError: as :func:`read_jsonl`.
    """
    rows: list[Row] = []

    def keep(row: Row) -> bool:
        kept = belongs(row)
        if kept:
            rows.append(row)
        return kept

    start = start_of_tail(path, keep)
    return rows[::-1], start


def start_of_tail(path: Path, belongs: Callable[[Row], bool]) -> int:
    """The byte at which the rows of :func:`read_tail` begin."""
    with _mapped(path) as raw:
        whole = end = raw.rfind(b"\n") + 1  # what follows is torn
        while end:
            start = raw.rfind(b"\n", 0, end - 1) + 1
            try:
                row = _parse_line(raw[start : end - 1])
            except ValueError as error:
                if end < whole:
                    raise _not_a_row(path, raw[:start].count(b"\n") + 1, error) from None
            else:
                if not belongs(row):
                    break
            end = start
    return end


def iter_jsonl(path: Path, start: int = 0) -> Iterator[Row]:
    """The rows of :func:`read_jsonl` from byte ``start`` on, one at a time: a file of any length in little memory.

    Raises:
        RunDirError: as :func:`read_jsonl`.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                row = _parse_line(line)
            except ValueError:
                read_jsonl(path)  # raises, with the line's number, where it is not the torn last one
                return
            yield row


def count_lines(path: Path) -> int:
    """Whole lines of a file."""
    with _mapped(path) as raw:
        return sum(raw[i : i + _CHUNK].count(b"\n") for i in range(0, len(raw), _CHUNK))


def cut_from(path: Path, start: int) -> None:
    """Drop what lies at byte ``start`` and after it, durably."""
    if path.exists() and start < path.stat().st_size:
        os.truncate(path, start)
        sync_path(path)


def replace_from(path: Path, start: int) -> None:
    """:func:`cut_from`, for a file that another thread or process may be reading: to look at a mapped page that was
    truncated away ends a process."""
    if path.exists() and start < path.stat().st_size:
        with path.open("rb") as file:
            _replace(path, file.read(start))


def cut_torn_line(path: Path) -> None:
    """Drop a last line that a crash tore: one without its newline, or (after a power cut) some with zeros in them."""
    with _mapped(path) as raw:
        whole = end = raw.rfind(b"\n") + 1
        while end:
            start = raw.rfind(b"\n", 0, end - 1) + 1
            line = raw[start : end - 1]
            try:
                _parse_line(line)
                break
            except ValueError:
                if end < whole and b"\0" not in line:
                    break  # no crash wrote that
                end = start
    cut_from(path, end)


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    """The bytes of a file, read where they are looked at; none for a missing file."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            yield mapped
    except FileNotFoundError:
        yield b""
    except ValueError:  # an empty file cannot be mapped
        yield b""


def _parse_line(line: bytes) -> Row:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"found {type(row).__name__}, not an object")
    return row


def _not_a_row(path: Path, number: int, error: ValueError) -> RunDirError:
    return RunDirError(f"{path}:{number}: not a JSON row ({error}): remove or mend that line")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, as :func:`write_json` does.

    Raises:
        OSError: where it cannot be written.
    """
    temp = path.with_name(f".{path.name}.tmp")
    try:
        with temp.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temp.replace(path)
        sync_path(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)
        raise


def _replace(path: Path, data: bytes) -> None:
    try:
        write_bytes(path, data)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> RunDirError:
    return RunDirError(f"{path}: cannot be written ({error.strerror}): make room, then run the same command again")
