"""Messages as people write them, checked and put into one form; and which of them carry loss."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Required, TypedDict

from harness.exceptions import RendererError

Message = Mapping[str, Any]
"""``{"role": …, "content": …}``, and where they apply ``reasoning_content``, ``tool_calls``, ``trainable``.

``content`` is a text or a list of parts, ``{"type": "text", "text": …}`` and ``{"type": "thinking", "thinking": …}``.
"""


class MessageDict(TypedDict, total=False):
    """The same as a class: ``Message(role="user", content="…")`` in scripts for tinker-cookbook."""

    role: Required[str]
    content: Required[Any]
    reasoning_content: str
    tool_calls: list[Any]
    trainable: bool


ROLES = ("assistant", "developer", "ipython", "system", "tool", "user")

_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")  # names for one thing; templates read the first


class TrainOnWhat(StrEnum):
    """Which messages carry loss. A message's trained span is what the model itself would generate: its content and
    its end-of-turn, never its header."""

    ALL_ASSISTANT_MESSAGES = "all_assistant_messages"
    LAST_ASSISTANT_MESSAGE = "last_assistant_message"
    LAST_ASSISTANT_TURN = "last_assistant_turn"
    """Every assistant message since the user spoke last: the last one, and the tool calls that led to it."""
    ALL_MESSAGES = "all_messages"
    ALL_TOKENS = "all_tokens"
    """Every token, headers too."""
    ALL_USER_AND_SYSTEM_MESSAGES = "all_user_and_system_messages"
    CUSTOMIZED = "customized"
    """The messages whose ``trainable`` is true; every message must say."""


def get_text_content(message: Message) -> str:
    """What a message says: its text parts joined, without its thought.

    Raises:
        RendererError: where it is malformed.
    """
    return plain_messages([message])[0]["content"]


def check_messages(messages: Sequence[Message]) -> None:
    """Raise RendererError unless ``messages`` is a list of one or more messages."""
    plain_messages(messages)


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages with their contents as texts: what chat templates take.

    Text parts are joined, thinking parts become ``reasoning_content``, keys whose value is null are dropped (columnar
    data sets write them), and so is ``trainable``.

    Raises:
        RendererError: for messages that are malformed.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise RendererError(
            f'messages must be a list of roles and contents, found {type(messages).__name__}: write [{{"role": …, '
            '"content": …}, …]'
        )
    if not messages:
        raise RendererError("messages is empty: a conversation needs at least one message")
    return [_plain_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _plain_message(message: Message, where: str) -> dict[str, Any]:
    if not isinstance(message, dict | Mapping):  # a dict is told much faster
        raise RendererError(
            f'{where} must be an object, found {type(message).__name__}: write {{"role": …, "content": …}}'
        )
    role = message.get("role")
    if role not in ROLES:
        if "role" not in message:
            raise RendererError(f'{where} has no "role"; found {sorted(message)}: give one of {", ".join(ROLES)}')
        if not isinstance(role, str):
            raise RendererError(
                f"{where}.role must be a string, found {type(role).__name__}: give one of {', '.join(ROLES)}"
            )
        raise RendererError(f"{where}.role is {role!r}: give one of {', '.join(ROLES)}")
    if len(message) == 2 and isinstance(message.get("content"), str):
        _check_characters(message["content"], f"{where}.content")
        return dict(message)  # nearly every message
    plain = {key: value for key, value in message.items() if value is not None and key != "trainable"}
    if "tool_calls" in plain:
        _check_tool_calls(plain, where)
    if not isinstance(plain.get("content"), str):
        plain["content"] = _text(plain, message, where)
    _name_reasoning(plain, where)
    for key, value in plain.items():
        if isinstance(value, str):
            _check_characters(value, f"{where}.{key}")
    return plain


def _check_characters(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RendererError(f"{where} holds half of a character ({error.reason}): mend it") from None


def _check_tool_calls(message: dict[str, Any], where: str) -> None:
    calls = message["tool_calls"]
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise RendererError(
            f'{where}.tool_calls must be a list of calls, found {type(calls).__name__}: write [{{"function": …}}, …]'
        )
    if not calls:
        del message["tool_calls"]
        return
    if message["role"] != "assistant":
        raise RendererError(
            f"{where}.tool_calls: only the assistant calls tools, this message is the {message['role']}'s"
        )
    for k, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not {"name", "arguments"} <= function.keys():
            raise RendererError(
                f'{where}.tool_calls[{k}] must be {{"function": {{"name": …, "arguments": {{…}}}}}}, found {call!r:.80}'
            )
        _check_call(call, function, f"{where}.tool_calls[{k}]")


def _check_call(call: Mapping[str, Any], function: Mapping[str, Any], where: str) -> None:
    name, arguments = function["name"], function["arguments"]
    if not isinstance(name, str) or not name:
        raise RendererError(f"{where}: the name of a tool must be a text, found {name!r:.80}")
    if not isinstance(arguments, dict | str):
        raise RendererError(
            f"{where}: arguments must be an object, found {type(arguments).__name__}: give {{}} where there are none"
        )
    try:
        written = json.dumps(call, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RendererError(f"{where} is no JSON ({error}): give texts, numbers, lists and objects") from None
    _check_characters(written, where)


def _text(plain: dict[str, Any], message: Message, where: str) -> str:
    """The text of a content that is no string: of its parts, or none where tools are called without a word."""
    content = plain.get("content")
    if content is None and "tool_calls" in plain:
        return ""
    if "content" not in message:
        raise RendererError(f'{where} has no "content"; found {sorted(message)}: give a text or a list of text parts')
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        found = type(message["content"]).__name__
        raise RendererError(f"{where}.content must be a string, found {found}: give a text or a list of text parts")
    texts: list[str] = []
    thoughts: list[str] = []
    for k, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or kind not in ("text", "thinking") or not isinstance(part.get(kind), str):
            raise RendererError(
                f'{where}.content[{k}] must be {{"type": "text", "text": …}} or {{"type": "thinking", "thinking": …}}, '
                f"found {part!r:.80}"
            )
        if kind == "thinking" and texts:
            raise RendererError(f"{where}.content[{k}] is thinking after text: put the thinking first")
        (thoughts if kind == "thinking" else texts).append(part[kind])
    if thoughts:
        if any(key in plain for key in _REASONING_KEYS):
            raise RendererError(f"{where} has thinking parts and a key for thinking as well: give one of them")
        plain["reasoning_content"] = "".join(thoughts)
    return "".join(texts)


def _name_reasoning(message: dict[str, Any], where: str) -> None:
    """Leave the thinking under its one name, ``reasoning_content``."""
    given = [key for key in _REASONING_KEYS if key in message]
    if not given:
        return
    reasoning = message.pop(given[0])
    if not isinstance(reasoning, str):
        raise RendererError(f"{where}.{given[0]} must be a string, found {type(reasoning).__name__}: give a text")
    if message["role"] != "assistant":
        raise RendererError(f"{where}.{given[0]}: only the assistant thinks, this message is the {message['role']}'s")
    for key in given[1:]:
        if message.pop(key) != reasoning:
            raise RendererError(f"{where} has {given[0]} and another {key}: give one of them")
    message["reasoning_content"] = reasoning


def trained_messages(messages: Sequence[Message], train_on_what: TrainOnWhat | str) -> list[int]:
    """The indices of the messages that carry loss.

    Args:
        messages: As they were given, with ``trainable`` where they have it.
        train_on_what: Which of them to train on.

    Raises:
        RendererError: for a ``train_on_what`` that is none, and where it and ``trainable`` do not go together.
    """
    try:
        what = TrainOnWhat(train_on_what)
    except ValueError:
        raise RendererError(f"train_on_what={train_on_what}: must be one of {', '.join(TrainOnWhat)}") from None
    trainable = [message.get("trainable") for message in messages]
    if what is TrainOnWhat.CUSTOMIZED:
        for i, value in enumerate(trainable):
            if value is None:
                raise RendererError(
                    f'messages[{i}] has no "trainable": train_on_what=customized needs true or false on every message'
                )
            if not isinstance(value, bool):
                raise RendererError(f"messages[{i}].trainable must be true or false, found {value!r:.80}")
        return [i for i, value in enumerate(trainable) if value]
    for i, value in enumerate(trainable):
        if value is not None:
            raise RendererError(
                f'messages[{i}] has "trainable", which train_on_what={what} does not look at: '
                "use train_on_what=customized, or leave it out"
            )
    roles = [message["role"] for message in messages]
    assistant = [i for i, role in enumerate(roles) if role == "assistant"]
    match what:
        case TrainOnWhat.ALL_ASSISTANT_MESSAGES:
            return assistant
        case TrainOnWhat.LAST_ASSISTANT_MESSAGE:
            return assistant[-1:]
        case TrainOnWhat.LAST_ASSISTANT_TURN:
            spoke = max(
                (i for i, role in enumerate(roles) if role == "user" and i < (assistant or [0])[-1]), default=-1
            )
            return [i for i in assistant if i > spoke]
        case TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES:
            return [i for i, role in enumerate(roles) if role in ("user", "system")]
        case TrainOnWhat.ALL_MESSAGES | TrainOnWhat.ALL_TOKENS:
            return list(range(len(messages)))
