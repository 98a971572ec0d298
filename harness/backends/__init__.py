"""What trains: the seam (``base``) and the backends behind it, by name."""

import os
from collections.abc import Callable
from typing import Any

import chz

from harness.backends.base import Backend
from harness.backends.local.backend import LocalBackend
from harness.backends.tinker_service import credentials
from harness.backends.tinker_service.backend import TinkerBackend

BACKENDS: dict[str, type[Backend]] = {LocalBackend.name: LocalBackend, TinkerBackend.name: TinkerBackend}
_URL = "TINKER_BASE_URL"


class BackendFactory(chz.factories.subclass):
    """Lets ``backend=local`` name a backend on the command line; ``backend=module:Class`` works too."""

    def __init__(self) -> None:
        super().__init__(base_cls=Backend, default_cls=LocalBackend)

    def from_string(self, factory: str) -> Callable[..., Any]:
        if factory in BACKENDS:
            return BACKENDS[factory]
        if ":" not in factory:
            raise chz.factories.MetaFromString(f"no such backend; there is {', '.join(BACKENDS)}, or module:Class")
        return super().from_string(factory)


def chosen(base_url: str | None) -> tuple[Backend, str | None]:
    """The backend for a run that leaves it open, and why it is the service, where it is: an address of it is given, or
    a key for it is there."""
    reason = "base_url is given" if base_url else f"{_URL} is set" if os.environ.get(_URL) else credentials.found()
    return (TinkerBackend(), reason) if reason else (LocalBackend(), None)
