"""Learning rates to start from: by the model's family and width, and by the batch size."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.exceptions import ConfigError
from harness.model_info import MODELS, PACKAGED_MODELS, near_matches

_LR_BASE = 5e-5  # for training every weight
_LORA_MULTIPLIER = 10.0
_WIDTH = 2000  # the hidden size at which every family has the same learning rate
_DENSE = ("llama", "mistral", "qwen2", "qwen3")  # model types: q, k, v, o, gate, up and down in each layer
_EXPONENTS = {"llama": 0.781, "qwen": 0.0775}


def get_lr(model_name: str) -> float:
    """The learning rate to start from when a LoRA of a model is trained: ``5e-5 · 10 · (2000 / hidden_size) ** P``.

    P was fitted for two families: 0.0775 for Qwen, 0.781 for Llama. The family and the hidden size are those of the
    model's own config where it can be read here (a folder, the hub's local cache, a packaged model), so that a model
    of the Llama architecture counts as one under any name; else those of its name and of the table of ``model_info``.
    Nothing is asked of the network.

    Raises:
        ConfigError: for a model of another family, or one of which nothing is known here.
    """
    config = _local_config(model_name)
    if config is not None:
        kind, hidden_size = config.get("model_type", ""), _hidden_size(config)
    elif model_name in MODELS:
        kind, hidden_size = model_name, MODELS[model_name].hidden_size
    else:
        raise ConfigError(
            f"get_lr: model {model_name!r} is not in the table of harness.model_info and no config of it is on this "
            f"machine: give learning_rate yourself{near_matches(model_name)}"
        )
    family = next((family for family in _EXPONENTS if family in kind.lower()), None)
    if family is None or hidden_size is None:
        raise ConfigError(
            f"get_lr: no learning rate is known for {model_name!r}: the formula was fitted for Llama and Qwen; "
            "give learning_rate yourself"
        )
    return _LR_BASE * _LORA_MULTIPLIER * (_WIDTH / hidden_size) ** _EXPONENTS[family]


def scale_lr(learning_rate: float, *, from_batch_size: int, to_batch_size: int) -> float:
    """The learning rate for another batch size: it goes with the square root of the conversations an update.

    Raises:
        ConfigError: for a batch size that is not greater than 0.
    """
    for name, size in (("from_batch_size", from_batch_size), ("to_batch_size", to_batch_size)):
        if size <= 0:
            raise ConfigError(f"scale_lr: {name}={size}: must be greater than 0")
    return learning_rate * math.sqrt(to_batch_size / from_batch_size)


def lora_parameters(model_name: str, rank: int) -> int | None:
    """Parameters of a LoRA of that rank on every linear layer but the head: ``rank · (in + out)`` of each.

    None for a model of another architecture than these, and for one whose config is not on this machine.
    """
    config = _local_config(model_name) or {}
    if config.get("model_type") not in _DENSE:
        return None
    hidden, inner, heads = (config[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
    head = config.get("head_dim") or hidden // heads
    queries, keys = heads * head, (config.get("num_key_value_heads") or heads) * head
    shapes = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden), *[(hidden, inner)] * 3]
    return rank * config["num_hidden_layers"] * sum(map(sum, shapes))


def _hidden_size(config: Mapping[str, Any]) -> int | None:
    """Models that also see keep it with those of the text's part."""
    return config.get("hidden_size") or config.get("text_config", {}).get("hidden_size")


def _local_config(model_name: str) -> Mapping[str, Any] | None:
    """The model's config.json, where it is on this machine."""
    if model_name in PACKAGED_MODELS:
        return PACKAGED_MODELS[model_name].config
    folder = Path(model_name).expanduser()
    path = folder / "config.json" if folder.is_dir() else _cached_config(model_name)
    if path is None or not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read ({error}): download the model again") from None
    return config


def _cached_config(model_name: str) -> Path | None:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        path = huggingface_hub.try_to_load_from_cache(model_name, "config.json")
    except HFValidationError:  # a path to nothing, not a hub id
        return None
    return Path(path) if isinstance(path, str) else None
