"""How much room files take."""

import contextlib
import os
from pathlib import Path


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; a link counts for itself, and 0 where there is nothing."""
    if not path.is_dir() or path.is_symlink():
        return _size(str(path))
    return sum(_size(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)


def _size(path: str) -> int:
    with contextlib.suppress(FileNotFoundError):  # of a run that is being trained, some go while one looks
        return os.lstat(path).st_size
    return 0


def in_words(num_bytes: int) -> str:
    """``1.2 MB``; units of a thousand."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
