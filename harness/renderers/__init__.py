"""Messages to tokens and loss weights; one format a file."""

from typing import Any

from harness.exceptions import ConfigError
from harness.renderers.base import Message as Message
from harness.renderers.base import Renderer as Renderer
from harness.renderers.base import SupervisedExample as SupervisedExample
from harness.renderers.base import TrainOnWhat as TrainOnWhat
from harness.renderers.chat_template import ChatTemplateRenderer
from harness.renderers.role_colon import RoleColonRenderer

_RENDERERS: dict[str, type[Renderer]] = {"chat_template": ChatTemplateRenderer, "role_colon": RoleColonRenderer}


def get_renderer(name: str, tokenizer: Any) -> Renderer:
    """The renderer of that name for a tokenizer.

    Raises:
        ConfigError: for a name that is no renderer.
        RendererError: where the tokenizer lacks what the renderer needs.
    """
    check_renderer_name(name)
    return _RENDERERS[name](tokenizer)


def check_renderer_name(name: str) -> None:
    """Raise ConfigError unless ``name`` is a renderer; loads no tokenizer."""
    if name not in _RENDERERS:
        raise ConfigError(f"renderer_name={name}: no such renderer; there are {', '.join(sorted(_RENDERERS))}")
