"""Files that a crash leaves whole: JSON documents that are replaced, JSONL that is appended to.

A line that a crash tore is dropped by readers and cut off by the next writer.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from harness.exceptions import RunDirError

Row = dict[str, Any]


def read_jsonl(path: Path) -> list[Row]:
    """Every whole line of a JSONL file; a missing file has none, a torn last line is dropped.

    Raises:
        RunDirError: for a line that is not a JSON object and is not the last.
    """
    return _parse_jsonl(path)[0]


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


def _parse_jsonl(path: Path) -> tuple[list[Row], int]:
    """The rows of the file and the length in bytes of the part that they fill."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    rows: list[Row] = []
    end = 0
    lines = raw.split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is nothing, or torn
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"found {type(row).__name__}, not an object")
        except ValueError as error:
            if number == len(lines) - 1:  # torn as well: a power cut can leave zeros and a newline
                break
            raise RunDirError(f"{path}:{number}: not a JSON row ({error}): remove or mend that line") from None
        rows.append(row)
        end += len(line) + 1
    return rows, end


def cut_torn_line(path: Path) -> None:
    _, end = _parse_jsonl(path)
    if path.exists() and end < path.stat().st_size:
        os.truncate(path, end)


def _replace(path: Path, data: bytes) -> None:
    temp = path.with_name(f".{path.name}.tmp")
    try:
        with temp.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temp.replace(path)
        sync_path(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> RunDirError:
    return RunDirError(f"{path}: cannot be written ({error.strerror}): make room, then run the same command again")
