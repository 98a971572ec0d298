"""Whether a renderer that is written out here says what the tokenizer's own chat template says."""

from typing import Any

from harness.exceptions import RendererError
from harness.renderers.base import Renderer

_SYSTEM = {"role": "system", "content": " Be brief. "}
_USER = {"role": "user", "content": "What is it?\n"}
_ANSWER = {"role": "assistant", "content": "It is.\n"}
_THOUGHT = {"role": "assistant", "content": "It is.", "reasoning_content": "Is it?\n"}
_INLINE = {"role": "assistant", "content": "<think>\nIs it?\n</think>\n\nIt is."}
_CALL: dict[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {"at": ["it", 1]}}}],
}
_RESULT = {"role": "tool", "content": '{"is": "é"}'}

# Each is rendered whole and, its last message taken away, as a generation prompt.
_PROBES = [
    [_USER, _ANSWER],
    [_SYSTEM, _USER, _ANSWER, _USER, _ANSWER],
    [_USER, _SYSTEM, _USER, _USER, _ANSWER, _ANSWER],
    [_SYSTEM, _USER, _THOUGHT, _USER, _THOUGHT],
    [_USER, _INLINE, _USER, _INLINE],
    [_USER, _CALL, _RESULT, _ANSWER, _USER, _CALL, _RESULT, _RESULT, _ANSWER],
    [_USER, _CALL],
]


def differs_from_template(renderer: Renderer, template: Renderer) -> bool:
    """Whether the two render one of the probes differently. What either refuses shows nothing."""
    with renderer.silent(), template.silent():
        return any(_differs(renderer, template, probe) for probe in _PROBES)


def _differs(renderer: Renderer, template: Renderer, probe: list[dict[str, Any]]) -> bool:
    try:
        return renderer.render(probe, []) != template.render(probe, []) or renderer.generation_prompt(
            probe[:-1]
        ) != template.generation_prompt(probe[:-1])
    except RendererError:
        return False
