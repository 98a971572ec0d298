"""Old checkpoints on new data. One run of the tiny model is trained; each test has copies of it."""

import json
import logging
import shutil

import chz
import pytest
from click.testing import CliRunner

from harness.__main__ import main
from harness.backends.local.backend import LocalBackend
from harness.compare import judge, load_runs
from harness.config_io import from_json
from harness.derive import find_checkpoint, make_fork
from harness.run_dir import RunDir
from harness.supervised.conversation_files import read_conversations, split_by_content
from harness.supervised.data import FromConversationFileBuilder
from harness.supervised.types import ChatDatasetBuilderCommonConfig
from harness.tracking.mlflow_check import check
from harness.tracking.mlflow_mirror import sync
from harness.tracking.mlflow_store import open_store
from tests.offline import write_conversations
from tests.prunable import tree
from tests.supervised.runs import config, run
from tests.tiny_model import make_tiny_model
from tests.tracking.conftest import database as database
from tests.tracking.conftest import history, mirrored
from tests.tracking.conftest import uri as uri


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a run, ``trained``; the rows that it tested on, ``own.jsonl``; others, ``other.jsonl``."""
    folder = tmp_path_factory.mktemp("world")
    model = str(make_tiny_model(folder / "tiny"))
    file = str(write_conversations(folder / "small.jsonl", 24))
    common_config = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=model, renderer_name="role_colon", max_length=56, batch_size=2
    )
    run(
        config(
            folder / "trained",
            model_name=model,
            dataset_builder=FromConversationFileBuilder(common_config=common_config, file_path=file, test_size=4),
            backend=LocalBackend(dtype="float32", num_threads=1),
            num_epochs=1,
            max_steps=8,
            lora_rank=4,
            learning_rate=1e-2,
            eval_every=3,
            save_every=2,
            keep="all",
        )
    )
    _, test = split_by_content(read_conversations(file), 4, 0)
    (folder / "own.jsonl").write_text("".join(json.dumps({"messages": row["messages"]}) + "\n" for row in test))
    others = write_conversations(folder / "other.jsonl", 60).read_text().splitlines()[30:]
    rows = [json.loads(line) | {"id": f"c{i}", "slice": "odd" if i % 2 else "even"} for i, line in enumerate(others)]
    (folder / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """A folder to work in, with a copy of the files of ``world``."""
    for name in ("own.jsonl", "other.jsonl"):
        shutil.copy(world / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def copy(world, here):
    def make(name: str) -> RunDir:
        shutil.copytree(world / "trained", here / "runs" / name)
        return RunDir(here / "runs" / name)

    return make


def harness(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def evaluate(*arguments, at="last", data="other.jsonl", name="other"):
    return harness("eval", *arguments, "--at", at, "--data", data, "--name", name)


def change_config(run: RunDir, **fields) -> None:
    document = run.config()
    document["config"] |= fields
    (run / "config.json").write_text(json.dumps(document))


def test_a_run_s_own_test_set_gives_its_own_numbers_to_the_bit(copy):
    trained = copy("a")
    in_training = {row["step"]: row for row in trained.eval_examples()}
    metrics = {row["step"]: row for row in trained.tested_rows()}
    assert set(metrics) == {0, 3, 6, 8}
    for step in (3, 6, 8):
        result = evaluate(trained, at=str(step), data="own.jsonl", name="again")
        assert result.exit_code == 0, result.output
        (row,) = [row for row in trained.eval_examples(step) if row["set"] == "again"]
        assert row["metrics"] == {
            "test/again/nll": metrics[step]["test/nll"],
            "test/again/bpb": metrics[step]["test/bpb"],
        }
        for key in ("fingerprint", "ids", "slices", "nll", "num_loss_tokens"):
            assert row[key] == in_training[step][key]
        assert row["contents"] == trained.config()["data"]["test_contents"][""]
    assert [row["step"] for row in trained.later_evaluations()] == [3, 6, 8]


def test_what_is_printed_and_what_is_written(copy, here):
    trained = copy("a")
    files = {path.name: path.read_bytes() for path in trained.path.iterdir() if path.suffix == ".jsonl"}
    result = evaluate("runs/a")
    (row,) = [row for row in trained.eval_examples(8) if row["set"] == "other"]
    nll = row["metrics"]["test/other/nll"]
    assert nll == pytest.approx(sum(row["nll"]) / sum(row["num_loss_tokens"]), rel=1e-12)
    *of_the_data, line = result.stdout.splitlines()
    assert of_the_data[0].startswith("other: 30 conversations, ")
    assert of_the_data[1:] == [
        "other: 7 conversations are cut at max_length",
        "other: 7 of them inside what is trained: without its end-of-turn",
    ]
    assert line == f"runs/a: step 8: test/other/nll {nll:.4f} on 30 examples"
    assert row | {"metrics": 0, "ts": 0, "contents": 0, "fingerprint": 0, "nll": 0, "num_loss_tokens": 0,
                  "num_tokens": 0} == {
        "step": 8, "ts": 0, "checkpoint": "000008", "data": "other.jsonl", "contents": 0, "harness": "0.1.0",
        "metrics": 0, "num_examples": 30, "num_tokens": 0, "set": "other", "fingerprint": 0,
        "ids": [f"c{i}" for i in range(30)], "slices": ["even", "odd"] * 15, "nll": 0,
        "num_loss_tokens": 0,
    }  # fmt: skip
    assert {name: (trained / name).read_bytes() for name in files} == files
    assert trained.state() == "FINISHED"


def test_the_same_again_computes_nothing(copy):
    trained = copy("a")
    line = evaluate("runs/a").stdout.splitlines()[-1]
    written = (trained / "later_evaluations.jsonl").read_bytes()
    shutil.rmtree(trained / "checkpoints")  # without which nothing could be computed
    again = evaluate("runs/a")
    assert (again.exit_code, again.stdout.splitlines()[-1]) == (0, f"{line}, as evaluated before")
    assert (trained / "later_evaluations.jsonl").read_bytes() == written


def test_which_checkpoint(copy):
    trained = copy("a")
    for at in ("last", "best", "2"):
        assert evaluate("runs/a", at=at).exit_code == 0
    best = find_checkpoint(trained, "best").step
    assert {row["step"] for row in trained.later_evaluations()} == {8, best, 2}
    assert find_checkpoint(trained, "best").step == best  # whatever was measured on another set
    result = evaluate("runs/a", at="5")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: runs/a: no checkpoint at 5: there is 2, 3, 4, 6, 8 (or say best or last)\n",
    )


def test_runs_are_compared_on_what_they_were_scored_on_later(copy):
    for name in ("a", "b"):
        copy(name)
    assert evaluate("runs/a").exit_code == 0
    assert evaluate("runs/b", at="2").exit_code == 0
    runs = load_runs("runs")
    scored = runs.metrics.dropna(subset="test/other/nll")
    assert scored[["run", "step"]].values.tolist() == [["a", 8], ["b", 2]]
    judged = judge(runs, on="other")
    assert judged.against.loc["b", "num_examples"] == 30
    a, b = runs.evaluation("a", 8, "other"), runs.evaluation("b", 2, "other")
    assert a is not None and b is not None
    difference = (b.nll.sum() - a.nll.sum()) / a.num_loss_tokens.sum()
    assert judged.against.loc["b", "difference"] == pytest.approx(difference, rel=1e-9)
    assert harness("compare", "runs", "--on", "other").exit_code == 0


def test_a_run_that_fails_is_named_at_the_end_and_the_others_are_scored(copy):
    first, damaged, last = copy("a"), copy("b"), copy("c")
    (damaged / "checkpoints" / "000008" / "adapter_model.safetensors").write_bytes(b"")
    result = evaluate("runs")
    assert result.exit_code == 2
    assert [line.partition(":")[0] for line in result.stdout.splitlines() if line.startswith("runs")] == [
        "runs/a",
        "runs/c",
    ]
    assert result.stderr.startswith("error: runs/b: ") and len(result.stderr.splitlines()) == 1
    assert [len(run.later_evaluations()) for run in (first, damaged, last)] == [1, 0, 1]


def test_what_is_wrong_with_the_file_is_said_once(copy, here):
    for name in ("a", "b"):
        copy(name)
    result = evaluate("runs", data="nowhere.jsonl")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: runs/a, runs/b: Data file not found: nowhere.jsonl\n"
    (here / "bad.jsonl").write_text('{"messages": []}\n')
    assert evaluate("runs", data="bad.jsonl").stderr.startswith("error: runs/a, runs/b: bad.jsonl:1: ")
    user = [{"role": "user", "content": "x " * 200}, {"role": "assistant", "content": "y"}]
    (here / "long.jsonl").write_text(json.dumps({"messages": user}) + "\n")
    assert evaluate("runs/a", data="long.jsonl").stderr == (
        "error: runs/a: the test set other is empty: none of its 1 examples carries loss; give other test data, or "
        "none\n"
    )
    assert evaluate("runs/none").stderr == "error: runs/none: no such run directory\n"


def test_what_is_dropped_is_told(copy, here):
    copy("a")
    long = [{"role": "user", "content": "x " * 200}, {"role": "assistant", "content": "y"}]
    with (here / "other.jsonl").open("a") as file:
        file.write(json.dumps({"messages": long}) + "\n")
    result = evaluate("runs/a")
    assert "other: 1 are dropped: max_length cuts away all that carries loss" in result.stdout.splitlines()
    assert result.stdout.endswith("on 30 examples\n")


def test_training_examples_among_the_data_are_told(copy, world, here, caplog):
    for name in ("a", "b"):
        copy(name)
    shutil.copy(world / "small.jsonl", here / "mixed.jsonl")
    with caplog.at_level(logging.WARNING):
        assert evaluate("runs", data="mixed.jsonl", name="mixed").exit_code == 0
    assert caplog.messages == [
        f"runs/{name}: it was trained on 20 of the 24 examples of mixed, which makes their NLL look better than it is: "
        "leave them out"
        for name in "ab"
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert evaluate("runs", data="own.jsonl", name="own").exit_code == 0
    assert caplog.messages == []


def test_where_the_training_data_is_gone_that_is_told_and_the_run_is_scored(copy, caplog):
    trained = copy("a")
    builder = trained.config()["config"]["dataset_builder"]
    change_config(trained, dataset_builder=builder | {"file_path": "gone.jsonl"})
    with caplog.at_level(logging.WARNING):
        assert evaluate("runs/a").exit_code == 0
    assert caplog.messages == [
        "runs/a: whether it was trained on examples of other is not known: Data file not found: gone.jsonl"
    ]


def test_a_name_means_one_test_set(copy):
    trained = copy("a")
    for name in ("", ".", "a/b"):
        result = evaluate("runs/a", name=name)
        assert (result.exit_code, result.stderr) == (
            2,
            f"error: test set {name!r}: use letters, digits, _ - . and spaces in its name\n",
        )
    assert evaluate("runs/a").exit_code == 0
    here, there = (row["fingerprint"] for row in trained.evaluations()[:-3:-1])
    result = evaluate("runs/a", at="2", data="own.jsonl")
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: runs/a: other is other data there (other.jsonl, fingerprint {here}; {there} here): choose another "
        "--name\n",
    )
    document = trained.config()
    document["data"]["test"]["hard"] = "feed"
    (trained / "config.json").write_text(json.dumps(document))
    assert evaluate("runs/a", name="hard").stderr == (
        "error: runs/a: hard is a test set of its training: choose another --name\n"
    )
    assert len(trained.later_evaluations()) == 1


def test_a_run_that_is_being_trained_is_left_alone(copy):
    trained = copy("a")
    with trained.lock():
        result = evaluate("runs/a")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: runs/a: another process is writing to this run: evaluate it once that has ended\n",
    )


def test_a_directory_of_another_program_stays_as_it_is(here):
    theirs = here / "theirs"
    theirs.mkdir()
    (theirs / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1, "train_me')  # it is being written just now
    for config_json, error in [
        (None, "theirs: no config.json: not a run directory"),
        ('{"log_path": "/tmp/sft"}', f"theirs: {theirs}/config.json: not a run's: restore it or use another log_path"),
    ]:
        if config_json:
            (theirs / "config.json").write_text(config_json)
        before = tree(theirs)
        result = evaluate("theirs")
        assert (result.exit_code, result.stderr) == (2, f"error: {error}\n")
        assert tree(theirs) == before


def test_a_run_that_another_process_takes_meanwhile_gets_no_line_in_its_log(copy, monkeypatch):
    trained = copy("a")
    log = (trained / "logs.log").read_bytes()
    with trained.lock():
        monkeypatch.setattr(RunDir, "is_locked", lambda _: False)  # it was asked a moment before
        (trained / "logs.log").unlink()
        result = evaluate("runs/a")
    assert result.stderr.startswith("error: runs/a: another process is writing to this run: wait for it")
    assert log and not (trained / "logs.log").exists()


def test_contents_are_the_same_whatever_the_tokenizer(copy):
    first, second = copy("a"), copy("b")
    document = second.config()
    document["config"]["dataset_builder"]["common_config"]["max_length"] = 40
    (second / "config.json").write_text(json.dumps(document))
    assert evaluate("runs").exit_code == 0
    (a,), (b,) = first.later_evaluations(), second.later_evaluations()
    assert a["contents"] == b["contents"] and a["fingerprint"] != b["fingerprint"]
    assert evaluate("runs/a", data="own.jsonl", name="own").exit_code == 0
    assert first.later_evaluations()[-1]["contents"] != a["contents"]


def test_a_killed_run_is_scored(copy):
    trained = copy("a")
    attempts = (trained / "attempts.jsonl").read_text().splitlines(keepends=True)
    (trained / "attempts.jsonl").write_text(attempts[0])
    assert trained.state() == "KILLED"
    assert evaluate("runs/a").exit_code == 0
    assert trained.state() == "KILLED"


@pytest.mark.parametrize(
    ("builder", "error"),
    [
        ({"type": "tests.fakes:WordsBuilder"}, "WordsBuilder has no common_config that says how a conversation is"),
        ({"callable": "mine:build"}, "mine:build is a plain callable: not re-makeable from config.json"),
        ({"type": "nowhere:Builder"}, "nowhere:Builder cannot be imported"),
        (
            {"type": "tests.fakes:WordsBuilder", "num_trian": 3},
            "tests.fakes:WordsBuilder cannot be made of what is recorded (",
        ),
    ],
)
def test_a_run_whose_data_cannot_be_rendered_again(copy, builder, error):
    change_config(copy("a"), dataset_builder=builder)
    result = evaluate("runs/a")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: runs/a: {error}")
    assert len(result.stderr.splitlines()) == 1


def test_a_conversation_longer_than_the_context(copy, here):
    trained = copy("a")
    document = trained.config()
    document["config"]["dataset_builder"]["common_config"]["max_length"] = None
    (trained / "config.json").write_text(json.dumps(document))
    long = [{"role": "user", "content": "x " * 200}, {"role": "assistant", "content": "y"}]
    (here / "long.jsonl").write_text(json.dumps({"messages": long}) + "\n")
    result = evaluate("runs/a", data="long.jsonl", name="long")
    assert result.stderr.startswith("error: runs/a: long: a conversation has ")
    assert result.stderr.endswith(" is 256: leave it out\n")


def test_a_run_that_is_extended_keeps_what_was_scored_later(copy):
    trained = copy("a")
    assert evaluate("runs/a").exit_code == 0
    before = (trained / "later_evaluations.jsonl").read_bytes()
    extended = run(chz.replace(from_json(trained.config()["config"]), log_path=str(trained.path), max_steps=10))
    assert (trained / "later_evaluations.jsonl").read_bytes() == before
    assert [row["step"] for row in extended.metrics()] == list(range(11))
    assert extended.attempts()[-1]["exact"] is not False
    assert evaluate("runs/a").stdout.splitlines()[-1].startswith("runs/a: step 10: ")


def test_a_fork_has_the_evaluations_of_training_alone(copy, here):
    trained = copy("a")
    assert evaluate("runs/a", at="2").exit_code == 0
    make_fork(trained, "6", [f"log_path={here / 'f'}"], weights_only=False)
    assert [(row["step"], row["set"]) for row in RunDir(here / "f").evaluations()] == [(0, ""), (3, "")]


def test_the_mlflow_run_is_brought_up_to_date(copy, uri):
    trained = copy("a")
    change_config(trained, mirror=True, tracking_uri=uri)
    assert evaluate("runs/a", at="6").exit_code == 0
    (row,) = trained.later_evaluations()
    client = open_store(uri)
    run_id = mirrored(trained)["run_id"]
    assert history(client, run_id, "test/other/nll") == [(6, row["ts"], row["metrics"]["test/other/nll"])]
    assert "later_evaluations.jsonl" in {file.path for file in client.list_artifacts(run_id)}
    assert check(trained).is_equal
    best = min(trained.test_nlls().values())
    assert client.get_run(run_id).data.metrics["best_test_nll"] == best


def test_an_mlflow_run_that_sync_made_is_brought_up_to_date(copy, uri):
    trained = copy("a")
    assert not trained.config()["config"]["mirror"]
    run_id = sync(trained, uri).run_id
    assert evaluate("runs/a").exit_code == 0
    (row,) = trained.later_evaluations()
    nll = row["metrics"]["test/other/nll"]
    assert history(open_store(uri), run_id, "test/other/nll") == [(8, row["ts"], nll)]


def test_a_run_that_is_not_to_be_mirrored_is_not(copy):
    trained = copy("a")
    assert evaluate("runs/a").exit_code == 0
    assert trained.mirror() is None


def test_mlflow_that_cannot_be_reached_is_a_warning(copy, caplog):
    trained = copy("a")
    change_config(trained, mirror=True, tracking_uri="http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING):
        assert evaluate("runs/a").exit_code == 0
    assert caplog.messages[-1].startswith("MLflow at http://127.0.0.1:9 cannot be reached")
    assert caplog.messages[-1].endswith(": python -m harness sync runs/a completes the MLflow run")
    assert len(trained.later_evaluations()) == 1
