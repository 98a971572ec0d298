"""The outline of a conversation: what a chat template puts around the contents, whatever they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from harness.renderers.base import Message, Span

_MARK = re.compile("\ue000(\\d+):(\\d)\ue001")  # of the private use area, and what upper- or lower-casing leaves alone
_KEYS = ("reasoning_content", "content")

Slot = tuple[int, str]
"""Where the content or the reasoning_content of a message stands: the message's index, and the key."""


def marked(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages with a mark in the place of each content and reasoning_content."""
    return [
        {**message, **{key: f"\ue000{i}:{k}\ue001" for k, key in enumerate(_KEYS) if key in message}}
        for i, message in enumerate(messages)
    ]


class Outline:
    """A rendering of marked messages, taken apart: literals[0], slot 0, literals[1], slot 1, …, literals[n].

    Attributes:
        messages: The marked messages.
        text: Their rendering.
        slots: What it shows, in its order.
        literals: What stands around the slots; one more than there are slots.
        missing: What it does not show.
        prompted: Of messages, by index: whether what stands before one is the generation prompt for it.
    """

    def __init__(self, messages: Sequence[Message], text: str):
        parts = _MARK.split(text)
        self.messages = messages
        self.text = text
        self.literals = parts[::3]
        self.slots: list[Slot] = [(int(i), _KEYS[int(k)]) for i, k in zip(parts[1::3], parts[2::3], strict=True)]
        shown = set(self.slots)
        self.is_simple = len(shown) == len(self.slots)
        self.missing = [
            (i, key) for i, message in enumerate(messages) for key in _KEYS if key in message and (i, key) not in shown
        ]
        self.prompted: dict[int, bool] = {}
        self._own: dict[int, list[int]] = {}
        for k, (i, _) in enumerate(self.slots):
            self._own.setdefault(i, []).append(k)

    def fit(self, text: str, messages: Sequence[Message]) -> list[Span] | None:
        """Where each slot's content stands in ``text``; None unless it is the literals with the contents between them,
        as they are or without white space at their ends, and nothing else."""
        if not self.is_simple or not text.startswith(self.literals[0]):
            return None
        spans = []
        position = len(self.literals[0])
        for (i, key), after in zip(self.slots, self.literals[1:], strict=True):
            content = messages[i][key]
            for written in (content, content.strip()):
                end = position + len(written)
                if text.startswith(written, position) and text.startswith(after, end):
                    break
            else:
                return None
            spans.append((position, end))
            position = end + len(after)
        return spans if position == len(text) else None

    def slots_of(self, i: int) -> range:
        """The slots of message ``i``, where they follow each other and the content is the last; else none."""
        own = self._own.get(i, [])
        if not own or self.slots[own[-1]][1] != "content" or own[-1] - own[0] != len(own) - 1:
            return range(0)
        return range(own[0], own[-1] + 1)
