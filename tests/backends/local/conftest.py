from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.backends.local.client import LocalTrainingClient
from tests.backends.local.support import make_client
from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture
def make(tiny_model: Path, tmp_path: Path) -> Iterator[Callable[..., LocalTrainingClient]]:
    """Make clients of the tiny model; they save under ``tmp_path`` and are closed after the test."""
    clients: list[LocalTrainingClient] = []

    def make_one(**changes: Any) -> LocalTrainingClient:
        clients.append(make_client(tiny_model, tmp_path, **changes))
        return clients[-1]

    yield make_one
    for client in clients:
        client.close()
