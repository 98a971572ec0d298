"""Merged weights and the adapter, each loaded by transformers alone, say what the run's own model said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tinker
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from harness.backends.local import checkpoint
from harness.backends.local.merge import base_for_peft, merge
from harness.exceptions import BackendError, ConfigError
from tests.backends.local.support import VOCAB_SIZE, make_client, random_data, train

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
    "initializer_range": 0.1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen3": {},
    "Gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 16},
    "Granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0},
    "Phi3": {},  # one layer for queries, keys and values
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}
DATA = random_data([17, 40, 3, 25])


def save_model(folder: Path, family: str, *, tied: bool, dtype: torch.dtype = torch.float32) -> Path:
    config = getattr(transformers, f"{family}Config")(**SIZES | FAMILIES[family], tie_word_embeddings=tied)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    model.to(dtype).save_pretrained(folder)
    return folder


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def logprobs(model: Any, data: list[tinker.Datum] = DATA) -> np.ndarray:
    """Of every target that carries loss, one after another."""
    rows = []
    for datum in data:
        with torch.no_grad():
            logits = model(torch.tensor([datum.model_input.to_ints()])).logits[0].float()
        targets = torch.from_numpy(datum.loss_fn_inputs["target_tokens"].to_numpy())
        chosen = logits.log_softmax(-1)[torch.arange(len(targets)), targets].numpy()
        rows.append(chosen[datum.loss_fn_inputs["weights"].to_numpy() != 0])
    return np.concatenate(rows)


def trained(model: Path, run_path: Path) -> tuple[Path, np.ndarray]:
    """A checkpoint after three updates, and the log-probabilities that the client gives with it."""
    client = make_client(model, run_path)
    before = client.forward(DATA, "cross_entropy")
    train(client, range(3))
    saved = client.save_state("000003").result()
    answers = [before.result(), client.forward(DATA, "cross_entropy").result()]
    client.close()
    rows = [
        np.concatenate(
            [
                record["logprobs"].to_numpy()[datum.loss_fn_inputs["weights"].to_numpy() != 0]
                for record, datum in zip(answer.loss_fn_outputs, DATA, strict=True)
            ]
        )
        for answer in answers
    ]
    assert np.abs(rows[1] - rows[0]).max() > 0.05  # what was learned shows
    return run_path / saved.path, rows[1]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_alone_says_what_the_run_said(tmp_path: Path, family: str, tied: bool):
    model = save_model(tmp_path / "model", family, tied=tied)
    adapter, said = trained(model, tmp_path)
    assert merge(str(model), adapter, tmp_path / "merged", "float32") == "float32"
    merged = load(tmp_path / "merged")
    np.testing.assert_allclose(logprobs(merged), said, atol=2e-5)
    assert merged.config.tie_word_embeddings == tied
    tensors = safetensors.torch.load_file(tmp_path / "merged" / "model.safetensors")
    assert tensors.keys() == safetensors.torch.load_file(model / "model.safetensors").keys()
    unmerged = PeftModel.from_pretrained(load(model), adapter)
    np.testing.assert_allclose(logprobs(unmerged), said, atol=2e-5)


@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_lora_on_the_head_or_the_embeddings_changes_that_alone(tmp_path: Path, layer: str, tied: bool):
    """As a service trains it. Merged into weights that both share, it would change the other too."""
    model = save_model(tmp_path / "model", "Llama", tied=tied)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=32, target_modules=["q_proj", layer])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        adapted: Any = get_peft_model(load(model), config)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    expected = logprobs(adapted.eval())
    assert np.abs(expected - logprobs(load(model))).max() > 0.05
    merge(str(model), tmp_path / "adapter", tmp_path / "merged", None)
    merged = load(tmp_path / "merged")
    np.testing.assert_allclose(logprobs(merged), expected, atol=2e-5)
    assert merged.config.tie_word_embeddings is False


def test_it_is_rounded_once(tmp_path: Path):
    """Each weight is that nearest to the sum in float32."""
    model = save_model(tmp_path / "model", "Llama", tied=True)
    adapter, _ = trained(model, tmp_path)
    merge(str(model), adapter, tmp_path / "whole", "float32")
    assert merge(str(model), adapter, tmp_path / "rounded", "bfloat16") == "bfloat16"
    whole = safetensors.torch.load_file(tmp_path / "whole" / "model.safetensors")
    rounded = safetensors.torch.load_file(tmp_path / "rounded" / "model.safetensors")
    for name, tensor in whole.items():
        assert torch.equal(rounded[name], tensor.to(torch.bfloat16)), name
    assert json.loads((tmp_path / "rounded" / "config.json").read_bytes())["dtype"] == "bfloat16"


def test_without_a_dtype_it_is_the_models_own(tmp_path: Path):
    model = save_model(tmp_path / "model", "Llama", tied=True, dtype=torch.bfloat16)
    adapter, _ = trained(model, tmp_path)
    assert merge(str(model), adapter, tmp_path / "merged", None) == "bfloat16"


def test_no_place_of_this_machine_stands_in_it(tiny_model: Path, tmp_path: Path):
    adapter, _ = trained(tiny_model, tmp_path)
    merge(str(tiny_model), adapter, tmp_path / "merged", "float32")
    for file in (tmp_path / "merged").iterdir():
        assert str(tiny_model).encode() not in file.read_bytes(), file


@pytest.mark.parametrize("changed", ["num_hidden_layers", "intermediate_size"])
def test_an_adapter_of_another_model(tmp_path: Path, monkeypatch, changed: str):
    model = save_model(tmp_path / "model", "Llama", tied=True)
    adapter, _ = trained(model, tmp_path)
    monkeypatch.setitem(SIZES, changed, SIZES[changed] // 2)
    other = save_model(tmp_path / "other", "Llama", tied=True)
    with pytest.raises(BackendError) as error:
        merge(str(other), adapter, tmp_path / "merged", None)
    assert str(error.value).startswith(f"{other}: the adapter is not of this model (")
    assert "\n" not in str(error.value)


def test_a_tensor_that_nothing_takes_is_told(tiny_model: Path, tmp_path: Path):
    adapter, _ = trained(tiny_model, tmp_path)
    tensors = safetensors.torch.load_file(adapter / checkpoint.ADAPTER)
    extra = "base_model.model.lm_head.lora_A.weight"
    safetensors.torch.save_file(tensors | {extra: torch.zeros(4, 64)}, adapter / checkpoint.ADAPTER)
    with pytest.raises(BackendError) as error:
        merge(str(tiny_model), adapter, tmp_path / "merged", None)
    assert str(error.value) == (f"{tiny_model}: the adapter is not of this model ({extra} is in one of them alone)")


def test_a_model_that_is_gone(tmp_path: Path):
    with pytest.raises(ConfigError) as error:
        merge(str(tmp_path / "gone"), tmp_path, tmp_path / "merged", None)
    assert str(error.value) == f"model '{tmp_path / 'gone'}': no such folder: check the path"


def test_the_name_that_peft_loads_the_base_by(tiny_model: Path, monkeypatch):
    monkeypatch.chdir(tiny_model.parent)
    assert base_for_peft(tiny_model.name) == str(tiny_model)
    assert base_for_peft("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
