"""Evaluators over conversations, on a client that says what it is told to."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import chz
import numpy as np
import pytest
import tinker

from harness import tokenizer_utils
from harness.eval.responses import ExactMatchBuilder, PatternMatchBuilder, ResponsesBuilder
from harness.exceptions import ConfigError, DataError, DataFileNotFoundError
from harness.supervised.types import ChatDatasetBuilderCommonConfig
from tests.fakes import answered
from tests.tiny_model import make_tiny_tokenizer

COMMON = ChatDatasetBuilderCommonConfig(
    model_name_for_tokenizer="tiny", renderer_name="chat_template", max_length=64, batch_size=2
)
TOKENIZER = make_tiny_tokenizer()


@pytest.fixture(autouse=True)
def tokenizer(monkeypatch):
    monkeypatch.setattr("harness.supervised.types.get_tokenizer", lambda name: TOKENIZER)
    tokenizer_utils.get_tokenizer.cache_clear()


class Says:
    """A sampling client that answers with texts, one after the other; one without <|im_end|> was cut."""

    def __init__(self, *texts: str):
        self._texts: Iterator[str] = iter(texts)
        self.asked = []

    def sample(self, prompt, num_samples, sampling_params):
        self.asked.append((TOKENIZER.decode(prompt.to_ints()), num_samples, sampling_params))
        sequences = []
        for _ in range(num_samples):
            text = next(self._texts)
            tokens = np.array(TOKENIZER.encode(text, add_special_tokens=False), np.int32)
            reason = "stop" if text.endswith("<|im_end|>") else "length"
            sequences.append(tinker.SampledSequence(stop_reason=reason, sequence_id="", tokens_np=tokens))
        return answered(tinker.SampleResponse(sequences=sequences))


def conversation(asked: str, *answer: str) -> list[dict[str, str]]:
    said = [{"role": "user", "content": asked}]
    return said + [{"role": "assistant", "content": text} for text in answer]


def write(path, *conversations, **more) -> str:
    path.write_text("".join(json.dumps({"messages": messages} | more) + "\n" for messages in conversations))
    return str(path)


CAPITALS = [conversation("France?", "Paris"), conversation("Italy?", "Rome"), conversation("Spain?", "Madrid")]


def test_exact_match_length_and_end_of_turn_by_hand(tmp_path):
    builder = ExactMatchBuilder(
        name="capitals", file_path=write(tmp_path / "c.jsonl", *CAPITALS), common_config=COMMON, max_tokens=9
    )
    client = Says(" Paris\n<|im_end|>", "Paris<|im_end|>", "Madrid")
    metrics = asyncio.run(builder()(client))
    lengths = [len(TOKENIZER.encode(text)) for text in (" Paris\n<|im_end|>", "Paris<|im_end|>", "Madrid")]
    assert metrics == {
        "eval/capitals/num_tokens": sum(lengths) / 3,
        "eval/capitals/end_of_turn": 2 / 3,
        "eval/capitals/exact_match": 2 / 3,
    }
    (prompt, num_samples, params), *_ = client.asked
    assert (prompt, num_samples) == ("<|im_start|>user\nFrance?<|im_end|>\n<|im_start|>assistant\n", 1)
    assert (params.max_tokens, params.temperature, params.stop) == (9, 0.0, [2])
    assert params.seed is None  # the run's decides


def test_rows_say_what_was_asked_and_answered(tmp_path):
    builder = ExactMatchBuilder(
        name="c", file_path=write(tmp_path / "c.jsonl", CAPITALS[0], id="fr"), common_config=COMMON, num_samples=2,
        temperature=1.0,
    )  # fmt: skip
    evaluator = builder()
    responses = asyncio.run(evaluator.responses(Says("Paris<|im_end|>", "Rome")))
    first, second = evaluator.rows(responses)
    assert first == {
        "evaluator": "c",
        "id": "fr",
        "number": 0,
        "prompt": "<|im_start|>user\nFrance?<|im_end|>\n<|im_start|>assistant\n",
        "sample": "Paris<|im_end|>",
        "reference": "Paris",
        "num_tokens": len(TOKENIZER.encode("Paris<|im_end|>")),
        "stop_reason": "stop",
        "scores": {"exact_match": 1.0},
    }
    assert (second["number"], second["sample"], second["stop_reason"]) == (1, "Rome", "length")
    assert evaluator.metrics(responses)["eval/c/exact_match"] == 0.5


@pytest.mark.parametrize(
    ("pattern", "reference", "response", "match"),
    [
        (None, "2 + 2 = 4", "It is 4.", 1.0),
        (None, "1,000", "first 3, then 1000.0", 1.0),
        (None, "4", "4 or 5", 0.0),
        (None, "-3", "3", 0.0),
        (None, "4", "four", 0.0),
        (None, "34", "so 3,4", 0.0),
        (None, "4", "so 3,4", 1.0),
        (None, "17", "on 2024-05-17", 1.0),
        (None, "3", "5-3", 1.0),
        (None, "-3", "it is (-3)", 1.0),
        (None, "-3", "it is \u22123.", 1.0),
        (None, "0.5", "about .5", 1.0),
        (None, "3", "version 1.2.3", 1.0),
        (None, "1000", "1e3", 1.0),
        (None, "0.015", "1.5e-2 of it", 1.0),
        (None, "2", "1e3x2", 1.0),
        (None, "1234567.5", "1,234,567.50", 1.0),
        (None, "1e99999999999999999999", "1e99999999999999999999", 1.0),
        (r"\d*", "4", "5 of them", 0.0),
        (r"\d*", "4", "4 of them", 1.0),
        (r"\d*", "4", "none", 0.0),
        (r"Answer: (\w+)", "Answer: nan", "Answer: nan", 1.0),
        (r"Answer: (\w+)", "Answer: snan", "Answer: nan", 0.0),
        (r"Answer: (\S+)", "Answer: 5", "Answer: +5.", 1.0),
        (r"Answer: (\S+)", "Answer: 34", "Answer: 3,4", 0.0),
        (r"answer: (\w+)", "answer: yes", "no; answer: maybe; answer: yes!", 1.0),
        (r"answer: (\w+)", "answer: yes", "yes", 0.0),
    ],
)
def test_the_last_match_counts_and_numbers_are_numbers(tmp_path, pattern, reference, response, match):
    file = write(tmp_path / "c.jsonl", conversation("?", reference))
    given = {} if pattern is None else {"pattern": pattern}
    builder = PatternMatchBuilder(name="m", file_path=file, common_config=COMMON, **given)
    assert asyncio.run(builder()(Says(response)))["eval/m/match"] == match


@chz.chz
class Polite(ResponsesBuilder):
    def score(self, response, reference):
        return {"polite": float("please" in response)}


def test_scores_of_ones_own_on_prompts_without_an_answer(tmp_path):
    file = write(tmp_path / "c.jsonl", conversation("a"), conversation("b"), conversation("c"))
    metrics = asyncio.run(
        Polite(name="p", file_path=file, common_config=COMMON, num_prompts=2)()(
            Says("please<|im_end|>", "no<|im_end|>")
        )
    )
    assert metrics["eval/p/polite"] == 0.5


def test_the_runs_test_set_is_used_where_no_file_is_given():
    evaluator = ExactMatchBuilder(name="t").of_run(COMMON, [CAPITALS[0], {"messages": CAPITALS[1], "more": 1}])
    assert asyncio.run(evaluator(Says("Paris", "Rome")))["eval/t/exact_match"] == 1.0


def test_prompts_longer_than_what_is_trained_on_are_left_out_and_counted(tmp_path, caplog):
    long = conversation("sea " * 80, "wind")
    file = write(tmp_path / "c.jsonl", CAPITALS[0], long, CAPITALS[1], long, CAPITALS[2])
    client = Says("Paris", "Rome")
    asyncio.run(ExactMatchBuilder(name="c", file_path=file, common_config=COMMON, num_prompts=2)()(client))
    assert [asked.count("Italy") for asked, *_ in client.asked] == [0, 1]
    assert "evaluator c: 1 prompts of more than max_length=64 tokens are left out" in caplog.text
    with pytest.raises(DataError, match=r"^evaluator c: all prompts are longer than max_length=64: give shorter ones$"):
        ExactMatchBuilder(name="c", file_path=write(tmp_path / "c.jsonl", long), common_config=COMMON)()


def test_the_fingerprint_is_that_of_prompts_and_references(tmp_path):
    def fingerprint(*conversations, **fields):
        file = write(tmp_path / "f.jsonl", *conversations)
        return ExactMatchBuilder(name="c", file_path=file, common_config=COMMON, **fields)().fingerprint

    assert fingerprint(*CAPITALS) == fingerprint(*CAPITALS, max_tokens=3)
    assert fingerprint(*CAPITALS) != fingerprint(*CAPITALS[:2])
    assert fingerprint(CAPITALS[0]) != fingerprint(conversation("France?", "paris"))


@pytest.mark.parametrize(
    ("make", "kind", "error"),
    [
        (lambda file: ExactMatchBuilder(name="c", file_path=file(CAPITALS[0]))(), ConfigError,
         "evaluator c: nothing says how conversations are rendered: give common_config"),
        (lambda file: ExactMatchBuilder(name="c").of_run(COMMON, []), DataError,
         "evaluator c: the run has no test set of conversations: give file_path"),
        (lambda file: ExactMatchBuilder(name="c").of_run(COMMON, [{"text": "a"}]), DataError,
         "evaluator c: the run has no test set of conversations: give file_path"),
        (lambda file: ExactMatchBuilder(name="c", file_path="no.jsonl", common_config=COMMON)(), DataFileNotFoundError,
         "Data file not found: no.jsonl"),
        (lambda file: ExactMatchBuilder(name="c", file_path=file(conversation("a")), common_config=COMMON)(), DataError,
         "evaluator c: c.jsonl:1: it does not end with an assistant's message to compare with"),
        (lambda file: PatternMatchBuilder(name="c", file_path=file(CAPITALS[0]), common_config=COMMON)(), DataError,
         "evaluator c: c.jsonl:1: nothing in its answer is a number"),
        (lambda file: ExactMatchBuilder(name="a/b"), ValueError, "name='a/b': use letters, digits, _ - . and spaces"),
        (lambda file: ExactMatchBuilder(name="c", num_samples=2), ValueError,
         "num_samples=2 at temperature=0 are all the same: raise temperature"),
        (lambda file: ExactMatchBuilder(name="c", max_tokens=0), ValueError, "max_tokens=0: must be at least 1"),
        (lambda file: PatternMatchBuilder(name="c", file_path=file(conversation("?", "four")), common_config=COMMON,
                                          pattern=r"\d*")(), DataError,
         r"evaluator c: c.jsonl:1: nothing in its answer matches '\\d*'"),
        (lambda file: ExactMatchBuilder(name="c", temperature=1e-40), ValueError,
         "temperature=1e-40: must be 0, or from 0.000001 to 1000000"),
        (lambda file: ExactMatchBuilder(name="c", temperature=float("inf")), ValueError,
         "temperature=inf: must be 0, or from 0.000001 to 1000000"),
        (lambda file: ExactMatchBuilder(name="c", top_p=0.0), ValueError, "top_p=0.0: must be greater than 0"),
        (lambda file: PatternMatchBuilder(name="c", pattern="("), ValueError, "pattern='(': missing )"),
    ],
)  # fmt: skip
def test_a_mistake_says_what_and_where(tmp_path, monkeypatch, make, kind, error):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as raised:
        make(lambda *conversations: write(tmp_path / "c.jsonl", *conversations) and "c.jsonl")
    assert error in str(raised.value)


@chz.chz
class Returns(ResponsesBuilder):
    found: Any

    def score(self, response, reference):
        return self.found


@pytest.mark.parametrize(
    ("found", "error"),
    [
        ({"x": float("nan")}, "evaluator b: x is nan: give finite scores"),
        ({"x": "much"}, "evaluator b: score returned 'x': 'much': it must return numbers by name"),
        ({1: 1.0}, "evaluator b: score returned 1: 1.0: it must return numbers by name"),
        (None, "evaluator b: score returned a NoneType: it must return numbers by name"),
        ("much", "evaluator b: score returned a str: it must return numbers by name"),
        ((1.0,), "evaluator b: score returned a tuple: it must return numbers by name"),
        ({"num_tokens": 1}, "evaluator b: score returned num_tokens, a metric that is measured already: give it another"
         " name"),
        ({"end_of_turn": 1}, "evaluator b: score returned end_of_turn, a metric that is measured already: give it "
         "another name"),
    ],
)  # fmt: skip
def test_a_score_that_is_none_is_named(tmp_path, found, error):
    file = write(tmp_path / "c.jsonl", CAPITALS[0])
    with pytest.raises(ConfigError) as raised:
        asyncio.run(Returns(name="b", file_path=file, common_config=COMMON, found=found)()(Says("a")))
    assert str(raised.value) == error


def test_any_kind_of_number_is_a_score(tmp_path):
    file = write(tmp_path / "c.jsonl", CAPITALS[0])
    found = {"a": np.float32(0.5), "b": True, "c": np.int64(2)}
    evaluator = Returns(name="b", file_path=file, common_config=COMMON, found=found)()
    responses = asyncio.run(evaluator.responses(Says("x")))
    assert json.loads(json.dumps(evaluator.rows(responses)))[0]["scores"] == {"a": 0.5, "b": 1.0, "c": 2.0}


def test_seeds_are_the_runs_the_steps_and_the_evaluators_own(tmp_path):
    file = write(tmp_path / "c.jsonl", CAPITALS[0], CAPITALS[0])

    def seeds(name="a", seed=0, step=0):
        client = Says("x", "y")
        evaluator = ResponsesBuilder(name=name, file_path=file, common_config=COMMON).of_run(None, (), seed)
        asyncio.run(evaluator.responses(client, step))
        return [params.seed for *_, params in client.asked]

    assert seeds() == seeds()
    each = [seed for found in (seeds(), seeds(name="b"), seeds(seed=1), seeds(step=1)) for seed in found]
    assert len({*each}) == 8 and all(0 <= seed < 2**30 for seed in each)


def test_a_conversation_that_stands_twice_has_samples_that_can_be_told_apart(tmp_path):
    file = write(tmp_path / "c.jsonl", CAPITALS[0], CAPITALS[1], CAPITALS[0])
    builder = ResponsesBuilder(name="c", file_path=file, common_config=COMMON, num_samples=2, temperature=1.0)
    responses = asyncio.run(builder().responses(Says(*"abcdef")))
    assert [response.number for response in responses] == [0, 1, 0, 1, 2, 3]
    assert len({(response.prompt.id, response.number) for response in responses}) == 6


def test_a_response_has_ended_where_the_renderer_cuts_it(tmp_path):
    """A server may know nothing of the end of a sequence where texts are to stop a sample."""
    common_config = chz.replace(COMMON, renderer_name="role_colon")
    file = write(tmp_path / "c.jsonl", CAPITALS[0], CAPITALS[1])
    builder = ExactMatchBuilder(name="c", file_path=file, common_config=common_config)
    evaluator = builder()
    responses = asyncio.run(evaluator.responses(Says(" Paris<|im_end|> and on", " Rome and on")))
    assert [response.stop_reason for response in responses] == ["stop", "length"]
    assert evaluator.metrics(responses)["eval/c/exact_match"] == 0.5
