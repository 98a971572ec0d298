"""Whether there is a key for the service, and whether it looks like one. The key itself is never kept or shown."""

import json
import os
from pathlib import Path

from harness.exceptions import ConfigError

_KEY = "TINKER_API_KEY"
_COMMAND = "TINKER_CREDENTIAL_CMD"
_STORED = "~/.tinker/credentials.json"  # of `tinker auth login`
_FORMS = ("tml-", "eyJ")  # a key of the console, a JSON web token


def found() -> str | None:
    """Where the SDK finds a key, in words; None where there is none."""
    for name in (_KEY, _COMMAND):
        if os.environ.get(name):
            return f"{name} is set"
    return f"{_STORED} is there" if Path(_STORED).expanduser().exists() else None


def check() -> None:
    """Raise ConfigError where there is no key, or one that the SDK would refuse. Nothing is asked of a server."""
    if found() is None:
        raise ConfigError(
            f"backend=tinker needs a key: set {_KEY} (a server of your own takes any that begins with tml-), or run "
            "tinker auth login, or train here with backend=local"
        )
    key = os.environ.get(_KEY, "")
    if not key and not os.environ.get(_COMMAND):
        _check_stored(Path(_STORED).expanduser())
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{_KEY} holds a line break, or a character that is in no key: copy the key alone")
    if key and not key.startswith(_FORMS) and not os.environ.get(_COMMAND):
        raise ConfigError(f"{_KEY} does not begin with tml-: copy the whole key from the console")


def _check_stored(file: Path) -> None:
    try:
        readable = isinstance(json.loads(file.read_bytes()), dict)
    except (OSError, ValueError):
        readable = False
    if not readable:
        raise ConfigError(f"{_STORED}: cannot be read: run tinker auth login again, or set {_KEY}")
