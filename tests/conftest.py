import os
import shutil
from pathlib import Path

import pytest

from harness import renderers
from tests import offline

_IN_MEMORY = "/dev/shm"
_ENOUGH = 2 << 30  # bytes


def pytest_configure(config: pytest.Config) -> None:
    """Let temporary directories lie in memory: half of what a fake run takes is a disk's fsync. tests/e2e: on disks."""
    on_disk = any(argument.startswith("tests/e2e") for argument in config.args)
    if not on_disk and os.access(_IN_MEMORY, os.W_OK) and shutil.disk_usage(_IN_MEMORY).free > _ENOUGH:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", _IN_MEMORY)


@pytest.fixture(scope="session")
def offline_world(tmp_path_factory) -> Path:
    """Where the recipes' default model and data are to be had: see tests/offline.py. Not to be changed."""
    folder = tmp_path_factory.mktemp("world")
    offline.make_world(folder)
    return folder


@pytest.fixture(autouse=True)
def no_key_for_tinker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that leaves its backend open is trained here, whatever this environment holds."""
    for name in [name for name in os.environ if name.startswith("TINKER_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def registered_renderers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(renderers, "_registered", dict(renderers._registered))
