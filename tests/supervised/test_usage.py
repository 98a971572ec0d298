"""What a run says that it will use is what it uses."""

import json

import chz
import pytest
import tinker

from harness.eval.evaluators import SamplingClientEvaluator, TrainingClientEvaluator
from harness.exceptions import ConfigError
from harness.files import rewrite_jsonl
from harness.run_dir import RunDir
from harness.supervised import survey as survey_module
from harness.supervised import usage as usage_module
from harness.supervised.batches import Batches, Position
from harness.supervised.data import StreamingSupervisedDatasetFromHFDataset, SupervisedDatasetFromRows
from harness.supervised.mixing import MixedDataset
from harness.supervised.types import SupervisedDatasetBuilder
from tests.fakes import Died, FakeBackend, FakeTokenizer, WordsBuilder, byte_datum
from tests.supervised.runs import config, run

A_TEST_SET = len("delta gamma") + len("epsilon theta") + len("zeta nu") + len("eta epsilon") + len("theta kappa")


def planned_and_used(finished: RunDir, attempt: int = 1) -> tuple[dict, dict]:
    start, end = (row for row in finished.attempts() if row["attempt"] == attempt)
    return start["planned"], end["used"]


def is_as_planned(used: dict, planned: dict) -> bool:
    return all(used[key] == value for key, value in planned.items() if key != "is_counted")


def tokens_trained(finished: RunDir, first: int = 0) -> int:
    return sum(row.get("num_tokens", 0) for row in finished.metrics_from(first))


@pytest.mark.parametrize(
    ("changes", "num_steps", "num_evaluations", "num_saved"),
    [
        ({}, 15, 5, 7),  # of 23 examples 3 are left over, others in each epoch; the last evaluation follows step 15
        ({"max_steps": 7}, 7, 3, 4),
        ({"gradient_accumulation_steps": 2}, 6, 3, 3),
        ({"eval_every": 0}, 15, 0, 5),
        ({"dataset_builder": WordsBuilder(num_test=0)}, 15, 0, 5),
        ({"dataset_builder": WordsBuilder(without_loss=(0, 7, 8))}, 15, 5, 7),
        ({"dataset_builder": WordsBuilder(batch_size=1, without_loss=(0, 7, 8)), "num_epochs": 1}, 20, 6, 10),
        ({"save_every": 0, "eval_every": 0, "save_every_tokens": 100}, 15, 0, 5),  # some 40 an update: every third
        ({"eval_every": 0, "save_every": 6, "rolling_save_every": 2}, 15, 0, 8),
    ],
)
def test_what_is_used_is_what_was_planned(tmp_path, capsys, changes, num_steps, num_evaluations, num_saved):
    finished = run(config(tmp_path / "r", **changes))
    planned, used = planned_and_used(finished)
    foreseen = {
        "steps": num_steps,
        "trained": tokens_trained(finished),
        "evaluated": num_evaluations * A_TEST_SET,
        "measured": 0,
        "checkpoints": num_saved,
        "price": None,
    }
    assert planned == foreseen | {"is_counted": True}
    assert used == foreseen | {"asked": 0, "sampled": 0}
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"to use: {used['trained']:,} tokens trained in {num_steps} updates") for line in said)
    (outcome,) = (line for line in said if line.startswith("used: "))
    assert outcome.endswith("(as estimated)")


def test_named_test_sets_are_all_counted(tmp_path):
    finished = run(config(tmp_path / "r", dataset_builder=WordsBuilder(named_test_sets=True), max_steps=3))
    planned, used = planned_and_used(finished)
    assert planned["evaluated"] == used["evaluated"] == 2 * 2 * A_TEST_SET


@pytest.mark.parametrize("noise", [0.0, 1e-6])
@pytest.mark.parametrize("is_killed", [False, True])
def test_a_resume_plans_what_is_left_and_adds_what_was_used(tmp_path, capsys, noise, is_killed):
    """Stopped in step 8; its checkpoint is of step 6. Its end says what was asked for, or where there is none, its rows
    say what was answered."""
    changes = {"submit_ahead": 0, "eval_every": 0, "save_every": 6}
    with pytest.raises(Died):
        run(config(tmp_path / "r", backend=FakeBackend(noise=noise, die_after=2 * 8 + 2), **changes))
    stopped = RunDir(tmp_path / "r")
    rows = stopped.metrics()
    assert [row["step"] for row in rows] == list(range(8))
    if is_killed:
        rewrite_jsonl(stopped / "attempts.jsonl", stopped.attempts()[:1])
    capsys.readouterr()
    finished = run(config(tmp_path / "r", backend=FakeBackend(noise=noise), **changes))
    start, end = (row for row in finished.attempts() if row["attempt"] == 2)
    in_rows = tokens_trained(finished) - tokens_trained(finished, 8)
    assert start["used_before"] == {
        "steps": 8 if is_killed else 9,
        "trained": in_rows if is_killed else in_rows + finished.metrics()[8]["num_tokens"],
        "evaluated": 0,
        "measured": 0,
        "checkpoints": 1,
        "asked": 0,
        "sampled": 0,
    }
    assert is_as_planned(end["used"], start["planned"])
    assert end["used"]["steps"] == 9
    assert end["used"]["trained"] == tokens_trained(finished, 6)
    assert end["used"]["measured"] == (5 * rows[6]["num_tokens"] if noise else 0)
    steps, total = start["used_before"]["steps"] + 9, start["used_before"]["trained"] + end["used"]["trained"]
    about = "about " if is_killed else ""
    assert f"with earlier attempts: {about}{total:,} tokens trained in {steps} updates" in capsys.readouterr().out

    further = run(config(tmp_path / "r", num_epochs=4, **changes))
    assert further.attempts()[-2]["used_before"]["trained"] == total
    assert planned_and_used(further, 3)[1]["steps"] == 5


def killed(path, **changes) -> RunDir:
    """A run that a SIGKILL stopped: its attempt has no end."""
    with pytest.raises(Died):
        run(config(path, **changes))
    stopped = RunDir(path)
    rewrite_jsonl(stopped / "attempts.jsonl", stopped.attempts()[:-1])
    return stopped


def test_rows_of_an_earlier_attempt_are_not_counted_again(tmp_path):
    """The first was killed after 8 updates, its checkpoint is of step 6. The second measures noise and makes no row.
    The third makes rows 6 and 7 again, saving after each, and dies before the save after 7 is logged. The fourth makes
    row 7 again and rows 8 and 9."""
    changes = {"submit_ahead": 0, "eval_every": 0, "save_every": 6}
    stopped = killed(tmp_path / "r", backend=FakeBackend(noise=1e-6, die_after=2 * 8 + 2), **changes)
    assert stopped.num_steps_trained() == 8
    killed(tmp_path / "r", backend=FakeBackend(noise=1e-6, die_after=5), **changes)
    killed(tmp_path / "r", backend=FakeBackend(noise=1e-6, die_after=5 + 2 * 4), **changes | {"save_every": 1})
    killed(tmp_path / "r", backend=FakeBackend(noise=1e-6, die_after=5 + 3 * 2 + 1), **changes)
    finished = run(config(tmp_path / "r", backend=FakeBackend(noise=1e-6), **changes))
    starts = [row for row in finished.attempts() if row["event"] == "start"]
    assert [row["next_step"] for row in starts] == [0, 6, 6, 7, 7]
    before = [row["used_before"] for row in starts]
    assert [used["steps"] for used in before] == [0, 8, 8, 8 + 1, 8 + 1 + 3]
    assert [used["checkpoints"] for used in before] == [0, 1, 1, 2, 2]
    lengths = [row["num_tokens"] for row in finished.metrics()]
    in_all = [sum(lengths[:8]), sum(lengths[:8]) + lengths[6], sum(lengths[:10]) + lengths[6] + lengths[7]]
    assert [used["trained"] for used in before] == [0, in_all[0], *in_all]
    noise = [5 * lengths[6], 2 * 5 * lengths[6], 2 * 5 * lengths[6] + 5 * lengths[7]]
    assert [used["measured"] for used in before] == [0, 0, *noise]


def test_only_an_evaluation_is_left(tmp_path):
    """Noise is measured on the test set then, once it was killed before the last row."""
    changes = {"submit_ahead": 0, "num_epochs": 1, "save_every": 0, "eval_every": 5}
    with pytest.raises(Died):
        run(config(tmp_path / "r", backend=FakeBackend(noise=1e-6, die_after=1 + 10 + 2), **changes))
    assert RunDir(tmp_path / "r").checkpoints()[-1].step == 5
    finished = run(config(tmp_path / "r", backend=FakeBackend(noise=1e-6), **changes))
    planned, used = planned_and_used(finished, 2)
    assert is_as_planned(used, planned)
    assert (used["trained"], used["evaluated"], used["checkpoints"]) == (0, A_TEST_SET, 0)


def test_a_run_that_ends_early_says_so(tmp_path, capsys):
    finished = run(config(tmp_path / "r", early_stop_patience=1, learning_rate=100.0, num_epochs=40))
    planned, used = planned_and_used(finished)
    assert used["steps"] == finished.num_steps_trained() < planned["steps"] == 200
    assert used["trained"] == tokens_trained(finished)
    assert f"(estimated: {planned['trained']:,} tokens trained in 200 updates, " in (said := capsys.readouterr().out)
    assert "; it ended early)" in said


def test_prices(tmp_path, capsys):
    table = tmp_path / "prices.json"
    table.write_text(json.dumps({"unigram": {"train": 10.0, "prefill": 1.0}}))
    finished = run(config(tmp_path / "r", price_table=str(table)))
    planned, used = planned_and_used(finished)
    price = (10 * tokens_trained(finished) + 5 * A_TEST_SET) / 1e6
    assert planned["price"] == used["price"] == pytest.approx(price)
    assert capsys.readouterr().out.count(f"; price {price:.4f} by {table}") == 2


class Greeting(SamplingClientEvaluator):
    """Samples 3 tokens after a prompt of 3 and after one of 1, asked for by either name."""

    async def __call__(self, sampling_client):
        params = tinker.SamplingParams(max_tokens=3)
        answer = await sampling_client.sample_async(tinker.ModelInput.from_ints([*b"Hi "]), 1, params)
        again = sampling_client.sample(tinker.ModelInput.from_ints([1]), num_samples=1, sampling_params=params)
        assert await again == again.result() == await again.result_async(), "read thrice, sampled once"
        return {"greeting": float(len(answer.sequences))}


class Asking(TrainingClientEvaluator):
    """Asks for 5 and for 4 tokens, and samples: 2 tokens twice after a prompt of 1."""

    async def __call__(self, training_client):
        await (await training_client.forward_async([byte_datum("alpha")], "cross_entropy"))
        await training_client.forward([byte_datum("beta")], "cross_entropy")
        sampling_client = await training_client.save_weights_and_get_sampling_client()
        params = tinker.SamplingParams(max_tokens=2)
        answer = await sampling_client.sample(tinker.ModelInput.from_ints([1]), 2, params)
        return {"num_updates": float(training_client.num_updates), "asked": float(len(answer.sequences))}


@pytest.mark.parametrize("sample", [{}, {"sample": 100.0}])
def test_what_evaluators_ask_and_sample_is_counted_and_priced(tmp_path, capsys, sample):
    table = tmp_path / "prices.json"
    table.write_text(json.dumps({"unigram": {"train": 10.0, "prefill": 1.0} | sample}))
    evaluators = {
        "evaluator_builders": [Greeting],
        "infrequent_evaluator_builders": [Asking],
        "infrequent_eval_every": 6,
    }
    finished = run(config(tmp_path / "r", price_table=str(table), **evaluators))
    planned, used = planned_and_used(finished)
    assert not planned.keys() & {"asked", "sampled"}
    assert (used["asked"], used["sampled"]) == (5 * (3 + 1) + 4 * (5 + 4 + 1), 5 * 6 + 4 * 4)  # see test_evaluations
    assert used["evaluated"] == planned["evaluated"] == 5 * A_TEST_SET
    said = capsys.readouterr().out
    no_price = "" if sample else f"; {table} has no price of sampling"
    assert f"not counted: what 2 evaluators of the config ask and sample{no_price}\n" in said
    tokens = (
        f"265 to evaluate, 60 forward and 46 sampled for evaluators of the config; {used['checkpoints']} checkpoints"
    )
    price = (10 * used["trained"] + 265 + 60 + 46 * 100) / 1e6
    assert used["price"] == (pytest.approx(price) if sample else None)
    priced = f"; price {price:,.4f} by {table}" if sample else no_price
    assert f"{tokens}{priced} (as estimated, evaluators of the config aside)\n" in said


def test_a_bad_price_table_is_told_before_anything_is_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        run(config(tmp_path / "r", price_table=str(tmp_path / "no.toml")))
    assert not (tmp_path / "r").exists()


@chz.chz
class StreamBuilder(SupervisedDatasetBuilder):
    """23 rows as a stream of which more are promised."""

    @property
    def tokenizer(self):
        return FakeTokenizer()

    def __call__(self):
        import datasets

        rows = datasets.Dataset.from_list([{"text": "abcd" if i % 2 else "abcdef"} for i in range(23)])
        stream = rows.to_iterable_dataset()
        return StreamingSupervisedDatasetFromHFDataset(stream, 4, 40, lambda row: byte_datum(row["text"])), None


def test_a_stream_whose_end_was_seen_is_estimated_from_all_of_it(tmp_path, capsys):
    planned, used = planned_and_used(run(config(tmp_path / "r", dataset_builder=StreamBuilder(), num_epochs=2)))
    assert (planned["is_counted"], planned["steps"], used["steps"]) == (False, 10, 10)
    assert planned["trained"] == 2 * 20 * 5  # rows of 6 and 4 tokens
    said = capsys.readouterr().out
    assert "to use: about 200 tokens trained in 10 updates (estimated from 20 conversations); " in said
    assert f"used: {used['trained']} tokens trained in 10 updates; " in said
    assert ("(as estimated)" in said) == (used["trained"] == 200)


def test_of_a_stream_that_ends_before_its_length_it_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(survey_module, "_MOST", 8)
    planned, used = planned_and_used(run(config(tmp_path / "r", dataset_builder=StreamBuilder(), num_epochs=1)))
    assert (planned["steps"], planned["trained"], used["steps"]) == (10, 200, 5)
    assert "(estimated: about 200 tokens trained in 10 updates; it ended early)" in capsys.readouterr().out


def test_a_stream_that_is_resumed_is_estimated_from_what_it_trained(tmp_path, capsys):
    run(config(tmp_path / "r", dataset_builder=StreamBuilder(), max_steps=3, num_epochs=1))
    capsys.readouterr()
    run(config(tmp_path / "r", dataset_builder=StreamBuilder(), max_steps=4, num_epochs=1))
    assert "(estimated from 3 updates)" in capsys.readouterr().out


def test_what_is_too_much_to_count_is_estimated(tmp_path, monkeypatch):
    monkeypatch.setattr(usage_module, "_MOST_COUNTED", 100)
    planned, used = planned_and_used(run(config(tmp_path / "r")))
    assert not planned["is_counted"]
    assert planned["trained"] == pytest.approx(used["trained"], rel=0.05)
    assert planned["evaluated"] == used["evaluated"]


def test_many_updates_are_estimated_in_proportion(tmp_path, monkeypatch):
    monkeypatch.setattr(usage_module, "_MOST_STEPS", 5)
    planned, used = planned_and_used(run(config(tmp_path / "r", eval_every=0, save_every=1)))
    assert (planned["is_counted"], planned["steps"], planned["checkpoints"]) == (False, 15, 15)
    assert planned["trained"] == pytest.approx(used["trained"], rel=0.05)


# ---- the lengths of updates


def rows_of(*texts, batch_size=1):
    return SupervisedDatasetFromRows([{"text": text} for text in texts], batch_size, lambda row: datum(row["text"]))


def datum(text):
    return byte_datum(text.strip("-"), loss="-" not in text)


def batches(dataset, **options):
    values = {"tokenizer": FakeTokenizer(), "num_epochs": 1, "accumulation": 1, "seed": 0} | options
    return Batches(dataset, **values)


def test_lengths_are_those_of_what_carries_loss():
    dataset = rows_of("ab", "abcd-", "abc", "a", "-abc", "abcdef")
    assert sorted(batches(dataset).lengths(Position(0, 0), 99) or []) == [
        1,
        2,
        3,
        6,
    ]  # a batch without loss is no update
    assert batches(dataset, accumulation=6).lengths(Position(0, 0), 99) == [12]
    assert batches(dataset, num_epochs=3, accumulation=6).lengths(Position(1, 0), 99) == [12, 12]
    assert batches(dataset, num_epochs=3, accumulation=6).lengths(Position(0, 0), 2) == [12, 12]
    assert batches(dataset).lengths(Position(1, 0), 99) == []


def test_lengths_are_those_of_the_batches_that_follow():
    dataset = rows_of("a", "ab", "abc", "abcd", "abcde", batch_size=2)
    made = [sum(d.model_input.length for d in b.data) for b in batches(dataset, num_epochs=3)._made(Position(0, 0))]
    assert len(made) == 6
    assert batches(dataset, num_epochs=3).lengths(Position(0, 0), 6) == made
    assert batches(dataset, num_epochs=3).lengths(Position(1, 1), 6) == made[3:]


def test_a_row_is_mapped_once_to_know_its_tokens():
    mapped = []

    def map_fn(row):
        mapped.append(row["text"])
        return byte_datum(row["text"])

    dataset = SupervisedDatasetFromRows([{"text": "ab"}, {"text": "abc"}], 1, map_fn)
    assert batches(dataset, num_epochs=50).lengths(Position(0, 0), 100) == pytest.approx([2.5] * 100, abs=0.5)
    assert sorted(mapped) == ["ab", "abc"]


def test_a_mix_of_rows_is_known_and_one_with_a_stream_is_not():
    mixed = MixedDataset({"a": rows_of("a", "ab"), "b": rows_of("abc", "abcd")}, 2)
    assert sum(batches(mixed).lengths(Position(0, 0), 2) or []) == 1 + 2 + 3 + 4
    stream, _ = StreamBuilder()()
    with_stream = MixedDataset({"a": rows_of("a", "ab"), "b": stream}, 2)
    assert batches(with_stream).lengths(Position(0, 0), 2) is None
