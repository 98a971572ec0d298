"""Killed anywhere and any number of times, a run is to the bit the run that was not: real model, processes, SIGKILL."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from harness.run_dir import RunDir
from harness.verify import first_difference
from tests.e2e.conftest import ROOT
from tests.e2e.killed import PLACES
from tests.offline import write_conversations

TINY = (
    "max_steps=8",
    "dataset_builder.file_path=small.jsonl",
    "dataset_builder.common_config.batch_size=2",
    "...max_length=64",
    "dataset_builder.test_size=4",
    "lora_rank=4",
    "eval_every=3",
    "save_every=2",
    "backend.num_threads=2",
    "mirror=false",
)


def recipe(run, *changes):
    return ("recipes.sl_basic", f"log_path={run}", *TINY, *changes)


@pytest.fixture(scope="module")
def whole(workplace):
    """A run that nothing interrupted."""
    write_conversations(workplace.folder / "small.jsonl", 40)
    workplace.run(*recipe("runs/tiny"))
    return RunDir(workplace.folder / "runs/tiny")


def numbers(run):
    """All that two runs are to have in common, for the message: which of it differs tells where to look."""
    rows = [{key: value for key, value in row.items() if not key.startswith(("time/", "ts"))} for row in run.metrics()]
    return [*rows, *run.eval_examples()]


def assert_equal(whole, other):
    pairs = zip(numbers(whole), numbers(other), strict=False)
    assert first_difference(whole, other) is None, "\n".join(f"{a}\n{b}" for a, b in pairs if a != b)
    assert not other.is_superseded()
    assert other.state() == "FINISHED"
    final = "checkpoints/000008"
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        assert (whole / final / name).read_bytes() == (other / final / name).read_bytes()


BOUNDARIES = [
    *((place, "before", number) for place, number in (("config", 1), ("gradient", 9), ("update", 5), ("end", 2))),
    *((place, "after", number) for place, number in (("config", 1), ("gradient", 9), ("update", 5), ("end", 1))),
    *((place, when, number) for place in ("evaluation", "row", "state", "record") for when in ("before", "after")
      for number in (2,)),
    ("removal", "before", 1),
    ("removal", "after", 1),
    *(("torn", f"{name}.jsonl", number) for name, number in (("metrics", 4), ("checkpoints", 2), ("eval_examples", 2))),
]  # fmt: skip


def test_every_boundary_is_met():
    assert {place for place, *_ in BOUNDARIES} == {*PLACES, "torn"}


@pytest.mark.parametrize(("place", "when", "number"), BOUNDARIES, ids=lambda value: str(value))
def test_killed_at_a_boundary(whole, workplace, place, when, number):
    name = f"runs/at-{place}-{when}-{number}"
    workplace.kill(place, when, number, *recipe(name))
    workplace.run(*recipe(name))
    assert_equal(whole, RunDir(workplace.folder / name))


def test_killed_at_five_random_moments(whole, workplace):
    """One run, killed five times; each time with another number of threads to begin with, under another name."""
    random.seed(4)
    name = "runs/random-0"
    for number in range(1, 6):
        env = workplace.env | {"OMP_NUM_THREADS": str(random.choice([1, 2]))}
        changes = (f"submit_ahead={random.choice([0, 1, 3])}", f"save_every={random.choice([1, 2, 5])}")
        process = subprocess.Popen(
            workplace.command(*recipe(name, *changes)), cwd=workplace.folder, env=env, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        run = RunDir(workplace.folder / name)
        before = len(run.metrics())
        while len(run.metrics()) < min(before + 1, 8) and process.poll() is None:
            time.sleep(0.05)
        time.sleep(random.uniform(0, 0.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        moved = f"runs/random-{number}"
        (workplace.folder / name).rename(workplace.folder / moved)
        name = moved
    workplace.run(*recipe(name))
    assert_equal(whole, RunDir(workplace.folder / name))


def test_sigterm_saves_and_leaves_a_run_that_goes_on(whole, workplace):
    process = workplace.start(*recipe("runs/terminated"))
    workplace.stop_at_step(process, "runs/terminated", 2, signal.SIGTERM)
    assert process.returncode == 143
    terminated = RunDir(workplace.folder / "runs/terminated")
    assert terminated.attempts()[-1]["state"] == "KILLED"
    num_trained = len(terminated.metrics())
    assert terminated.checkpoints()[-1].step == num_trained
    workplace.run(*recipe("runs/terminated"))
    assert terminated.attempts()[-2]["next_step"] == num_trained
    assert_equal(whole, terminated)


def test_a_copied_run_goes_on_from_where_the_copy_was_made(whole, workplace):
    workplace.kill("row", "after", 6, *recipe("runs/original"))
    shutil.copytree(workplace.folder / "runs/original", workplace.folder / "elsewhere/copy")
    workplace.run(*recipe("elsewhere/copy"))
    workplace.run(*recipe("runs/original"))
    for name in ("elsewhere/copy", "runs/original"):
        assert_equal(whole, RunDir(workplace.folder / name))


def test_on_another_processor_it_is_verified_within_rounding_and_says_so(workplace):
    workplace.kill("row", "after", 6, *recipe("runs/processor"))
    run = RunDir(workplace.folder / "runs/processor")
    config = (run / "config.json").read_text()
    processor = run.config()["numerics"]["processor"]
    (run / "config.json").write_text(config.replace(processor, "Z80"))
    said = workplace.run(*recipe("runs/processor")).stdout
    assert "the run was started on Z80: last digits may differ" in said
    assert run.attempts()[-1]["state"] == "FINISHED"
    assert not run.is_superseded()


def test_extended_and_forked(whole, workplace):
    workplace.run(*recipe("runs/extended", "max_steps=4", "lr_schedule=constant"))
    workplace.run(*recipe("runs/extended", "max_steps=8", "lr_schedule=constant"))
    workplace.run(*recipe("runs/constant", "lr_schedule=constant"))
    extended, constant = (RunDir(workplace.folder / f"runs/{name}") for name in ("extended", "constant"))
    weights = "checkpoints/000008/adapter_model.safetensors"
    assert (extended / weights).read_bytes() == (constant / weights).read_bytes()

    said = workplace.run("harness", "fork", "runs/tiny", "--at", "best", "log_path=runs/f1", "learning_rate=5e-5")
    assert "resuming at step" in said.stdout
    fork = RunDir(workplace.folder / "runs/f1")
    assert fork.state() == "FINISHED"
    at = fork.config()["parent"]["step"]
    assert fork.metrics()[:at] == whole.metrics()[:at]
    workplace.run("harness", "rerun", "runs/f1", "log_path=runs/again", "max_steps=2")
    refused = workplace.run(*recipe("runs/tiny", "learning_rate=1e-4"), code=2).stderr
    assert "learning_rate: 0.0005 there, 0.0001 here" in refused
    assert "fork it: python -m harness fork runs/tiny --at STEP" in refused


def test_verify_resume(workplace):
    said = workplace.run("harness", "verify-resume", "recipes.sl_basic", "--kill-at", "4", "--dir", "v", *TINY).stdout
    assert "exact: 9 rows, their evaluations and" in said


def test_a_disk_that_fills_up_and_gets_room_again(whole, workplace):
    """A file system of 64 MiB in a name space of its own, filled but for little: saves fail, then rows."""
    script = f"""
set -eu
mkdir -p disk && mount -t tmpfs -o size=64m none disk
dd if=/dev/zero of=disk/filler bs=1M count=61 status=none
run() {{ {sys.executable} -m {" ".join(recipe("disk/run"))}; }}
code=0; run 2> full.err || code=$?
test "$code" = 2
rm disk/filler
run
{sys.executable} -m {" ".join(recipe("disk/whole", "keep=last"))}
cp -r disk/run disk/whole .
"""
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script],
        cwd=workplace.folder,
        env={**workplace.env, "PYTHONPATH": f"{ROOT}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    refused = (workplace.folder / "full.err").read_text()
    assert "No space left on device" in refused
    assert "make room" in refused
    assert "Traceback" not in refused
    resumed, unhindered = RunDir(workplace.folder / "run"), RunDir(workplace.folder / "whole")
    assert first_difference(unhindered, resumed) is None
