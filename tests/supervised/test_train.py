import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import chz
import pytest

from harness.exceptions import (
    BackendError,
    CheckpointDamagedError,
    ConfigError,
    DataError,
    HarnessError,
    RunDirError,
)
from harness.files import read_jsonl, rewrite_jsonl
from harness.run_dir import RunDir
from harness.supervised import train
from harness.supervised.data import FromConversationFileBuilder
from harness.supervised.train import with_own_builder
from harness.supervised.types import ChatDatasetBuilderCommonConfig
from tests.fakes import Died, FakeBackend, WordsBuilder
from tests.supervised.runs import config, run, same
from tests.tiny_model import make_tiny_model


def test_rows_checkpoints_and_evaluations_of_a_whole_run(tmp_path):
    finished = run(config(tmp_path / "r", keep="all"))
    rows = finished.metrics()
    assert [row["step"] for row in rows] == list(range(16))
    assert [row["step"] for row in rows if "test/nll" in row] == [0, 4, 8, 12, 15]
    assert rows[0]["learning_rate"] == 0.1
    assert [row["epoch"] for row in rows[:15]] == [0] * 5 + [1] * 5 + [2] * 5
    assert all(row["num_sequences"] == 4 for row in rows[:15])
    assert rows[-1]["test/nll"] < rows[0]["test/nll"] - 1
    assert "train_mean_nll" not in rows[-1]
    records = finished.checkpoints()
    assert [record.step for record in records] == [3, 4, 6, 8, 9, 12, 15]
    assert [(r.epoch, r.batch) for r in records] == [(0, 3), (0, 4), (1, 1), (1, 3), (1, 4), (2, 2), (3, 0)]
    assert [record.final for record in records] == [False] * 6 + [True]
    evaluations = finished.eval_examples()
    assert [row["step"] for row in evaluations] == [0, 4, 8, 12, 15]
    total = sum(evaluations[0]["nll"]) / sum(evaluations[0]["num_loss_tokens"])
    assert total == pytest.approx(rows[0]["test/nll"], abs=1e-12)
    assert finished.state() == "FINISHED"


def test_epochs_are_shuffled_differently_and_by_the_seed(tmp_path):
    first, again, other = (
        [row.get("batch_digest") for row in run(config(tmp_path / name, seed=seed)).metrics()]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again
    assert set(first[:5]) != set(first[5:10])
    assert first != other


@pytest.mark.parametrize("submit_ahead", [0, 1, 3])
def test_requests_stand_in_the_queue_in_the_order_that_makes_their_answers_true(tmp_path, submit_ahead):
    run(config(tmp_path / "r", submit_ahead=submit_ahead, max_steps=5))
    update = ["forward_backward", "optim_step"]

    def save(step):
        return [f"save_state {step:06d}", "save_weights_for_sampler"]

    assert FakeBackend.clients[-1].worked == [
        "forward", *update, *update, *update, *save(3), *update, *save(4), "forward", *update, *save(5), "forward",
    ]  # fmt: skip


@pytest.mark.parametrize("submit_ahead", [0, 2])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_that_dies_anywhere_ends_as_the_one_that_did_not(tmp_path, submit_ahead, accumulation):
    changes = {
        "submit_ahead": submit_ahead,
        "gradient_accumulation_steps": accumulation,
        "dataset_builder": WordsBuilder(batch_size=2, named_test_sets=True),
        "num_epochs": 2 // accumulation,
        "max_steps": 8,
    }
    whole = run(config(tmp_path / "whole", **changes))
    num_requests = len(FakeBackend.clients[-1].worked)
    whole_logits = FakeBackend.clients[-1].logits.tolist()
    for die_after in range(num_requests):
        path = tmp_path / f"died-{die_after}"
        with pytest.raises(Died):
            run(config(path, backend=FakeBackend(die_after=die_after), **changes))
        resumed = run(config(path, **changes))
        assert same(resumed.metrics()) == same(whole.metrics())
        assert resumed.eval_examples() == whole.eval_examples()
        assert FakeBackend.clients[-1].logits.tolist() == whole_logits
        assert resumed.attempts()[-1]["exact"] in (True, None)
        assert not (resumed / "metrics.superseded.jsonl").exists()


@pytest.mark.parametrize("written", [0.0, 0.5, 1.0])
def test_a_run_that_dies_at_any_write_ends_as_the_one_that_did_not(tmp_path, monkeypatch, written):
    """``written``: the part of the write that reaches the file."""
    changes = {"max_steps": 6, "eval_every": 2, "save_every": 2, "submit_ahead": 1}
    whole = run(config(tmp_path / "whole", **changes))
    write, replace = os.write, Path.replace

    def dying_after(n):
        left = [n]

        def die_or(do, *arguments):
            left[0] -= 1
            if left[0] < 0:
                raise Died
            return do(*arguments)

        def dying_write(fd, data):
            if left[0] == 0:
                write(fd, data[: int(len(data) * written)])
            return die_or(write, fd, data)

        monkeypatch.setattr(os, "write", dying_write)
        monkeypatch.setattr(Path, "replace", lambda *arguments: die_or(replace, *arguments))

    n = 0
    for n in range(100):
        path = tmp_path / f"died-{n}"
        dying_after(n)
        try:
            run(config(path, **changes))
        except Died:
            monkeypatch.undo()
        else:
            break
        resumed = run(config(path, **changes))
        assert same(resumed.metrics()) == same(whole.metrics())
        assert resumed.eval_examples() == whole.eval_examples()
        assert [r.step for r in resumed.checkpoints() if not r.deleted] == [
            r.step for r in whole.checkpoints() if not r.deleted
        ]
        assert resumed.attempts()[-1]["exact"] in (True, None)
    assert 15 < n < 99


def test_a_run_killed_again_and_again_still_comes_out_equal(tmp_path):
    whole = run(config(tmp_path / "whole"))
    for die_after in (7, 9, 3, 12, 5):
        with pytest.raises(Died):
            run(config(tmp_path / "r", backend=FakeBackend(die_after=die_after)))
    resumed = run(config(tmp_path / "r"))
    assert same(resumed.metrics()) == same(whole.metrics())
    assert resumed.attempts()[-1]["attempt"] == 6


def test_replayed_rows_keep_their_timestamps_and_are_counted(tmp_path):
    with pytest.raises(Died):
        run(config(tmp_path / "r", eval_every=0, save_every=5, submit_ahead=0, backend=FakeBackend(die_after=20)))
    before = RunDir(tmp_path / "r").metrics()
    assert len(before) == 9  # 5 updates, save, sampler, 4 updates: 20 requests
    resumed = run(config(tmp_path / "r", eval_every=0, save_every=5))
    assert resumed.metrics()[:9] == before
    end = resumed.attempts()[-1]
    assert (end["verified_rows"], end["exact"]) == (4, True)


def test_an_optimiser_that_was_not_restored_is_noticed_and_nothing_is_lost(tmp_path, capsys):
    changes = {"eval_every": 0, "save_every": 5}
    with pytest.raises(Died):
        run(config(tmp_path / "r", submit_ahead=0, backend=FakeBackend(die_after=20), **changes))
    before = RunDir(tmp_path / "r").metrics()
    resumed = run(config(tmp_path / "r", backend=FakeBackend(forget_optimizer=True), **changes))
    assert "step 6 came out differently" in capsys.readouterr().out
    aside = read_jsonl(resumed / "metrics.superseded.jsonl")
    assert [{k: v for k, v in row.items() if k != "superseded_by_attempt"} for row in aside] == before[6:]
    assert [row["step"] for row in resumed.metrics()] == list(range(15))
    assert resumed.attempts()[-1]["exact"] is False


def test_a_service_s_noise_is_measured_and_no_difference(tmp_path):
    changes = {"eval_every": 0, "save_every": 5, "submit_ahead": 0}
    with pytest.raises(Died):
        run(config(tmp_path / "r", backend=FakeBackend(die_after=20, noise=1e-6), **changes))
    before = RunDir(tmp_path / "r").metrics()
    assert len(before) == 9
    resumed = run(config(tmp_path / "r", backend=FakeBackend(noise=1e-6), **changes))
    end = resumed.attempts()[-1]
    assert (end["verified_rows"], end["exact"], end["is_inexact"]) == (4, False, False)
    assert 0 < end["largest_difference"] < 1e-5
    assert resumed.metrics()[:9] == before


def test_an_extension_on_a_service_completes_the_row_of_the_last_evaluation(tmp_path):
    for number in range(5):
        changes = {"backend": FakeBackend(noise=1e-3)}
        run(config(tmp_path / f"{number}", max_steps=4, **changes))
        assert not run(config(tmp_path / f"{number}", max_steps=8, **changes)).is_superseded()
        attempts = RunDir(tmp_path / f"{number}").attempts()
        rewrite_jsonl(tmp_path / f"{number}/attempts.jsonl", attempts[:-1])  # killed after its last row
        assert not run(config(tmp_path / f"{number}", max_steps=8, **changes)).is_superseded()


def test_what_is_more_than_the_noise_is_a_difference(tmp_path):
    changes = {"eval_every": 0, "save_every": 5, "submit_ahead": 0}
    with pytest.raises(Died):
        run(config(tmp_path / "r", backend=FakeBackend(die_after=20, noise=1e-6), **changes))
    resumed = run(config(tmp_path / "r", backend=FakeBackend(noise=1e-6, forget_optimizer=True), **changes))
    assert resumed.is_superseded()
    assert resumed.attempts()[-1]["is_inexact"]


def test_only_the_best_and_the_last_checkpoint_are_kept(tmp_path):
    finished = run(config(tmp_path / "r", learning_rate=3.0, lr_schedule="constant"))  # so high that the best is early
    tested = {row["step"]: row["test/nll"] for row in finished.metrics() if "test/nll" in row}
    best = min(tested, key=tested.__getitem__)
    assert best not in (0, 15)
    kept = {record.step for record in finished.checkpoints() if not record.deleted}
    assert kept == {best, 15}
    assert {int(p.name) for p in (finished / "checkpoints").iterdir()} == kept


def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys):
    with pytest.raises(Died):
        run(config(tmp_path / "r", keep="all", eval_every=0, backend=FakeBackend(die_after=24)))
    newest = RunDir(tmp_path / "r").checkpoints()[-1]
    (tmp_path / "r" / newest.state_path / "state.json").write_text("{")
    resumed = run(config(tmp_path / "r", keep="all", eval_every=0))
    assert "going back before checkpoint" in capsys.readouterr().out
    assert resumed.attempts()[-2]["next_step"] == newest.step - 3
    assert same(resumed.metrics()) == same(run(config(tmp_path / "whole", eval_every=0)).metrics())


def damage(run, record):
    (run / record.state_path / "state.json").write_text("{")


def test_a_damaged_final_checkpoint_is_made_again(tmp_path):
    with pytest.raises(Died):  # during the last evaluation, after the last save
        run(config(tmp_path / "r", keep="all", max_steps=5, backend=FakeBackend(die_after=18)))
    killed = RunDir(tmp_path / "r")
    final = killed.checkpoints()[-1]
    assert final.final
    damage(killed, final)
    resumed = run(config(tmp_path / "r", keep="all", max_steps=5))
    assert resumed.checkpoints()[-1] == final
    assert json.loads((resumed / final.state_path / "state.json").read_text())["updates"] == 5


def test_checkpoints_of_a_history_that_was_left_are_not_gone_back_to(tmp_path):
    changes = {"keep": "all", "eval_every": 0, "save_every": 3}
    with pytest.raises(Died):
        run(config(tmp_path / "r", submit_ahead=0, backend=FakeBackend(die_after=26), **changes))
    killed = RunDir(tmp_path / "r")
    assert [r.step for r in killed.checkpoints()] == [3, 6, 9]
    state = killed / killed.checkpoints()[-1].state_path / "state.json"
    whole_state = state.read_text()
    damage(killed, killed.checkpoints()[-1])
    with pytest.raises(Died):
        run(config(tmp_path / "r", backend=FakeBackend(forget_optimizer=True, die_after=5), **changes))
    state.write_text(whole_state)
    resumed = run(config(tmp_path / "r", **changes))
    assert [row["step"] for row in resumed.metrics()] == list(range(15))


@pytest.mark.parametrize("kept", [slice(0, 2), slice(0, 0), slice(3, None)])
def test_rows_that_were_lost_are_made_again(tmp_path, kept):
    finished = run(config(tmp_path / "r", keep="all"))
    rows = finished.metrics()
    rewrite_jsonl(finished / "metrics.jsonl", rows[kept])
    again = run(config(tmp_path / "r", keep="all"))
    assert same(again.metrics()) == same(rows)
    assert [row["step"] for row in again.eval_examples()] == [0, 4, 8, 12, 15]


def test_rows_without_a_config_are_nobody_s(tmp_path):
    finished = run(config(tmp_path / "r"))
    (finished / "config.json").unlink()
    with pytest.raises(RunDirError, match=r"rows of a run, and no config\.json: restore it"):
        run(config(tmp_path / "r", learning_rate=0.2))
    assert len(finished.metrics()) == 16


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{}", r"config\.json: not a run's"),
        ("config.json", "[]", r"config\.json: not a run's"),
        ("checkpoints.jsonl", '{"a": 1}\n', r"checkpoints\.jsonl:1: no 'name' in it: remove or mend that line"),
        ("attempts.jsonl", '{"x": 1}\n', r"attempts\.jsonl:1: no 'attempt' in it"),
        ("metrics.jsonl", '{"x": 1}\n', r"metrics\.jsonl:1: no 'step' in it"),
    ],
)
def test_files_that_are_not_a_run_s_are_named(tmp_path, name, content, message):
    with pytest.raises(Died):
        run(config(tmp_path / "r", backend=FakeBackend(die_after=16)))
    (tmp_path / "r" / name).write_text(content)
    with pytest.raises(RunDirError, match=message):
        run(config(tmp_path / "r"))


def test_an_evaluation_that_comes_out_differently_is_noticed(tmp_path):
    with pytest.raises(Died):
        run(config(tmp_path / "r", backend=FakeBackend(die_after=16)))
    killed = RunDir(tmp_path / "r")
    rows = killed.metrics()
    assert (rows[-1]["step"], killed.checkpoints()[-1].step) == (4, 4)
    rewrite_jsonl(killed / "metrics.jsonl", [*rows[:-1], rows[-1] | {"test/nll": 1.0}])
    assert run(config(tmp_path / "r")).attempts()[-1]["exact"] is False


def test_a_lost_evaluation_of_a_row_that_is_there_is_written_again(tmp_path):
    with pytest.raises(Died):
        run(config(tmp_path / "r", backend=FakeBackend(die_after=16)))
    killed = RunDir(tmp_path / "r")
    rewrite_jsonl(killed / "eval_examples.jsonl", killed.eval_examples()[:1])
    assert [row["step"] for row in run(config(tmp_path / "r")).eval_examples()] == [0, 4, 8, 12, 15]


@pytest.mark.parametrize(
    "mistake", [{"load_checkpoint_path": "nowhere"}, {"dataset_builder": WordsBuilder(num_train=3)}]
)
def test_a_mistake_found_before_training_leaves_the_path_free(tmp_path, mistake):
    with pytest.raises(HarnessError):
        run(config(tmp_path / "r", **mistake))
    assert run(config(tmp_path / "r")).state() == "FINISHED"


def test_a_damaged_checkpoint_to_start_from_is_an_error(tmp_path):
    first = run(config(tmp_path / "first", max_steps=2))
    damage(first, first.checkpoints()[-1])
    with pytest.raises(CheckpointDamagedError):
        run(config(tmp_path / "r", load_checkpoint_path=str(first / "checkpoints/000002")))


def test_an_example_longer_than_the_model_s_context_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(FakeBackend, "context_length", lambda self, model_name: 12)
    with pytest.raises(
        DataError, match="an example has 13 tokens, and the context of unigram is 12: set max_length=12"
    ):
        run(config(tmp_path / "r"))


def test_ctrl_c_while_the_data_is_built_is_heard_at_once(tmp_path, monkeypatch):
    def interrupted(self):
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the signal came too late")

    monkeypatch.setattr(WordsBuilder, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config(tmp_path / "r"))
    assert not (tmp_path / "r").exists()


def test_square_brackets_in_names(tmp_path, capsys):
    run(config(tmp_path / "[b]x[/b][/i]", max_steps=1))
    assert "[b]x[/b][/i]" in capsys.readouterr().out


def test_the_same_command_on_a_complete_run_does_nothing(tmp_path, capsys):
    finished = run(config(tmp_path / "r"))
    before = {p: p.read_bytes() for p in finished.path.rglob("*") if p.is_file()}
    run(config(tmp_path / "r"))
    assert "complete, nothing to train" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in finished.path.rglob("*") if p.is_file()} == before


def test_another_programs_folder_is_refused_and_left_as_it_is(tmp_path):
    """tinker-cookbook's, while it writes a row."""
    (tmp_path / "config.json").write_text('{"log_path": "/tmp/sft"}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"st')
    with pytest.raises(RunDirError, match=r"config\.json: not a run's"):
        run(config(tmp_path))
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0}\n{"st'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "metrics.jsonl"]


def test_another_config_on_the_same_path_is_refused_with_the_differences(tmp_path):
    run(config(tmp_path / "r"))
    before = (tmp_path / "r" / "metrics.jsonl").read_bytes()
    changed = config(tmp_path / "r", learning_rate=0.2, dataset_builder=WordsBuilder(batch_size=2))
    with pytest.raises(ConfigError) as error:
        run(changed)
    assert "dataset_builder.batch_size: 4 there, 2 here; learning_rate: 0.1 there, 0.2 here" in str(error.value)
    assert "choose another log_path" in str(error.value)
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == before


def test_places_are_no_differences(tmp_path):
    with pytest.raises(Died):
        run(config(tmp_path / "r", backend=FakeBackend(die_after=12)))
    (tmp_path / "r").rename(tmp_path / "moved")
    resumed = run(config(tmp_path / "moved", submit_ahead=3, note="moved", tags={"a": "b"}, save_every=2))
    assert same(resumed.metrics()) == same(run(config(tmp_path / "whole")).metrics())


def test_examples_are_written_once_as_they_are_trained(tmp_path, capsys):
    finished = run(config(tmp_path / "r"))
    text = (finished / "examples.txt").read_text()
    first, *examples = text.split("\n\n")
    assert first == "What is trained on stands between ⟦ and ⟧."
    assert [example.partition(":")[0] for example in examples] == [f"example {n}" for n in range(1, 6)]
    (finished / "examples.txt").write_text("as it was")
    run(config(tmp_path / "r", num_epochs=4))
    assert (finished / "examples.txt").read_text() == "as it was"


def test_counts_of_the_data_stand_in_config_json_and_a_resume_need_not_have_them(tmp_path):
    with pytest.raises(Died):
        run(config(tmp_path / "r", backend=FakeBackend(die_after=12)))
    document = json.loads((tmp_path / "r" / "config.json").read_text())
    num_examples = document["data"].pop("num_examples")
    assert document["data"].pop("test_contents").keys() == {""}
    assert set(num_examples) == {"train", "test"} and num_examples["train"] > num_examples["test"][""] > 0
    (tmp_path / "r" / "config.json").write_text(json.dumps(document))
    assert run(config(tmp_path / "r")).is_finished()


def test_system_metrics_need_psutil(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(ConfigError, match=r"^system_metrics=True needs psutil: pip install psutil, or leave system_m"):
        run(config(tmp_path / "r", system_metrics=True, mirror=True))
    assert not (tmp_path / "r").exists()
    run(config(tmp_path / "r", system_metrics=True, mirror=False))


def test_other_data_is_refused(tmp_path):
    with pytest.raises(Died):
        run(config(tmp_path / "r", backend=FakeBackend(die_after=12)))
    document = json.loads((tmp_path / "r" / "config.json").read_text())
    document["data"]["train"] = "0" * 16
    (tmp_path / "r" / "config.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="the train data is not what the run was started with"):
        run(config(tmp_path / "r"))


def test_a_failed_attempt_says_why_and_can_be_resumed(tmp_path, monkeypatch):
    from harness.supervised.updates import Updates

    def fail(*args, **kwargs):
        raise BackendError("the model is gone: bring it back")

    with monkeypatch.context() as patch:
        patch.setattr(Updates, "save", fail)
        with pytest.raises(BackendError):
            run(config(tmp_path / "r"))
    failed = RunDir(tmp_path / "r")
    assert failed.attempts()[-1]["state"] == "FAILED"
    assert failed.attempts()[-1]["error"] == "BackendError: the model is gone: bring it back"
    assert not failed.is_locked()
    assert same(run(config(tmp_path / "r")).metrics()) == same(run(config(tmp_path / "whole")).metrics())


def test_cancelling_leaves_a_resumable_run(tmp_path):
    async def cancelled():
        task = asyncio.create_task(train.main(config(tmp_path / "r")))
        while not (tmp_path / "r" / "metrics.jsonl").exists():
            await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    killed = RunDir(tmp_path / "r")
    assert killed.attempts()[-1]["state"] == "KILLED"
    assert not killed.is_locked()
    assert same(run(config(tmp_path / "r")).metrics()) == same(run(config(tmp_path / "whole")).metrics())


def test_a_second_process_on_the_same_path_is_refused(tmp_path):
    with RunDir(tmp_path / "r").lock(), pytest.raises(RunDirError, match="another process is writing to this run"):
        run(config(tmp_path / "r"))


def test_load_checkpoint_path_takes_the_weights_and_a_fresh_optimiser(tmp_path):
    first = run(config(tmp_path / "first"))
    weights = first / first.checkpoints()[-1].state_path
    second = run(config(tmp_path / "second", load_checkpoint_path=str(weights)))
    assert second.metrics()[0]["test/nll"] == first.metrics()[-1]["test/nll"]
    assert FakeBackend.clients[-1].num_updates == 15


def test_a_nan_stops_the_run_before_it_reaches_a_file(tmp_path):
    with pytest.raises(BackendError, match="train_mean_nll is nan at step 1: lower learning_rate"):
        run(config(tmp_path / "r", learning_rate=1e308, lr_schedule="constant"))
    assert [row["step"] for row in RunDir(tmp_path / "r").metrics()] == [0]


def test_examples_without_loss_shrink_a_batch_and_an_empty_batch_makes_no_step(tmp_path):
    builder = WordsBuilder(num_train=8, batch_size=2, without_loss=(0, 1, 2, 3))
    finished = run(config(tmp_path / "r", dataset_builder=builder, num_epochs=4, eval_every=0))
    rows = finished.metrics()
    assert sum(row["num_sequences"] for row in rows) == 16  # four trainable examples, four epochs
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert finished.checkpoints()[-1].step == len(rows)
    assert finished.checkpoints()[-1].final


def test_no_test_set_is_one_warning_and_eval_every_0_is_none(tmp_path, capsys):
    rows = run(config(tmp_path / "a", dataset_builder=WordsBuilder(num_test=0))).metrics()
    assert capsys.readouterr().out.count("no test set") == 1
    assert [row["step"] for row in rows] == list(range(15))
    rows = run(config(tmp_path / "b", eval_every=0)).metrics()
    assert "no test set" not in capsys.readouterr().out
    assert not any("test/nll" in row for row in rows)


def test_named_test_sets(tmp_path):
    finished = run(config(tmp_path / "r", dataset_builder=WordsBuilder(named_test_sets=True)))
    assert {"test/first/nll", "test/first/bpb", "test/second/nll"} <= finished.metrics()[0].keys()
    assert {row["set"] for row in finished.eval_examples()} == {"first", "second"}


def test_a_batch_larger_than_the_data_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match="the training set has 23 examples, fewer than one batch"):
        run(config(tmp_path / "r", dataset_builder=WordsBuilder(batch_size=24)))
    with pytest.raises(DataError, match="the training set fills 5 batches and an update takes 6"):
        run(config(tmp_path / "r", gradient_accumulation_steps=6))
    assert not (tmp_path / "r" / "config.json").exists()


def test_max_steps_beyond_the_epochs_is_said(tmp_path, capsys):
    assert len(run(config(tmp_path / "r", max_steps=99, eval_every=0)).metrics()) == 15
    assert "raise num_epochs to train longer" in capsys.readouterr().out


@chz.chz
class _Common:
    batch_size: int = 4


@chz.chz
class _CommonBuilder(WordsBuilder):
    common_config: _Common = chz.field(default_factory=_Common)

    def __call__(self):
        return chz.replace(self, batch_size=self.common_config.batch_size, common_config=_Common())._words()

    def _words(self):
        return WordsBuilder.__call__(self)


def test_batch_size_flows_down_to_the_builder(tmp_path):
    changes = {"dataset_builder": _CommonBuilder(), "batch_size": 6, "gradient_accumulation_steps": 3}
    rows = run(config(tmp_path / "r", **changes)).metrics()
    assert all(row["num_sequences"] == 6 for row in rows[:-1])
    with pytest.raises(ConfigError, match="batch_size=5 is no multiple of gradient_accumulation_steps=3"):
        run(config(tmp_path / "s", **(changes | {"batch_size": 5})))
    for changes in ({"batch_size": 8}, {"renderer_name": "qwen3"}):
        [(name, value)] = changes.items()
        with pytest.raises(ConfigError) as error:
            run(config(tmp_path / "t", **changes))
        assert str(error.value) == (
            f"{name}={value} cannot reach WordsBuilder, which has no common_config.{name}: set the builder's own, and "
            f"leave {name} open"
        )


def _chat_builder(tmp_path, renderer_name):
    file = tmp_path / "chat.jsonl"
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!", "reasoning_content": "hm"}]
    file.write_text(json.dumps({"messages": messages}) + "\n")
    common_config = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=str(make_tiny_model(tmp_path / "model")),
        renderer_name=renderer_name,
        max_length=None,
        batch_size=1,
    )
    return FromConversationFileBuilder(common_config=common_config, file_path=str(file))


def test_the_renderer_s_name_flows_down_to_the_builder(tmp_path):
    builder = _chat_builder(tmp_path, "role_colon")
    asked = config(tmp_path / "r", dataset_builder=builder, renderer_name="chat_template")
    common_config = chz.replace(builder.common_config, renderer_name="chat_template")
    assert with_own_builder(asked).dataset_builder == chz.replace(builder, common_config=common_config)


def test_a_second_run_of_one_process_warns_as_the_first_did(tmp_path, caplog):
    first = config(tmp_path / "r", dataset_builder=_chat_builder(tmp_path, "chat_template"))
    for asked in (first, chz.replace(first, log_path=str(tmp_path / "s"))):
        caplog.clear()
        own = with_own_builder(asked)
        assert own == asked
        own.dataset_builder()[0].get_batch(0)
        assert [record.getMessage() for record in caplog.records] == [
            f"{tmp_path / 'model'}: the chat template leaves out the reasoning_content of assistant messages "
            "(first seen in messages[1])"
        ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0: must be greater than 0"),
        ({"num_epochs": 0}, "num_epochs=0: must be greater than 0"),
        ({"max_steps": -1}, "max_steps=-1: must be greater than 0"),
        ({"eval_every": -1}, "eval_every=-1: must not be negative"),
        ({"adam_beta2": 1.0}, "adam_beta2=1.0: must be at least 0 and less than 1"),
        ({"log_path": ""}, "log_path is empty"),
        ({"seed": 2**32}, "seed=4294967296: must be less than"),
    ],
)
def test_values_that_make_no_sense(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path / "r", **changes)
