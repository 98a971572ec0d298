"""Weights that a service holds: fetched, and deleted on request."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from harness.backends.tinker_service.backend import TinkerBackend
from harness.exceptions import CheckpointDamagedError, ConfigError, ServiceError
from tests.backends.test_tinker_service import environment as environment
from tests.backends.test_tinker_service import server as server

STATE = "tinker://a:train:0/weights/000004"
LAYERS = ["model.layers.0.self_attn.q_proj", "lm_head"]


@pytest.fixture
def files(server):
    """What the server gives out of a state that it holds."""
    server.states[STATE] = 4
    tensors = {
        f"base_model.model.{layer}.lora_{x}.weight": np.ones((2, 2), np.float32) for layer in LAYERS for x in "AB"
    }
    server.files = {
        "adapter_config.json": json.dumps({"peft_type": "LORA", "r": 2, "target_modules": None}).encode(),
        "adapter_model.safetensors": safetensors.numpy.save(tensors),
        "../escaped": b"not asked for",
    }
    return server.files


def fetch(server, tmp_path: Path) -> Path:
    to = tmp_path / "to"
    to.mkdir(exist_ok=True)
    TinkerBackend(base_url=server.url).download_checkpoint(tmp_path, STATE, to)
    return to


def test_an_adapter_is_fetched_and_its_copy_there_goes(server, files, tmp_path):
    server.fail("DELETE training_runs/checkpoints/external_weights/export", (200, {}))
    to = fetch(server, tmp_path)
    assert sorted(path.name for path in to.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert (to / "adapter_model.safetensors").read_bytes() == files["adapter_model.safetensors"]
    assert not (tmp_path / "escaped").exists()
    assert server.asked("load_weights")[-1]["path"] == STATE
    (saved,) = server.asked("save_weights_external")
    assert (saved["path"], saved["ttl_seconds"]) == ("export", 3600)
    assert server.asked("DELETE training_runs/checkpoints/external_weights/export")
    assert server.asked("sessions/finish")[-1]["reason"] == {"type": "success"}


def test_layers_that_the_servers_config_leaves_out_are_named(server, files, tmp_path):
    config = json.loads((fetch(server, tmp_path) / "adapter_config.json").read_bytes())
    assert config == {"peft_type": "LORA", "r": 2, "task_type": "CAUSAL_LM", "target_modules": sorted(LAYERS)}


def test_a_lora_on_embeddings_that_peft_would_leave_out_is_refused(server, files, tmp_path):
    name = "base_model.model.model.embed_tokens.lora_{}.weight"
    shapes = {name.format("A"): (384, 2), name.format("B"): (2, 64)}
    files["adapter_model.safetensors"] = safetensors.numpy.save({k: np.ones(v, np.float32) for k, v in shapes.items()})
    with pytest.raises(ServiceError) as raised:
        fetch(server, tmp_path)
    assert str(raised.value) == (
        f"{server.url}: {name.format('A')} is not as PEFT has it: a run with backend.train_unembed=false has no LoRA "
        "there"
    )


def test_a_server_that_gives_out_none(server, tmp_path):
    server.states[STATE] = 4
    with pytest.raises(ServiceError) as raised:
        fetch(server, tmp_path)
    assert str(raised.value) == f"{server.url}: it gives out no weights (Not Found): use them there"


def test_a_state_that_is_gone(server, tmp_path):
    with pytest.raises(CheckpointDamagedError) as raised:
        fetch(server, tmp_path)
    assert str(raised.value) == f"{STATE}: no checkpoint at that path: take another"


def test_what_is_no_adapter(server, files, tmp_path):
    config = files.pop("adapter_config.json")
    with pytest.raises(ServiceError) as raised:
        fetch(server, tmp_path)
    said = f"{server.url}: what it gives out is no PEFT adapter"
    assert str(raised.value) == f"{said}: there is ../escaped, adapter_model.safetensors, and no adapter_config.json"
    files |= {"adapter_config.json": config, "adapter_model.safetensors": b"<html>"}
    with pytest.raises(ServiceError) as raised:
        fetch(server, tmp_path)
    assert str(raised.value).startswith(f"{said} (")


def test_a_file_that_cannot_be_fetched_keeps_its_address_secret(server, files, tmp_path):
    server.fail("files/adapter_model.safetensors", (403, {"detail": "expired"}))
    with pytest.raises(ServiceError) as raised:
        fetch(server, tmp_path)
    assert str(raised.value) == f"{server.url}: adapter_model.safetensors cannot be fetched (403): try again"


def test_the_key_is_looked_at_first(server, tmp_path, monkeypatch):
    monkeypatch.delenv("TINKER_API_KEY")
    for ask in (lambda: fetch(server, tmp_path), lambda: TinkerBackend(base_url=server.url).delete_checkpoint(STATE)):
        with pytest.raises(ConfigError, match=r"^backend=tinker needs a key: "):
            ask()
    assert not server.requests


# ---- deleted on request

DELETE = "DELETE training_runs/checkpoints/weights/000004"
LISTED = {
    "checkpoint_id": "weights/000004", "checkpoint_type": "training", "time": "2026-01-01T00:00:00Z",
    "tinker_path": STATE,
}  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({DELETE: (200, {})}, None),
        ({DELETE: (410, {"detail": "gone"})}, None),
        (
            {DELETE: (404, {"detail": "no such checkpoint"}), "training_runs/checkpoints": (200, {"checkpoints": []})},
            None,
        ),
        ({"training_runs/checkpoints": (200, {"checkpoints": [LISTED]})}, "it deletes no checkpoints on request"),
        ({}, "it deletes no checkpoints on request"),  # nor does it list them
        ({DELETE: (403, {"detail": "it is published"})}, "it is published"),
    ],
)
def test_why_a_state_is_still_there(server, answers, said):
    for route, answer in answers.items():
        server.fail(route, answer)
    assert TinkerBackend(base_url=server.url).delete_checkpoint(STATE) == said


def test_a_path_that_the_sdk_does_not_take_is_a_reason(server):
    """As SkyRL names weights for sampling."""
    assert TinkerBackend(base_url=server.url).delete_checkpoint("tinker://a/000004") == (
        "Invalid tinker path: tinker://a/000004"
    )


def test_a_server_that_is_away_is_told():
    with pytest.raises(ServiceError, match=r"^http://127\.0\.0\.1:9: cannot be reached"):
        TinkerBackend(base_url="http://127.0.0.1:9").delete_checkpoint(STATE)
