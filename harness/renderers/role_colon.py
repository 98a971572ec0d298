"""The plain format for base models: ``User: …``, blank line, ``Assistant: …``, blank line.

Token for token tinker-cookbook's ``role_colon``: the turn ends with ``\\n\\nUser:``. The last assistant message
trains on all of it, an earlier one on the blank line (``User:`` is then the next message's own header).
"""

from collections.abc import Sequence

from harness.renderers.base import Message, Renderer, Span


class RoleColonRenderer(Renderer):
    """Renders every role as its capitalised name and a colon."""

    def generation_prompt(self, messages: Sequence[Message]) -> str:
        text, _ = self.render(messages, [])
        return text + "Assistant:"

    def render(self, messages: Sequence[Message], trained: Sequence[int]) -> tuple[str, list[Span]]:
        text = self.tokenizer.bos_token or ""
        spans = []
        for i, message in enumerate(messages):
            text += f"{message['role'].capitalize()}:"
            start = len(text)
            text += f" {message['content']}\n\n"
            if i in trained:
                text += "User:" if i == len(messages) - 1 else ""
                spans.append((start, len(text)))
        return text, spans
