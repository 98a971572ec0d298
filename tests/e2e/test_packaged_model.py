"""The real model inside its package: converted once, and it loads whole."""

from pathlib import Path

import pytest
import torch

from harness.backends.local import model as model_room
from harness.model_info import PACKAGED_MODELS
from harness.tokenizer_utils import get_tokenizer


def test_weights_are_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (name,) = PACKAGED_MODELS
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = Path(model_room.local_model_path(name))
    assert folder.parent.parent == tmp_path / "sft-harness" / "models"
    monkeypatch.setattr(model_room, "_convert", lambda gguf, folder: pytest.fail("converted again"))
    assert model_room.local_model_path(name) == str(folder)
    loaded = model_room._load(str(folder), torch.float32)
    assert loaded.num_parameters() == 134_515_008
    assert not hasattr(loaded.config, "quantization_config")


def test_its_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (name,) = PACKAGED_MODELS
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    get_tokenizer.cache_clear()
    tokenizer = get_tokenizer(name)
    assert tokenizer.encode("<|im_start|>Hello<|im_end|>") == [1, 19556, 2]
    assert tokenizer.chat_template
