"""The plain format for base models: ``User: …``, blank line, ``Assistant: …``, blank line.

Token for token tinker-cookbook's ``role_colon``: the turn ends with ``\\n\\nUser:``. The last assistant message
trains on all of it, an earlier one on the blank line (``User:`` is then the next message's own header).
"""

from collections.abc import Sequence
from typing import Any

from harness.exceptions import RendererError
from harness.renderers.base import Message
from harness.renderers.turns import Turn, TurnRenderer


class RoleColonRenderer(TurnRenderer):
    """Renders every role as its capitalised name and a colon."""

    prompt = "Assistant:"
    stop = "\n\nUser:"
    chat_template = (
        "{{ bos_token if bos_token else '' }}{% for message in messages %}{{ message['role'] | capitalize }}: "
        "{{ message['content'] }}\n\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    )

    def generation_prompt(self, messages: Sequence[Message]) -> str:
        return "".join(header + body for header, body, _ in self._turns(messages)) + self.prompt

    def turns(self, messages: Sequence[Message]) -> list[Turn]:
        turns = self._turns(messages)
        if messages[-1]["role"] == "assistant":
            turns[-1] = turns[-1]._replace(body=turns[-1].body + "User:")
        return turns

    def _turns(self, messages: Sequence[Message]) -> list[Turn]:
        turns = []
        for i, message in enumerate(messages):
            for key in ("reasoning_content", "tool_calls"):
                if message.get(key):
                    raise RendererError(f"messages[{i}]: role_colon has no way to say {key}: take it out")
            if message["role"] == "assistant" and self.stop in message["content"]:
                self.warn_once(f"an assistant's words hold the end-of-turn {self.stop!r}: a sample ends there", i)
            bos = "" if i else self.tokenizer.bos_token or ""
            turns.append(Turn(f"{bos}{message['role'].capitalize()}:", f" {message['content']}\n\n"))
        return turns

    def parse_text(self, text: str) -> tuple[dict[str, Any], bool]:
        return {"role": "assistant", "content": text.removeprefix(" ").removesuffix("\n\n")}, True
