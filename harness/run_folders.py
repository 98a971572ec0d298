"""Where run directories lie."""

from pathlib import Path

from harness.exceptions import RunDirError
from harness.run_dir import CONFIG, METRICS, RunDir

_MLFLOW_COPIES = "artifacts"  # a folder of this name holds what the mirror uploaded, and is no run


def find_runs(paths: list[str] | list[Path]) -> list[RunDir]:
    """The run directories among and below ``paths``, in the order given and then by name.

    Raises:
        RunDirError: for a path that is not there, or under which no run is found.
    """
    runs: list[RunDir] = []
    for path in map(Path, paths):
        if not path.exists():
            raise RunDirError(f"{path}: no such run directory")
        below = {file.parent for name in (CONFIG, METRICS) for file in path.rglob(name)}
        found = [path] if _is_run(path) else sorted(p for p in below if _is_run(p) and not _is_left_out(p))
        if not found:
            raise RunDirError(f"{path}: no run in it (a run directory holds {CONFIG} and {METRICS})")
        runs += [RunDir(p) for p in found if RunDir(p).path not in {r.path for r in runs}]
    return runs


def _is_run(path: Path) -> bool:
    """Whether a run was started here; a model's folder has a config.json too."""
    try:
        return (path / METRICS).exists() or bool(RunDir(path).config())
    except RunDirError:
        return False


def _is_left_out(path: Path) -> bool:
    """What the mirror uploaded, and what a fork that was killed had begun."""
    return path.name == _MLFLOW_COPIES or path.name.startswith(".")
