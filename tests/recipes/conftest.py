from pathlib import Path

import pytest

from tests import offline


@pytest.fixture
def working(offline_world, tmp_path, monkeypatch) -> Path:
    """The current directory: empty, with model and data of the recipes within reach."""
    offline.enter(offline_world, tmp_path, monkeypatch)
    return tmp_path
