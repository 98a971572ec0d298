"""What ends a sample."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from harness.exceptions import BackendError
from harness.tokenizer_utils import get_tokenizer

_LEAD = 8  # tokens more than a text can have: at its beginning, a decoded text may lack a space or half of a character


@dataclasses.dataclass(frozen=True)
class Stop:
    """Tokens and texts, one of which ends a sample; none of them: only its length does.

    Attributes:
        model_name: Whose tokenizer shows the text.
    """

    tokens: frozenset[int]
    texts: tuple[str, ...]
    model_name: str

    @classmethod
    def of(cls, stop: str | Sequence[str] | Sequence[int] | None, model_name: str, model: Any) -> Stop:
        """What ``tinker.SamplingParams.stop`` says. None is the model's end of a sequence. Tokens that are given stand
        in its place; beside texts it ends a sample too, as it ends what the model says.

        Raises:
            BackendError: for an empty text, and for anything but texts or tokens.
        """
        given = _listed(stop)
        if bad := [item for item in given if not isinstance(item, (str, int)) or item == ""]:
            raise BackendError(f"stop={bad[0]!r}: give texts, or ids of tokens")
        texts = tuple(item for item in given if isinstance(item, str))
        tokens = [item for item in given if isinstance(item, int)]
        if stop is None or (texts and not tokens):
            tokens = _listed(model.generation_config.eos_token_id)
        return cls(frozenset(tokens), texts, model_name)

    def is_reached(self, tokens: Sequence[int]) -> bool:
        """Whether the last one of ``tokens`` ends the sample."""
        if tokens[-1] in self.tokens:
            return True
        if not self.texts:
            return False
        tail = list(tokens[-self._most_tokens :])
        text = get_tokenizer(self.model_name).decode(tail, clean_up_tokenization_spaces=False)
        return any(stop in text for stop in self.texts)

    @functools.cached_property
    def _most_tokens(self) -> int:
        return max(len(text.encode()) for text in self.texts) + _LEAD


def _listed(value: Any) -> list[Any]:
    """One, several or none of them, as a list."""
    return [] if value is None else [value] if isinstance(value, (str, int)) else list(value)
