import sys
from typing import Any

import pytest

from harness.exceptions import ConfigError
from harness.preview import copies, histogram, load_config
from tests.fakes import byte_datum

BLUEPRINT = """
import chz
from harness.supervised import train
from tests.fakes import WordsBuilder

def build_config_blueprint():
    return chz.Blueprint(train.Config).apply({"model_name": "m", "log_path": "r", "dataset_builder": WordsBuilder()})
"""
CLASS = """
import chz
from harness.supervised import train
from tests.fakes import WordsBuilder

@chz.chz
class Options:
    batch_size: int = 4

def build_train_config(options: Options):
    return train.Config(model_name="m", log_path="r", dataset_builder=WordsBuilder(batch_size=options.batch_size))
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module into the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    before = set(sys.modules)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        return name

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "override"),
    [(BLUEPRINT, "dataset_builder.batch_size=7"), (CLASS, "batch_size=7")],
    ids=["function", "class"],
)
def test_the_config_is_the_one_that_would_be_trained(module, text, override):
    builder: Any = load_config(module("some_recipe", text), [override]).dataset_builder
    assert builder.batch_size == 7


def test_what_is_no_recipe(module):
    for name, text, error in [
        ("without", "x = 1", "without defines neither build_config_blueprint() nor build_train_config(cli_config)"),
        (None, "", "no.such: no such module: give what stands after python -m, as recipes.sl_basic"),
    ]:
        with pytest.raises(ConfigError) as raised:
            load_config(module(name, text) if name else "no.such", [])
        assert str(raised.value) == error


def test_what_a_recipe_fails_to_import_is_its_own_error(module):
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_library'"):
        load_config(module("needy", "import no_such_library"), [])


def test_copies_within_training_and_across_to_the_tests():
    train = [byte_datum(text) for text in ("ab", "cd", "ab", "ab", "ef")]
    tests = {"": [byte_datum("cd"), byte_datum("gh")], "math": [byte_datum("ef")], "new": [byte_datum("ij")]}
    assert copies(train, tests) == [
        "copies: 2 of 5 training examples are copies of another",
        "copies: 1 of 2 test examples are trained on too: their NLL says little",
        "copies: 1 of 1 test examples of math are trained on too: their NLL says little",
    ]
    assert copies(train[:2], {"new": tests["new"]}) == [
        "copies: none among 2 training examples, and none of a test example"
    ]


def test_the_bars_double_from_the_first_that_holds_any():
    assert histogram([2, 16, 17, 32, 33, 200]) == {"1-16": 2, "17-32": 2, "33-64": 1, "65-128": 0, "129-200": 1}
    assert histogram([1500]) == {"1,025-1,500": 1}
