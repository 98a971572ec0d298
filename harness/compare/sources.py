"""What ``runs/a``, ``runs/lr-*`` or ``mlflow:EXPERIMENT`` means: run directories, and runs that MLflow alone has."""

import itertools
import os
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from harness.run_dir import RunDir
from harness.run_folders import find_runs
from harness.tracking import mlflow_reader

if TYPE_CHECKING:
    from harness.tracking.mlflow_reader import MlflowRun


def find_sources(sources: Iterable[str | os.PathLike[str]]) -> "dict[str, RunDir | MlflowRun]":
    """The runs that are meant, in the order given, each once, by a name that no other of them has.

    Raises:
        RunDirError: for a path without a run.
        TrackingError: for what is not in MLflow, or was deleted there, and where MLflow cannot be reached.
    """
    found: dict[tuple[str, ...], RunDir | MlflowRun] = {}
    reader = None
    for path in sources:
        source = os.fspath(path)
        if mlflow_reader.is_source(source) and not os.path.exists(source):
            reader = reader or mlflow_reader.MlflowReader()
            for run in reader.find(source):
                found.setdefault(_path(run.directory or run), run.directory or run)
        else:
            for run_dir in find_runs([source]):
                found.setdefault(_path(run_dir), run_dir)
    return dict(zip(_names(list(found)), found.values(), strict=True))


def _path(run: "RunDir | MlflowRun") -> tuple[str, ...]:
    """What tells a run from all others, its name at the end."""
    if isinstance(run, RunDir):
        return tuple(os.path.abspath(run.path).split(os.sep))  # "a" and "b/../a" are one run
    return ("mlflow:", run.run_id, run.name)


def _names(paths: list[tuple[str, ...]]) -> list[str]:
    """The shortest end of each path that no other path has; as text: a name in MLflow may have separators in it."""
    ends = [[os.sep.join(path[-depth:]) for depth in range(1, len(path) + 1)] for path in paths]
    num_paths = Counter(itertools.chain.from_iterable(ends))
    return [next(end for end in of_path if num_paths[end] == 1) for of_path in ends]
