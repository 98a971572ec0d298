"""A Config as JSON that can be made again, flattened, and compared.

A chz object becomes ``{"type": "module:qualname", ...fields}``, an enum member ``{"type": ..., "value": ...}``; what
was defined in the script that was run is named by the module that ``python -m`` was given, not ``__main__``. A plain
callable becomes ``{"callable": "module:qualname"}``: it is recorded, and :func:`from_json` refuses to guess it.
No secret is ever written: see :func:`redact`.
"""

import enum
import importlib
import re
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import chz

from harness.exceptions import ConfigError

_UNIONS = (typing.Union, types.UnionType)
REDACTED = "<redacted>"
_SECRET = r"(api|secret|private|access|account)_?key|token|auth(orization)?|password|passwd|pwd|secret|credentials?"
_SECRET_NAME = re.compile(rf"(^|[_\-.])({_SECRET})$", re.IGNORECASE)
# user:password@ in front of a host; a password may hold / and @, a host may have a port.
_USER_INFO = re.compile(r"(?<=://)([^\s/?#]*@|[^\s/?#:@]*:(?!\d+([/?#\s]|$))[^\s@]*@)")
_QUERY_SECRET = re.compile(rf"(?<=[?&;])([\w\-.]*(?:{_SECRET})=)[^&;\s]+", re.IGNORECASE)
_KEY = re.compile(r"\b((tml-|hf_|sk-)[A-Za-z0-9_\-]{8,}|eyJ[\w\-]+\.[\w\-]+\.[\w\-]+)")  # and JSON web tokens


def to_json(value: Any, name: str = "") -> Any:
    """``value`` in JSON's types. ``name`` is the field that holds it, for redaction."""
    if chz.is_chz(value) and not isinstance(value, type):
        fields = {key: to_json(getattr(value, key), key) for key in chz.chz_fields(value)}
        return {"type": type_name(type(value))} | fields
    if isinstance(value, enum.Enum):
        return {"type": type_name(type(value)), "value": value.value}
    if isinstance(value, Mapping):
        return {str(key): to_json(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item, name) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, str):
        return redact(value, name)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if callable(value):
        return {"callable": type_name(value)}
    raise ConfigError(f"{name or 'config'}: a {type(value).__name__} cannot be written to config.json: use a chz class")


def from_json(document: Any) -> Any:
    """Make again what :func:`to_json` wrote.

    Raises:
        ConfigError: where a type is gone, or a plain callable or a redacted secret stands in its way.
    """
    if isinstance(document, list):
        return [from_json(item) for item in document]
    if document == REDACTED:
        raise ConfigError("the config holds a redacted secret: give it again on the command line")
    if not isinstance(document, dict):
        return document
    if "callable" in document:
        raise ConfigError(
            f"{document['callable']} is a plain callable: not re-makeable from config.json; a chz class would be"
        )
    fields = {key: from_json(item) for key, item in document.items() if key != "type"}
    if "type" not in document:
        return fields
    module, _, qualname = document["type"].partition(":")
    try:
        made: Any = importlib.import_module(module)
        for part in qualname.split("."):
            made = getattr(made, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{document['type']} cannot be imported ({error}): run where it is defined") from None
    if chz.is_chz(made):
        wanted = {name: field.x_type for name, field in chz.chz_fields(made).items()}
        fields = {name: _as_field(wanted.get(name), value) for name, value in fields.items()}
    try:
        return made(**fields)
    except (TypeError, ValueError) as error:  # a field that is gone, a value that is refused now
        raise ConfigError(
            f"{document['type']} cannot be made of what is recorded ({error}): use the version that recorded it"
        ) from None


def _as_field(field_type: Any, value: Any) -> Any:
    """A list as the tuple that the field wants: JSON has no tuples."""
    alternatives = typing.get_args(field_type) if typing.get_origin(field_type) in _UNIONS else (field_type,)
    kinds = {typing.get_origin(alternative) or alternative for alternative in alternatives}
    return tuple(value) if isinstance(value, list) and tuple in kinds and list not in kinds else value


def type_name(thing: Any) -> str:
    """``module:qualname``, with the name given to ``python -m`` in the place of ``__main__``."""
    if not hasattr(thing, "__qualname__"):
        thing = type(thing)
    module = thing.__module__
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if module == "__main__" and spec is not None:
        module = spec.name.removesuffix(".__main__")
    return f"{module}:{thing.__qualname__}"


def flatten(document: Any, path: str = "") -> dict[str, Any]:
    """A JSON document as ``{"dataset_builder.common_config.batch_size": 8, ...}``: leaves by dotted path.

    An enum member is its value, a nested object's type stands at the path of the object, an empty list or mapping
    is kept as it is.
    """
    if isinstance(document, dict) and document.keys() == {"type", "value"}:
        return {path: document["value"]}
    if isinstance(document, dict) and document.keys() == {"callable"}:
        return {path: document["callable"]}
    if isinstance(document, dict) and document:
        flat: dict[str, Any] = {}
        for key, item in document.items():
            flat |= {path: item} if key == "type" and path else flatten(item, f"{path}.{key}" if path else key)
        return flat
    if isinstance(document, list) and any(isinstance(item, (dict, list)) for item in document):
        return {k: v for i, item in enumerate(document) for k, v in flatten(item, f"{path}.{i}").items()}
    return {path: document}


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The paths at which two flattened documents differ, with both values; None where one has no such path."""
    paths = sorted(before.keys() | after.keys())
    return {path: (before.get(path), after.get(path)) for path in paths if before.get(path) != after.get(path)}


def redact(text: str, name: str = "") -> str:
    """``text`` without secrets: all of it where ``name`` is a key's, else user info in URIs, passwords in their
    queries, and the keys of services that show by their form."""
    if text and _SECRET_NAME.search(name):
        return REDACTED
    return _KEY.sub(REDACTED, _QUERY_SECRET.sub(rf"\1{REDACTED}", _USER_INFO.sub("", text)))


def redact_argv(argv: list[str]) -> list[str]:
    """Command-line arguments without secrets."""
    redacted = []
    for i, argument in enumerate(argv):
        key, equals, value = argument.partition("=")
        if equals:
            redacted.append(f"{key}={redact(value, key.lstrip('-').rstrip('@').replace('-', '_'))}")
        else:
            before = argv[i - 1] if i else ""
            named = before.lstrip("-").replace("-", "_") if before.startswith("--") and "=" not in before else ""
            redacted.append(redact(argument, named))
    return redacted
