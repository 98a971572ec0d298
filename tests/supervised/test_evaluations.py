"""Evaluators of the config, in runs of the fake backend, whose sampling client shows the weights that it has."""

import asyncio
import json
import random

import chz
import numpy as np
import pytest
import tinker

from harness import cli
from harness.derive import config_again, make_fork
from harness.eval.evaluators import Evaluator, SamplingClientEvaluator, TrainingClientEvaluator
from harness.exceptions import ConfigError
from harness.files import rewrite_jsonl
from harness.run_dir import RunDir
from harness.supervised import train
from harness.supervised.replay import Ledger
from tests.fakes import Died, FakeBackend, FakeClient, FakeSamplingClient, WordsBuilder, byte_datum
from tests.supervised.runs import config, run, same

PROMPT = tinker.ModelInput.from_ints([1])


class Weights(SamplingClientEvaluator):
    """A number of the weights, asked for only after others could have been put in their place."""

    def __init__(self, name: str):
        self.name = name

    async def __call__(self, sampling_client):
        for _ in range(10):
            await asyncio.sleep(0)
        answer = await sampling_client.sample_async(PROMPT, 1, tinker.SamplingParams(max_tokens=1))
        return {self.name: float(sampling_client.logits.sum()), f"{self.name}/first": answer.sequences[0].tokens[0]}


class Asked(TrainingClientEvaluator):
    """A test of its own, as scripts for tinker-cookbook write it."""

    async def __call__(self, training_client):
        future = await training_client.forward_async([byte_datum("alpha")], loss_fn="cross_entropy")
        result = await future.result_async()
        return {"asked/nll": -float(np.sum(result.loss_fn_outputs[0]["logprobs"].to_numpy()))}


@chz.chz
class WeightsBuilder:
    name: str = "weights"
    file_path: str = chz.field(default="a", metadata={"place": True})

    def __call__(self) -> Evaluator:
        return Weights(self.name)


@chz.chz
class AskedBuilder:
    def __call__(self) -> Evaluator:
        return Asked()


def both(**changes):
    return {
        "evaluator_builders": [WeightsBuilder(), Asked],
        "infrequent_evaluator_builders": [WeightsBuilder(name="rare")],
        "infrequent_eval_every": 6,
        **changes,
    }


def steps_with(run: RunDir, key: str) -> list[int]:
    return [row["step"] for row in run.metrics() if key in row]


def test_each_is_due_at_its_own_cadence_and_after_the_last_update(tmp_path):
    finished = run(config(tmp_path / "r", keep="all", **both()))  # 15 updates, eval_every=4
    assert steps_with(finished, "weights") == steps_with(finished, "asked/nll") == [0, 4, 8, 12, 15]
    assert steps_with(finished, "test/nll") == [0, 4, 8, 12, 15]
    assert steps_with(finished, "rare") == [0, 6, 12, 15]
    assert {record.step for record in finished.checkpoints()} >= {4, 6, 8, 12, 15}, "an evaluation is a save point"


@pytest.mark.parametrize("submit_ahead", [0, 3])
def test_they_measure_the_weights_before_the_update_of_their_row(tmp_path, submit_ahead):
    finished = run(config(tmp_path / "r", keep="all", submit_ahead=submit_ahead, save_every=1, **both()))
    alone = run(config(tmp_path / "alone", keep="all"))
    assert [row["train_mean_nll"] for row in finished.metrics()[:-1]] == [
        row["train_mean_nll"] for row in alone.metrics()[:-1]
    ]
    states = {r.step: json.loads((finished / r.state_path / "state.json").read_text()) for r in finished.checkpoints()}
    for row in finished.metrics():
        if row["step"] and "weights" in row:
            logits = np.array(states[row["step"]]["logits"])
            assert row["weights"] == logits.sum()
            assert row["weights/first"] == logits.argmax()
            logprobs = logits - np.logaddexp.reduce(logits)
            assert row["asked/nll"] == pytest.approx(-logprobs[[*b"lpha", 3]].sum(), rel=1e-6)


class InPlace(FakeSamplingClient):
    """Of a server that works on meanwhile, and puts the weights that it samples with in the place of the trained."""

    def __init__(self, trained: FakeClient):
        super().__init__(trained.logits)
        self._trained = trained

    def sample(self, prompt, num_samples, sampling_params):
        while self._trained._queue:
            self._trained.work()
        self._trained.logits = self.logits
        return super().sample(prompt, num_samples, sampling_params)


@pytest.mark.parametrize("submit_ahead", [0, 3])
@pytest.mark.parametrize("from_a_copy", [False, True])
def test_updates_wait_for_samples_unless_these_are_of_a_copy(tmp_path, monkeypatch, from_a_copy, submit_ahead):
    alone = run(config(tmp_path / "alone", submit_ahead=submit_ahead))
    monkeypatch.setattr(FakeBackend, "samples_from_a_copy", from_a_copy)
    monkeypatch.setattr(
        FakeClient,
        "save_weights_and_get_sampling_client",
        lambda client: client._submit("copy", lambda: InPlace(client)),
    )
    sampled = run(config(tmp_path / "r", submit_ahead=submit_ahead, **both()))

    def losses(of: RunDir) -> list[tuple]:
        return [(row.get("train_mean_nll"), row.get("test/nll")) for row in of.metrics()]

    assert (losses(sampled) == losses(alone)) is not from_a_copy  # updates that go on meanwhile are undone by this one


def test_a_run_that_dies_anywhere_ends_as_the_one_that_did_not(tmp_path):
    changes = both(max_steps=7, num_epochs=2, eval_every=2, infrequent_eval_every=3, submit_ahead=2)
    whole = run(config(tmp_path / "whole", **changes))
    num_requests = len(FakeBackend.clients[-1].worked)
    for die_after in random.Random(1).sample(range(num_requests), 12):
        path = tmp_path / f"died-{die_after}"
        with pytest.raises(Died):
            run(config(path, backend=FakeBackend(die_after=die_after), **changes))
        resumed = run(config(path, **changes))
        assert same(resumed.metrics()) == same(whole.metrics())
        assert not resumed.is_superseded()


def test_an_early_stop_is_measured_by_all(tmp_path):
    stopped = run(config(tmp_path / "r", learning_rate=3.0, early_stop_patience=1, eval_every=2, **both()))
    last = stopped.metrics()[-1]
    assert "train_mean_nll" not in last and last["step"] % 6
    assert {"test/nll", "weights", "asked/nll", "rare"} <= last.keys()


def test_without_a_test_set_and_without_a_cadence(tmp_path):
    changes = {"dataset_builder": WordsBuilder(num_test=0), "max_steps": 3}
    some = run(config(tmp_path / "a", **both(infrequent_eval_every=0, **changes)))
    assert steps_with(some, "weights") == [0, 3]
    assert steps_with(some, "rare") == []
    none = run(config(tmp_path / "b", **both(infrequent_eval_every=2, eval_every=0, **changes)))
    assert steps_with(none, "rare") == [0, 2, 3]
    assert steps_with(none, "weights") == []


# ---- mistakes


class Returns(SamplingClientEvaluator):
    def __init__(self, found):
        self.found = found

    async def __call__(self, sampling_client):
        return self.found


@pytest.mark.parametrize(
    ("builders", "error"),
    [
        ([lambda: Returns({"test/nll": 1.0})],
         "evaluator Returns returned test/nll, a name of the trainer's own: give it another one"),
        ([lambda: Returns({"step": 1.0})],
         "evaluator Returns returned step, a name of the trainer's own: give it another one"),
        ([lambda: Returns({"a": "much"})], "evaluator Returns returned 'a': 'much': it must return numbers by name"),
        ([lambda: Returns(1.0)], "evaluator Returns returned a float: it must return numbers by name"),
        ([lambda: Returns({"a": 1}), lambda: Returns({"a": 2})],
         "two evaluators return a: give one of them another name"),
        ([lambda: max],
         "an evaluator builder made a builtin_function_or_method: derive its class from SamplingClientEvaluator or "
         "TrainingClientEvaluator of harness.eval.evaluators"),
    ],
)  # fmt: skip
def test_what_is_no_evaluation_is_one_line(tmp_path, builders, error):
    with pytest.raises(ConfigError) as raised:
        run(config(tmp_path / "r", evaluator_builders=builders))
    assert str(raised.value) == error


def test_what_is_not_finite_is_left_out_and_told(tmp_path, capsys):
    finished = run(
        config(
            tmp_path / "r", max_steps=1, evaluator_builders=[lambda: Returns({"a": float("nan"), "b": np.float32(2)})]
        )
    )
    assert [(row.get("a"), row["b"]) for row in finished.metrics()] == [(None, 2.0)] * 2
    assert "evaluator Returns: a is nan at step 0: left out" in capsys.readouterr().out


def test_an_evaluator_that_fails_fails_the_run_and_it_goes_on_from_its_checkpoint(tmp_path):
    class Fails(SamplingClientEvaluator):
        calls = 0

        async def __call__(self, sampling_client):
            Fails.calls += 1
            if Fails.calls == 3:
                raise ZeroDivisionError
            return {"a": 1.0}

    with pytest.raises(ZeroDivisionError):
        run(config(tmp_path / "r", evaluator_builders=[Fails]))
    assert RunDir(tmp_path / "r").state() == "FAILED"
    assert steps_with(run(config(tmp_path / "r", evaluator_builders=[Fails])), "a") == [0, 4, 8, 12, 15]


# ---- config.json


def test_builders_are_written_and_made_again(tmp_path):
    finished = run(config(tmp_path / "r", max_steps=1, evaluator_builders=[WeightsBuilder(name="w")]))
    (written,) = finished.config()["config"]["evaluator_builders"]
    assert written == {"type": "tests.supervised.test_evaluations:WeightsBuilder", "name": "w", "file_path": "a"}
    assert config_again(finished, ["log_path=x"]).evaluator_builders == [WeightsBuilder(name="w")]
    again = config_again(finished, ["log_path=x", "evaluator_builders.0.name=v"])
    assert again.evaluator_builders == [WeightsBuilder(name="v")]


def test_a_plain_callable_is_trained_with_and_cannot_be_made_again(tmp_path):
    finished = run(config(tmp_path / "r", max_steps=1, evaluator_builders=[Asked]))
    with pytest.raises(ConfigError) as raised:
        config_again(finished, ["log_path=x"])
    assert str(raised.value) == (
        "tests.supervised.test_evaluations:Asked is a plain callable: not re-makeable from config.json; a chz class "
        "would be"
    )


def test_the_command_line_reaches_into_a_recipes_evaluators():
    recipe = chz.Blueprint(train.Config).apply(
        {"model_name": "unigram", "dataset_builder": WordsBuilder(), "evaluator_builders": [WeightsBuilder()]}
    )
    made = cli.make_from_argv(recipe, ["log_path=x", "evaluator_builders.0.name=mine"])
    assert made.evaluator_builders == [WeightsBuilder(name="mine")]
    recipe.apply({"evaluator_builders": [Asked, AskedBuilder(), WeightsBuilder()]})  # a list in the place of the first
    made = cli.make_from_argv(recipe, ["log_path=x", "evaluator_builders.2.name=mine"])
    assert made.evaluator_builders == [Asked, AskedBuilder(), WeightsBuilder(name="mine")]


@pytest.mark.parametrize("prefix", ["", "infrequent_"])
def test_what_is_never_asked_is_told(tmp_path, caplog, prefix):
    of = {f"{prefix}evaluator_builders": [WeightsBuilder()], f"{prefix}eval_every": 0, "max_steps": 1}
    run(config(tmp_path / "r", **of))
    told = f"{prefix}eval_every=0: nothing is measured of {prefix}evaluator_builders (set {prefix}eval_every)"
    assert told in caplog.messages
    run(config(tmp_path / "q", **of | {f"{prefix}eval_every": 1}))
    assert caplog.messages.count(told) == 1


def test_a_resume_keeps_them_a_fork_may_change_them(tmp_path):
    def of(**fields):
        return config(tmp_path / "r", max_steps=6, keep="all", evaluator_builders=[WeightsBuilder(**fields)])

    trained = run(of(name="w"))
    run(of(name="w", file_path="elsewhere"))  # where its data lies is no difference
    with pytest.raises(ConfigError, match=r"evaluator_builders\.0\.name: 'w' there, 'v' here.*harness fork"):
        run(of(name="v"))
    changes = [f"log_path={tmp_path / 'f'}", "evaluator_builders.0.name=v"]
    fork = run(make_fork(trained, "4", changes, weights_only=False))
    assert (steps_with(fork, "w"), steps_with(fork, "v")) == ([0], [4, 6])


# ---- replay

ROW = {"step": 1, "ts": 1, "train_mean_nll": 2.0, "eval/a/x": 0.5, "mine": 1.0}


@pytest.mark.parametrize(
    ("tolerance", "repeatable", "is_held"),
    [(0.0, {"eval/a/x"}, True), (0.0, {}, False), (1e-4, {"eval/a/x"}, False)],
)
def test_what_is_sampled_is_held_where_the_same_bits_come_out(tmp_path, tolerance, repeatable, is_held):
    run = RunDir(tmp_path / "r")
    with run.lock():
        run.write_config({"run_id": "x"})
        rewrite_jsonl(run / "metrics.jsonl", [])
        for row in ({"step": 0, "ts": 0}, ROW):
            run.append_metrics(row)
        old = {"step": 1, "evaluator": "a", "id": "p", "number": 0, "sample": "old"}
        run.append_samples([old])
        ledger = Ledger(run, next_step=1, attempt=2, tolerance=tolerance)
        new = {"evaluator": "a", "id": "p", "number": 0, "sample": "new"}
        ledger.write(ROW | {"eval/a/x": 0.25, "mine": 7.0}, samples=[new], repeatable=repeatable)
    assert run.is_superseded() is is_held
    assert run.samples() == ([{"step": 1} | new] if is_held else [old])
    assert run.metrics()[1]["eval/a/x"] == (0.25 if is_held else 0.5)
    if is_held:
        (moved,) = [json.loads(line) for line in (run / "samples.superseded.jsonl").read_text().splitlines()]
        assert moved == old | {"superseded_by_attempt": 2}


@pytest.mark.parametrize("num_left", [0, 1])
def test_where_other_tokens_may_come_out_lost_samples_stay_lost(tmp_path, caplog, num_left):
    """The recorded metrics are of the samples that were there."""
    run = RunDir(tmp_path / "r")
    with run.lock():
        run.write_config({"run_id": "x"})
        for row in ({"step": 0, "ts": 0}, ROW):
            run.append_metrics(row)
        old = [{"step": 1, "evaluator": "a", "id": "p", "number": number, "sample": "old"} for number in range(2)]
        run.append_samples(old[:num_left])
        new = [row | {"sample": "new"} for row in old]
        beside = {"step": 1, "evaluator": "b", "id": "p", "number": 0}  # of no metric that is recorded
        Ledger(run, next_step=1, attempt=2, tolerance=1e-4).write(ROW | {"eval/a/x": 0.25}, samples=[*new, beside])
    assert run.samples() == [*old[:num_left], beside]
    assert run.metrics()[1] == ROW
    assert f"{2 - num_left} samples of evaluator a at step 1 are not in samples.jsonl" in caplog.text


def test_samples_of_a_row_that_a_crash_prevented_are_cut_and_lost_ones_written_again(tmp_path):
    run = RunDir(tmp_path / "r")
    with run.lock():
        run.write_config({"run_id": "x"})
        for step in range(2):
            run.append_metrics(ROW | {"step": step})
        sample = {"evaluator": "a", "id": "p", "number": 0}
        run.append_samples([{"step": 2} | sample])  # its row was never written
        ledger = Ledger(run, next_step=1, attempt=2)
        assert run.samples() == []
        ledger.write(ROW, samples=[sample], repeatable={"eval/a/x"})  # a power cut took it
    assert run.samples() == [{"step": 1} | sample]
