"""What trains: the seam (``base``) and the backends behind it, by name."""

from collections.abc import Callable
from typing import Any

import chz

from harness.backends.base import Backend
from harness.backends.local.backend import LocalBackend

BACKENDS: dict[str, type[Backend]] = {LocalBackend.name: LocalBackend}


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
