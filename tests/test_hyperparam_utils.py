import json
import math

import pytest

from harness.exceptions import ConfigError
from harness.hyperparam_utils import get_lr, lora_parameters, scale_lr


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """No hub cache of this machine, and a current directory without folders that are named like models."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


def cached(tmp_path, model_name, config):
    """Put a config where the hub's cache keeps it."""
    folder = tmp_path / "hub" / f"models--{model_name.replace('/', '--')}"
    (folder / "snapshots" / "0123").mkdir(parents=True)
    (folder / "snapshots" / "0123" / "config.json").write_text(json.dumps(config))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123")


@pytest.mark.parametrize(
    ("model_name", "learning_rate"),
    [
        ("meta-llama/Llama-3.2-1B", "4.908e-04"),
        ("meta-llama/Llama-3.1-8B", "2.856e-04"),
        ("Qwen/Qwen3-8B", "4.730e-04"),
        ("Qwen/Qwen3-4B-Instruct-2507", "4.905e-04"),
    ],
)
def test_the_formula_to_the_digits_of_the_specification(model_name, learning_rate):
    assert f"{get_lr(model_name):.3e}" == learning_rate


def test_at_a_width_of_2000_every_family_has_ten_times_the_base(tmp_path):
    for model_type in ("llama", "qwen3_moe"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "hidden_size": 2000}))
        assert get_lr(str(tmp_path)) == 5e-4


def test_a_folder_s_own_config_decides_whatever_its_name(tmp_path):
    folder = tmp_path / "Qwen" / "Qwen3-8B"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 1000}))
    assert get_lr("Qwen/Qwen3-8B") == pytest.approx(5e-4 * 2**0.781, rel=1e-12)


def test_a_cached_config_decides_and_may_keep_its_width_with_the_text_s_part(tmp_path):
    cached(tmp_path, "acme/Seer", {"model_type": "qwen3_5", "text_config": {"hidden_size": 500}})
    assert get_lr("acme/Seer") == pytest.approx(5e-4 * 4**0.0775, rel=1e-12)


def test_a_packaged_model_is_known_without_its_package():
    assert get_lr("SmolLM2-135M-Instruct.Q4_1") == pytest.approx(5e-4 * (2000 / 576) ** 0.781, rel=1e-12)


@pytest.mark.parametrize("model_name", ["deepseek-ai/DeepSeek-V3.1", "openai/gpt-oss-20b", "mistral"])
def test_a_family_without_an_exponent_is_an_error(tmp_path, model_name):
    (tmp_path / "mistral").mkdir()
    (tmp_path / "mistral" / "config.json").write_text('{"model_type": "mistral", "hidden_size": 4096}')
    message = rf"^get_lr: no learning rate is known for '{model_name}': .* Llama and Qwen; give learning_rate yourself$"
    with pytest.raises(ConfigError, match=message):
        get_lr(model_name)


@pytest.mark.parametrize(
    ("model_name", "near"),
    [
        ("meta-llama/Llama-3.2-1b", r"; did you mean meta-llama/Llama-3\.2-1B or .*\?"),
        ("Qwen3-8B", r"; did you mean Qwen/Qwen3-8B or .*\?"),
        ("acme/zzz", ""),
        ("/no/such/folder", ""),
    ],
)
def test_an_unknown_model_names_its_near_matches(model_name, near):
    message = rf"^get_lr: model '{model_name}' is not in the table .* this machine: give learning_rate yourself{near}$"
    with pytest.raises(ConfigError, match=message):
        get_lr(model_name)


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read .*: download the model again"):
        get_lr(str(tmp_path))


def test_the_learning_rate_goes_with_the_square_root_of_the_batch_size():
    assert scale_lr(2e-4, from_batch_size=32, to_batch_size=128) == pytest.approx(4e-4)
    assert scale_lr(2e-4, from_batch_size=128, to_batch_size=64) == pytest.approx(2e-4 / math.sqrt(2))


@pytest.mark.parametrize("size", [0, -8])
def test_a_batch_size_that_is_none(size):
    with pytest.raises(ConfigError, match=rf"^scale_lr: from_batch_size={size}: must be greater than 0$"):
        scale_lr(2e-4, from_batch_size=size, to_batch_size=8)
    with pytest.raises(ConfigError, match=rf"^scale_lr: to_batch_size={size}: must be greater than 0$"):
        scale_lr(2e-4, from_batch_size=8, to_batch_size=size)


def test_parameters_of_a_lora_follow_from_the_shape(tmp_path):
    # per layer q 576+576, k and v 576+192, o 576+576, gate, up and down 576+1536; 30 layers
    assert lora_parameters("SmolLM2-135M-Instruct.Q4_1", 32) == 32 * 30 * (1152 + 768 + 768 + 1152 + 3 * 2112)
    shape = {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_hidden_layers": 28}
    wide_heads = shape | {"model_type": "qwen3", "num_key_value_heads": 8, "head_dim": 128}
    cached(tmp_path, "Qwen/Qwen3-0.6B", wide_heads)
    a_layer = (1024 + 2048) + 2 * (1024 + 1024) + (2048 + 1024) + 3 * (1024 + 3072)
    assert lora_parameters("Qwen/Qwen3-0.6B", 1) == 28 * a_layer


def test_of_another_architecture_or_an_unknown_model_they_are_not_known(tmp_path):
    cached(tmp_path, "a/mixture", {"model_type": "qwen3_moe", "hidden_size": 64})
    assert lora_parameters("a/mixture", 8) is None
    assert lora_parameters("Qwen/Qwen3-8B", 8) is None
