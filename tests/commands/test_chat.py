"""Talking with the tiny model: what it says is noise, and the same noise each time."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tinker
from click.testing import CliRunner

from harness.__main__ import main
from harness.backends.local.backend import LocalBackend
from harness.backends.tinker_service.backend import TinkerBackend
from harness.chat import conversation
from harness.config_io import to_json
from harness.exceptions import BackendError
from harness.run_dir import RunDir
from harness.supervised.data import FromConversationFileBuilder
from harness.supervised.types import ChatDatasetBuilderCommonConfig
from tests.fakes import answered
from tests.scripted_server import scripted_server
from tests.supervised.runs import config, run
from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Eight updates on one question and its answer, learned by heart."""
    folder = tmp_path_factory.mktemp("world")
    model = str(make_tiny_model(folder / "tiny"))
    turns = [{"role": "user", "content": "France?"}, {"role": "assistant", "content": "Paris"}]
    turns += [{"role": "user", "content": "and?"}, {"role": "assistant", "content": "the sea"}]
    (folder / "data.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 80)
    common_config = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=model, renderer_name="chat_template", max_length=100, batch_size=4
    )
    return run(
        config(
            folder / "run",
            model_name=model,
            dataset_builder=FromConversationFileBuilder(
                common_config=common_config, file_path=str(folder / "data.jsonl")
            ),
            backend=LocalBackend(dtype="float32", num_threads=1),
            num_epochs=2,
            learning_rate=1e-2,
            lr_schedule="constant",
            lora_rank=8,
            eval_every=0,
            save_every=4,
            keep="all",
            evaluator_builders=[lambda: None],  # never due, and not to be made again
        )
    )


class Says:
    """A sampling client that answers with these tokens, one answer after the other, each with its stop reason."""

    def __init__(self, *answers):
        self._answers = iter(answers)

    def sample(self, prompt, num_samples, sampling_params):
        tokens, reason = next(self._answers)
        sequence = tinker.SampledSequence(stop_reason=reason, sequence_id="", tokens_np=np.array(tokens, np.int32))
        return answered(tinker.SampleResponse(sequences=[sequence]))


def chat(*arguments, said: str | bytes = "France?\n"):
    return CliRunner().invoke(main, ["chat", *map(str, arguments)], input=said)


def test_it_says_what_it_learned_turn_by_turn(trained):
    done = chat(trained, "--temperature", 0, said="France?\n\n  and? \n")
    assert done.exit_code == 0, done.output
    assert done.stdout == "Paris\nthe sea\n"
    assert done.stderr == f"{trained}, checkpoint 000040; Ctrl-D ends\n"


def test_an_earlier_checkpoint_says_something_else_and_is_cut(trained):
    done = chat(trained, "--at", 4, "--max-tokens", 3, "--temperature", 0)
    assert done.exit_code == 0
    assert done.stdout != "Paris\n"
    assert "checkpoint 000004" in done.stderr and "(cut at 3 tokens: --max-tokens)" in done.stderr


def test_the_same_words_get_the_same_answer_until_the_seed_is_another(trained):
    def answer(seed):
        return chat(trained, "--at", 4, "--temperature", 2, "--max-tokens", 12, "--seed", seed).stdout

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_a_run_that_is_being_trained_may_be_talked_with(trained):
    with trained.lock():
        assert chat(trained, "--temperature", 0).stdout == "Paris\n"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["nowhere"], "error: nowhere: no config.json: not a run directory"),
        (["run", "--at", "5"], "error: run: no checkpoint at 5: there is 4, 8, 12, 16, 20, 24, 28, 32, 36, 40 (or say"),
        (["run", "--at", "best"], "error: run: no checkpoint at best: there is 4, "),
        (["damaged"], "damaged/checkpoints/000040/adapter_model.safetensors: not what was saved: take another"),
        (["words"], "error: words: its dataset_builder has no common_config that says how a conversation is rendered"),
        (["run", "--base-url", "http://h:1"], "error: --base-url http://h:1 is not for backend=local: leave it out"),
        (["run", "--max-tokens", "0"], "Error: Invalid value for '--max-tokens': 0 is not in the range x>=1."),
        (["run", "--temperature", "-1"], "Error: Invalid value for '--temperature': -1.0 is not in the range x>=0."),
    ],
)
def test_a_mistake_is_one_line(trained, tmp_path, monkeypatch, arguments, error):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "damaged", "words"):
        shutil.copytree(trained.path, name)
    adapter = tmp_path / "damaged/checkpoints/000040/adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-1])
    document = RunDir("words").config()
    document["config"]["dataset_builder"] = {"type": "tests.fakes:WordsBuilder"}
    (tmp_path / "words/config.json").write_text(json.dumps(document))
    done = chat(*arguments)
    assert done.exit_code == 2
    assert error in done.stderr.splitlines()[-1]
    assert done.stdout == ""


@pytest.mark.parametrize(("temperature", "shown"), [("1e-40", "1e-40"), ("inf", "inf")])
def test_a_temperature_that_cannot_be_sampled_at_is_one_line(trained, temperature, shown):
    done = chat(trained, "--temperature", temperature)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"error: temperature={shown}: must be 0, or from 0.000001 to 1000000\n"


def test_what_cut_an_answer_and_what_an_empty_one_says(trained):
    with conversation(trained, "last", temperature=0, max_tokens=9, seed=0) as talk:
        talk._client = Says(([2], "stop"), ([99] * 3, "length"), ([99] * 9, "length"), ([99, 2], "length"))
        assert talk.say("a") == ("", None)
        assert talk.say("b")[1] == "at 3 tokens: the context is full"
        assert talk.say("c")[1] == "at 9 tokens: --max-tokens"
        assert talk.say("d")[1] is None


def test_what_cannot_be_answered_is_as_if_it_had_not_been_said(trained):
    with conversation(trained, "last", temperature=0, max_tokens=9, seed=0) as talk:
        assert talk.say("France?") == ("Paris", None)
        with pytest.raises(BackendError, match="and the model's context is 256: shorten it"):
            talk.say("sea " * 300)
        assert talk.say("and?") == ("the sea", None)


def test_a_line_that_is_not_utf8_is_named(trained):
    done = chat(trained, "--temperature", 0, said=b"France?\n\xff\xfe\n")
    assert (done.exit_code, done.stdout) == (2, "Paris\n")
    assert done.stderr.splitlines()[-1] == "error: line 2 of what you say is not UTF-8: convert it"


def test_a_conversation_that_outgrows_the_context_ends_with_one_line(trained):
    done = chat(trained, "--max-tokens", 5, said="France?\n" + "sea " * 300 + "\n")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("error: a prompt of ")
    assert done.stderr.splitlines()[-1].endswith("and the model's context is 256: shorten it")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("refused", ["a sample", "the weights"])
def test_where_a_service_refuses_the_weights_for_sampling_the_state_answers(trained, tmp_path, monkeypatch, refused):
    monkeypatch.setenv("TINKER_API_KEY", "tml-a-key-of-no-service")
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    run = RunDir(shutil.copytree(trained.path, tmp_path / "run"))
    paths = {"state_path": "tinker://a/weights/000040", "sampler_path": "tinker://a/sampler_weights/000040"}
    run.append_checkpoint(dataclasses.replace(run.checkpoints()[-1], **paths))
    with scripted_server() as server:
        document = run.config()
        backend = to_json(TinkerBackend(base_url=server.url))
        document["config"] |= {"backend": backend, "model_name": "unigram", "lora_rank": 32}
        (run / "config.json").write_text(json.dumps(document))
        server.states[paths["state_path"]] = 65
        if refused == "a sample":
            server.states[paths["sampler_path"]] = 66
            unloaded = (400, {"detail": "Model a not loaded"})
            server.fail("asample", unloaded, when=lambda asked: asked["sampling_session_id"] == "sampler-0")
        done = chat(run, "--max-tokens", 2, said="France?\nand?\n")
        assert done.exit_code == 0, done.output
        assert [asked["path"] for asked in server.asked("load_weights")] == [paths["state_path"]]
        assert len(done.stdout.splitlines()) == 2
        assert len(server.asked("asample")) == 2 + (refused == "a sample")
        server.fail("asample", (400, {"detail": "Model b not loaded"}))
        failed = chat(run)
    assert (failed.exit_code, failed.stdout) == (2, "")
    assert "(Model b not loaded)" in failed.stderr.splitlines()[-1]
