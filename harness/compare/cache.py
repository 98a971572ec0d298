"""What was read of a file, kept until the file changes: Arrow files in ``$XDG_CACHE_HOME/sft-harness/compare``
(``~/.cache/…``), at most 2 GB. The folder may be removed at any time.

An entry is named by the identity of its file: path, device, inode, size, and the times of its last change to the
nanosecond, of which nobody can set the second. A file that is written to has another identity, hence another entry. One
that changed within the last seconds is not kept: a change in the same tick of the clock would not show.
"""

import contextlib
import hashlib
import os
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

_FORMAT = 1  # of what is kept: another one when the same file comes to be read otherwise
_MAX_BYTES = 2_000_000_000
SETTLED_SECONDS = 5.0  # the clocks of file systems tick in milliseconds, those of FAT in 2 seconds
_CHECKSUM_BYTES = 4


def cached(path: Path, read: Callable[[Path], "pa.Table"]) -> "pa.Table":
    """``read(path)``, or what it returned for the same file before. A missing file is read."""
    kept_in = folder()
    try:
        stat = path.stat()
    except OSError:
        return read(path)
    if kept_in is None:
        return read(path)
    entry = kept_in / _name(path, stat)
    table = _load(entry)
    if table is None:
        table = read(path)
        if time.time() - max(stat.st_mtime, stat.st_ctime) > SETTLED_SECONDS:
            with contextlib.suppress(OSError):  # no room, no permission: it is read again the next time
                _save(entry, table)
    return table


def holds(path: Path) -> bool:
    """Whether there is an entry of a file as it is now."""
    kept_in = folder()
    try:
        return kept_in is not None and (kept_in / _name(path, path.stat())).exists()
    except OSError:
        return False


def trim() -> None:
    """Remove the entries that were not used for longest, where all together are too large."""
    kept_in = folder()
    if kept_in is None:
        return
    with contextlib.suppress(OSError):
        entries = sorted((file.stat().st_mtime, file.stat().st_size, file.path) for file in os.scandir(kept_in))
        excess = sum(size for _, size, _ in entries) - _MAX_BYTES
        for _, size, path in entries:
            if excess <= 0:
                break
            with contextlib.suppress(FileNotFoundError):  # another process trims too
                os.unlink(path)
            excess -= size


def folder() -> Path | None:
    """None where nothing can be kept: a user of a container whom its system does not know has no home."""
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return caches / "sft-harness" / "compare"


def _name(path: Path, stat: os.stat_result) -> str:
    identity = (_FORMAT, path.name, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    digest = hashlib.sha256(repr((os.path.abspath(path), *identity)).encode()).hexdigest()
    return f"{digest[:40]}.arrow"


def _load(entry: Path) -> "pa.Table | None":
    """None where there is no such entry, or it is damaged."""
    import pyarrow as pa

    try:
        data = memoryview(entry.read_bytes())
        content, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if _checksum(content) != checksum:
            return None
        os.utime(entry)  # it was used
        return pa.ipc.open_file(pa.py_buffer(content)).read_all()
    except (OSError, pa.ArrowException):
        return None


def _save(entry: Path, table: "pa.Table") -> None:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue()
    entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, temp = tempfile.mkstemp(dir=entry.parent, suffix=".tmp")
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.write(_checksum(content))
        os.replace(temp, entry)  # whole or not at all, whoever else writes it
    except BaseException:
        os.unlink(temp)
        raise


def _checksum(content: "memoryview | pa.Buffer") -> bytes:
    return zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "big")
