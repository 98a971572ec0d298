"""What a renderer is: it turns messages into tokens, and says which of them carry loss."""

from __future__ import annotations

import contextlib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.renderers.encoding import Encoder
from harness.renderers.encoding import Span as Span
from harness.renderers.messages import Message as Message
from harness.renderers.messages import TrainOnWhat as TrainOnWhat
from harness.renderers.messages import check_messages as check_messages
from harness.renderers.messages import plain_messages, trained_messages

if TYPE_CHECKING:
    import tinker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SupervisedExample:
    """A rendered conversation.

    ``chunk``, ``target_tokens`` and ``weights`` are shifted for next-token prediction and of equal length. Unpacking
    gives ``model_input, weights`` unshifted, as tinker-cookbook's renderers do.

    Attributes:
        tokens: The whole conversation, n tokens.
        token_weights: Loss weight of each token, float32 of shape (n,).
        num_truncated: Tokens that were cut off its end.
        end_cut_off: Whether the cut went through what is trained: its end, the end-of-turn with it, is not shown.
    """

    tokens: list[int]
    token_weights: np.ndarray
    num_truncated: int = 0
    end_cut_off: bool = False

    @property
    def chunk(self) -> tinker.EncodedTextChunk:
        """All tokens but the last: the model's input, n - 1 tokens."""
        import tinker

        return tinker.EncodedTextChunk(tokens=self.tokens[:-1])

    @property
    def target_tokens(self) -> list[int]:
        """The token that follows each input token, n - 1 of them."""
        return self.tokens[1:]

    @property
    def weights(self) -> np.ndarray:
        """The loss weight of each target token, float32 of shape (n - 1,)."""
        return self.token_weights[1:]

    def __iter__(self) -> Iterator[Any]:
        import tinker

        return iter((tinker.ModelInput.from_ints(self.tokens), self.token_weights))

    def truncated(self, max_length: int | None) -> SupervisedExample:
        """The first ``max_length`` tokens; None cuts nothing."""
        if max_length is None or len(self.tokens) <= max_length:
            return self
        weights = self.token_weights
        return SupervisedExample(
            tokens=self.tokens[:max_length],
            token_weights=weights[:max_length],
            num_truncated=self.num_truncated + len(self.tokens) - max_length,
            end_cut_off=bool(weights[max_length - 1] and weights[max_length]),
        )


class Renderer(ABC):
    """Turns conversations into tokens for one tokenizer. Make one with :func:`harness.renderers.get_renderer`.

    One of your own defines ``stop``, :meth:`generation_prompt` and :meth:`render`. They get messages in one form:
    dicts whose ``content`` is a text, with ``reasoning_content`` and ``tool_calls`` where an assistant has them.

    Attributes:
        stop: What the model generates to end its turn; "" where the format has no such thing.
        call_stop: What it generates to end a turn that calls tools, where that is something else.
        chat_template: What asks as ``generation_prompt`` does, for ``apply_chat_template``; None where nothing does.
        max_length: Tokens at which :meth:`build_supervised_example` cuts a conversation; None never cuts.
    """

    stop: str
    call_stop: str = ""
    chat_template: str | None = None
    max_length: int | None = None

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self._encoder = Encoder(tokenizer)
        self._warned: set[str] = set()
        self._is_silent = False

    @abstractmethod
    def generation_prompt(self, messages: Sequence[Message]) -> str:
        """The text after which the model would generate the next assistant message."""

    @abstractmethod
    def render(self, messages: Sequence[Message], trained: Sequence[int]) -> tuple[str, list[Span]]:
        """The text of a whole conversation, and the span of each message whose index is in ``trained``.

        Raises:
            RendererError: where the format has no way to say these messages.
        """

    def build_supervised_example(
        self,
        messages: Sequence[Message],
        train_on_what: TrainOnWhat | str = TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    ) -> SupervisedExample:
        """The conversation in tokens, with weight 1 on what ``train_on_what`` names and 0 elsewhere.

        Raises:
            RendererError: for messages that are malformed, or that the format has no way to say.
        """
        plain = plain_messages(messages)
        trained = trained_messages(messages, train_on_what)
        if train_on_what == TrainOnWhat.ALL_TOKENS:
            text, _ = self.render(plain, [])
            spans = [(0, len(text))]
        else:
            text, spans = self.render(plain, trained)
        example = SupervisedExample(*self._encoder.encode_spans(text, spans)).truncated(self.max_length)
        if example.num_truncated:
            self.warn_once(f"conversations are cut at max_length={self.max_length}")
        return example

    def build_generation_prompt(self, messages: Sequence[Message]) -> tinker.ModelInput:
        """The tokens after which the model would generate the next assistant message.

        Raises:
            RendererError: for messages that are malformed, or that the format has no way to say.
        """
        import tinker

        return tinker.ModelInput.from_ints(self._encoder.encode(self.generation_prompt(plain_messages(messages))))

    def get_stop_sequences(self) -> list[int] | list[str]:
        """What sampling stops at: ids of the tokens that end a turn, or texts where one of them is no single token."""
        stops = [stop for stop in (self.stop, self.call_stop) if stop]
        tokens = [self._encoder.encode(stop) for stop in stops] or [[self.tokenizer.eos_token_id]]
        return [token for token, *_ in tokens] if all(len(ids) == 1 for ids in tokens) else stops

    def parse_response(self, tokens: Sequence[int]) -> tuple[dict[str, Any], bool]:
        """What the model generated after a generation prompt, as a message.

        Returns:
            The assistant's message, and whether it is whole: it ended its turn (with the end-of-turn or the tokenizer's
            end-of-sequence token), and every tool call in it could be read.
        """
        stops = self.get_stop_sequences()
        ends = {self.tokenizer.eos_token_id, *stops}
        end = next((k for k, token in enumerate(tokens) if token in ends), None)
        text = self.tokenizer.decode(list(tokens[:end]), clean_up_tokenization_spaces=False)
        rest = []
        if isinstance(stops[0], str):
            text, *rest = re.split("|".join(map(re.escape, map(str, stops))), text, maxsplit=1)
        message, readable = self.parse_text(text)
        return message, readable and bool(rest or end is not None)

    def parse_text(self, text: str) -> tuple[dict[str, Any], bool]:
        """The message that an assistant's words are, their end aside, and whether all of it could be read."""
        return {"role": "assistant", "content": text}, True

    def warn_once(self, text: str, i: int | None = None) -> None:
        """Report what a user should know, once a renderer and not once a conversation.

        Args:
            text: What it is.
            i: The index of the message in which it was seen.
        """
        if text not in self._warned and not self._is_silent:
            self._warned.add(text)
            seen = "" if i is None else f" (first seen in messages[{i}])"
            logger.warning("%s: %s%s", self.tokenizer.name_or_path, text, seen)

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Report nothing meanwhile: what is rendered is not the user's."""
        self._is_silent = True
        yield
        self._is_silent = False
