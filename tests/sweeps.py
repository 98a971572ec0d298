"""A recipe to sweep, whose runs take no time: the fake backend."""

import os
import sys
from pathlib import Path

import pytest

RECIPE = '''
"""Trains the fake backend."""
import chz
from harness import cli
from harness.supervised import train
from tests.fakes import FakeBackend, WordsBuilder


@chz.chz
class Builder(WordsBuilder):
    """Defined in the recipe."""


def build_config_blueprint():
    return chz.Blueprint(train.Config).apply({
        "model_name": "unigram", "dataset_builder": Builder(), "backend": FakeBackend(), "learning_rate": 0.1,
        "max_steps": 4, "eval_every": 2, "mirror": False,
    })


if __name__ == "__main__":
    cli.entrypoint(build_config_blueprint(), train.main)
'''
REPOSITORY = Path(__file__).parents[1]


def write_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch, file: str = "toy.py") -> None:
    """Work in ``folder``, with the recipe above in it."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delitem(sys.modules, Path(file).stem, raising=False)
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(RECIPE)
