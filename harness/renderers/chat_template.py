"""A renderer over the model's own chat template: any Hugging Face chat model.

Templates carry no marks of what the model generates, so the spans are found by rendering the conversation's outline, in
which marks stand in the place of the contents: what stands between the marks is the template's. An outline is rendered
once for all conversations of the same roles. Where a template treats a content specially, one message after the other
is found by rendering alone. Nothing is guessed from the text, so content that looks like the template's own markers
does no harm.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Sequence
from typing import Any

from harness.exceptions import RendererError
from harness.renderers.base import Message, Renderer, Span
from harness.renderers.encoding import special_token_pattern
from harness.renderers.outline import Outline, marked

TODAY = datetime.date(2024, 7, 26)  # the day that Llama-3's template itself falls back to
_MARKER = "\ue000"  # of the private use area
_DATE_CALL = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
_PLAIN = {"role", "content", "reasoning_content"}
_QUESTION = {"role": "user", "content": "?"}
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "id": "call00000", "function": {"name": "look", "arguments": {}}}],
}


class ChatTemplateRenderer(Renderer):
    """Renders with ``tokenizer.apply_chat_template``.

    A template that writes today's date (Llama-3.2) always gets 26 July 2024: the same data must give the same tokens on
    every day, or no resume could be exact.
    """

    def __init__(self, tokenizer: Any, **arguments: Any):
        """``arguments`` are the template's own switches, for instance ``enable_thinking=False``."""
        super().__init__(tokenizer)
        name = tokenizer.name_or_path
        if not tokenizer.chat_template:
            raise RendererError(f"{name} has no chat template: use renderer_name=role_colon, as for base models")
        self._template = _DATE_CALL.sub(lambda call: repr(TODAY.strftime(call[2])), tokenizer.get_chat_template())
        self._arguments = arguments
        for argument, value in arguments.items():
            if not re.search(rf"\b{argument}\b", self._template):
                raise RendererError(
                    f"{name}: its chat template does not know {argument}, which this renderer sets to {value!r}: "
                    "use renderer_name=chat_template"
                )
        if "strftime_now(" in self._template:
            self.warn_once("the chat template writes today's date: on another day the same data gives other tokens")
        self._outline_of_roles = functools.lru_cache(maxsize=1024)(self._render_outline_of_roles)
        self._end_of_turn_of = functools.cache(self._find_end_of_turn_of)
        self._header = self.generation_prompt([_QUESTION]).removeprefix(self._apply([_QUESTION]))
        end_of_turn = self._end_after([_QUESTION, {"role": "assistant", "content": _MARKER}])
        if end_of_turn is None:
            raise RendererError("the chat template does not show the assistant's words: use another renderer")
        if not end_of_turn:
            self.warn_once("the chat template gives the assistant's turn no end: the model cannot learn to stop")
        self.end_of_turn = end_of_turn
        self.stop = end_of_turn.strip()

    def generation_prompt(self, messages: Sequence[Message]) -> str:
        return self._apply(messages, add_generation_prompt=True)

    def render(self, messages: Sequence[Message], trained: Sequence[int]) -> tuple[str, list[Span]]:
        text = self._apply(messages)
        outline = self._outline(messages)
        places = outline and outline.fit(text, messages)
        if outline:
            self._report(messages, text, outline, places)
        last = max((i for i in trained if messages[i]["role"] == "assistant"), default=-1)
        spans = []
        for i in trained:
            span = self._place(messages, i, outline, places) if outline and places else None
            if not (outline and span and self._is_proven(messages, i, text[: span[0]], outline, last=i == last)):
                span = self._find(messages, i, text, span)
            spans.append(self._with_end_of_turn(messages, i, text, span))
        return text, spans

    def _outline(self, messages: Sequence[Message]) -> Outline | None:
        """The outline of the conversation; None where the template refuses it."""
        if all(message.keys() <= _PLAIN for message in messages):
            return self._outline_of_roles(tuple((m["role"], "reasoning_content" in m) for m in messages))
        return self._render_outline(messages)

    def _render_outline_of_roles(self, roles: tuple[tuple[str, bool], ...]) -> Outline | None:
        return self._render_outline(
            [{"role": role, "content": "", **({"reasoning_content": ""} if thinks else {})} for role, thinks in roles]
        )

    def _render_outline(self, messages: Sequence[Message]) -> Outline | None:
        messages = marked(messages)
        try:
            return Outline(messages, self._apply(messages))
        except RendererError:
            return None

    def _place(self, messages: Sequence[Message], i: int, outline: Outline, places: Sequence[Span]) -> Span | None:
        """The span of message ``i`` by the outline, end-of-turn aside: an assistant's begins after its header."""
        slots = outline.slots_of(i)
        if not slots:
            return None
        start, end = places[slots[0]][0], places[slots[-1]][1]
        if "tool_calls" in messages[i]:
            after = outline.literals[slots[-1] + 1]
            follows = outline.slots[slots[-1] + 1][0] if slots[-1] + 1 < len(outline.slots) else len(messages)
            calls = after.rfind(self.end_of_turn) if self.end_of_turn and follows == i + 1 else -1
            if calls < 0:
                return None
            end += calls
        if messages[i]["role"] == "assistant":
            before = outline.literals[slots[0]]
            header = before.rfind(self._header) if self._header else -1
            if header < 0:
                return None
            start -= len(before) - header - len(self._header)
        return start, end

    def _is_proven(self, messages: Sequence[Message], i: int, before: str, outline: Outline, last: bool) -> bool:
        """Whether ``before``, what stands before message ``i``, is the generation prompt for it: that history is
        rendered the same whatever follows. Every one is proven on the outline, the last one on the text itself too."""
        if messages[i]["role"] != "assistant" or i == 0:
            return True
        if i not in outline.prompted:
            marks = outline.fit(outline.text, outline.messages)
            place = self._place(outline.messages, i, outline, marks) if marks else None
            prompt = self.generation_prompt(outline.messages[:i])
            outline.prompted[i] = place is not None and outline.text[: place[0]] == prompt
        return outline.prompted[i] and (not last or before == self.generation_prompt(messages[:i]))

    def _find(self, messages: Sequence[Message], i: int, text: str, place: Span | None) -> Span:
        """The span of one message, end-of-turn aside: from where the model would begin to generate it to where its
        content ends, which is where the text no longer depends on the content.

        ``place`` is where the outline has it: taken where history is rendered anew, so that there is no such beginning.
        """
        marker = _unused(text)
        message = {**messages[i], "content": marker}
        if "tool_calls" in message:
            call = {"name": marker, "arguments": {}}
            message["tool_calls"] = [{**call, "function": call} for _ in message["tool_calls"]]
        other = self._apply([*messages[:i], message, *messages[i + 1 :]])
        start = _common_prefix(text, other)
        end = len(text) - _common_prefix(text[::-1], other[::-1])
        if text == other:
            raise RendererError(f"the chat template drops or moves messages[{i}]: it cannot be trained on")
        if "tool_calls" not in message and not other[: len(other) - len(text) + end].endswith(marker):
            raise RendererError(
                f"the chat template lets the content of messages[{i}] decide how others are rendered: it cannot be "
                "told where its own text ends"
            )
        if "tool_calls" in message and self.end_of_turn:
            end = max(end, text.find(self.end_of_turn, end))  # the calls end alike, whatever is called
        if messages[i]["role"] != "assistant":
            return start, max(start, end)
        if i == 0:  # there is no prompt without a message: its header is the first
            header = text.find(self._header)
            return (header + len(self._header) if 0 <= header < start else start), end
        prompt = self.generation_prompt(messages[:i])
        prompted = _common_prefix(text, prompt)
        if prompted < len(prompt):
            # Reasoning templates open a <think> that the training text may lack; history must be the same all the same.
            if prompted < len(self._apply(messages[:i])):
                if place is None:
                    raise RendererError(
                        f"the chat template renders what comes before messages[{i}] differently once later messages "
                        "follow: train on that message as the last one (train_on_what=last_assistant_message)"
                    )
                self.warn_once(
                    "the chat template renders what comes before an assistant's message differently once later "
                    "messages follow: it trains after another text than the model will be given",
                    i,
                )
                return place
            self.warn_once(
                f"the template's generation prompt ends in {prompt[min(start, prompted) :]!r}, which its rendering of "
                "a finished conversation does not have"
            )
        return min(start, prompted), end

    def _with_end_of_turn(self, messages: Sequence[Message], i: int, text: str, span: Span) -> Span:
        start, end = span
        role = messages[i]["role"]
        end_of_turn = self.end_of_turn if role == "assistant" else self._end_of_turn_of(role)
        if text.startswith(end_of_turn, end):
            return start, end + len(end_of_turn)
        if role == "assistant":
            self.warn_once(f"a message is not followed by the end-of-turn {end_of_turn!r}: it trains without", i)
        return span

    def _report(self, messages: Sequence[Message], text: str, outline: Outline, places: Sequence[Span] | None) -> None:
        """Say what the template leaves out and what it writes otherwise than it was given."""
        for i, key in outline.missing:
            if messages[i][key].strip():
                self.warn_once(f"the chat template leaves out the {key} of {messages[i]['role']} messages", i)
        for i, message in enumerate(messages):
            for call in message.get("tool_calls", ()):
                if not any(call.get("function", call)["name"] in literal for literal in outline.literals):
                    self.warn_once("the chat template leaves out tool_calls", i)
        for k, (i, key) in enumerate(outline.slots):
            content = messages[i][key]
            if places is None:
                if content.strip() not in text:
                    self.warn_once(f"the chat template rewrites the {key} of {messages[i]['role']} messages", i)
            elif places[k][1] - places[k][0] != len(content):
                self.warn_once("white space at the ends of contents is not rendered", i)

    def _find_end_of_turn_of(self, role: str) -> str:
        """What ends a turn that is not the assistant's; "" where that cannot be told."""
        before = [_QUESTION, _CALL] if role in ("tool", "ipython") else []
        after = [_QUESTION] if role in ("system", "developer") else []
        return self._end_after([*before, {"role": role, "content": _MARKER}, *after]) or ""

    def _end_after(self, messages: Sequence[Message]) -> str | None:
        """What the template puts after the words ``_MARKER``, through its special token; without one, all of it. None
        where it does not show them or refuses them."""
        try:
            _, found, tail = self._apply(messages).partition(_MARKER)
        except RendererError:
            return None
        if not found:
            return None
        special = special_token_pattern(self.tokenizer).search(tail)
        return tail[: special.end()] if special else tail

    def _apply(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        import jinja2

        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                chat_template=self._template,
                **self._arguments,
            )
        except (jinja2.TemplateError, TypeError, ValueError, IndexError, KeyError) as error:
            raise RendererError(f"the chat template refuses this conversation: {error}") from error


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
