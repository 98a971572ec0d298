"""A renderer over the model's own chat template: any Hugging Face chat model.

Templates carry no marks of what the model generates, so the spans are found by rendering once more with markers in the
place of the trained contents: what stands between the markers is the template's, what stands in their place is content.
Where a template treats a content specially, one message after the other is found by rendering alone. Nothing is guessed
from the text, so content that looks like the template's own markers does no harm.
"""

from __future__ import annotations

import datetime
import logging
import re
from collections.abc import Sequence
from typing import Any

from harness.exceptions import RendererError
from harness.renderers.base import Message, Renderer, Span, special_token_pattern

logger = logging.getLogger(__name__)

_MARKER = "\ue000"  # of the private use area
_TODAY = datetime.datetime(2024, 7, 26)  # the day that Llama-3's template itself falls back to
_DATE_CALL = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")


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
        self._template = _DATE_CALL.sub(lambda call: repr(_TODAY.strftime(call[2])), tokenizer.get_chat_template())
        if "strftime_now(" in self._template:
            self._warn("the chat template writes today's date: on another day the same data gives other tokens")
        question = [{"role": "user", "content": "?"}]
        self._header = self.generation_prompt(question).removeprefix(self._apply(question))
        self.end_of_turn = self._find_end_of_turn()

    def generation_prompt(self, messages: Sequence[Message]) -> str:
        return self._apply(messages, add_generation_prompt=True)

    def render(self, messages: Sequence[Message], trained: Sequence[int]) -> tuple[str, list[Span]]:
        text = self._apply(messages)
        if not trained:
            return text, []
        spans = self._align(messages, trained, text) or [self._find(messages, i, text) for i in trained]
        return text, [self._with_end_of_turn(i, span, text) for i, span in zip(trained, spans, strict=True)]

    def _align(self, messages: Sequence[Message], trained: Sequence[int], text: str) -> list[Span] | None:
        """All spans at once, ends of turns aside; None where the template does more than put contents in their places.

        With the contents c and the pieces p between the markers, ``text`` must be p0 c0 p1 c1 … exactly, each of the
        pieces before a content must have the generation prompt's header in it, and the last prompt must be the
        generation prompt itself: that history is rendered the same whatever follows.
        """
        marker = _unused(text)
        marked = list(messages)
        for i in trained:
            marked[i] = {**messages[i], "content": marker}
        pieces = self._apply(marked).split(marker)
        if len(pieces) != len(trained) + 1 or not self._header or not text.startswith(pieces[0]):
            return None
        spans = []
        position = len(pieces[0])
        for i, before, after in zip(trained, pieces, pieces[1:], strict=False):
            header = before.rfind(self._header)
            for content in (messages[i]["content"], messages[i]["content"].strip()):
                end = position + len(content)
                if header >= 0 and text.startswith(content, position) and text.startswith(after, end):
                    break
            else:
                return None
            spans.append((position - len(before) + header + len(self._header), end))
            position = end + len(after)
        if position != len(text) or trained[-1] == 0:
            return None
        return spans if text[: spans[-1][0]] == self.generation_prompt(messages[: trained[-1]]) else None

    def _find(self, messages: Sequence[Message], i: int, text: str) -> Span:
        """The span of one message, its end of turn aside: from where the model would begin to generate it to where its
        content ends, which is where the text no longer depends on the content."""
        if i == 0:
            raise RendererError("the conversation begins with the message to train on: begin with a user or system one")
        marked = self._apply([*messages[:i], {**messages[i], "content": _unused(text)}, *messages[i + 1 :]])
        prompt = self.generation_prompt(messages[:i])
        start = len(prompt)
        if not text.startswith(prompt):
            start = _common_prefix(marked, prompt)  # with the marker: the content could go on as the prompt does
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
        end = len(text) - _common_prefix(text[::-1], marked[::-1])
        if end < start:
            raise RendererError(f"the chat template drops or moves messages[{i}]: it cannot be trained on")
        return start, end

    def _with_end_of_turn(self, i: int, span: Span, text: str) -> Span:
        start, end = span
        if text.startswith(self.end_of_turn, end):
            return start, end + len(self.end_of_turn)
        self._warn(f"messages[{i}] is not followed by the end-of-turn {self.end_of_turn!r}: it trains without")
        return span

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
                chat_template=self._template,
            )
        except (jinja2.TemplateError, TypeError, ValueError, IndexError, KeyError) as error:
            raise RendererError(f"the chat template refuses this conversation: {error}") from error

    def _warn(self, text: str) -> None:
        if text not in self._warned:  # once a renderer, not once a conversation
            self._warned.add(text)
            logger.warning("%s: %s", self.tokenizer.name_or_path, text)


def _unused(text: str) -> str:
    """A character of the private use area that ``text`` does not have."""
    marker = _MARKER
    while marker in text:
        marker = chr(ord(marker) + 1)
    return marker


def _common_prefix(a: str, b: str) -> int:
    """The length of the longest common prefix, by bisection: much faster than character by character."""
    same, differs = 0, min(len(a), len(b)) + 1
    while differs - same > 1:
        middle = (same + differs) // 2
        if a[same:middle] == b[same:middle]:
            same = middle
        else:
            differs = middle
    return same
