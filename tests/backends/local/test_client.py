import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tinker
import torch
from transformers import AutoModelForCausalLM

from harness.backends.local.client import LocalTrainingClient
from harness.exceptions import BackendError, ConfigError
from harness.supervised.datum import ConversationDatum
from tests.backends.local.support import ADAM, VOCAB_SIZE, datum, files, random_data, train

Make = Callable[..., LocalTrainingClient]
Arrays = dict[str, np.ndarray]

MIXED_LENGTHS = [17, 40, 3, 40, 64, 9, 1, 25]


def weights(client: LocalTrainingClient) -> Arrays:
    return {k: p.detach().numpy().copy() for k, p in client._engine.parameters.items()}


def gradients(client: LocalTrainingClient) -> Arrays:
    return {k: p.grad.numpy().copy() for k, p in client._engine.parameters.items() if p.grad is not None}


def logprobs(output: tinker.ForwardBackwardOutput) -> list[np.ndarray]:
    return [record["logprobs"].to_numpy() for record in output.loss_fn_outputs]


def assert_close(actual: Arrays, expected: Arrays, tolerance: float = 5e-6) -> None:
    """Relative to each tensor's norm."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert np.linalg.norm(actual[name] - value) <= tolerance * np.linalg.norm(value), name


def warmed_up(make: Make, **changes: object) -> LocalTrainingClient:
    """After two updates no LoRA matrix is zero, so that each has a gradient."""
    client = make(**changes)
    train(client, range(2))
    client.save_state("warm").result()
    return client


def reference(client: LocalTrainingClient, model: Path, data: list[tinker.Datum]) -> tuple[list[np.ndarray], Arrays]:
    """Log-probabilities of all targets and the gradients, written plainly: one datum at a time, all logits, the LoRA
    added to the weights of the layers themselves."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    lora = {k: torch.tensor(v, requires_grad=True) for k, v in weights(client).items()}
    changed = {}
    for name in (k.removesuffix(".lora_A.weight") for k in lora if k.endswith(".lora_A.weight")):
        layer = name.removeprefix("base_model.model.") + ".weight"
        delta = lora[f"{name}.lora_B.weight"] @ lora[f"{name}.lora_A.weight"] * (32 / 4)  # alpha / rank
        changed[layer] = base.get_parameter(layer).detach() + delta
    rows, loss = [], torch.zeros(())
    for one in data:
        ids = torch.tensor([one.model_input.to_ints()])
        logits = torch.func.functional_call(base, changed, (ids,)).logits[0]
        chosen = logits.log_softmax(-1)[torch.arange(ids.shape[1]), one.loss_fn_inputs["target_tokens"].to_torch()]
        loss = loss - (chosen * one.loss_fn_inputs["weights"].to_torch()).sum()
        rows.append(chosen.detach().numpy())
    loss.backward()
    return rows, {k: v.grad.numpy() for k, v in lora.items() if v.grad is not None}


def test_logprobs_and_gradients_equal_a_plain_reference(make: Make, tiny_model: Path):
    client = warmed_up(make)
    data = random_data(MIXED_LENGTHS, seed=9)
    data.insert(2, datum([5, 6, 7], [0.0, 0.0]))  # nothing to train on
    expected_rows, expected_gradients = reference(client, tiny_model, data)

    output = client.forward_backward(data, "cross_entropy").result()

    loss = 0.0
    for row, expected, one in zip(logprobs(output), expected_rows, data, strict=True):
        weight = one.loss_fn_inputs["weights"].to_numpy()
        assert row.dtype == np.float32
        np.testing.assert_allclose(row, np.where(weight != 0, expected, 0.0), rtol=2e-5, atol=2e-6)
        loss -= float((expected * weight).sum())
    assert output.metrics["loss:sum"] == pytest.approx(loss, rel=1e-6)
    assert_close(gradients(client), expected_gradients)


def test_forward_answers_the_same_and_adds_no_gradient(make: Make):
    client = warmed_up(make)
    data = random_data(MIXED_LENGTHS)
    before = client.forward(data, "cross_entropy").result()
    assert not any(g.any() for g in gradients(client).values())
    after = client.forward_backward(data, "cross_entropy").result()
    for one, other in zip(logprobs(before), logprobs(after), strict=True):
        np.testing.assert_array_equal(one, other)


def test_two_calls_accumulate_to_one(make: Make):
    client, data = warmed_up(make), random_data(MIXED_LENGTHS)
    client.forward_backward(data, "cross_entropy").result()
    whole = gradients(client)
    client._engine._optimizer.zero_grad(set_to_none=False)
    client.forward_backward(data[:3], "cross_entropy")
    client.forward_backward(data[3:], "cross_entropy").result()
    assert_close(gradients(client), whole)


def test_order_and_micro_batches_do_not_matter(make: Make):
    data = random_data(MIXED_LENGTHS)
    client = warmed_up(make, micro_batch_tokens=10_000)
    rows = logprobs(client.forward_backward(data, "cross_entropy").result())
    expected = gradients(client)
    for budget in (1, 100):
        other = make(micro_batch_tokens=budget, state_path="checkpoints/warm")
        reversed_rows = logprobs(other.forward_backward(data[::-1], "cross_entropy").result())
        assert_close(gradients(other), expected)
        for row, other_row in zip(rows, reversed_rows[::-1], strict=True):
            np.testing.assert_allclose(other_row, row, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("grad_clip_norm", [0.0, 0.5, 1e6])
def test_optim_step_equals_adam_by_hand(make: Make, grad_clip_norm: float):
    lr, beta1, beta2, eps, decay = 2e-3, 0.8, 0.9, 1e-6, 0.1
    adam = tinker.AdamParams(
        learning_rate=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=decay, grad_clip_norm=grad_clip_norm
    )
    client = make()
    expected = {k: v.astype(np.float64) for k, v in weights(client).items()}
    m = {k: np.zeros_like(v) for k, v in expected.items()}
    v = {k: np.zeros_like(w) for k, w in expected.items()}
    for step in range(1, 4):
        client.forward_backward(random_data([20, 30], seed=step), "cross_entropy").result()
        gradient = {k: g.astype(np.float64) for k, g in gradients(client).items()}
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        answer = client.optim_step(adam).result()
        assert answer.metrics is not None
        assert answer.metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
        scale = min(1.0, grad_clip_norm / norm) if grad_clip_norm else 1.0
        for k, g in gradient.items():
            m[k] = beta1 * m[k] + (1 - beta1) * scale * g
            v[k] = beta2 * v[k] + (1 - beta2) * (scale * g) ** 2
            update = (m[k] / (1 - beta1**step)) / (np.sqrt(v[k] / (1 - beta2**step)) + eps)
            expected[k] = expected[k] * (1 - lr * decay) - lr * update
        assert not any(g.any() for g in gradients(client).values()), "an update clears the gradient"
    for k, value in weights(client).items():
        np.testing.assert_allclose(value, expected[k], rtol=1e-4, atol=1e-6)


def test_a_save_holds_exactly_the_updates_submitted_before_it(make: Make, tmp_path: Path):
    client, awaited = make(), make()
    saves = []
    for step in range(4):  # nothing awaited
        train(client, range(step, step + 1))
        saves.append(client.save_state(f"{step + 1}"))
    assert [save.result().path for save in saves] == [f"checkpoints/{n}" for n in (1, 2, 3, 4)]
    for step in range(4):
        awaited.forward_backward(random_data([20, 9, 31], seed=step), "cross_entropy").result()
        awaited.optim_step(ADAM).result()
        saved = safetensors.numpy.load_file(tmp_path / f"checkpoints/{step + 1}/adapter_model.safetensors")
        for name, value in weights(awaited).items():
            np.testing.assert_array_equal(saved[name], value)
        optimizer = safetensors.numpy.load_file(tmp_path / f"checkpoints/{step + 1}/optimizer.safetensors")
        assert optimizer["step"] == step + 1


def test_a_future_can_be_awaited(make: Make):
    client = make()

    async def run() -> float:
        output = client.forward(random_data([5]), "cross_entropy")
        saved = client.save_state("a")
        assert (await saved).path == "checkpoints/a"
        again = await output.result_async(timeout=60)
        assert (await output).metrics == again.metrics
        return again.metrics["loss:sum"]

    assert asyncio.run(run()) > 0


def test_giving_up_on_a_request_leaves_it_in_the_queue(make: Make, tmp_path: Path):
    client = make()

    async def run() -> None:
        train(client, range(3))
        with pytest.raises(TimeoutError):
            await client.optim_step(ADAM).result_async(timeout=0)
        await client.save_state("a")

    asyncio.run(run())
    assert safetensors.numpy.load_file(tmp_path / "checkpoints/a/optimizer.safetensors")["step"] == 4


def test_a_failed_request_fails_those_after_it(make: Make, tmp_path: Path):
    client = make()
    before = weights(client)
    bad = client.forward_backward([*random_data([5]), datum([1, VOCAB_SIZE], [1.0])], "cross_entropy")
    step, saved = client.optim_step(ADAM), client.save_state("a")
    message = f"datum 1: token {VOCAB_SIZE} is not among the model's {VOCAB_SIZE}: is the tokenizer this model's?"
    with pytest.raises(BackendError) as error:
        bad.result()
    assert str(error.value) == message
    with pytest.raises(BackendError) as error:
        step.result()
    assert str(error.value) == f"{message} (in forward_backward; optim_step after it was not run)"
    with pytest.raises(BackendError, match="; save_state after it was not run"):
        saved.result()
    assert not (tmp_path / "checkpoints").exists()
    for name, value in weights(client).items():
        np.testing.assert_array_equal(value, before[name])


def test_another_loss_is_refused(make: Make):
    with pytest.raises(BackendError) as error:
        make().forward(random_data([5]), "ppo").result()
    assert str(error.value) == "loss_fn 'ppo': the local backend has cross_entropy only"


def test_a_loss_that_is_not_finite_names_the_examples_and_the_last_state(make: Make, tmp_path: Path):
    client = make()
    train(client, range(2))
    client.save_state("000002").result()
    before = files(tmp_path / "checkpoints/000002")
    bad = datum([1, 2, 3], [1.0, float("nan")])
    named = ConversationDatum(bad.model_input, bad.loss_fn_inputs, example_id="talks.jsonl:17")
    client.forward_backward([bad, *random_data([5]), named], "cross_entropy")
    update, saved = client.optim_step(ADAM), client.save_state("000003")
    with pytest.raises(BackendError) as error:
        update.result()
    assert str(error.value) == (
        "update 2: the loss of datum 0, talks.jsonl:17 is nan: lower learning_rate, or look at what is named; the last "
        "good state is checkpoints/000002 (in forward_backward; optim_step after it was not run)"
    )
    with pytest.raises(BackendError):
        saved.result()
    assert files(tmp_path / "checkpoints/000002") == before


@pytest.mark.parametrize(("backward", "option"), [(True, "micro_batch_tokens"), (False, "eval_micro_batch_tokens")])
def test_memory_that_runs_out_is_one_line(make: Make, monkeypatch: pytest.MonkeyPatch, backward: bool, option: str):
    client = make()
    train(client, range(2))
    client.save_state("000002").result()

    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(client._engine, "_micro_batch", exhausted)
    with pytest.raises(BackendError) as error:
        (client.forward_backward if backward else client.forward)(random_data([9, 20]), "cross_entropy").result()
    assert re.fullmatch(
        r"update 2: not enough memory for \d+ tokens at once, \d+ of them in one sequence: "
        rf"lower backend.{option} or max_length; the last good state is checkpoints/000002",
        str(error.value),
    )


def test_weights_that_are_not_finite_stop_the_run_too(make: Make):
    client = make()
    next(iter(client._engine.parameters.values())).data.fill_(float("inf"))
    with pytest.raises(BackendError) as error:
        client.forward_backward(random_data([20] * 7), "cross_entropy").result()
    assert str(error.value) == (
        "update 0: the loss of datum 0, datum 1, datum 2, datum 3, datum 4 and 2 more is nan: lower learning_rate, or "
        "look at what is named; no state was saved before it"
    )


def test_a_gradient_that_is_not_finite_is_not_applied(make: Make):
    client = make()
    client.forward_backward(random_data([9]), "cross_entropy").result()
    for parameter in client._engine.parameters.values():
        parameter.grad.mul_(1e38).mul_(1e38)  # pyright: ignore[reportOptionalMemberAccess]
    with pytest.raises(BackendError) as error:
        client.optim_step(ADAM).result()
    assert str(error.value) == (
        "update 0: the gradient is not finite: lower learning_rate, or look at this batch; no state was saved before it"
    )


def test_close_drops_what_waits(make: Make):
    client = make()
    running = client.forward_backward(random_data([200] * 40), "cross_entropy")
    waiting = [client.forward_backward(random_data([200] * 40), "cross_entropy") for _ in range(50)]
    client.close()
    assert running._future.done()
    assert waiting[-1]._future.cancelled()


def test_the_lora_depends_on_the_seed_alone(make: Make):
    torch.manual_seed(123)
    drawn = torch.rand(3)
    torch.manual_seed(123)
    one = weights(make(seed=1))
    assert torch.equal(torch.rand(3), drawn), "who draws after is not disturbed"
    again, other = weights(make(seed=1)), weights(make(seed=2))
    for name, value in one.items():
        np.testing.assert_array_equal(value, again[name])
    name = next(k for k in one if "lora_A" in k)
    assert not np.array_equal(one[name], other[name])
    assert len(one) == 2 * 7 * 2, "A and B of seven linear layers in each of two blocks, not of the head"
    assert all(value.dtype == np.float32 for value in weights(make(dtype="bfloat16")).values())


def test_a_model_that_is_not_there(tmp_path: Path):
    from tests.backends.local.support import make_client

    with pytest.raises(ConfigError) as error:
        make_client(tmp_path / "nothing", tmp_path)
    assert str(error.value) == f"model '{tmp_path}/nothing': no such folder: check the path"


def test_the_same_bits_again(make: Make, tmp_path: Path):
    for name in ("one", "two"):
        client = make(dtype="bfloat16")
        train(client, range(3))
        client.save_state(name).result()
    assert files(tmp_path / "checkpoints/one") == files(tmp_path / "checkpoints/two")
