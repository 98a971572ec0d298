"""sweep.json: what the folder of a sweep was last asked for, and the id that finds its MLflow run again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.exceptions import RunDirError
from harness.files import write_json
from harness.run_dir import RunDir

SWEEP = "sweep.json"
_LOCK_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class SweepRecord:
    """The document sweep.json.

    Attributes:
        sweep_id: Of the folder, for as long as it is there.
        started: Milliseconds since the epoch, of the first command.
        recipe: As it was given.
        argv: The last command, without secrets.
        grid: The values of each swept parameter, as they were written.
        runs: The names of their run directories.
    """

    sweep_id: str
    started: int
    recipe: str
    argv: list[str]
    grid: dict[str, list[str]]
    runs: list[str]


def read_record(root: Path) -> SweepRecord | None:
    """The record of a sweep's folder; None where ``root`` is none, or its sweep.json is another program's.

    Raises:
        RunDirError: where it cannot be read.
    """
    try:
        document = json.loads((root / SWEEP).read_text())
        return SweepRecord(**document) if "sweep_id" in document else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunDirError(f"{root / SWEEP}: cannot be read ({error.strerror}): choose another --root") from None
    except (ValueError, TypeError) as error:
        raise RunDirError(f"{root / SWEEP}: not a sweep's ({error}): restore it, or choose another --root") from None


def write_record(
    root: Path, *, started: int, recipe: str, argv: list[str], grid: dict[str, list[str]], runs: list[str]
):
    """Note what was asked for; a folder that has a record keeps its id and its start."""
    with lock_record(root):
        before = read_record(root)
        kept = {"sweep_id": before.sweep_id, "started": before.started} if before else {}
        new = SweepRecord(uuid.uuid4().hex, started, recipe, argv, grid, runs)
        write_json(root / SWEEP, dataclasses.asdict(new) | kept)


@contextlib.contextmanager
def lock_record(root: Path) -> Iterator[None]:
    """Be the only one who makes something for the whole sweep."""
    import filelock

    with filelock.FileLock(root / f".{SWEEP}.lock", timeout=_LOCK_SECONDS):
        yield


def sweep_folders(run_dirs: Iterable[RunDir]) -> list[Path]:
    """The folders of sweeps in which ``run_dirs`` lie, each once."""
    return [folder for folder in dict.fromkeys(run.path.parent for run in run_dirs) if (folder / SWEEP).exists()]
