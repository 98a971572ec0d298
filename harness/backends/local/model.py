"""From a model's name to a frozen model with a fresh LoRA."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.exceptions import ConfigError
from harness.model_info import packaged_gguf
from harness.tokenizer_utils import converted, from_pretrained, local_folder, quiet_transformers

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


_FEED_FORWARD = re.compile(r"(^|[._])(mlp|ffn?|fc\d*|feed_forward|experts?)([._]|$)")  # in a module's full name


@dataclasses.dataclass(frozen=True)
class Layers:
    """Which linear layers get a LoRA: of attention, of the feed-forward blocks, the head."""

    attn: bool
    mlp: bool
    unembed: bool


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
    model_name: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    rank: int,
    alpha: int,
    layers: Layers,
    seed: int,
) -> PeftModel:
    """The model, frozen and without dropout, with a LoRA in float32 on ``layers``.

    The LoRA depends on ``seed`` and the model alone, not on what drew random numbers before; those drawn after
    are what they would have been.

    Raises:
        ConfigError: for a model that has no such layers, or some that take no LoRA.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from harness.backends.local.lora import LoraLinear
    from harness.backends.local.norms import use_own_backward

    base = _load(local_model_path(model_name), dtype).to(device)
    base.config.use_cache = False
    base.requires_grad_(False)
    use_own_backward(base)
    targets = _linear_layers(base, layers)
    if not targets:
        raise ConfigError(
            f"model {model_name!r} has no linear layer of the kinds to be trained (backend.train_attn={layers.attn}, "
            f"train_mlp={layers.mlp}, train_unembed={layers.unembed}): set another of them to true"
        )
    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules=targets
    )
    config._register_custom_module({torch.nn.Linear: LoraLinear})
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(seed)
        try:
            model = get_peft_model(base, config, autocast_adapter_dtype=True)
        except ValueError as error:  # a layer that PEFT knows not to work with a LoRA
            raise ConfigError(f"model {model_name!r}: {str(error).rstrip('.')}: take another model") from error
    return model.eval()


def _linear_layers(model: Any, layers: Layers) -> list[str]:
    """The names of the linear layers of these kinds, in the model's order. One that is neither the head nor in a
    feed-forward block takes part in mixing tokens: attention, or what stands in its place."""
    import torch
    from transformers.pytorch_utils import Conv1D

    def kind(name: str, module: torch.nn.Module) -> bool:
        if module is model.get_output_embeddings():
            return layers.unembed
        return layers.mlp if _FEED_FORWARD.search(name) else layers.attn

    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)}
    return [name for name, module in linear.items() if kind(name, module)]


def _load(source: str, dtype: torch.dtype, **options: str) -> Any:
    from transformers import AutoModelForCausalLM

    return from_pretrained(AutoModelForCausalLM, source, dtype=dtype, **options)


def _convert(gguf: Path, folder: Path) -> None:
    import torch

    model = _load(str(gguf.parent), torch.float32, gguf_file=gguf.name)
    model.hf_quantizer = None  # the weights are whole now; left alone, these two would say that they are quantised
    del model.config.quantization_config
    model.save_pretrained(folder)
