import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import harness
from harness.__main__ import Verbs

ROOT = Path(harness.__file__).parents[1]
HEAVY = {"pandas", "mlflow", "torch", "transformers", "datasets", "tinker", "matplotlib", "peft"}


def run_harness(*args):
    """Run ``python -m harness`` and return it, with the modules that it imported."""
    command = [sys.executable, "-X", "importtime", "-m", "harness", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = done.stderr.splitlines()
    imported = {line.split("|")[-1].strip().split(".")[0] for line in lines if line.startswith("import time:")}
    done.stderr = "".join(f"{line}\n" for line in lines if not line.startswith("import time:"))
    return done, imported


def test_help_lists_the_verbs_and_loads_nothing_heavy():
    done, imported = run_harness("--help")
    assert done.returncode == 0
    assert "compare  " in done.stdout and "Compare train and test NLL of runs." in done.stdout
    assert "click" in imported
    assert not imported & HEAVY


def test_version():
    done, _ = run_harness("--version")
    assert (done.returncode, done.stdout) == (0, f"harness, version {harness.__version__}\n")


def test_an_unknown_verb_is_a_usage_error():
    done, _ = run_harness("comparre")
    assert done.returncode == 2
    assert "No such command 'comparre'" in done.stderr


def test_a_users_mistake_is_one_line_on_stderr(tmp_path):
    done, _ = run_harness("compare", tmp_path / "nope")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path / 'nope'}: no such run directory\n"


VERB = """
import click
from harness.exceptions import RunDirError

@click.command()
@click.argument("ending")
def command(ending):
    "End as {name} is told."
    if ending == "mistake":
        raise RunDirError("here: that: do this")
    if ending == "interrupt":
        raise KeyboardInterrupt
    if ending == "bug":
        raise ZeroDivisionError
"""


@pytest.fixture
def verbs(tmp_path, monkeypatch):
    """A group whose verbs are the files of a package made here."""
    package = tmp_path / "made_verbs"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in ("end", "two_words"):
        (package / f"{name}.py").write_text(VERB.format(name=name))
    monkeypatch.syspath_prepend(tmp_path)
    yield Verbs(package="made_verbs")
    for name in [name for name in sys.modules if name.split(".")[0] == "made_verbs"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("ending", "code", "stderr"),
    [("well", 0, ""), ("mistake", 2, "error: here: that: do this\n"), ("interrupt", 130, "interrupted\n")],
)
def test_how_a_verb_ends(verbs, ending, code, stderr):
    result = CliRunner().invoke(verbs, ["end", ending])
    assert (result.exit_code, result.stderr) == (code, stderr)


def test_a_bug_keeps_its_traceback(verbs):
    assert isinstance(CliRunner().invoke(verbs, ["end", "bug"]).exception, ZeroDivisionError)


def test_an_underscore_is_a_hyphen_and_only_the_asked_verb_is_imported(verbs):
    assert CliRunner().invoke(verbs, ["two-words", "well"]).exit_code == 0
    assert "made_verbs.two_words" in sys.modules and "made_verbs.end" not in sys.modules
    assert CliRunner().invoke(verbs, ["two_words", "well"]).exit_code == 2
    listed = CliRunner().invoke(verbs, ["--help"]).output
    assert "two-words  End as two_words is told." in listed
