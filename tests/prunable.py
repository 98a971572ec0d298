"""Run directories with checkpoints of the local backend's form, made without training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.backends.local import checkpoint
from harness.run_dir import CheckpointRecord, RunDir
from tests.tracking.conftest import end_attempt, row, start_run

FILES = {checkpoint.ADAPTER_CONFIG: b"{}", checkpoint.ADAPTER: b"x" * 1000, checkpoint.OPTIMIZER: b"y" * 2000}


def save(run: RunDir, step: int) -> Path:
    """What is on disk of a checkpoint."""
    folder = run / "checkpoints" / f"{step:06d}"
    checkpoint.write(folder, FILES, base_model="tiny/model", step=step)
    return folder


def record(step: int, **more: Any) -> CheckpointRecord:
    path = f"checkpoints/{step:06d}"
    return CheckpointRecord(
        **({"name": f"{step:06d}", "step": step, "epoch": 0, "batch": step, "state_path": path} | more)
    )


def prunable(path: Path, nlls: Mapping[int, float | None], *, state: str | None = "FINISHED", **changes: Any) -> RunDir:
    """A run that saved at every step of ``nlls`` but 0, and evaluated there: its test NLL; None: it did not.

    Args:
        state: How it ended; None for one that was killed.
        changes: Of the config.
    """
    run = start_run(path, document={"data": {"train": "beef", "test": {"": "feed"}}}, **changes)
    last = max(nlls)
    for step in range(last + 1):
        tested = {} if nlls.get(step) is None else {"test/nll": nlls[step]}
        run.append_metrics((row(step, 5.0) if step < last else {"step": step, "ts": 1}) | tested)
        if step and step in nlls:
            save(run, step)
            run.append_checkpoint(record(step, final=step == last and state == "FINISHED"))
    if state:
        end_attempt(run, 1, state)
    return run


def on_disk(run: RunDir) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def tree(folder: Path) -> dict[str, bytes]:
    """Every file by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
