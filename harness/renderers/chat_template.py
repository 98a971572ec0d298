"""A renderer over the model's own chat template: any Hugging Face chat model.

Templates carry no marks of what the model generates, so the spans are found by rendering the conversation's outline, in
which marks stand in the place of the contents: what stands between the marks is the template's. An outline is rendered
once for all conversations of the same roles. Where a template treats a content specially, one message after the other
is found by rendering alone. How turns begin and end is learned from probes when a renderer is made. Nothing is guessed
from the text, so content that looks like the template's own markers does no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.exceptions import RendererError
from harness.renderers.base import Message, Renderer, Span
from harness.renderers.encoding import special_token_pattern
from harness.renderers.outline import Outline
from harness.renderers.template import Template, as_text, with_arguments
from harness.renderers.turn_forms import TurnForms, common_prefix, difference


class ChatTemplateRenderer(Renderer):
    """Renders with ``tokenizer.apply_chat_template``.

    A template that writes today's date (Llama-3.2) always gets 26 July 2024: the same data must give the same tokens on
    every day, or no resume could be exact.
    """

    def __init__(self, tokenizer: Any, **arguments: Any):
        """``arguments`` are the template's own switches, for instance ``enable_thinking=False``."""
        super().__init__(tokenizer)
        if not tokenizer.chat_template:
            raise RendererError(
                f"{tokenizer.name_or_path} has no chat template: use renderer_name=role_colon, as for base models"
            )
        self._template = Template(tokenizer, arguments)
        self.chat_template = self._template.by_default
        self._special_tokens = special_token_pattern(tokenizer)
        self._forms = TurnForms(self._template, self._special_tokens)
        self.stop = self._forms.end_of_turn.strip()
        self.call_stop = self._forms.call_stop
        if self._template.writes_today:
            self.warn_once("the chat template writes today's date: on another day the same data gives other tokens")
        if not self._forms.end_of_turn:
            self.warn_once("the chat template gives the assistant's turn no end: the model cannot learn to stop")
        if self._forms.untold:
            self.warn_once(f"the chat template has no generation prompt: {self._forms.untold!r} is trained as well")

    def generation_prompt(self, messages: Sequence[Message]) -> str:
        return self._template.apply(messages, add_generation_prompt=True)

    def render(self, messages: Sequence[Message], trained: Sequence[int]) -> tuple[str, list[Span]]:
        text = self._template.apply(messages)
        outline = self._template.outline(messages)
        places = outline and outline.fit(text, messages)
        self._report(messages, text, outline, places)
        last = max((i for i in trained if messages[i]["role"] == "assistant"), default=-1)
        spans = []
        for i in trained:
            if outline and outline.is_split(i):
                raise RendererError(
                    f"the chat template writes other messages inside messages[{i}]: it cannot be trained on; where it "
                    "calls tools, leave its content empty"
                )
            span = self._place(messages, i, text, outline, places, is_last=i == last) if outline and places else None
            spans.append(span or self._find(messages, i, text))
        return text, spans

    def _place(
        self, messages: Sequence[Message], i: int, text: str, outline: Outline, places: Sequence[Span], is_last: bool
    ) -> Span | None:
        """The span of message ``i`` by the outline; None where that does not show it.

        An assistant's begins where its generation prompt ends. That there is one is proven on the outline, for the last
        of them on the text itself too: history is rendered the same whatever follows.
        """
        own = outline.slots_of(i)
        if not own or outline.slots[own[-1]].key == "reasoning_content":
            return None
        start, end = places[own[0]][0], places[own[-1]][1]
        if outline.slots[own[-1]].is_call:
            after = outline.literals[own[-1] + 1]
            call = after.rfind(self._forms.end_of_call) if self._forms.end_of_call else -1
            # It is this message's own where the next one is known to begin after these words, or where it stands once.
            if call < 0 or (outline.next_message(own[-1]) > i + 1 and after.find(self._forms.end_of_call) < call):
                return None
            end += call + len(self._forms.end_of_call)
        else:
            end = self._with_end_of_turn(messages, i, text, end)
        if messages[i]["role"] != "assistant":
            return start, end
        begin = self._forms.begin(outline, i)
        if begin is None:
            return None
        opened, differs = begin
        start -= opened
        if is_last and i and not differs:
            differs = difference(self.generation_prompt(messages[:i]), text[:start])
        if differs:
            self.warn_once(differs, i)
        return start, end

    def _find(self, messages: Sequence[Message], i: int, text: str) -> Span:
        """The span of one message without an outline: from where the model would begin to generate it to where the text
        no longer depends on what it says."""
        said = _unused(text)
        called = _unused(text + said)
        probe = {called: called}
        message = with_arguments(messages[i], lambda given: as_text(probe) if isinstance(given, str) else probe)
        other = self._template.apply([*messages[:i], {**message, "content": said}, *messages[i + 1 :]])
        end_of_words, end_of_call = other.rfind(said) + 1, other.rfind(called) + 1
        end = max(end_of_words, end_of_call) if message["content"].strip() else end_of_call or end_of_words
        if end == 0:
            raise RendererError(f"the chat template drops or moves messages[{i}]: it cannot be trained on")
        is_call = end == end_of_call
        if is_call:  # the calls end alike, whatever is called
            at = other.find(self._forms.end_of_call, end) if self._forms.end_of_call else -1
            end = at + len(self._forms.end_of_call) if at >= 0 else -1
        if end < 0 or not text.endswith(other[end:]):
            raise RendererError(
                f"the chat template lets what messages[{i}] says decide how others are rendered: it cannot be told "
                "where its own text ends"
            )
        start = common_prefix(text, other)
        end += len(text) - len(other)
        if not is_call:
            end = self._with_end_of_turn(messages, i, text, end)
        if messages[i]["role"] != "assistant":
            return start, max(start, end)
        if i == 0:  # there is no prompt without a message: its header is the first
            header = text.find(self._forms.bare_header)
            begins = self._forms.after_header(text, header)
            return begins if 0 <= header < begins < start else start, end
        prompt = self.generation_prompt(messages[:i])
        prompted = common_prefix(text, prompt)
        if prompted < len(prompt):
            # Reasoning templates open a <think> that the training text may lack; history must be the same all the same.
            if prompted < len(self._template.apply(messages[:i])):
                raise RendererError(
                    f"the chat template renders what comes before messages[{i}] differently once later messages "
                    "follow: train on that message as the last one (train_on_what=last_assistant_message)"
                )
            if prompt.endswith(self._forms.header):
                prompted = min(prompted, len(prompt) - len(self._forms.header) + len(self._forms.bare_header))
            self.warn_once(difference(prompt, text[: min(start, prompted)]), i)
        return min(start, prompted), end

    def _with_end_of_turn(self, messages: Sequence[Message], i: int, text: str, end: int) -> int:
        """Where message ``i`` ends whose words end at ``end``."""
        role = messages[i]["role"]
        end_of_turn = self._forms.end_of(role)
        if text.startswith(end_of_turn, end):
            return end + len(end_of_turn)
        if role == "assistant":
            self.warn_once(f"a message is not followed by the end-of-turn {end_of_turn!r}: it trains without", i)
        return end

    def _report(
        self, messages: Sequence[Message], text: str, outline: Outline | None, places: Sequence[Span] | None
    ) -> None:
        """Say what the template leaves out and what it writes otherwise than it was given."""
        if outline is None:
            self.warn_once("the chat template refuses other words in the place of these: what it drops is not reported")
            return
        for slot in (slot for slot in outline.missing if slot.said(messages).strip()):
            what = slot.key if slot.is_call else f"the {slot.key} of {messages[slot.i]['role']} messages"
            self.warn_once(f"the chat template leaves out {what}", slot.i)
        if places is None:
            for slot in outline.rewritten(text, messages):
                self.warn_once(
                    f"the chat template rewrites the {slot.key} of {messages[slot.i]['role']} messages", slot.i
                )
            return
        for slot, (start, end) in zip(outline.slots, places, strict=True):
            if slot.is_trimmed(text[start:end], messages):
                self.warn_once("white space at the ends of contents is not rendered", slot.i)

    def parse_text(self, text: str) -> tuple[dict[str, Any], bool]:
        found = next((found for pattern in self._forms.spoken if (found := pattern.fullmatch(text))), None)
        said = found.groupdict() if found else {"content": text}
        if not said.get("reasoning_content"):
            said.pop("reasoning_content", None)
        # A tool call has no one form, and what has a token of the format in it was not taken apart.
        call = self._forms.call_start
        is_call = bool(call) and text.strip().startswith(call)
        return {"role": "assistant", **said}, not is_call and not any(map(self._special_tokens.search, said.values()))


def _unused(text: str) -> str:
    """A character of the private use area that ``text`` does not have."""
    marker = "\ue000"
    while marker in text:
        marker = chr(ord(marker) + 1)
    return marker
