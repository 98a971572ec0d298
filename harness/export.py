"""What a run has trained, as a folder that loads without the harness: PEFT's adapter, or full weights.

It is made beside its place and renamed, so that it is there whole or not at all.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from harness.backends import LocalBackend
from harness.backends.local import checkpoint
from harness.backends.local.merge import base_for_peft, merge
from harness.config_io import redact
from harness.derive import backend_of, find_checkpoint
from harness.disk_usage import size_of
from harness.exceptions import ConfigError
from harness.export_card import model_card, renderer_name
from harness.files import sync_path
from harness.model_info import ROLE_COLON
from harness.renderers.role_colon import CHAT_TEMPLATE
from harness.run_dir import Row, RunDir
from harness.tokenizer_utils import get_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_README = "README.md"


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        step: Updates in it.
        size: Bytes of the folder.
        dtype: Of the full weights; None for an adapter.
        base: What PEFT loads the adapter's base model by.
    """

    step: int
    size: int
    dtype: str | None
    base: str


def export(run: RunDir, at: str, out: Path, *, merged: bool) -> Exported:
    """Write a checkpoint of ``run`` to the folder ``out``, which is made; with tokenizer and model card.

    Args:
        at: See :func:`harness.derive.find_checkpoint`.
        merged: Full weights, in the dtype in which the run's evaluations computed, or the base model's own where a
            service computed; else the adapter as it was saved.

    Raises:
        ConfigError: where ``out`` holds something, there is no such checkpoint, or the base model is not there.
        RunDirError: where ``run`` is none.
        BackendError: where the checkpoint is not what was saved, or a service does not give it out.
    """
    document = run.config()
    record = find_checkpoint(run, at)
    backend = backend_of(run)
    out = Path(os.path.abspath(out.expanduser()))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: there is something already: choose another folder")
    model_name, dtype = document["config"]["model_name"], None
    if merged:
        LocalBackend().check(model_name)
    base, tokenizer = base_for_peft(model_name), _tokenizer(document)
    made = out.with_name(f".{out.name}.export")
    try:
        shutil.rmtree(made, ignore_errors=True)  # what a crash left
        made.mkdir(parents=True)
        backend.download_checkpoint(run.path, record.state_path, made)
        if merged:
            dtype = merge(model_name, made, made, document["numerics"].get("dtype"))
            for name in (checkpoint.ADAPTER_CONFIG, checkpoint.ADAPTER):
                (made / name).unlink()
        else:
            _name_base(made / checkpoint.ADAPTER_CONFIG, base)
        tokenizer.save_pretrained(made)
        (made / _README).write_text(redact(model_card(run, document, record, dtype)))
        size = size_of(made)
        for path in [*made.rglob("*"), made]:
            sync_path(path)
        os.replace(made, out)
        sync_path(out.parent)
    except OSError as error:
        raise ConfigError(
            f"--out {out}: cannot be written ({error.strerror}): make room, or choose another folder"
        ) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return Exported(record.step, size, dtype, base)


def _tokenizer(document: Row) -> PreTrainedTokenizerBase:
    """The model's, with the chat template that the run was trained on."""
    tokenizer = copy.copy(get_tokenizer(document["config"]["model_name"]))
    if renderer_name(document) == ROLE_COLON:  # whatever template the model may have
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _name_base(adapter_config: Path, base: str) -> None:
    config = json.loads(adapter_config.read_bytes()) | {"base_model_name_or_path": base}
    adapter_config.write_text(json.dumps(config, indent=2, sort_keys=True))
