"""A renderer over the model's own chat template: any Hugging Face chat model.

Templates carry no marks of what the model generates, so the spans are found by rendering: where the generation prompt
ends, and, with the content of one message replaced by a marker, where that content ends. Nothing is guessed from the
text, so content that looks like the template's own markers does no harm.
"""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Sequence
from typing import Any

from harness.exceptions import RendererError
from harness.renderers.base import Message, Renderer, Span, special_token_pattern

logger = logging.getLogger(__name__)

_MARKER = "\ue000"  # of the private use area
_TODAY = datetime.datetime(2024, 7, 26)  # the day that Llama-3's template itself falls back to


class ChatTemplateRenderer(Renderer):
    """Renders with ``tokenizer.apply_chat_template``.

    A template that writes today's date (Llama-3.2) always gets 26 July 2024: the same data must give the same tokens on
    every day, or no resume could be exact.
    """

    def __init__(self, tokenizer: Any):
        super().__init__(tokenizer)
        if not tokenizer.chat_template:
            raise RendererError(
                f"{tokenizer.name_or_path} has no chat template: use renderer_name=role_colon, as for base models"
            )
        self._warned: set[str] = set()
        self.end_of_turn = self._find_end_of_turn()

    def generation_prompt(self, messages: Sequence[Message]) -> str:
        return self._apply(messages, add_generation_prompt=True)

    def render(self, messages: Sequence[Message], trained: Sequence[int]) -> tuple[str, list[Span]]:
        text = self._apply(messages)
        spans = []
        for i in trained:
            start = self._generation_start(messages, i, text)
            content_end = self._content_end(messages, i, text)
            if content_end < start:
                raise RendererError(f"the chat template drops or moves messages[{i}]: it cannot be trained on")
            end = content_end + len(self.end_of_turn)
            if text[content_end:end] != self.end_of_turn:
                self._warn(f"messages[{i}] is not followed by the end-of-turn {self.end_of_turn!r}: it trains without")
                end = content_end
            spans.append((start, end))
        return text, spans

    def _generation_start(self, messages: Sequence[Message], i: int, text: str) -> int:
        """Where the model would begin to generate ``messages[i]``."""
        prompt = self.generation_prompt(messages[:i])
        start = _common_prefix(text, prompt)
        if start < len(prompt):
            # Reasoning templates open a <think> that the training text may lack; history must be the same all the same.
            if start < len(self._apply(messages[:i])):
                raise RendererError(
                    f"the chat template renders what comes before messages[{i}] differently once later messages "
                    "follow: train on that message as the last one (train_on_what=last_assistant_message)"
                )
            self._warn(
                f"the template's generation prompt ends in {prompt[start:]!r}, which its rendering of a finished "
                "conversation does not have"
            )
        return start

    def _content_end(self, messages: Sequence[Message], i: int, text: str) -> int:
        """Where the content of ``messages[i]`` ends: what follows it is the same whatever the content is."""
        marker = _MARKER
        while marker in text:
            marker = chr(ord(marker) + 1)
        marked = [*messages[:i], {**messages[i], "content": marker}, *messages[i + 1 :]]
        return len(text) - _common_prefix(text[::-1], self._apply(marked)[::-1])

    def _find_end_of_turn(self) -> str:
        """What the template puts after an assistant's words, up to its special token; without one, all of it."""
        text = self._apply([{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARKER}])
        _, found, tail = text.partition(_MARKER)
        if not found:
            raise RendererError("the chat template does not show the assistant's words: use another renderer")
        special = special_token_pattern(self.tokenizer).match(tail)
        end_of_turn = special.group() if special else tail
        if not end_of_turn:
            self._warn("the chat template gives the assistant's turn no end: the model cannot learn to stop")
        return end_of_turn

    def _apply(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        import jinja2

        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                strftime_now=_TODAY.strftime,
            )
        except (jinja2.TemplateError, TypeError, IndexError, KeyError) as error:
            raise RendererError(f"the chat template refuses this conversation: {error}") from error

    def _warn(self, text: str) -> None:
        if text not in self._warned:  # once a renderer, not once a conversation
            self._warned.add(text)
            logger.warning("%s: %s", self.tokenizer.name_or_path, text)


def _common_prefix(a: str, b: str) -> int:
    return len(os.path.commonprefix((a, b)))  # noqa: RUF071 # by character is what is meant
