"""Values in brackets -> the combinations that a sweep trains, and the names of their directories."""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from harness.config_io import redact
from harness.exceptions import ConfigError

_CLOSING = {"[": "]", "(": ")", "{": "}"}
_QUOTES = "'\""
_MAX_NAME = 100  # characters; a file system takes 255 bytes, people fewer


def parse_grid(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The overrides that all runs share, and by key the values of each that has them in brackets, as text.

    Args:
        overrides: Each ``key=value``, or ``key=[value,value]``.

    Raises:
        ConfigError: where nothing is in brackets, or something cannot be swept.
    """
    shared: list[str] = []
    grid: dict[str, list[str]] = {}
    given: set[str] = set()
    for argument in overrides:
        key, equals, text = argument.partition("=")
        name = last_part(key).removesuffix("@")
        if not equals or not name:
            raise ConfigError(f"{argument}: not an override: write key=value, or key=[value,value] to sweep it")
        if name == "log_path":
            raise ConfigError(f"{argument}: a sweep names the directories of its runs: leave log_path out")
        if key in given:
            raise ConfigError(
                f"{key}: given twice: put all its values in one pair of brackets, and quote them: '{key}=[a,b]'"
            )
        given.add(key)
        if text[:1] == "[" and text[-1:] == "]":
            grid[key] = _values(key, text)
        elif text[:1] == "[" and text.count("[") > text.count("]"):
            raise ConfigError(f"{argument}: no ] ends what begins there: close it, and quote what has spaces in it")
        else:
            shared.append(argument)
    if not grid:
        raise ConfigError("nothing to sweep: give values in brackets, as in learning_rate=[1e-4,3e-4]")
    return shared, grid


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """What each key is called: its last part, where no other ends in the same."""
    keys = list(keys)
    last = [last_part(key) for key in keys]
    return {key: name if last.count(name) == 1 else key.lstrip(".") for key, name in zip(keys, last, strict=True)}


def directory_name(settings: Mapping[str, str]) -> str:
    """``learning_rate=1e-4,seed=0``: in the order of the names, so that the order of a command does not count.

    Whatever a file's name had better not hold is an underscore, and a long name is cut; then a digest keeps it unique.
    """
    exact = sorted(settings.items())
    name = ",".join(f"{key}={re.sub(r'[^A-Za-z0-9_.+-]+', '_', value)}" for key, value in exact)
    if name == ",".join(f"{key}={value}" for key, value in exact) and len(name) <= _MAX_NAME:
        return name
    digest = hashlib.sha256(repr(exact).encode()).hexdigest()[:8]
    return f"{name[: _MAX_NAME - len(digest) - 1]}-{digest}"


def is_named_by(name: str, settings: Mapping[str, str]) -> bool:
    """Whether a directory is of these values, however its numbers were written: 1e-4 is 0.0001."""
    named = {key: _number(value) for key, _, value in (part.partition("=") for part in name.split(","))}
    return named == {key: _number(value) for key, value in settings.items()}


def _number(text: str) -> float | str:
    """What ``text`` says, where that is a number; else ``text``."""
    with contextlib.suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    return text


def last_part(key: str) -> str:
    return key.rpartition(".")[2]


def _values(key: str, text: str) -> list[str]:
    values = [_unquoted(value) for value in _split(key, text)]
    if twice := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
        raise ConfigError(f"{key}={text}: {twice[0]} stands twice: leave one out")
    if any(redact(value, last_part(key)) != value for value in values):
        raise ConfigError(
            f"{key}: its values are secrets, and would stand in the names of directories: do not sweep it"
        )
    return values


def _split(key: str, text: str) -> list[str]:
    """What lies between the commas of ``[a,b]`` that stand in no quotes and no inner brackets."""
    values = [""]
    closing: list[str] = []
    quote = ""
    for character in text[1:-1]:
        if quote:
            quote = "" if character == quote else quote
        elif character in _QUOTES and (closing or not values[-1].strip()):  # the one in don't opens nothing
            quote = character
        elif character in _CLOSING:
            closing.append(_CLOSING[character])
        elif closing and character == closing[-1]:
            closing.pop()
        elif character == "," and not closing:
            values.append("")
            continue
        values[-1] += character
    if quote or closing:
        raise ConfigError(f"{key}={text}: no {quote or closing[-1]} ends what begins there")
    values = [value.strip() for value in values]
    if "" in values:
        raise ConfigError(f"{key}={text}: a value is missing: write '' for an empty text")
    return values


def _unquoted(value: str) -> str:
    is_quoted = len(value) > 1 and value[0] in _QUOTES and value.find(value[0], 1) == len(value) - 1
    return value[1:-1] if is_quoted else value
