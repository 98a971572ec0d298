"""From a model's name to a frozen model with a fresh LoRA."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.exceptions import ConfigError
from harness.model_info import packaged_gguf
from harness.tokenizer_utils import converted, from_pretrained, local_folder, quiet_transformers

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


def check_model(model_name: str) -> None:
    """Find out without loading anything whether there is such a model; a hub id is not asked for.

    Raises:
        ConfigError: for a folder that is not there or has no model in it.
        BackendError: where the package of a packaged model is not installed.
    """
    if packaged_gguf(model_name) is not None:
        return
    folder = local_folder(model_name)
    if folder is not None and not (folder / "config.json").exists():
        raise ConfigError(f"model {model_name!r}: no config.json in this folder: give the folder of a model")


def local_model_path(model_name: str) -> str:
    """Where transformers finds the weights: a packaged model's converted folder, else the name unchanged."""
    gguf = packaged_gguf(model_name)
    return model_name if gguf is None else str(converted(gguf, "weights", functools.partial(_convert, gguf)))


def context_length(model_name: str) -> int | None:
    """What the model's config.json says, where it lies in a folder; None where it says nothing, or is on the hub."""
    config = Path(local_model_path(model_name)).expanduser() / "config.json"
    if not config.exists():
        return None
    document = json.loads(config.read_text())
    return document.get("text_config", document).get("max_position_embeddings")


def load_lora_model(
    model_name: str, *, dtype: torch.dtype, device: torch.device, rank: int, alpha: int, seed: int
) -> PeftModel:
    """The model, frozen and without dropout, with a LoRA in float32 on every linear layer but the head.

    The LoRA depends on ``seed`` and the model alone, not on what drew random numbers before; those drawn after
    are what they would have been.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    base = _load(local_model_path(model_name), dtype).to(device)
    base.config.use_cache = False
    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules="all-linear"
    )
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(seed)
        model = get_peft_model(base, config, autocast_adapter_dtype=True)
    return model.eval()


def _load(source: str, dtype: torch.dtype, **options: str) -> Any:
    from transformers import AutoModelForCausalLM

    return from_pretrained(AutoModelForCausalLM, source, dtype=dtype, **options)


def _convert(gguf: Path, folder: Path) -> None:
    import torch

    model = _load(str(gguf.parent), torch.float32, gguf_file=gguf.name)
    model.hf_quantizer = None  # the weights are whole now; left alone, these two would say that they are quantised
    del model.config.quantization_config
    model.save_pretrained(folder)
