"""A tokenizer's chat template: messages to text, and to the outline of it."""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from harness.exceptions import RendererError
from harness.renderers.messages import Message
from harness.renderers.outline import Outline, marked

TODAY = datetime.date(2024, 7, 26)  # the day that Llama-3's template itself falls back to
_DATE_CALL = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
_PLAIN = {"role", "content", "reasoning_content"}


class Template:
    """The chat template of a tokenizer, with switches of its own set.

    Attributes:
        by_default: The template's text with the switches as its defaults. It writes the date of the day.
        writes_today: Whether it writes today's date in a way that cannot be fixed.
        calls_as_text: Whether tools' arguments are given to it as JSON; else as objects.
    """

    def __init__(self, tokenizer: Any, arguments: dict[str, Any]):
        self._tokenizer = tokenizer
        given = tokenizer.get_chat_template()
        self._text = _DATE_CALL.sub(lambda call: repr(TODAY.strftime(call[2])), given)
        self._arguments = arguments
        for argument, value in arguments.items():
            if not re.search(rf"\b{argument}\b", self._text):
                raise RendererError(
                    f"{tokenizer.name_or_path}: its chat template does not know {argument}, which this renderer sets "
                    f"to {value!r}: use renderer_name=chat_template"
                )
        self.by_default = "".join(map(_default, arguments.items())) + given
        self.writes_today = "strftime_now(" in self._text
        self.calls_as_text = False
        self._prompt_after = functools.lru_cache(maxsize=4096)(self._render_prompt_after)
        self._outline_of_roles = functools.lru_cache(maxsize=1024)(self._render_outline_of_roles)

    def apply(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The text of a conversation.

        Raises:
            RendererError: where the template refuses it.
        """
        import jinja2

        if self.calls_as_text:
            messages = [with_arguments(message, as_text) for message in messages]
        try:
            return self._tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                chat_template=self._text,
                **self._arguments,
            )
        except (jinja2.TemplateError, TypeError, ValueError, IndexError, KeyError) as error:
            raise RendererError(f"the chat template refuses this conversation: {error}") from error

    def outline(self, messages: Sequence[Message]) -> Outline | None:
        """The outline of a conversation; None where the template refuses it."""
        if any(not message.keys() <= _PLAIN for message in messages):
            return self._render_outline(messages)
        return self._outline_of_roles(
            tuple(
                (message["role"], _says(message, "content"), _says(message, "reasoning_content"))
                for message in messages
            )
        )

    def prompt_after(self, marked_messages: Sequence[Message]) -> str:
        """The generation prompt after the first messages of an outline; of long conversations these are often alike."""
        if any(not message.keys() <= _PLAIN for message in marked_messages):
            return self.apply(marked_messages, add_generation_prompt=True)
        return self._prompt_after(tuple(tuple(message.items()) for message in marked_messages))

    def _render_prompt_after(self, marked_messages: tuple[tuple[tuple[str, str], ...], ...]) -> str:
        return self.apply([dict(message) for message in marked_messages], add_generation_prompt=True)

    def _render_outline_of_roles(self, roles: tuple[tuple[str, str | None, str | None], ...]) -> Outline | None:
        keys = ("role", "content", "reasoning_content")
        return self._render_outline(
            [{key: value for key, value in zip(keys, message, strict=True) if value is not None} for message in roles]
        )

    def _render_outline(self, messages: Sequence[Message]) -> Outline | None:
        messages = marked(messages)
        try:
            return Outline(messages, self.apply(messages))
        except RendererError:
            return None


def _default(argument: tuple[str, Any]) -> str:
    name, value = argument
    return f"{{% set {name} = {name} | default({json.dumps(value)}) %}}"


def _says(message: Message, key: str) -> str | None:
    """Something in the place of what a message says, nothing in the place of nothing."""
    return ("." if message[key].strip() else "") if key in message else None


def with_arguments(message: Message, write: Callable[[Any], Any]) -> Message:
    """The message with the arguments of its tool calls written otherwise."""

    def rewrite(call: dict[str, Any]) -> dict[str, Any]:
        if "function" in call:
            return {**call, "function": rewrite(call["function"])}
        return {**call, "arguments": write(call["arguments"])}

    if "tool_calls" not in message:
        return message
    return {**message, "tool_calls": [rewrite(call) for call in message["tool_calls"]]}


def as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
