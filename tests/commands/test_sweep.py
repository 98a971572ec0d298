"""The command, with the recipe's own processes. What each part does is tested with its module."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.__main__ import main
from harness.run_dir import RunDir
from tests.sweeps import write_recipe


@pytest.fixture(autouse=True)
def working(tmp_path, monkeypatch):
    write_recipe(tmp_path, monkeypatch)


def sweep(*arguments):
    return CliRunner().invoke(main, ["sweep", *arguments])


def test_runs_are_trained_and_the_same_command_starts_what_is_not_complete(tmp_path, monkeypatch):
    """A script's; one of its runs fails on its data, which no config tells."""
    write_recipe(tmp_path, monkeypatch, "scripts/my_toy.py")
    command = ("scripts/my_toy.py", "--root", "sw", "dataset_builder.num_train=[0,11,23]")
    done = sweep(*command, "--jobs", "2")
    assert done.exit_code == 1, done.output
    assert done.output.startswith("sw: 3 runs, 2 at a time; what they print is in sw/logs\n")
    assert done.output.count(": finished, test NLL ") == 2 and done.output.count(": failed: error: ") == 1
    assert "Response of test NLL" in done.output and "wrote sw/responses.png" in done.output
    assert done.output.splitlines()[-1].startswith("failed: num_train=0: error: ")
    good = RunDir("sw/num_train=23")
    assert (good.state(), good.config()["recipe"]) == ("FINISHED", "my_toy")
    assert good.config()["config"]["dataset_builder"]["type"] == "my_toy:Builder"
    assert Path("sw/logs/num_train=11.log").read_text().endswith("…\n")

    attempts = good.attempts()
    again = sweep(*command[:3], "dataset_builder.num_train=[23,11]")
    assert again.exit_code == 0, again.output
    assert again.output.count(": complete already, test NLL ") == 2
    assert good.attempts() == attempts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["toy", "--root", "sw", "max_steps=4"], "error: nothing to sweep: give values in brackets"),
        (["toy", "--root", "sw", "seed=[0,x]"], "error: seed=x: seed=x: not an int (--help lists all)"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    done = sweep(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(message) and len(done.stderr.splitlines()) == 1
    assert not Path("sw").exists()
