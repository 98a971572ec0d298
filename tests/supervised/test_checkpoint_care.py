"""When a run saves, and what of it is kept."""

import dataclasses
import random
import time

import chz
import pytest

from harness.run_dir import RunDir
from tests.fakes import Died, FakeBackend, FakeClient, WordsBuilder
from tests.supervised.runs import config, run, same


def saved(run_dir):
    return [record.step for record in run_dir.checkpoints()]


def kept(run_dir):
    records = [record.step for record in run_dir.checkpoints() if record.is_usable]
    assert sorted(int(path.name) for path in (run_dir / "checkpoints").iterdir()) == records
    return records


def test_every_evaluation_is_a_save_point_whatever_else_is_off(tmp_path):
    assert saved(run(config(tmp_path / "r", save_every=0, keep="all"))) == [4, 8, 12, 15]
    assert saved(run(config(tmp_path / "s", save_every=0, eval_every=0, keep="all"))) == [15]


def test_tokens_between_checkpoints(tmp_path):
    finished = run(config(tmp_path / "r", save_every=0, eval_every=0, save_every_tokens=100, keep="all"))
    tokens = [row["num_tokens"] for row in finished.metrics()]
    expected, since = [], 0
    for step, number in enumerate(tokens, start=1):
        since += number
        if since >= 100:
            expected.append(step)
            since = 0
    assert saved(finished) == [step for step in expected if step < 15] + [15]
    assert 3 < len(expected) < 15


def test_seconds_between_checkpoints(tmp_path, monkeypatch):
    clock = [0.0]
    work = FakeClient.work

    def work_slowly(self):
        clock[0] += 10
        work(self)

    monkeypatch.setattr(FakeClient, "work", work_slowly)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    changes = {"save_every": 0, "eval_every": 0, "submit_ahead": 0, "keep": "all"}
    assert saved(run(config(tmp_path / "r", save_every_seconds=100, **changes))) == [6, 10, 14, 15]
    # An update takes 20 s, a save as long: after 5 updates, then after a save and 4 updates, 100 s are over.


def test_rolling_checkpoints_are_gone_when_a_newer_one_is_there(tmp_path):
    with pytest.raises(Died):
        run(
            config(
                tmp_path / "r", save_every=0, eval_every=6, rolling_save_every=2, keep="all", submit_ahead=0,
                backend=FakeBackend(die_after=29),
            )
        )  # fmt: skip
    died = RunDir(tmp_path / "r")
    assert [(r.step, r.rolling, r.deleted) for r in died.checkpoints()] == [
        (2, True, True), (4, True, True), (6, False, False), (8, True, False),
    ]  # fmt: skip
    assert kept(died) == [6, 8]
    resumed = run(config(tmp_path / "r", save_every=0, eval_every=6, rolling_save_every=2, keep="all"))
    assert resumed.attempts()[-2]["next_step"] == 8
    assert kept(resumed) == [6, 12, 15]


def test_keep_counts_the_newest_of_those_that_last(tmp_path):
    with pytest.raises(Died):
        run(
            config(
                tmp_path / "r", save_every=4, eval_every=0, rolling_save_every=1, keep=3, submit_ahead=0,
                backend=FakeBackend(die_after=45),
            )
        )  # fmt: skip
    steps = [record.step for record in RunDir(tmp_path / "r").checkpoints() if record.is_usable]
    assert steps[:2] == [4, 8]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [("all", [2, 3, 4, 6, 8, 9, 10]), (3, [6, 8, 9, 10]), ("best_and_last", [6, 10]), ("last", [10])],
)
def test_what_keep_keeps(tmp_path, keep, expected):
    finished = run(
        config(tmp_path / "r", learning_rate=3.0, lr_schedule="constant", eval_every=2, max_steps=10, keep=keep)
    )
    tested = {row["step"]: row["test/nll"] for row in finished.metrics() if "test/nll" in row}
    assert min(tested, key=tested.__getitem__) == 6
    assert kept(finished) == expected


def test_a_state_whose_removal_a_crash_prevented_goes_in_the_next_attempt(tmp_path, monkeypatch):
    def die(self, run_path, state_path):
        raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(FakeBackend, "remove_checkpoint", die)
        run(config(tmp_path / "r", keep="last"))
    died = RunDir(tmp_path / "r")
    (deleted,) = [record for record in died.checkpoints() if record.deleted]
    assert (died / deleted.state_path).is_dir()
    assert kept(run(config(tmp_path / "r", keep="last"))) == [15]


def test_a_resume_with_another_cadence_is_the_same_run(tmp_path):
    whole = run(config(tmp_path / "whole"))
    for die_after, changes in ((9, {"save_every": 1}), (17, {"rolling_save_every": 2}), (12, {"keep": 2})):
        with pytest.raises(Died):
            run(config(tmp_path / "r", backend=FakeBackend(die_after=die_after), **changes))
    assert same(run(config(tmp_path / "r", save_every_tokens=50)).metrics()) == same(whole.metrics())


def test_checkpoints_after_the_one_gone_back_to_are_superseded(tmp_path):
    with pytest.raises(Died):
        run(config(tmp_path / "r", keep="all", eval_every=0, backend=FakeBackend(die_after=24)))
    newest = RunDir(tmp_path / "r").checkpoints()[-1]
    (tmp_path / "r" / newest.state_path / "state.json").write_text("{")
    with pytest.raises(Died):
        run(config(tmp_path / "r", keep="all", eval_every=0, backend=FakeBackend(die_after=1)))
    assert RunDir(tmp_path / "r").checkpoints()[-1] == dataclasses.replace(newest, superseded=True)
    resumed = run(config(tmp_path / "r", keep="all", eval_every=0))
    assert newest in resumed.checkpoints()


@chz.chz
class SplitAtRandom(WordsBuilder):
    def __call__(self):
        return WordsBuilder(num_train=random.randrange(12, 30))()


def test_a_builder_that_splits_at_random_splits_the_same_in_a_resume(tmp_path):
    builder = SplitAtRandom()
    whole = run(config(tmp_path / "whole", dataset_builder=builder))
    random.seed("another state")
    with pytest.raises(Died):
        run(config(tmp_path / "r", dataset_builder=builder, backend=FakeBackend(die_after=12)))
    random.seed("yet another")
    assert same(run(config(tmp_path / "r", dataset_builder=builder)).metrics()) == same(whole.metrics())


def test_what_was_scored_of_a_checkpoint_goes_the_way_of_the_checkpoint(tmp_path):
    with pytest.raises(Died):
        run(config(tmp_path / "r", keep="all", backend=FakeBackend(die_after=45)))
    died = RunDir(tmp_path / "r")
    *_, before, last = (record.step for record in died.checkpoints())
    for step in (before, last):
        head = {"step": step, "ts": step, "metrics": {"test/new/nll": 1.0}, "set": "new", "fingerprint": "aa"}
        died.append_later_evaluation(head)
    (died / f"checkpoints/{last:06d}/state.json").write_text("{")
    resumed = run(config(tmp_path / "r", keep="all"))
    assert resumed.attempts()[-2]["next_step"] == before
    assert [row["step"] for row in resumed.evaluations() if row["set"] == "new"] == [before]
    assert (resumed.attempts()[-1]["exact"], resumed.test_nlls().keys()) == (True, {0, 4, 8, 12, 15})
