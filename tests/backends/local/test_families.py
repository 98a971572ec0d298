"""The engine against a plain padded reference in float64, for models of several families, random and tiny."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
import torch
import transformers

from harness.backends.local.client import LocalTrainingClient
from harness.exceptions import BackendError, ConfigError
from tests.backends.local.support import ADAM, VOCAB_SIZE, datum, make_client, random_data, train

LENGTHS = [17, 40, 3, 41, 64, 9, 1, 25]
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
WINDOW = 8
THREE_LAYERS: dict[str, Any] = SIZES | {"num_hidden_layers": 3}
# What is particular to each, and whether its sequences may lie end to end.
FAMILIES: dict[str, tuple[Callable[[], Any], bool]] = {
    "llama": (lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True), True),
    "qwen3": (lambda: transformers.Qwen3Config(**SIZES), True),
    "mistral": (lambda: transformers.MistralConfig(**SIZES, sliding_window=WINDOW), True),
    "gemma2": (
        lambda: transformers.Gemma2Config(
            **SIZES,
            sliding_window=WINDOW,
            attn_logit_softcapping=1.0,
            final_logit_softcapping=3.0,
            query_pre_attn_scalar=8,
        ),
        True,
    ),
    "gemma3": (lambda: transformers.Gemma3TextConfig(**SIZES, sliding_window=WINDOW, query_pre_attn_scalar=8), True),
    "granite": (
        lambda: transformers.GraniteConfig(
            **SIZES, logits_scaling=2.0, residual_multiplier=0.5, embedding_multiplier=3.0, attention_multiplier=0.2
        ),
        True,
    ),
    "gpt2": (
        lambda: transformers.GPT2Config(
            vocab_size=VOCAB_SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2
        ),
        True,
    ),
    "biogpt": (  # dropout in its layers, of no effect but in training
        lambda: transformers.BioGptConfig(
            **{k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "head_dim")}
        ),
        True,
    ),
    "falcon": (  # adds to what a linear layer answers in place
        lambda: transformers.FalconConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.2,
            bias=True,
            parallel_attn=True,
            new_decoder_architecture=True,
            num_kv_heads=2,
        ),
        False,
    ),
    "recurrent_gemma": (
        lambda: transformers.RecurrentGemmaConfig(
            **THREE_LAYERS,
            attention_window_size=WINDOW,
            lru_width=32,
            block_types=("recurrent", "recurrent", "attention"),
        ),
        False,
    ),
    "lfm2": (
        lambda: transformers.Lfm2Config(
            **{k: v for k, v in SIZES.items() if k != "head_dim"}, layer_types=["conv", "full_attention"]
        ),
        False,
    ),
}


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's model, made once."""

    @functools.cache
    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            transformers.AutoModelForCausalLM.from_config(FAMILIES[family][0]()).save_pretrained(folder)
        return folder

    return make


def rows_of(output: tinker.ForwardBackwardOutput) -> list[np.ndarray]:
    return [record["logprobs"].to_numpy() for record in output.loss_fn_outputs]


def gradients(client: LocalTrainingClient) -> dict[str, torch.Tensor]:
    return {k: p.grad.clone() for k, p in client._engine.parameters.items() if p.grad is not None}


def reference(
    client: LocalTrainingClient, model: Path, data: list[tinker.Datum]
) -> tuple[list[np.ndarray], dict[str, torch.Tensor]]:
    """Log-probabilities of all targets and the gradients, written plainly: all data padded, all logits, float64, the
    LoRA added to the weights of the layers themselves."""
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64, attn_implementation="eager")
    lora = {k: p.detach().double().requires_grad_() for k, p in client._engine.parameters.items()}
    changed = {}
    for name in (k.removesuffix(".lora_A.weight") for k in lora if k.endswith(".lora_A.weight")):
        layer = name.removeprefix("base_model.model.") + ".weight"
        delta = lora[f"{name}.lora_B.weight"] @ lora[f"{name}.lora_A.weight"] * (32 / 4)  # alpha / rank
        is_transposed = type(base.get_submodule(layer.removesuffix(".weight"))).__name__ == "Conv1D"  # GPT-2's
        changed[layer] = base.get_parameter(layer).detach() + (delta.T if is_transposed else delta)
    tokens = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(one.model_input.to_ints()) for one in data], batch_first=True
    )
    logits = torch.func.functional_call(base, changed, (tokens,), {"use_cache": False}, tie_weights=False).logits
    rows, loss = [], torch.zeros((), dtype=torch.float64)
    for row, one in zip(logits, data, strict=True):
        n = one.model_input.length
        chosen = row[:n].log_softmax(-1)[torch.arange(n), one.loss_fn_inputs["target_tokens"].to_torch()]
        weights = one.loss_fn_inputs["weights"].to_torch()
        loss = loss - (chosen * weights).sum()
        rows.append(torch.where(weights != 0, chosen, 0).detach().numpy())
    loss.backward()
    return rows, {k: v.grad for k, v in lora.items() if v.grad is not None}


def assert_equal_to(reference: tuple[list[np.ndarray], dict[str, torch.Tensor]], client: Any, rows: Any) -> None:
    expected_rows, expected = reference
    for row, expected_row in zip(rows, expected_rows, strict=True):
        np.testing.assert_allclose(row, expected_row, rtol=2e-5, atol=5e-6)
    actual = gradients(client)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert (actual[name].double() - value).norm() <= 5e-6 * value.norm(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_a_plain_reference_however_a_batch_is_cut(
    family: str, model_of: Callable[[str], Path], tmp_path: Path
):
    model = model_of(family)
    client = make_client(model, tmp_path)
    assert client._engine._end_to_end == FAMILIES[family][1]
    train(client, range(2))  # no matrix is zero then, so that each has a gradient
    client.save_state("warm").result()
    data = [*random_data(LENGTHS, seed=9), datum([5, 6, 7], [0.0, 0.0])]
    expected = reference(client, model, data)
    client.close()
    cuts = [(10_000, 1), (100, 1), (10, 1), (10_000, 2), (10_000, 3), (100, 2)]  # with 10, most are computed again
    for budget, num_threads in cuts:
        client = make_client(
            model, tmp_path, micro_batch_tokens=budget, num_threads=num_threads, state_path="checkpoints/warm"
        )
        assert client._engine._workers.number == (1 if family == "recurrent_gemma" else num_threads)
        rows = rows_of(client.forward_backward(data, "cross_entropy").result())
        assert_equal_to(expected, client, rows)
        client.close()


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_one_sequence_says_changes_no_bit_of_another(
    family: str, num_threads: int, model_of: Callable[[str], Path], tmp_path: Path
):
    client = make_client(model_of(family), tmp_path, micro_batch_tokens=10_000, num_threads=num_threads)
    data, others = random_data(LENGTHS, seed=1), random_data(LENGTHS, seed=2)
    rows = rows_of(client.forward_backward(data, "cross_entropy").result())
    for changed in (1, 4):  # the longest, which comes first in its row, and one in the middle
        mixed = [others[i] if i == changed else one for i, one in enumerate(data)]
        again = rows_of(client.forward_backward(mixed, "cross_entropy").result())
        assert not np.array_equal(again[changed], rows[changed])
        for i in set(range(len(data))) - {changed}:
            if len(data[i].model_input.to_ints()) and mixed[i] is data[i]:
                np.testing.assert_array_equal(again[i], rows[i])
    client.close()


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_bits_again(family: str, num_threads: int, model_of: Callable[[str], Path], tmp_path: Path):
    def trained() -> dict[str, np.ndarray]:
        client = make_client(model_of(family), tmp_path, num_threads=num_threads)
        train(client, range(2))
        client.optim_step(ADAM).result()
        client.close()
        return {k: p.detach().numpy() for k, p in client._engine.parameters.items()}

    one, two = trained(), trained()
    for name, value in one.items():
        np.testing.assert_array_equal(two[name], value)


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ({"train_mlp": False}, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ({"train_attn": False}, {"gate_proj", "up_proj", "down_proj"}),
        ({"train_attn": False, "train_mlp": False, "train_unembed": True}, {"lm_head"}),
        ({"train_mlp": False, "train_unembed": True}, {"q_proj", "k_proj", "v_proj", "o_proj", "lm_head"}),
    ],
)
def test_the_layers_that_are_trained(
    options: dict[str, bool], layers: set[str], model_of: Callable[[str], Path], tmp_path: Path
):
    model = model_of("llama")  # its head is tied to the embeddings: they must not follow it
    client = make_client(model, tmp_path, num_threads=2, **options)
    assert {name.split(".")[-3] for name in client._engine.parameters} == layers
    train(client, range(2))
    client.save_state("warm").result()
    data = random_data(LENGTHS, seed=9)
    expected = reference(client, model, data)
    assert_equal_to(expected, client, rows_of(client.forward_backward(data, "cross_entropy").result()))
    client.close()


def test_a_model_without_such_layers_is_refused(tmp_path: Path):
    config = transformers.MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=16, state_size=4, num_hidden_layers=1)
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    with pytest.raises(ConfigError) as error:
        make_client(tmp_path / "mamba", tmp_path, train_attn=False)
    assert str(error.value) == (
        f"model '{tmp_path / 'mamba'}' has no linear layer of the kinds to be trained (backend.train_attn=False, "
        "train_mlp=True, train_unembed=False): set another of them to true"
    )


@pytest.mark.parametrize(
    "scaled",
    [
        {
            "rope_type": "longrope",
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
            "original_max_position_embeddings": 64,
        },
        {"rope_type": "dynamic", "factor": 2.0},
    ],
    ids=lambda scaled: scaled["rope_type"],
)
def test_a_model_that_changes_as_it_computes_does_so_on_one_thread_at_a_time(scaled: dict[str, Any], tmp_path: Path):
    """Frequencies that follow the longest sequence lie in the model, where another thread would read them."""
    config = transformers.LlamaConfig(**SIZES, rope_parameters={"rope_theta": 1e4, **scaled})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    client = make_client(tmp_path / "model", tmp_path, num_threads=2)
    assert client._engine._workers.number == 1
    client.close()


def test_experts_with_a_lora_compute_on_one_thread_at_a_time(tmp_path: Path):
    """PEFT puts it in place for each pass and takes it away again, in the model and in a global of torch."""
    config = transformers.Glm4MoeConfig(
        **SIZES, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_shared_experts=1
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    client = make_client(tmp_path / "model", tmp_path, num_threads=2)
    assert client._engine._workers.number == 1
    train(client, range(2))
    client.optim_step(ADAM).result()
    client.close()


def test_a_model_whose_layers_take_no_lora_is_refused(tmp_path: Path):
    config = transformers.Mamba2Config(
        vocab_size=VOCAB_SIZE, hidden_size=16, state_size=4, num_heads=4, head_dim=8, n_groups=1, num_hidden_layers=1
    )
    transformers.Mamba2ForCausalLM(config).save_pretrained(tmp_path / "mamba2")
    with pytest.raises(
        ConfigError, match=r"mamba2': .*'out_proj' is incompatible with Mamba-based.*: take another model$"
    ):
        make_client(tmp_path / "mamba2", tmp_path)


def test_a_head_that_does_not_follow_the_decoder_is_refused(tmp_path: Path):
    config = transformers.OPTConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=4
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    with pytest.raises(BackendError, match="a head that does not follow its decoder: take another model"):
        make_client(tmp_path / "model", tmp_path)


def test_computing_again_in_the_backward_pass_changes_no_bit(model_of: Callable[[str], Path], tmp_path: Path):
    found = []
    for budget in (64, 32):
        client = make_client(model_of("qwen3"), tmp_path, micro_batch_tokens=budget)
        client.forward_backward(random_data([64]), "cross_entropy").result()
        found.append(gradients(client))
        assert not any(module.training for module in client._engine._model.modules())
        client.close()
    for name, value in found[0].items():
        assert torch.equal(found[1][name], value)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_norms_have_a_backward_of_their_own(family: str, model_of: Callable[[str], Path], tmp_path: Path):
    """Left as they were, they would be as right, and slower."""
    client = make_client(model_of(family), tmp_path)
    modules = client._engine._model.modules()
    norms = [module for module in modules if type(module).__name__.endswith("RMSNorm")]
    assert len(norms) > 4
    assert all("forward" in vars(norm) for norm in norms)
    client.close()


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "lfm2"])
def test_the_model_still_generates_as_transformers_does(family: str, model_of: Callable[[str], Path], tmp_path: Path):
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(model_of(family), dtype=torch.float32)
    client = make_client(model_of(family), tmp_path)
    client.forward_backward(random_data([200]), "cross_entropy").result()  # more than a micro-batch
    prompt = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14]])
    arguments = {"max_new_tokens": 12, "do_sample": False, "use_cache": True, "attention_mask": torch.ones_like(prompt)}
    with torch.no_grad():
        expected = plain.generate(prompt, **arguments)
        ours: Any = client._engine._model
        assert ours.generate(input_ids=prompt, **arguments).tolist() == expected.tolist()
    client.close()
