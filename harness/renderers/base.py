"""What a renderer is: it turns messages into tokens, and says which of them carry loss."""

from __future__ import annotations

import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.exceptions import RendererError

if TYPE_CHECKING:
    import tinker

Message = Mapping[str, Any]
"""``{"role": "system" | "user" | "assistant", "content": text}``."""

Span = tuple[int, int]
"""Characters ``start`` to ``end`` (exclusive) of a rendered conversation."""


class TrainOnWhat(StrEnum):
    """Which messages carry loss. A message's trained span is what the model itself would generate: its content and
    its end-of-turn, never its header."""

    ALL_ASSISTANT_MESSAGES = "all_assistant_messages"
    LAST_ASSISTANT_MESSAGE = "last_assistant_message"


@dataclass(frozen=True)
class SupervisedExample:
    """A rendered conversation.

    ``chunk``, ``target_tokens`` and ``weights`` are shifted for next-token prediction and of equal length. Unpacking
    gives ``model_input, weights`` unshifted, as tinker-cookbook's renderers do.

    Attributes:
        tokens: The whole conversation, n tokens.
        token_weights: Loss weight of each token, float32 of shape (n,).
    """

    tokens: list[int]
    token_weights: np.ndarray

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


class Renderer(ABC):
    """Turns conversations into tokens for one tokenizer. Make one with :func:`harness.renderers.get_renderer`."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

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
        train_on_what: TrainOnWhat = TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    ) -> SupervisedExample:
        """The conversation in tokens, with weight 1 on what ``train_on_what`` names and 0 elsewhere.

        Raises:
            RendererError: for messages that are malformed, or that the format has no way to say.
        """
        check_messages(messages)
        text, spans = self.render(messages, trained_messages(messages, train_on_what))
        return encode_spans(self.tokenizer, text, spans)


def check_messages(messages: Sequence[Message]) -> None:
    """Raise RendererError unless ``messages`` is a list of one or more roles and texts."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise RendererError(f"messages must be a list of roles and contents, found {type(messages).__name__}")
    if not messages:
        raise RendererError("messages is empty: a conversation needs at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise RendererError(f"messages[{i}] must be an object, found {type(message).__name__}")
        for key in ("role", "content"):
            if key not in message:
                raise RendererError(f'messages[{i}] has no "{key}"; found {sorted(message)}')
            if not isinstance(message[key], str):
                raise RendererError(f"messages[{i}].{key} must be a string, found {type(message[key]).__name__}")
            try:
                message[key].encode()
            except UnicodeEncodeError as error:
                raise RendererError(f"messages[{i}].{key} holds half of a character ({error.reason})") from None


def trained_messages(messages: Sequence[Message], train_on_what: TrainOnWhat) -> list[int]:
    """The indices of the messages that carry loss."""
    assistant = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    match TrainOnWhat(train_on_what):
        case TrainOnWhat.ALL_ASSISTANT_MESSAGES:
            return assistant
        case TrainOnWhat.LAST_ASSISTANT_MESSAGE:
            return assistant[-1:]


def encode_spans(tokenizer: Any, text: str, spans: Sequence[Span]) -> SupervisedExample:
    """Tokenise ``text`` as the tokenizer would, with weight 1 on the tokens of ``spans``.

    Where one token would cover both the last character of a prompt and the first of a span, the text is cut there and
    tokenised in two: at inference the prompt is tokenised without what follows, so this is what the model will see.
    """
    starts = np.array([start for start, _ in spans], dtype=np.int64)
    tokens, offsets = _encode(tokenizer, text, cuts=[])
    straddled = [s for s in starts if ((offsets[:, 0] < s) & (s < offsets[:, 1])).any()]
    if straddled:
        tokens, offsets = _encode(tokenizer, text, cuts=straddled)
    weights = np.zeros(len(tokens), dtype=np.float32)
    for start, end in spans:
        weights[(offsets[:, 0] >= start) & (offsets[:, 0] < end)] = 1.0
    return SupervisedExample(tokens, weights)


def _encode(tokenizer: Any, text: str, cuts: Sequence[int]) -> tuple[list[int], np.ndarray]:
    """Token ids, and the characters [start, end) of each, with the text cut at ``cuts``."""
    if not tokenizer.is_fast:
        raise RendererError(f"{tokenizer.name_or_path}: its tokenizer gives no character offsets: use one that is fast")
    tokens: list[int] = []
    offsets: list[np.ndarray] = []
    bounds = [0, *cuts, len(text)]
    for start, end in itertools.pairwise(bounds):
        part = tokenizer(text[start:end], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        tokens += part["input_ids"]
        offsets.append(np.array(part["offset_mapping"], dtype=np.int64).reshape(-1, 2) + start)
    return tokens, np.concatenate(offsets)


def special_token_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Matches white space followed by one of the tokenizer's special or added tokens."""
    tokens = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}, key=len, reverse=True)
    return re.compile(r"\s*(?:" + "|".join(map(re.escape, tokens)) + ")" if tokens else r"(?!)")
