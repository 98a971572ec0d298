"""Trained on a real Tinker server that runs here: SkyRL, in an environment of its own (see the Makefile)."""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from harness.run_dir import RunDir
from harness.verify import first_difference
from tests.e2e.conftest import ROOT
from tests.e2e.servers import Server, answers, free_port
from tests.exportable import examples_of_test_set, score_in_a_plain_script
from tests.offline import write_conversations
from tests.tiny_model import make_tiny_model

PYTHON = ROOT / ".skyrl" / "bin" / "python"
STEPS = 8
LIMITS = {"max_lora_rank": 8, "train_micro_batch_size": 4, "sample_max_num_sequences": 4}


@pytest.fixture(scope="module")
def tinker(workplace):
    """The server, and the environment of its clients."""
    assert PYTHON.exists(), "this test needs SkyRL: make .skyrl/stamp"
    folder = workplace.folder / "skyrl"
    folder.mkdir()
    make_tiny_model(workplace.folder / "tiny")
    write_conversations(workplace.folder / "tinker.jsonl", 40)
    url = f"http://127.0.0.1:{(port := free_port())}"
    server = Server(
        [str(PYTHON), str(ROOT / "tests/e2e/skyrl_server.py"), "--backend", "jax", "--base-model",
         str(workplace.folder / "tiny"), "--backend-config", json.dumps(LIMITS), "--port", str(port),
         "--checkpoints-base", str(folder / "checkpoints"), "--database-url", f"sqlite:///{folder / 'tinker.db'}"],
        os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "JAX_PLATFORMS": "cpu"},
        folder / "server.log",
        lambda: answers(f"{url}/api/v1/healthz"),
    )  # fmt: skip
    workplace.env |= {"TINKER_API_KEY": "tml-a-key-of-no-service", "TINKER_TELEMETRY": "0"}
    server.start()
    yield server, url
    server.kill()
    for name in ("TINKER_API_KEY", "TINKER_TELEMETRY"):
        del workplace.env[name]
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def recipe(tinker, workplace):
    def arguments(run, *changes):
        return (
            "recipes.sl_basic", f"log_path=runs/tinker/{run}", f"base_url={tinker[1]}",
            f"model_name={workplace.folder / 'tiny'}", "dataset_builder.file_path=tinker.jsonl",
            "dataset_builder.common_config.batch_size=4", "...max_length=64", "dataset_builder.test_size=4",
            "lora_rank=4", "eval_every=3", "save_every=2", f"max_steps={STEPS}", "experiment=tinker", "keep=all",
            *changes,
        )  # fmt: skip

    return arguments


@pytest.fixture(scope="module")
def whole(recipe, workplace):
    """A run that nothing interrupted."""
    said = workplace.run(*recipe("whole")).stdout
    return RunDir(workplace.folder / "runs/tinker/whole"), said


def test_it_is_trained_there_and_mirrored(whole, workplace):
    run, said = whole
    assert [row["step"] for row in run.metrics()] == list(range(STEPS + 1))
    nll = run.test_nlls()
    assert nll[STEPS] < nll[0] - 0.05
    last = run.checkpoints()[-1]
    assert last.final and last.state_path.startswith("tinker://") and last.sampler_path
    assert "on tinker at http://127.0.0.1" in said
    assert said.count("the best and the final checkpoint may expire") == 1  # SkyRL knows no expiry
    assert "equal" in workplace.run("harness", "check", str(run)).stdout


def test_killed_and_resumed_it_is_the_run_that_was_not(whole, recipe, workplace):
    workplace.kill("row", "after", 6, *recipe("killed", "mirror=false"))  # the checkpoint after that row is not logged
    said = workplace.run(*recipe("killed", "mirror=false")).stdout
    killed = RunDir(workplace.folder / "runs/tinker/killed")
    assert first_difference(whole[0], killed) is None
    assert not killed.is_superseded()
    end = killed.attempts()[-1]
    assert (end["exact"], end["largest_difference"]) == (True, 0.0)
    assert f"{end['verified_rows']} row" in said


def test_a_fork_goes_on_from_the_servers_state(whole, workplace):
    run, _ = whole
    fork = ("harness", "fork", str(run), "--at", "4", "log_path=runs/tinker/fork", "learning_rate=1e-4", "mirror=false")
    said = workplace.run(*fork, "keep=last").stdout
    assert said.count("it deletes no checkpoints on request: those that are not kept stay there") == 1
    forked = RunDir(workplace.folder / "runs/tinker/fork")
    assert forked.metrics()[:4] == run.metrics()[:4]
    assert forked.metrics()[4]["train_mean_nll"] == run.metrics()[4]["train_mean_nll"]  # the same weights
    assert forked.state() == "FINISHED"


@pytest.mark.parametrize(("at", "option"), [(3, []), (STEPS, ["--merge"])], ids=["adapter", "merged"])
def test_what_was_trained_there_is_fetched_and_scores_the_same_here(whole, workplace, monkeypatch, at, option):
    """In a plain script; of a state without weights for sampling, and of the final one."""
    run, _ = whole
    monkeypatch.chdir(workplace.folder)
    out = f"runs/tinker/at-{at}"
    said = workplace.run("harness", "export", str(run), "--at", str(at), "--out", out, *option).stdout
    assert said.startswith(f"{out}: runs/tinker/whole at step {at} as ")
    nll = score_in_a_plain_script(out, examples_of_test_set(run), peft=not option, env=workplace.env)
    assert nll == pytest.approx(run.test_nlls()[at], abs=1e-5)
    assert abs(run.test_nlls()[at] - run.test_nlls()[0]) > 0.02  # what was learned shows


def test_a_server_that_deletes_nothing_says_so_when_a_run_is_pruned(whole, workplace):
    run, _ = whole
    done = workplace.run("harness", "prune", str(run), "--keep", "best,final", "--yes", code=2)
    (line,) = done.stderr.strip().splitlines()
    assert "not deleted with the service: 000002, " in line
    assert line.endswith("(it deletes no checkpoints on request)")
    assert all(record.is_usable for record in run.checkpoints())


SAMPLED = """
from harness import cli
from harness.eval.responses import ResponsesBuilder
from harness.supervised import train
from recipes import sl_basic

greedy = ResponsesBuilder(name="greedy", file_path="asked.jsonl", max_tokens=6)
cli.entrypoint(sl_basic.build_config_blueprint().apply({"evaluator_builders": [greedy]}), train.main)
"""


def losses(run):
    return [(row.get("train_mean_nll"), row.get("test/nll")) for row in run.metrics()]


def test_evaluators_sample_there_and_chat_says_the_same_with_any_checkpoint(recipe, workplace):
    (workplace.folder / "sampled.py").write_text(SAMPLED)
    message = {"role": "user", "content": "what of paris?"}
    (workplace.folder / "asked.jsonl").write_text(json.dumps({"messages": [message]}) + "\n")
    changes = ("max_steps=4", "learning_rate=2e-3", "mirror=false")
    _, *arguments = recipe("sampled", *changes)
    workplace.run("sampled", *arguments)
    workplace.run(*recipe("not_sampled", *changes))
    run = RunDir(workplace.folder / "runs/tinker/sampled")
    assert losses(run) == losses(RunDir(workplace.folder / "runs/tinker/not_sampled"))
    assert [row["step"] for row in run.metrics() if "eval/greedy/num_tokens" in row] == [0, 3, 4]
    said = {row["step"]: row["sample"] for row in run.samples()}
    assert said.keys() == {0, 3, 4} and said[0] != said[4]
    paths = {record.step: record.sampler_path for record in run.checkpoints()}
    assert paths[3] is None and paths[4]  # a state alone is loaded to be sampled
    for step in (3, 4):
        chat = ("harness", "chat", str(run), "--at", str(step), "--temperature", "0", "--max-tokens", "6")
        done = subprocess.run(
            workplace.command(*chat), cwd=workplace.folder, env=workplace.env, capture_output=True, text=True,
            input=message["content"] + "\n", timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout == said[step].removesuffix("<|im_end|>") + "\n"


def test_two_runs_at_once_are_each_what_they_are_alone(whole, recipe, workplace):
    first = workplace.start(*recipe("first", "mirror=false"))
    workplace.run(*recipe("second", "mirror=false", "seed=1"))
    assert first.wait(timeout=300) == 0
    assert first_difference(whole[0], RunDir(workplace.folder / "runs/tinker/first")) is None


def test_a_server_that_is_started_again_in_the_middle(whole, recipe, workplace, tinker):
    """The SDK waits for it. The models in its memory are gone: the same command goes on from the last checkpoint."""
    server, _ = tinker
    process = workplace.start(*recipe("restarted", "mirror=false"))
    run = RunDir(workplace.folder / "runs/tinker/restarted")
    while not (run.path.exists() and (last := run.last_row()) and last["step"] >= 4):
        assert process.poll() is None
        time.sleep(0.02)
    server.kill(signal.SIGTERM)
    server.start()
    if process.wait(timeout=300):
        log = (workplace.folder / "started.log").read_text()
        assert process.returncode == 2, log
        *_, error = log.strip().splitlines()
        assert error.startswith("error: http://127.0.0.1") and "; last checkpoint: 00000" in error
        workplace.run(*recipe("restarted", "mirror=false"))
    assert first_difference(whole[0], run) is None


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        ("wrong", "", "error: TINKER_API_KEY does not begin with tml-: copy the whole key from the console"),
        ("", "", "error: backend=tinker needs a key: set TINKER_API_KEY"),
        ("tml-any", "base_url=http://127.0.0.1:9", "error: http://127.0.0.1:9: cannot be reached ("),
        ("tml-any", "lora_rank=100", "rejected (400: LoRA rank 100 must be between 1 and 8)"),
    ],
)
def test_a_mistake_is_one_line_within_seconds(recipe, workplace, monkeypatch, key, change, said):
    monkeypatch.setitem(workplace.env, "TINKER_API_KEY", key)
    started = time.monotonic()
    done = workplace.run(*recipe("mistake", *filter(None, [change])), code=2)
    assert time.monotonic() - started < 60
    (line,) = done.stderr.strip().splitlines()
    assert said in line
    assert not (workplace.folder / "runs/tinker/mistake").exists()
