"""Messages to tokens and loss weights; one format a file."""

import difflib
import logging
from collections.abc import Callable
from typing import Any

from harness.exceptions import ConfigError
from harness.renderers.base import Renderer as Renderer
from harness.renderers.base import SupervisedExample as SupervisedExample
from harness.renderers.base import TrainOnWhat as TrainOnWhat
from harness.renderers.chat_template import ChatTemplateRenderer
from harness.renderers.families import TEMPLATE_NAMES
from harness.renderers.llama3 import Llama3Renderer
from harness.renderers.messages import MessageDict as Message  # noqa: F401
from harness.renderers.messages import get_text_content as get_text_content
from harness.renderers.probes import differs_from_template
from harness.renderers.qwen3 import Qwen3DisableThinkingRenderer, Qwen3InstructRenderer, Qwen3Renderer
from harness.renderers.role_colon import RoleColonRenderer

logger = logging.getLogger(__name__)

RendererFactory = Callable[[Any], Renderer]
"""Takes the tokenizer."""

_WRITTEN_OUT: dict[str, tuple[RendererFactory, dict[str, Any]]] = {
    # name: the renderer, and the arguments with which its model's chat template says the same
    "llama3": (Llama3Renderer, {}),
    "qwen3": (Qwen3Renderer, {}),
    "qwen3_disable_thinking": (Qwen3DisableThinkingRenderer, {"enable_thinking": False}),
    "qwen3_instruct": (Qwen3InstructRenderer, {}),
}
_GENERAL: dict[str, RendererFactory] = {"chat_template": ChatTemplateRenderer, "role_colon": RoleColonRenderer}
_registered: dict[str, RendererFactory] = {}


def get_renderer(name: str, tokenizer: Any, max_length: int | None = None) -> Renderer:
    """The renderer of that name for a tokenizer.

    A renderer that is written out here is held against the tokenizer's own chat template first; where the template says
    something else, it is used in the renderer's place, with a warning. So are the names of families that have no
    renderer here.

    Args:
        name: See ``docs/renderers.md``, or a name given to :func:`register_renderer`.
        tokenizer: A fast Hugging Face tokenizer.
        max_length: Tokens at which ``build_supervised_example`` cuts a conversation; None never cuts.

    Raises:
        ConfigError: for a name that is no renderer, and for a ``max_length`` that leaves nothing to train.
        RendererError: where the tokenizer lacks what the renderer needs.
    """
    check_renderer_name(name)
    if max_length is not None and max_length < 2:
        raise ConfigError(f"max_length={max_length}: must be at least 2, or None")
    renderer = _make(name, tokenizer)
    if not isinstance(renderer, Renderer):
        raise ConfigError(f"renderer_name={name}: its factory made {type(renderer).__name__}, not a Renderer")
    renderer.max_length = max_length
    return renderer


def register_renderer(name: str, factory: RendererFactory) -> None:
    """Let ``name`` stand for a renderer of your own, everywhere that a ``renderer_name`` is given.

    Args:
        name: Not the name of a renderer that is there already; giving one's own name again replaces it.
        factory: Takes the tokenizer and returns the renderer.

    Raises:
        ConfigError: for the name of a renderer that comes with the harness.
    """
    if name in _GENERAL or name in _WRITTEN_OUT or name in TEMPLATE_NAMES:
        raise ConfigError(f"renderer_name={name} comes with the harness: register yours under another name")
    _registered[name] = factory


def check_renderer_name(name: str) -> None:
    """Raise ConfigError unless ``name`` is a renderer; loads no tokenizer."""
    mine = sorted({*_GENERAL, *_WRITTEN_OUT, *_registered})
    if name not in mine and name not in TEMPLATE_NAMES:
        near = difflib.get_close_matches(name, [*mine, *TEMPLATE_NAMES], n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"renderer_name={name}: no such renderer; {meant}there are {', '.join(mine)}")


def _make(name: str, tokenizer: Any) -> Renderer:
    factory = _registered.get(name) or _GENERAL.get(name)
    if factory:
        return factory(tokenizer)
    if name in TEMPLATE_NAMES:
        arguments = TEMPLATE_NAMES[name]
        said = "".join(f", with {key}={value!r}" for key, value in arguments.items())
        logger.warning("renderer_name=%s has no renderer of its own: the model's chat template is used%s", name, said)
        return ChatTemplateRenderer(tokenizer, **arguments)
    factory, arguments = _WRITTEN_OUT[name]
    renderer = factory(tokenizer)
    if not tokenizer.chat_template:
        return renderer
    template = ChatTemplateRenderer(tokenizer, **arguments)
    if not differs_from_template(renderer, template):
        renderer.chat_template = template.chat_template
        return renderer
    logger.warning(
        "renderer_name=%s: the chat template of %s says something else: the template is used",
        name,
        tokenizer.name_or_path,
    )
    return template
