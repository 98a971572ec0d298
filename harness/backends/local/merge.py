"""A LoRA and the weights that it was trained on, made one: full weights that load without PEFT."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.backends.local.checkpoint import ADAPTER
from harness.backends.local.model import local_model_path
from harness.exceptions import BackendError, ConfigError
from harness.tokenizer_utils import from_pretrained, local_folder, quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def base_for_peft(model_name: str) -> str:
    """What PEFT loads a model by, from any directory: a folder's whole path, or a hub id."""
    source = local_model_path(model_name)
    folder = local_folder(source)
    return source if folder is None else str(folder.absolute())


def merge(model_name: str, adapter: Path, to: Path, dtype: str | None) -> str:
    """Write the merged weights to the folder ``to``, with config.json and generation_config.json.

    They are merged in float32 and rounded once. A head that shares the embeddings' weights gets its own where the LoRA
    is on either.

    Args:
        adapter: The folder of a PEFT adapter.
        dtype: Of what is written, as torch names it; None: that of the model's own files.

    Returns:
        The dtype.

    Raises:
        ConfigError: for a model that is not there, or is damaged.
        BackendError: for an adapter of another model, or too little memory.
        OSError: where it cannot be written.
    """
    import safetensors
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    source = local_model_path(model_name)
    saved_in = from_pretrained(AutoConfig, source).dtype
    written_in = getattr(torch, dtype) if dtype else saved_in or torch.float32
    try:
        base = from_pretrained(AutoModelForCausalLM, source, dtype=torch.float32)
        merged = _merged(base, model_name, adapter)
    except safetensors.SafetensorError as error:
        raise ConfigError(f"model {model_name!r}: its weights cannot be read ({error}): download it again") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise BackendError(f"not enough memory to merge {model_name}: leave out --merge") from error
    try:
        with quiet_transformers():
            merged.to(written_in).save_pretrained(to)
    except safetensors.SafetensorError as error:  # what the system said, in its words
        raise OSError(errno.EIO, str(error)) from error
    return str(written_in).removeprefix("torch.")


def _merged(base: PreTrainedModel, model_name: str, adapter: Path) -> Any:
    import safetensors
    from peft import PeftModel, get_peft_model_state_dict

    with safetensors.safe_open(adapter / ADAPTER, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping
    _untie(base, shapes)
    try:
        with quiet_transformers():
            model = PeftModel.from_pretrained(base, adapter)
    except (ValueError, RuntimeError) as error:  # layers that the model has not; another shape
        if "memory" in str(error):
            raise
        raise BackendError(f"{model_name}: the adapter is not of this model ({_first_line(error)})") from None
    taken = get_peft_model_state_dict(model, save_embedding_layers=False)
    other = sorted(taken.keys() ^ shapes.keys())
    if other:
        raise BackendError(f"{model_name}: the adapter is not of this model ({other[0]} is in one of them alone)")
    return model.merge_and_unload()


def _untie(base: PreTrainedModel, names: Any) -> None:
    """Let the head have weights of its own where it shares the embeddings', and the LoRA changes one of them: merged
    into the shared ones it would change the other too."""
    import torch

    head, embeddings = base.get_output_embeddings(), base.get_input_embeddings()
    if head is None or head.weight is not embeddings.weight:
        return
    shared = [name for name, module in base.named_modules() if module is head or module is embeddings]
    if any(f".{layer}.lora_" in name for name in names for layer in shared):
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        for config in (base.config, base.config.get_text_config()):
            config.tie_word_embeddings = False


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
