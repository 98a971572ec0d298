"""What a run has trained, as a folder that loads without the harness: PEFT's adapter, or full weights.

It is made beside its place and renamed, so that it is there whole or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from harness.backends import LocalBackend
from harness.backends.base import Backend
from harness.backends.local import checkpoint
from harness.backends.local.merge import base_for_peft, merge
from harness.config_io import redact
from harness.derive import backend_of, find_checkpoint
from harness.disk_usage import size_of
from harness.exceptions import CheckpointDamagedError, ConfigError
from harness.export_card import model_card
from harness.export_chat import Chat
from harness.files import sync_path
from harness.run_dir import CheckpointRecord, Row, RunDir

_README = "README.md"


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        step: Updates in it.
        size: Bytes of the folder.
        dtype: Of the full weights; None for an adapter.
        base: What PEFT loads the adapter's base model by.
        notes: What its user must know that no file of it can say.
    """

    step: int
    size: int
    dtype: str | None
    base: str
    notes: Sequence[str]


def export(run: RunDir, at: str, out: Path, *, merged: bool, base_url: str | None = None) -> Exported:
    """Write a checkpoint of ``run`` to the folder ``out``, which is made; with tokenizer and model card.

    Args:
        at: See :func:`harness.derive.find_checkpoint`.
        merged: Full weights, in the dtype in which the run's evaluations computed, or the base model's own where a
            service computed; else the adapter as it was saved.
        base_url: See :func:`harness.derive.at_address`.

    Raises:
        ConfigError: where ``out`` holds something, there is no such checkpoint, or the base model is not there.
        RunDirError: where ``run`` is none.
        BackendError: where the checkpoint is not what was saved, or a service does not give it out.
    """
    document = run.config()
    record = find_checkpoint(run, at)
    backend = backend_of(run, base_url)
    out = Path(os.path.realpath(out.expanduser()))  # a link stays, and what it leads to is made
    _check_free(out)
    model_name, dtype = document["config"]["model_name"], None
    base, chat = _base_and_chat(document, merged)
    made = out.with_name(f".{out.name}.export-{uuid.uuid4().hex[:8]}")  # another export to it may be under way
    try:
        made.mkdir(parents=True)
        record = _download(run, at, record, backend, made)
        if merged:
            dtype = merge(model_name, made, made, document["numerics"].get("dtype"))
            for name in (checkpoint.ADAPTER_CONFIG, checkpoint.ADAPTER):
                (made / name).unlink()
        else:
            _name_base(made / checkpoint.ADAPTER_CONFIG, base)
        chat.write(made, None if merged else base)
        card = redact(model_card(run, document, record, dtype, chat.notes))
        (made / _README).write_text(card, encoding="utf-8", errors="replace")
        size = size_of(made)
        for path in [*made.rglob("*"), made]:
            sync_path(path)
        _check_free(out)  # another export to it may have ended meanwhile
        os.replace(made, out)
        sync_path(out.parent)
    except OSError as error:
        raise ConfigError(
            f"--out {out}: cannot be written ({error.strerror}): make room, or choose another folder"
        ) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return Exported(record.step, size, dtype, base, chat.notes)


def _base_and_chat(document: Row, merged: bool) -> tuple[str, Chat]:
    model_name = document["config"]["model_name"]
    try:
        if merged:
            LocalBackend().check(model_name)
        return base_for_peft(model_name), Chat(document)
    except ConfigError as error:
        if Path(model_name).expanduser().is_absolute():
            raise
        raise ConfigError(f"{error}; if it is a folder, export from where the run was trained") from error


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: there is something already: choose another folder")


def _download(run: RunDir, at: str, record: CheckpointRecord, backend: Backend, to: Path) -> CheckpointRecord:
    """Write the adapter of ``record`` to ``to``; of what ``at`` is by now, where the run has deleted that meanwhile."""
    while True:
        try:
            backend.download_checkpoint(run.path, record.state_path, to)
            return record
        except CheckpointDamagedError:
            now = find_checkpoint(run, at)
            if now == record:
                raise
            record = now


def _name_base(adapter_config: Path, base: str) -> None:
    config = json.loads(adapter_config.read_bytes()) | {"base_model_name_or_path": base}
    adapter_config.write_text(json.dumps(config, indent=2, sort_keys=True))
