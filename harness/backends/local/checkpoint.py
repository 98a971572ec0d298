"""A saved state is a folder ``checkpoints/<name>/`` of the run directory, whole or not there. No pickle.

| file                      | holds                                                                          |
| ------------------------- | ------------------------------------------------------------------------------ |
| adapter_config.json       | PEFT's: the folder loads with ``PeftModel.from_pretrained``                    |
| adapter_model.safetensors | PEFT's: the LoRA                                                               |
| optimizer.safetensors     | ``<parameter>.exp_avg``, ``<parameter>.exp_avg_sq`` and ``step``; a state's only |
| manifest.json             | format version, base model, step, SHA-256 of each file; written last           |

It is made in ``.<name>.tmp``, made durable, and renamed. What was there under its name is moved to ``.<name>.old`` just
before, and goes only after. A process that is killed meanwhile leaves them to :func:`clean`.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from harness import run_dir
from harness.exceptions import BackendError, CheckpointDamagedError
from harness.files import sync_path

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"
OPTIMIZER = "optimizer.safetensors"
MANIFEST = "manifest.json"
NAME = r"\w[\w.-]*"  # what a checkpoint may be called
_ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER)
_FILES = {*_ADAPTER_FILES, OPTIMIZER, MANIFEST}
_LEFT = re.compile(r"(?P<whole>[0-9]{6,})|\.(?P<name>[0-9]{6,})\.(?P<end>tmp|old)")
_FORMAT = 1


def write(folder: Path, files: Mapping[str, bytes], *, base_model: str, step: int) -> None:
    """Write a checkpoint; on return it is durable.

    Raises:
        BackendError: where it cannot be written; what was there under its name still is.
    """
    temp, old = _beside(folder)
    manifest = {
        "format": _FORMAT,
        "base_model": base_model,
        "step": step,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    try:
        _settle(folder)
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, temp, ignore_errors=True)
            temp.mkdir(parents=True)
            for name, data in [*files.items(), (MANIFEST, json.dumps(manifest, indent=2).encode())]:
                with (temp / name).open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            sync_path(temp)
            if folder.exists():
                folder.rename(old)
                undo.callback(old.rename, folder)
            temp.rename(folder)
            undo.callback(folder.rename, temp)
            for parent in (folder.parent, folder.parent.parent):
                sync_path(parent)
            undo.pop_all()
    except OSError as error:
        raise BackendError(f"{folder}: cannot be written ({error.strerror}): make room, then resume the run") from error
    shutil.rmtree(old, ignore_errors=True)


def read(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint by name, each proved to be what was saved.

    Raises:
        CheckpointDamagedError: where one is missing or differs.
        BackendError: where a later version of the harness wrote it.
    """
    if not folder.is_dir():
        raise CheckpointDamagedError(f"{folder}: no such checkpoint: take another")
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        version, hashes = int(manifest["format"]), dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointDamagedError(f"{folder / MANIFEST}: missing or damaged: take another checkpoint") from None
    if version > _FORMAT:
        raise BackendError(f"{folder}: format {version}, this harness reads up to {_FORMAT}: upgrade it")
    files: dict[str, bytes] = {}
    for name, expected in hashes.items():
        try:
            files[name] = (folder / name).read_bytes()
        except OSError as error:
            raise CheckpointDamagedError(
                f"{folder / name}: cannot be read ({error.strerror}): take another checkpoint"
            ) from None
        if hashlib.sha256(files[name]).hexdigest() != expected:
            raise CheckpointDamagedError(f"{folder / name}: not what was saved: take another checkpoint")
    return files


def read_adapter(folder: Path) -> dict[str, bytes]:
    """The adapter's two files of a checkpoint, proved as :func:`read` does.

    Raises:
        CheckpointDamagedError: as :func:`read` does.
    """
    files = read(folder)
    for name in _ADAPTER_FILES:
        if name not in files:
            raise CheckpointDamagedError(f"{folder}: no {name} in its manifest: take another checkpoint")
    return {name: files[name] for name in _ADAPTER_FILES}


def read_any_adapter(folder: Path) -> dict[str, bytes]:
    """The adapter's two files: of a checkpoint, proved as :func:`read` does; of any other folder, as they are. For what
    a user names: a run's own checkpoint that lost its manifest would pass as another folder.

    Raises:
        CheckpointDamagedError: for a checkpoint that is not what was saved.
        BackendError: where there is no adapter.
    """
    if (folder / MANIFEST).exists():
        return read_adapter(folder)
    try:
        return {name: (folder / name).read_bytes() for name in _ADAPTER_FILES}
    except OSError as error:
        raise BackendError(
            f"{folder}: no adapter there ({error.strerror}: {error.filename}): give the folder of a checkpoint, or of "
            f"an adapter that PEFT saved"
        ) from None


def copy_adapter(folder: Path, to: Path) -> None:
    """Write the adapter's two files to another folder, proved to be what was saved.

    Raises:
        CheckpointDamagedError: as :func:`read` does.
    """
    for name, data in read_adapter(folder).items():
        (to / name).write_bytes(data)


def digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a checkpoint's files.

    Raises:
        CheckpointDamagedError: as :func:`read` does.
    """
    hasher = hashlib.sha256()
    for name, data in sorted(read(folder).items()):
        hasher.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
    return hasher.hexdigest()


def copy(folder: Path, to: Path) -> None:
    """Copy a checkpoint, once it is proved to be what was saved.

    Raises:
        CheckpointDamagedError: as :func:`read` does.
    """
    read(folder)
    shutil.copytree(folder, to)


def remove(run_path: Path, state_path: str) -> None:
    """Delete a checkpoint, all at once as a reader sees it; one that is gone already is no error.

    Raises:
        BackendError: for a path that is not a checkpoint's of this run.
    """
    folder = Path(os.path.normpath(run_path / state_path))
    if folder.parent != Path(os.path.normpath(run_path / run_dir.CHECKPOINTS_DIR)):
        raise BackendError(f"{state_path}: not in {run_path / run_dir.CHECKPOINTS_DIR}: not removed")
    _settle(folder)
    if folder.exists():
        going, _ = _beside(folder)
        folder.rename(going)
        shutil.rmtree(going)


def clean(run_path: Path) -> None:
    """Settle what a killed process left in ``checkpoints/``; nobody may be writing there. What is not ours stays."""
    for leftover in (run_path / run_dir.CHECKPOINTS_DIR).glob(".*"):
        match = re.fullmatch(rf"\.({NAME})\.(tmp|old)", leftover.name)
        if match and leftover.is_dir():
            _settle(leftover.with_name(match[1]))


def leftovers(run_path: Path, logged: Collection[str]) -> list[Path]:
    """Folders of ``checkpoints/`` that a killed process left and nothing needs: those half written or half deleted, and
    whole ones of the trainer's names that are not ``logged``. Nobody may be writing there.

    Only folders that hold what is written here, and nothing else; what a link leads to is not looked at.
    """
    found = []
    for folder in sorted((run_path / run_dir.CHECKPOINTS_DIR).glob("*")):
        match = _LEFT.fullmatch(folder.name)
        if not match or not _is_ours(folder):
            continue
        if match["whole"]:
            is_left = folder.name not in logged and (folder / MANIFEST).exists()
        else:  # an old one whose new one is missing is taken back by the next attempt
            is_left = match["end"] == "tmp" or folder.with_name(match["name"]).is_dir()
        if is_left:
            found.append(folder)
    return found


def _is_ours(folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return False
    return all(file.name in _FILES and file.is_file() and not file.is_symlink() for file in folder.iterdir())


def _settle(folder: Path) -> None:
    """Take back what a killed process did to ``folder``, or end it where the new one is in its place."""
    temp, old = _beside(folder)
    shutil.rmtree(temp, ignore_errors=True)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        old.rename(folder)


def _beside(folder: Path) -> tuple[Path, Path]:
    """Where a checkpoint is while it is made or deleted, and where the one is that it replaces."""
    return folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")
