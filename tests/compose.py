"""compose.yaml as Docker Compose reads it, without Docker: its variables filled in from an environment."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

COMPOSE = Path(__file__).parent.parent / "compose.yaml"
ENV_EXAMPLE = COMPOSE.with_name(".env.example")
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<operator>[-?])(?P<word>[^}]*))?\}")


def variables() -> dict[str, bool]:
    """The variables that compose.yaml names, and whether it refuses to start without them."""
    return {m["name"]: m["operator"] == "?" for m in _VARIABLE.finditer(COMPOSE.read_text())}


def env_file(text: str) -> dict[str, str]:
    """What a .env file sets."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def load(environment: Mapping[str, str]) -> dict[str, Any]:
    """compose.yaml with its variables filled in.

    Raises:
        KeyError: with the file's own words, where a variable that must be set is missing or empty.
    """

    def value(match: re.Match[str]) -> str:
        name, operator, word = match["name"], match["operator"], match["word"]
        if given := environment.get(name):
            return given
        if operator != "-":
            raise KeyError(f"{name}: {word}")
        return word

    def fill(node: Any) -> Any:
        match node:
            case dict():
                return {key: fill(item) for key, item in node.items()}
            case list():
                return [fill(item) for item in node]
            case str():
                return _VARIABLE.sub(value, node)
        return node

    return fill(yaml.safe_load(COMPOSE.read_text()))
