import asyncio
import dataclasses
import json
import shutil

import pytest
from click.testing import CliRunner

from harness.__main__ import main
from harness.derive import config_again, discard_unbegun, find_checkpoint, make_fork
from harness.exceptions import ConfigError, HarnessError, RunDirError
from harness.run_dir import RunDir
from harness.supervised.train import train
from tests.fakes import WORDS, Died, FakeBackend, WordsBuilder
from tests.supervised.runs import config, run, same


@pytest.fixture
def parent(tmp_path):
    return run(config(tmp_path / "parent", keep="all"))


def forked(parent, at, *overrides, weights_only=False):
    config = make_fork(parent, at, overrides, weights_only=weights_only)
    asyncio.run(train(config, recipe="parent_s"))
    return RunDir(config.log_path)


def test_a_fork_that_changes_nothing_ends_as_its_parent_did(parent, tmp_path):
    fork = forked(parent, "8", f"log_path={tmp_path / 'f'}")
    assert same(fork.metrics()) == same(parent.metrics())
    assert fork.metrics()[:8] == parent.metrics()[:8]
    assert fork.eval_examples() == parent.eval_examples()
    assert (fork / "examples.txt").read_text() == (parent / "examples.txt").read_text()
    document = fork.config()
    assert document["run_id"] != parent.config()["run_id"]
    assert document["parent"] == {
        "run_id": parent.config()["run_id"], "path": str(parent.path), "at": "8", "step": 8, "weights_only": False,
    }  # fmt: skip
    assert document["recipe"] == parent.config()["recipe"]
    assert fork.attempts()[0]["next_step"] == 8


def test_a_fork_with_another_learning_rate_differs_from_its_step_on(parent, tmp_path):
    fork = forked(parent, "8", f"log_path={tmp_path / 'f'}", "learning_rate=0.05", "num_epochs=4")
    rates = [row["learning_rate"] for row in fork.metrics()[:20]]
    assert rates[:8] == [row["learning_rate"] for row in parent.metrics()[:8]]
    assert rates[8:] == pytest.approx([0.05 * (1 - step / 20) for step in range(8, 20)])
    assert [row["batch_digest"] for row in fork.metrics()[:15]] == [
        row["batch_digest"] for row in parent.metrics()[:15]
    ]


def test_a_fork_computes_as_its_parent_did_but_for_what_is_asked(parent, tmp_path):
    path = parent / "config.json"
    path.write_text(path.read_text().replace('"dtype": "float64"', '"dtype": "float32"'))  # of another machine
    fork = forked(parent, "8", f"log_path={tmp_path / 'f'}", "backend.cut=2")
    assert fork.config()["numerics"] == {"dtype": "float32", "cut": 2}


def test_a_fork_of_the_weights_alone_has_a_fresh_optimiser(parent, tmp_path):
    cold = forked(parent, "8", f"log_path={tmp_path / 'cold'}", weights_only=True)
    assert FakeBackend.clients[-1].num_updates == 7
    assert cold.metrics()[8]["train_mean_nll"] == parent.metrics()[8]["train_mean_nll"]
    assert cold.metrics()[9]["train_mean_nll"] != parent.metrics()[9]["train_mean_nll"]


def test_a_fork_stands_alone_and_is_resumed_by_the_same_command(parent, tmp_path):
    overrides = (f"log_path={tmp_path / 'f'}", "learning_rate=0.05")
    whole = forked(parent, "8", f"log_path={tmp_path / 'whole'}", "learning_rate=0.05")
    killed = make_fork(parent, "8", overrides, weights_only=False)
    shutil.rmtree(parent / "checkpoints")
    with pytest.raises(Died):
        import chz

        asyncio.run(train(chz.replace(killed, backend=FakeBackend(die_after=8))))
    fork = forked(parent, "8", *overrides)
    assert same(fork.metrics()) == same(whole.metrics())


def test_a_killed_making_of_a_fork_leaves_nothing_that_looks_like_one(parent, tmp_path, monkeypatch):
    def die(*arguments):
        raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(FakeBackend, "copy_checkpoint", die)
        forked(parent, "8", f"log_path={tmp_path / 'f'}")
    assert not (tmp_path / "f").exists()
    assert forked(parent, "8", f"log_path={tmp_path / 'f'}").state() == "FINISHED"
    assert not list(tmp_path.glob(".*.fork"))


def test_a_fork_whose_checkpoints_are_damaged_is_not_trained_from_nothing(parent, tmp_path):
    config = make_fork(parent, "8", [f"log_path={tmp_path / 'f'}"], weights_only=False)
    (tmp_path / "f/checkpoints/000008/state.json").write_text("{")
    with pytest.raises(RunDirError, match="a fork, and none of its checkpoints can be used: fork its parent again"):
        asyncio.run(train(config))


@pytest.mark.parametrize(
    ("at", "overrides", "message"),
    [
        ("7", [], "no checkpoint at 7: there is 3, 4, 6, 8, 9, 12, 15 \\(or say best or last\\)"),
        ("x", [], "no checkpoint at x"),
        ("8", ["seed=1"], "a fork goes on in the same data with the same model \\(seed: 0 there, 1 here\\)"),
        ("8", ["dataset_builder.batch_size=2"], "dataset_builder.batch_size: 4 there, 2 here"),
        ("8", ["learning_rat=1"], "learning_rate"),
        ("8", ["eval_every=0"], "eval_every: 4 there, 0 here"),
        ("8", ["seed=1"], "else from these weights: python -m harness rerun .* load_checkpoint_path=.* key=value"),
        ("8", ["lora_rank=8"], "to train something else: python -m harness rerun .*parent key=value"),
        ("8", ["max_steps=7"], "max_steps=7 lies before the checkpoint at 8: raise it"),
    ],
)
def test_what_a_fork_cannot_be(parent, tmp_path, at, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_fork(parent, at, [f"log_path={tmp_path / 'f'}", *overrides], weights_only=False)
    assert not (tmp_path / "f").exists()


def test_a_fork_goes_nowhere_where_something_is(parent, tmp_path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f/mine").write_text("")
    with pytest.raises(RunDirError, match="there is something else: choose another log_path"):
        make_fork(parent, "8", [f"log_path={tmp_path / 'f'}"], weights_only=False)
    with pytest.raises(RunDirError, match="there is something else"):
        make_fork(parent, "8", [f"log_path={parent.path}"], weights_only=False)


def test_a_fork_of_a_fork_without_an_optimiser_has_none_either(parent, tmp_path):
    cold = make_fork(parent, "8", [f"log_path={tmp_path / 'cold'}"], weights_only=True)
    again = make_fork(RunDir(cold.log_path), "8", [f"log_path={tmp_path / 'again'}"], weights_only=False)
    asyncio.run(train(again))
    assert FakeBackend.clients[-1].num_updates == 7


def test_a_fork_goes_on_for_as_long_as_its_parent_was_last_asked_to(tmp_path):
    run(config(tmp_path / "p", max_steps=6, keep="all"))
    extended = run(config(tmp_path / "p", max_steps=9, keep="all"))
    fork = forked(extended, "6", f"log_path={tmp_path / 'f'}")
    assert [row["step"] for row in fork.metrics()] == list(range(10))
    with pytest.raises(ConfigError, match="max_steps=3 lies before the checkpoint at 9: raise it"):
        forked(extended, "last", f"log_path={tmp_path / 'g'}", "max_steps=3")


def test_the_same_fork_goes_on_when_its_parent_went_on(parent, tmp_path):
    fork = forked(parent, "best", f"log_path={tmp_path / 'f'}", "max_steps=15")
    shutil.rmtree(parent / "checkpoints")
    (parent / "checkpoints.jsonl").unlink()
    assert make_fork(parent, "best", [f"log_path={fork.path}"], weights_only=False).log_path == str(fork.path)


def test_the_best_of_a_fork_is_one_of_its_own(parent, tmp_path):
    fork = forked(parent, "last", f"log_path={tmp_path / 'f'}", "num_epochs=4")
    assert find_checkpoint(fork, "best").step >= 15


def test_best_and_last(parent):
    tested = {row["step"]: row["test/nll"] for row in parent.metrics() if "test/nll" in row}
    assert find_checkpoint(parent, "best").step == min(tested, key=tested.__getitem__)
    assert find_checkpoint(parent, "last").step == 15


def test_the_best_is_one_of_those_that_are_there(parent):
    gone = find_checkpoint(parent, "best")
    parent.append_checkpoint(dataclasses.replace(gone, deleted=True))
    nlls = {step: nll for step, nll in parent.test_nlls().items() if step != gone.step}
    there = {record.step for record in parent.checkpoints() if record.is_usable}
    assert find_checkpoint(parent, "best").step == min(nlls.keys() & there, key=nlls.__getitem__)


def test_a_rerun_is_the_same_run_again(parent, tmp_path):
    again = run(config_again(parent, [f"log_path={tmp_path / 'again'}"]))
    assert same(again.metrics()) == same(parent.metrics())
    other = config_again(parent, [f"log_path={tmp_path / 'o'}", "learning_rate=0.2", "dataset_builder.num_train=12"])
    assert other.learning_rate == 0.2
    assert isinstance(other.dataset_builder, WordsBuilder)
    assert other.dataset_builder.num_train == 12


def test_a_rerun_gets_a_new_directory_named_by_its_recipe(parent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = parent.config() | {"recipe": "sl_basic"}
    (parent / "config.json").write_text(json.dumps(document))
    assert config_again(parent, ["learning_rate=0.2"]).log_path.startswith("runs/sl_basic-")


def test_the_verbs(parent, tmp_path):
    def invoke(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    result = invoke("fork", parent, "--at", "best", f"log_path={tmp_path / 'f'}", "learning_rate=0.05")
    assert result.exit_code == 0, result.output
    assert RunDir(tmp_path / "f").state() == "FINISHED"
    result = invoke("rerun", tmp_path / "f", f"log_path={tmp_path / 'g'}", "max_steps=2")
    assert result.exit_code == 0, result.output
    assert len(RunDir(tmp_path / "g").metrics()) == 3
    result = invoke("fork", parent, "--at", "5", f"log_path={tmp_path / 'h'}")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {parent}: no checkpoint at 5: there is 3, 4")
    assert invoke("rerun", tmp_path / "nowhere").exit_code == 2
    result = invoke("fork", parent / "config.json", "--at", "last", f"log_path={tmp_path / 'h'}")
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: {parent / 'config.json'}: no config.json: not a run directory\n",
    )


def test_a_fork_that_is_being_begun_or_was_trained_or_holds_something_else_stays(parent, tmp_path):
    fork = RunDir(make_fork(parent, "8", [f"log_path={tmp_path / 'f'}"], weights_only=False).log_path)
    with fork.lock():
        discard_unbegun(fork)
    assert fork.exists()
    (fork / "notes.txt").touch()
    discard_unbegun(fork)
    assert fork.exists()
    (fork / "notes.txt").unlink()
    discard_unbegun(fork)
    assert not fork.path.exists()
    trained = forked(parent, "8", f"log_path={tmp_path / 'f'}")
    (trained / "attempts.jsonl").unlink()
    discard_unbegun(trained)
    assert len(trained.metrics()) == 16


def test_a_fork_that_fails_leaves_nothing_behind(parent, tmp_path, monkeypatch):
    def invoke(*overrides):
        return CliRunner().invoke(main, ["fork", str(parent), "--at", "8", f"log_path={tmp_path / 'f'}", *overrides])

    before = {path.name for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:  # other data at the same place
        patch.setattr("tests.fakes.WORDS", WORDS[::-1])
        result = invoke()
    assert result.exit_code == 2
    way = f"restore it, or train on it from those weights: python -m harness rerun {parent} load_checkpoint_path=…"
    assert result.stderr.endswith(f"{way}\n")
    assert {path.name for path in tmp_path.iterdir()} == before
    shutil.rmtree(parent / "checkpoints" / "000008")
    assert invoke().exit_code == 2
    assert {path.name for path in tmp_path.iterdir()} == before
    assert issubclass(ConfigError, HarnessError)
