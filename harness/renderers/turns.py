"""Formats that are written out here: a conversation is its turns end to end, and the spans are known as it is built."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from harness.exceptions import RendererError
from harness.renderers.base import Message, Renderer, Span


class Turn(NamedTuple):
    """A message as it is written.

    Attributes:
        header: What announces it; never trained on, but where ``train_on_what`` is all_tokens.
        body: What its author would generate: the content and the end-of-turn.
        tail: What stands before the next turn.
    """

    header: str
    body: str
    tail: str = ""


class TurnRenderer(Renderer):
    """A renderer that builds its text by joining strings: no template is rendered, and the text is tokenised once.

    Attributes:
        prompt: What a generation prompt adds to the turns.
    """

    prompt: str

    @abstractmethod
    def turns(self, messages: Sequence[Message]) -> list[Turn]:
        """A turn for each message.

        Raises:
            RendererError: where the format has no way to say a message.
        """

    def generation_prompt(self, messages: Sequence[Message]) -> str:
        return "".join(part for turn in self.turns(messages) for part in turn) + self.prompt

    def render(self, messages: Sequence[Message], trained: Sequence[int]) -> tuple[str, list[Span]]:
        turns = self.turns(messages)
        places: list[Span] = []
        end = 0
        for header, body, tail in turns:
            start = end + len(header)
            places.append((start, start + len(body)))
            end = start + len(body) + len(tail)
        return "".join(part for turn in turns for part in turn), [places[i] for i in trained]

    def need_tokens(self, *tokens: str) -> None:
        """Raise RendererError unless each is a token of the tokenizer: else it belongs to another model."""
        for token in tokens:
            if len(self._encoder.encode(token)) != 1:
                raise RendererError(
                    f"{self.tokenizer.name_or_path}: its tokenizer has no {token}, which this renderer writes: "
                    "use the renderer of its own model, or renderer_name=chat_template"
                )

    def trimmed(self, i: int, content: str, written: str) -> str:
        """``written``, with a report where white space of the content of message ``i`` is missing in it."""
        if len(written) != len(content):
            self.warn_once("white space at the ends of contents is not rendered", i)
        return written
