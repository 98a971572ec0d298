"""Where run directories lie."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from harness.exceptions import RunDirError
from harness.run_dir import CONFIG, METRICS, RunDir

_MLFLOW_COPIES = "artifacts"  # a folder of this name holds what the mirror uploaded, and is no run
_HOLDS = f"a run directory holds {CONFIG} and {METRICS}"


def find_runs(paths: Iterable[str | os.PathLike[str]]) -> list[RunDir]:
    """The run directories among and below ``paths``, in the order given and then by name; each once.

    Args:
        paths: Run directories, folders, and patterns with ``*``, ``?``, ``[…]`` or ``**``.

    Raises:
        RunDirError: for a path that is not there, a pattern that nothing matches, or where no run is found under one.
    """
    runs: dict[str, RunDir] = {}
    paths = [os.fspath(path) for path in paths]
    if "" in paths:  # of a shell's variable that is not set: Path would take it for this folder
        raise RunDirError("an empty path: name a run directory or a folder; this one is .")
    for path in map(Path, paths):
        for found in _matching(path.expanduser()):
            runs.setdefault(os.path.abspath(found), RunDir(found))  # "a" and "b/../a" are one run
    return list(runs.values())


def _matching(path: Path) -> list[Path]:
    if path.exists():
        found = _below(path)
        where = "in it"
    elif glob.has_magic(str(path)):
        matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
        if not matches:
            raise RunDirError(f"{path}: nothing matches this pattern")
        found = [run for match in matches for run in _below(match)]
        where = "in what it matches"
    else:
        raise RunDirError(f"{path}: no such run directory")
    if not found:
        raise RunDirError(f"{path}: no run {where} ({_HOLDS})")
    return found


def _below(path: Path) -> list[Path]:
    """``path`` where a run is, else the runs below it."""
    if _is_run(path, os.listdir(path) if path.is_dir() else []):
        return [path]
    found = (Path(folder) for folder, _, files in os.walk(path) if _is_run(Path(folder), files))
    return sorted(run for run in found if not _is_left_out(run))


def _is_run(path: Path, files: list[str]) -> bool:
    """Whether a run was started here; a model's folder has a config.json too."""
    if METRICS in files or CONFIG not in files:
        return METRICS in files
    try:
        return bool(RunDir(path).config())
    except RunDirError:
        return False


def _is_left_out(path: Path) -> bool:
    """What the mirror uploaded, and what a fork that was killed had begun."""
    return path.name == _MLFLOW_COPIES or path.name.startswith(".")
