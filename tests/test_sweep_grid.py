import pytest

from harness.exceptions import ConfigError
from harness.sweep_grid import directory_name, is_named_by, parse_grid, short_names


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("learning_rate=[1e-4,3e-4]", ["1e-4", "3e-4"]),
        ("seed=[0]", ["0"]),
        ("max_steps=[ None , 8 ]", ["None", "8"]),
        ("mirror=[true,False]", ["true", "False"]),
        ("note=['a, b',c,\"d\"]", ["a, b", "c", "d"]),
        ("note=['',x]", ["", "x"]),
        ("note=[don't,can't]", ["don't", "can't"]),
        ("note=['a' or 'b',c]", ["'a' or 'b'", "c"]),
        ("names=[[a,b],[c]]", ["[a,b]", "[c]"]),
        ("names=[['a,]',b],x]", ["['a,]',b]", "x"]),
        ("betas=[(0.9,0.95),(0.9,0.99)]", ["(0.9,0.95)", "(0.9,0.99)"]),
        ("tags=[{a:1,b:2},{}]", ["{a:1,b:2}", "{}"]),
    ],
)
def test_the_values_in_brackets(argument, values):
    key = argument.partition("=")[0]
    assert parse_grid([argument]) == ([], {key: values})


def test_what_is_in_no_brackets_is_shared_and_the_order_is_that_of_the_command():
    shared, grid = parse_grid(
        ["seed=[0,1]", "max_steps=4", "a.b.c=[x]", "...max_length=[64,128]", "note=a=[b", "k=a,b", "run_name=[wip] x"]
    )
    assert shared == ["max_steps=4", "note=a=[b", "k=a,b", "run_name=[wip] x"]
    assert list(grid.items()) == [("seed", ["0", "1"]), ("a.b.c", ["x"]), ("...max_length", ["64", "128"])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["max_steps=4"], "nothing to sweep: give values in brackets, as in learning_rate=[1e-4,3e-4]"),
        (["seed"], "seed: not an override: write key=value, or key=[value,value] to sweep it"),
        (["=[1,2]"], "=[1,2]: not an override: write key=value, or key=[value,value] to sweep it"),
        (["seed=[0,1,0]"], "seed=[0,1,0]: 0 stands twice: leave one out"),
        (["note=[a,'a']"], "note=[a,'a']: a stands twice: leave one out"),
        (["seed=[]"], "seed=[]: a value is missing: write '' for an empty text"),
        (["seed=[0,]"], "seed=[0,]: a value is missing: write '' for an empty text"),
        (
            ["learning_rate=[1e-4,", "3e-4]"],
            "learning_rate=[1e-4,: no ] ends what begins there: close it, and quote what has spaces in it",
        ),
        (["names=[[a,b]"], "names=[[a,b]: no ] ends what begins there"),
        (["note=['a,b]"], "note=['a,b]: no ' ends what begins there"),
        (["log_path=x", "seed=[0]"], "log_path=x: a sweep names the directories of its runs: leave log_path out"),
        (["...log_path=[x,y]"], "...log_path=[x,y]: a sweep names the directories of its runs: leave log_path out"),
        (["log_path@=note"], "log_path@=note: a sweep names the directories of its runs: leave log_path out"),
        (
            ["seed=0", "seed=1"],  # as a shell makes of seed=[0,1] where files of these names lie
            "seed: given twice: put all its values in one pair of brackets, and quote them: 'seed=[a,b]'",
        ),
        (
            ["backend.api_key=[abc,def]"],
            "backend.api_key: its values are secrets, and would stand in the names of directories: do not sweep it",
        ),
    ],
)
def test_what_cannot_be_swept_is_one_line(arguments, message):
    with pytest.raises(ConfigError) as refused:
        parse_grid(arguments)
    assert str(refused.value) == message


def test_a_parameter_is_called_by_its_last_part_unless_another_is_too():
    assert short_names(["seed", "dataset_builder.common_config.batch_size", "...max_length"]) == {
        "seed": "seed",
        "dataset_builder.common_config.batch_size": "batch_size",
        "...max_length": "max_length",
    }
    assert short_names(["...size", "a.size", "b"]) == {"...size": "size", "a.size": "a.size", "b": "b"}


def test_a_directory_is_named_by_its_values_whatever_their_order():
    assert directory_name({"seed": "0", "learning_rate": "1e-4"}) == "learning_rate=1e-4,seed=0"
    assert directory_name({"learning_rate": "1e-4", "seed": "0"}) == "learning_rate=1e-4,seed=0"
    assert directory_name({"max_length": "None"}) == "max_length=None"


def test_numbers_are_the_same_however_they_are_written():
    name = directory_name({"learning_rate": "1e-4", "model": "small"})
    assert is_named_by(name, {"model": "small", "learning_rate": "0.0001"})
    for other in (
        {"learning_rate": "0.0001"},
        {"learning_rate": "0.001", "model": "small"},
        {"learning_rate": "1e-4", "model": "Small"},
        {"learning_rate": "1e-4", "model": "small", "seed": "0"},
    ):
        assert not is_named_by(name, other)
    assert not is_named_by("logs", {"seed": "0"})


def test_names_stay_unique_where_characters_are_replaced_or_the_end_is_cut():
    named = [directory_name({"model": text}) for text in ("a/b", "a b", "a,b", "a_b", "ä_b", "a/../b")]
    assert named[3] == "model=a_b"
    assert named[0].startswith("model=a_b-") and len(named[0]) == len("model=a_b-") + 8
    assert len(set(named)) == len(named)
    assert not any(set(name) & set("/ ,ä") for name in named)
    assert directory_name({"model": "a/b"}) == named[0]  # on another day too

    long = [directory_name({"note": "x" * 200 + end}) for end in "ab"]
    assert [len(name) for name in long] == [100, 100] and long[0] != long[1]
    # one parameter's text does not pass for two parameters
    assert directory_name({"a": "1,b=2"}) != directory_name({"a": "1", "b": "2"})
