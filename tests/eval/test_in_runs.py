"""Evaluators in runs of the tiny model on the local backend: exact across a kill, in MLflow, as a cookbook's script."""

import json

import chz
import pytest
import tinker

from harness import renderers
from harness.backends.local.backend import LocalBackend
from harness.eval.evaluators import SamplingClientEvaluator
from harness.eval.responses import ExactMatchBuilder, ResponsesBuilder
from harness.exceptions import ConfigError
from harness.files import rewrite_jsonl
from harness.run_dir import RunDir
from harness.supervised.data import FromConversationFileBuilder
from harness.supervised.types import ChatDatasetBuilderCommonConfig
from harness.tokenizer_utils import get_tokenizer
from harness.tracking.mlflow_check import check
from harness.tracking.mlflow_mirror import sync
from harness.tracking.mlflow_store import open_store
from tests.offline import write_conversations
from tests.supervised.runs import config, run, same
from tests.tiny_model import make_tiny_model
from tests.tracking.conftest import database as database
from tests.tracking.conftest import uri as uri


@chz.chz
class CapitalsBuilder:
    """As a script for tinker-cookbook has it, with the package's name replaced."""

    model_name: str

    def __call__(self) -> SamplingClientEvaluator:
        return Capitals(self.model_name)


class Capitals(SamplingClientEvaluator):
    def __init__(self, model_name):
        self.renderer = renderers.get_renderer(name="chat_template", tokenizer=get_tokenizer(model_name))

    async def __call__(self, sampling_client: tinker.SamplingClient) -> dict[str, float]:
        params = tinker.SamplingParams(
            max_tokens=8, temperature=0.7, top_p=1.0, stop=self.renderer.get_stop_sequences()
        )
        num_characters = 0
        for country in ("France", "Italy"):
            prompt = self.renderer.build_generation_prompt([renderers.Message(role="user", content=f"{country}?")])
            r = await sampling_client.sample_async(prompt=prompt, num_samples=1, sampling_params=params)
            response = self.renderer.parse_response(r.sequences[0].tokens)[0]
            num_characters += len(renderers.get_text_content(response))
        return {"capitals/characters": num_characters / 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_tiny_model(folder / "tiny")
    write_conversations(folder / "all.jsonl", 16)
    write_conversations(folder / "few.jsonl", 3)
    return folder


def of(world, path, **changes):
    model = str(world / "tiny")
    common_config = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=model, renderer_name="chat_template", max_length=100, batch_size=2
    )
    builder = FromConversationFileBuilder(common_config=common_config, file_path=str(world / "all.jsonl"), test_size=2)
    few = ExactMatchBuilder(
        name="few", file_path=str(world / "few.jsonl"), max_tokens=6, temperature=1.0, num_samples=2
    )
    values = {
        "model_name": model,
        "dataset_builder": builder,
        "backend": LocalBackend(dtype="float32", num_threads=1),
        "num_epochs": 1,
        "max_steps": 6,
        "lora_rank": 4,
        "learning_rate": 1e-2,
        "eval_every": 2,
        "save_every": 2,
        "keep": "all",
        "submit_ahead": 2,
        "evaluator_builders": [few, ResponsesBuilder(name="held_out", max_tokens=5), CapitalsBuilder(model_name=model)],
    }
    return config(path, **values | changes)


@pytest.fixture(scope="module")
def whole(world):
    return run(of(world, world / "whole"))


def test_metrics_and_the_table_of_samples(whole):
    tested = [row for row in whole.metrics() if "eval/few/exact_match" in row]
    assert [row["step"] for row in tested] == [0, 2, 4, 6]
    keys = {"eval/few/num_tokens", "eval/few/end_of_turn", "eval/held_out/num_tokens", "capitals/characters"}
    assert all(keys <= row.keys() for row in tested)
    samples = whole.samples()
    assert [(row["step"], row["evaluator"]) for row in samples] == [
        (step, name) for step in (0, 2, 4, 6) for name in ["few"] * 6 + ["held_out"] * 2
    ]
    for row in tested:
        of_step = [sample for sample in samples if (sample["step"], sample["evaluator"]) == (row["step"], "few")]
        assert row["eval/few/num_tokens"] == sum(sample["num_tokens"] for sample in of_step) / 6
    assert [row["id"] for row in whole.samples(6)] == [row["id"] for row in samples[:8]]
    assert whole.config()["data"]["evaluators"].keys() == {"few", "held_out"}


def test_killed_and_resumed_the_same_tokens_are_sampled(world, whole, tmp_path):
    killed = run(of(world, tmp_path / "r"))
    rewrite_jsonl(killed / "attempts.jsonl", killed.attempts()[:-1])
    rewrite_jsonl(killed / "checkpoints.jsonl", [r.to_row() for r in killed.checkpoints() if r.step <= 2])
    samples = killed.samples()
    rewrite_jsonl(killed / "samples.jsonl", samples[:-3])  # a power cut took them
    again = run(of(world, tmp_path / "r", submit_ahead=0))
    assert again.attempts()[-1]["exact"] is True
    assert again.attempts()[-1]["verified_rows"] == 4
    assert again.samples() == samples == whole.samples()
    assert same(again.metrics()) == same(whole.metrics())


def test_a_sample_that_came_out_differently_is_told(world, tmp_path, capsys):
    killed = run(of(world, tmp_path / "r", max_steps=3))
    rewrite_jsonl(killed / "attempts.jsonl", killed.attempts()[:-1])
    rewrite_jsonl(killed / "checkpoints.jsonl", [])
    rows = killed.metrics()
    rewrite_jsonl(killed / "metrics.jsonl", [rows[0] | {"eval/few/num_tokens": 0.5}, *rows[1:]])
    run(of(world, tmp_path / "r", max_steps=3))
    assert "step 0 came out differently than before the interruption: eval/few/num_tokens was 0.5" in (
        capsys.readouterr().out
    )
    assert killed.is_superseded() and len(killed.samples(0)) == 8 * 3


def test_what_an_evaluator_samples_is_the_same_whoever_else_is_due(world, tmp_path):
    """At step 6 both sample where it is the last, and one where the run goes on: its rows are made again and equal."""

    def until(max_steps):
        common = {"file_path": str(world / "few.jsonl"), "max_tokens": 6, "temperature": 1.0, "num_samples": 4}
        changes = {
            "num_epochs": 2,
            "lr_schedule": "constant",
            "eval_every": 4,
            "infrequent_eval_every": 6,
            "evaluator_builders": [ExactMatchBuilder(name="often", **common)],
            "infrequent_evaluator_builders": [ExactMatchBuilder(name="rare", **common)],
        }
        return run(of(world, tmp_path / "r", max_steps=max_steps, **changes))

    short = until(6)
    row, samples = short.metrics()[6], short.samples(6)
    assert {"eval/often/num_tokens", "eval/rare/num_tokens", "test/nll"} <= row.keys()
    by_name = {name: [s["sample"] for s in samples if s["evaluator"] == name] for name in ("often", "rare")}
    assert by_name["often"] != by_name["rare"], "each has random numbers of its own"
    longer = until(10)
    assert not longer.is_superseded()
    assert longer.metrics()[6].items() >= row.items()
    assert longer.samples(6)[: len(samples)] == samples


def test_a_conversation_that_stands_twice_loses_no_sample(world, tmp_path):
    twice = tmp_path / "twice.jsonl"
    twice.write_text((world / "few.jsonl").read_text() * 2)
    builder = ExactMatchBuilder(name="twice", file_path=str(twice), max_tokens=3, temperature=1.0)

    def made(**changes):
        return run(of(world, tmp_path / "r", max_steps=2, evaluator_builders=[builder], **changes))

    killed = made()
    samples = killed.samples()
    rewrite_jsonl(killed / "attempts.jsonl", killed.attempts()[:-1])
    rewrite_jsonl(killed / "checkpoints.jsonl", [])
    rewrite_jsonl(killed / "samples.jsonl", samples[:-1])  # the second of two equal conversations
    made()
    assert killed.samples() == samples


def test_other_prompts_under_the_same_name_are_refused(world, tmp_path):
    def on(file, name="few"):
        builder = ExactMatchBuilder(name=name, file_path=str(file), max_tokens=2)
        return of(world, tmp_path / "r", max_steps=1, evaluator_builders=[builder])

    run(on(world / "few.jsonl"))
    moved = tmp_path / "moved.jsonl"
    moved.write_text((world / "few.jsonl").read_text())
    run(on(moved))
    moved.write_text(
        json.dumps({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]})
    )
    document = RunDir(tmp_path / "r").attempts()
    rewrite_jsonl(tmp_path / "r" / "attempts.jsonl", document[:-1])
    with pytest.raises(ConfigError, match="the data of evaluator few is not what the run was started with"):
        run(on(moved))
    twice = [ExactMatchBuilder(name="few", file_path=str(moved))] * 2
    with pytest.raises(ConfigError, match=r"^two evaluators are called few: give one of them another name$"):
        run(of(world, tmp_path / "s", evaluator_builders=twice))


def test_mlflow_has_the_metrics_and_the_table(whole, uri):
    sync(whole, tracking_uri=uri)
    assert check(whole).is_equal
    store = open_store(uri)
    (found,) = store.search_runs([e.experiment_id for e in store.search_experiments()])
    assert found.data.metrics["eval/few/exact_match"] == whole.metrics()[-1]["eval/few/exact_match"]
    assert "samples.jsonl" in {file.path for file in store.list_artifacts(found.info.run_id)}
