"""Sampling with the tiny model, held against transformers without a cache, without padding, one token after another."""

import asyncio
import collections
import math

import pytest
import tinker
import torch
import transformers

from harness.backends.local.backend import LocalBackend
from harness.exceptions import BackendError, CheckpointDamagedError
from tests.backends.local.support import ADAM, VOCAB_SIZE, files, make_client, random_data, train
from tests.tiny_model import MAX_LENGTH, make_tiny_tokenizer

PROMPTS = [[1, 50, 60, 70], [1, 99], [1, 7, 8, 9, 10, 11, 12, 13, 14]]
END = 2  # <|im_end|>


def params(**changes):
    return tinker.SamplingParams(**{"max_tokens": 12, "temperature": 0.0, "stop": []} | changes)


def prompt(tokens):
    return tinker.ModelInput.from_ints(tokens)


def said(answer):
    return [(s.tokens, s.logprobs, s.stop_reason) for s in answer.sequences]


@pytest.fixture(scope="module")
def reference(tiny_model):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@pytest.fixture
def sampling(make):
    return make().save_weights_and_get_sampling_client().result()


def logprobs_after(model, tokens, temperature=1.0):
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=torch.tensor([tokens])).logits[0, -1] / temperature, dim=-1)


def test_greedy_samples_of_prompts_of_any_length_are_the_likeliest_tokens(sampling, reference):
    answers = [sampling.sample(prompt(tokens), 1, params()) for tokens in PROMPTS]  # one batch, padded
    for start, answer in zip(PROMPTS, answers, strict=True):
        (sequence,) = answer.result().sequences
        tokens = list(start)
        assert (len(sequence.tokens), sequence.stop_reason) == (12, "length")
        for token, logprob in zip(sequence.tokens, sequence.logprobs, strict=True):
            expected = logprobs_after(reference, tokens)
            assert token == int(expected.argmax())
            assert logprob == pytest.approx(expected[token].item(), abs=1e-4)
            tokens.append(token)


def test_a_model_whose_context_has_no_limit_samples_too(tmp_path):
    config = transformers.BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=32, n_layer=1, n_head=4)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "bloom")
    client = make_client(tmp_path / "bloom", tmp_path)
    sampling = client.save_weights_and_get_sampling_client().result()
    answers = [sampling.sample(prompt(tokens), 1, params()) for tokens in PROMPTS]
    for start, answer in zip(PROMPTS, answers, strict=True):
        tokens = list(start)
        for token in answer.result().sequences[0].tokens:
            assert token == int(logprobs_after(model, tokens).argmax())
            tokens.append(token)
        assert len(tokens) == len(start) + 12
    client.close()


def test_log_probabilities_are_those_at_the_temperature(sampling, reference):
    (sequence,) = sampling.sample(prompt(PROMPTS[0]), 1, params(temperature=0.5, top_k=5, top_p=0.9)).result().sequences
    tokens = list(PROMPTS[0])
    for token, logprob in zip(sequence.tokens, sequence.logprobs, strict=True):
        assert logprob == pytest.approx(logprobs_after(reference, tokens, 0.5)[token].item(), abs=1e-4)
        tokens.append(token)


def test_tokens_come_as_often_as_they_are_likely(sampling, reference):
    n = 4000
    answer = sampling.sample(prompt([1, 99]), n, params(max_tokens=1, temperature=0.7)).result()
    counts = collections.Counter(sequence.tokens[0] for sequence in answer.sequences)
    expected = logprobs_after(reference, [1, 99], 0.7).exp()
    for token in expected.topk(5).indices.tolist():
        p = expected[token].item()
        assert abs(counts[token] - n * p) < 5 * math.sqrt(n * p * (1 - p))


def test_top_k_and_top_p_leave_the_likeliest(sampling, reference):
    def drawn(**changes):
        answer = sampling.sample(prompt([1, 99]), 300, params(max_tokens=1, temperature=2.0, **changes)).result()
        return {sequence.tokens[0] for sequence in answer.sequences}

    probabilities = logprobs_after(reference, [1, 99], 2.0).exp()
    order = probabilities.argsort(descending=True).tolist()
    assert drawn(top_k=1) == {order[0]}
    assert drawn(top_k=3) == set(order[:3])
    assert drawn(top_p=1e-9) == {order[0]}
    first_two = (probabilities[order[0]] + probabilities[order[1]]).item()
    assert drawn(top_p=first_two - 1e-4) == set(order[:2])  # the second one is needed to reach it
    assert drawn(top_p=first_two + 1e-4) == set(order[:3])
    assert len(drawn()) > 50


def test_the_same_requests_give_the_same_bits_and_other_seeds_others(make):
    def sampled(**changes):
        client = make(**changes).save_weights_and_get_sampling_client().result()
        asked = [client.sample(prompt(tokens), 2, params(temperature=1.0)) for tokens in [*PROMPTS, PROMPTS[0]]]
        return [said(answer.result()) for answer in asked]

    first = sampled()
    assert sampled() == first
    assert first[0] != first[3], "the same prompt again is another sample"
    assert first[0][0] != first[0][1]
    assert sampled(seed=1) != first


def test_a_seed_of_the_request_decides_alone(make):
    def sampled(of_request, **changes):
        client = make(**changes).save_weights_and_get_sampling_client().result()
        answers = [
            client.sample(prompt([1, 99]), 2, params(temperature=1.0, seed=of_request)).result() for _ in range(2)
        ]
        assert said(answers[0]) == said(answers[1])
        return [sequence.tokens for sequence in answers[0].sequences]

    assert sampled(3) == sampled(3, seed=9)  # the base model is the same, whatever the run's seed
    assert sampled(3) != sampled(4)


def test_what_stops_a_sample_is_its_last_token(sampling):
    (whole,) = sampling.sample(prompt(PROMPTS[0]), 1, params()).result().sequences
    end = whole.tokens[4]
    first = whole.tokens.index(end)
    (cut,) = sampling.sample(prompt(PROMPTS[0]), 1, params(stop=[end])).result().sequences
    assert (cut.tokens, cut.stop_reason) == (whole.tokens[: first + 1], "stop")

    text = make_tiny_tokenizer().decode(whole.tokens[3:5])
    (cut,) = sampling.sample(prompt(PROMPTS[0]), 1, params(stop=text)).result().sequences
    assert cut.stop_reason == "stop" and text in make_tiny_tokenizer().decode(cut.tokens)
    assert text not in make_tiny_tokenizer().decode(cut.tokens[:-1])


def test_without_a_word_the_models_end_of_a_sequence_stops(sampling):
    def reasons(stop):
        answer = sampling.sample(prompt([1, 99]), 200, params(max_tokens=20, temperature=2.0, stop=stop)).result()
        return {(sequence.stop_reason, sequence.tokens[-1] == END) for sequence in answer.sequences}

    assert reasons(None) == {("stop", True), ("length", False)}
    assert {reason for reason, _ in reasons([])} == {"length"}


def test_beside_texts_the_models_end_of_a_sequence_stops_too(sampling):
    answer = sampling.sample(prompt([1, 99]), 200, params(max_tokens=20, temperature=2.0, stop=["\n\nUser:"])).result()
    assert {s.stop_reason for s in answer.sequences if END in s.tokens} == {"stop"}
    assert all(s.tokens[-1] == END for s in answer.sequences if END in s.tokens)
    (other,) = sampling.sample(prompt([1, 99]), 1, params(stop=[END + 1])).result().sequences
    (alone,) = sampling.sample(prompt([1, 99]), 1, params(stop=[])).result().sequences
    assert other.tokens == alone.tokens  # a token that is given stands in its place


def test_at_the_bounds_of_the_temperature_a_token_is_chosen(sampling, reference):
    likeliest = int(logprobs_after(reference, [1, 99]).argmax())
    for temperature, is_greedy in ((1e-6, True), (1e6, False)):
        asked = params(max_tokens=1, temperature=temperature)
        answer = sampling.sample(prompt([1, 99]), 50, asked).result()
        assert ({sequence.tokens[0] for sequence in answer.sequences} == {likeliest}) is is_greedy


def test_a_seed_of_a_request_is_nothing_to_those_without(make):
    def sampled(*seeds):
        client = make().save_weights_and_get_sampling_client().result()
        return [said(client.sample(prompt([1, 99]), 1, params(temperature=1.0, seed=s)).result()) for s in seeds]

    assert sampled(5, None)[1] == sampled(None)[0]


def test_a_sample_that_fails_fails_alone(make, monkeypatch):
    client = make()
    expected = make()
    train(expected, range(2))
    train(client, range(1))
    sampling = client.save_weights_and_get_sampling_client().result()

    def fails(*_):
        raise MemoryError("too much")

    with monkeypatch.context() as patch:
        patch.setattr("harness.backends.local.sampler._Row.take", fails)
        with pytest.raises(MemoryError):
            sampling.sample(prompt([1, 99]), 1, params()).result()
    assert sampling.sample(prompt([1, 99]), 1, params()).result()
    train(client, range(1, 2))
    data = random_data([20, 9])
    found = [c.forward(data, "cross_entropy").result().loss_fn_outputs[0]["logprobs"] for c in (client, expected)]
    assert found[0].tolist() == found[1].tolist()


def test_a_sample_ends_where_the_context_does(sampling):
    long = [1, *range(100, 100 + MAX_LENGTH - 4)]
    answers = [sampling.sample(prompt(tokens), 1, params(max_tokens=None)) for tokens in (long, long[:-1])]
    lengths = [len(answer.result().sequences[0].tokens) for answer in answers]
    assert lengths == [3, 4]


@pytest.mark.parametrize(
    ("tokens", "num_samples", "changes", "error"),
    [
        ([], 1, {}, "an empty prompt: give at least one token"),
        ([1, 384], 1, {}, "token 384 is not among the model's 384: is the tokenizer this model's?"),
        ([1] * 256, 1, {}, "a prompt of 256 tokens, and the model's context is 256: shorten it"),
        ([1], 0, {}, "num_samples=0: must be at least 1"),
        ([1], 1, {"temperature": -1.0}, "temperature=-1.0: must be 0, or from 0.000001 to 1000000"),
        ([1], 1, {"temperature": 1e-40}, "temperature=1e-40: must be 0, or from 0.000001 to 1000000"),
        ([1], 1, {"temperature": math.inf}, "temperature=inf: must be 0, or from 0.000001 to 1000000"),
        ([1], 1, {"temperature": math.nan}, "temperature=nan: must be 0, or from 0.000001 to 1000000"),
        ([1], 1, {"top_p": 1.5}, "top_p=1.5: must be at least 0 and at most 1"),
        ([1], 1, {"top_k": -2}, "top_k=-2: must be at least -1"),
        ([1], 1, {"max_tokens": 0}, "max_tokens=0: must be at least 1"),
        ([1], 1, {"stop": [""]}, "stop='': give texts, or ids of tokens"),
    ],
)
def test_what_cannot_be_sampled_is_one_line_and_the_next_request_is_served(
    sampling, tokens, num_samples, changes, error
):
    with pytest.raises(BackendError) as raised:
        sampling.sample(prompt(tokens), num_samples, params(**changes))
    assert str(raised.value) == error
    assert sampling.sample(prompt([1]), 1, params()).result()


def test_it_samples_with_the_weights_of_its_place_in_the_queue(make):
    """Asked for before six updates and sampled after them, within a gradient, it is what it was before; and they are
    what they are without it."""
    data = random_data([20, 9])
    alone = make()
    train(alone, range(3))
    before = said(alone.save_weights_and_get_sampling_client().result().sample(prompt([1, 99]), 1, params()).result())
    train(alone, range(3, 9))
    expected = alone.forward(data, "cross_entropy").result().loss_fn_outputs[0]["logprobs"].tolist()

    client = make()
    train(client, range(3))
    sampling = client.save_weights_and_get_sampling_client()
    train(client, range(3, 8))
    client.forward_backward(random_data([20, 9, 31], seed=8), "cross_entropy")
    late = sampling.result().sample(prompt([1, 99]), 1, params()).result()
    assert said(late) == before
    now = client.save_weights_and_get_sampling_client().result().sample(prompt([1, 99]), 1, params()).result()
    assert said(now) != before
    client.optim_step(ADAM)
    found = client.forward(data, "cross_entropy").result().loss_fn_outputs[0]["logprobs"].tolist()
    assert found == expected


def test_a_saved_state_samples_as_it_did_and_nothing_is_written(make, tiny_model, tmp_path):
    client = make()
    train(client, range(3))
    path = client.save_state("000003").result().path
    live = client.save_weights_and_get_sampling_client().result()
    asked = params(temperature=1.0, seed=5)
    before = said(live.sample(prompt([1, 99]), 2, asked).result())
    left = tmp_path / "checkpoints" / ".000004.tmp"  # what another process is writing
    left.mkdir()
    backend = LocalBackend(dtype="float32", num_threads=1, micro_batch_tokens=128)
    whole = files(tmp_path / path)
    for weights_path, same in ((path, True), (None, False)):
        sampling = backend.create_sampling_client(
            model_name=str(tiny_model),
            lora_rank=4,
            seed=0,
            numerics=backend.numerics(),
            run_path=tmp_path,
            weights_path=weights_path,
        )
        assert (said(sampling.sample(prompt([1, 99]), 2, asked).result()) == before) is same
        backend.close(sampling)
    assert left.is_dir() and files(tmp_path / path) == whole


def test_only_a_whole_checkpoint_of_the_run_samples(make, tiny_model, tmp_path):
    """Also one that lost its manifest, and could be taken for an adapter from elsewhere."""
    folder = tmp_path / make().save_state("000003").result().path
    (folder / "manifest.json").unlink()
    backend = LocalBackend(dtype="float32", num_threads=1)
    for path, error in (
        ("checkpoints/000003", f"{folder}/manifest.json: missing or damaged: take another checkpoint"),
        ("checkpoints/000004", f"{tmp_path}/checkpoints/000004: no such checkpoint: take another"),
    ):
        with pytest.raises(CheckpointDamagedError) as raised:
            backend.create_sampling_client(
                model_name=str(tiny_model),
                lora_rank=4,
                seed=0,
                numerics=backend.numerics(),
                run_path=tmp_path,
                weights_path=path,
            )
        assert str(raised.value) == error


def test_closing_ends_a_long_sample(make):
    client = make()
    sampling = client.save_weights_and_get_sampling_client().result()

    async def close_meanwhile():
        answer = asyncio.ensure_future(sampling.sample_async(prompt([1]), 400, params(max_tokens=250)))
        await asyncio.sleep(0.05)
        client.close()
        with pytest.raises((asyncio.CancelledError, BackendError)):
            await answer

    asyncio.run(close_meanwhile())
