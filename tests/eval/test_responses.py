"""Evaluators over conversations, on a client that says what it is told to."""

import asyncio
import json
from collections.abc import Iterator

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
         "evaluator c: c.jsonl:1: nothing in its answer matches"),
        (lambda file: ExactMatchBuilder(name="a/b"), ValueError, "name='a/b': use letters, digits, _ - . and spaces"),
        (lambda file: ExactMatchBuilder(name="c", num_samples=2), ValueError,
         "num_samples=2 at temperature=0 are all the same: raise temperature"),
        (lambda file: ExactMatchBuilder(name="c", max_tokens=0), ValueError, "max_tokens=0: must be at least 1"),
        (lambda file: ExactMatchBuilder(name="c", top_p=0.0), ValueError, "top_p=0.0: must be greater than 0"),
        (lambda file: PatternMatchBuilder(name="c", pattern="("), ValueError, "pattern='(': missing )"),
    ],
)  # fmt: skip
def test_a_mistake_says_what_and_where(tmp_path, monkeypatch, make, kind, error):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as raised:
        make(lambda *conversations: write(tmp_path / "c.jsonl", *conversations) and "c.jsonl")
    assert error in str(raised.value)


def test_a_score_that_is_none_is_named(tmp_path):
    @chz.chz
    class Broken(ResponsesBuilder):
        def score(self, response, reference):
            return {"x": float("nan")}

    builder = Broken(name="b", file_path=write(tmp_path / "c.jsonl", CAPITALS[0]), common_config=COMMON)
    with pytest.raises(ConfigError, match=r"^evaluator b: x is nan: give finite scores$"):
        asyncio.run(builder()(Says("a")))
