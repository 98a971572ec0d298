import json
import multiprocessing

import pytest

from harness.exceptions import RunDirError
from harness.run_dir import RunDir
from harness.run_tags import change_tags, changed_tags, tags
from tests.tracking.conftest import start_run


@pytest.fixture
def run(tmp_path):
    return start_run(tmp_path / "run", tags={"team": "x", "kind": "first"})


def test_later_tags_go_before_those_of_the_config_and_none_removes(run):
    assert (tags(run), changed_tags(run)) == ({"team": "x", "kind": "first"}, {})
    change_tags(run, {"team": "y", "new": "1"}, 5)
    change_tags(run, {"kind": None}, 6)
    assert tags(run) == {"team": "y", "new": "1"}
    assert changed_tags(run) == {"team": "y", "new": "1", "kind": None}
    change_tags(run, {"kind": "again"}, 7)
    assert tags(run) == {"team": "y", "kind": "again", "new": "1"}
    assert (run / "tags.jsonl").read_text().splitlines() == [
        '{"ts": 5, "key": "team", "value": "y"}',
        '{"ts": 5, "key": "new", "value": "1"}',
        '{"ts": 6, "key": "kind", "value": null}',
        '{"ts": 7, "key": "kind", "value": "again"}',
    ]


def test_what_is_so_already_is_not_written_and_no_secret_ever(run):
    change_tags(run, {"team": "x", "absent": None}, 5)
    assert not (run / "tags.jsonl").exists()
    for _ in range(2):
        change_tags(run, {"api_key": "abcdef", "where": "http://ann:pw@host/x"}, 6)
    assert tags(run) == {"team": "x", "kind": "first", "api_key": "<redacted>", "where": "http://host/x"}
    assert len((run / "tags.jsonl").read_text().splitlines()) == 2


def test_a_torn_line_is_cut_off_before_more_is_written(run):
    change_tags(run, {"a": "1"}, 5)
    with (run / "tags.jsonl").open("a") as file:
        file.write('{"ts": 6, "key": "b", "va')
    assert tags(run)["a"] == "1"
    change_tags(run, {"c": "3"}, 7)
    assert changed_tags(run) == {"a": "1", "c": "3"}


def test_a_run_that_is_being_trained_can_be_tagged(run):
    with run.lock():
        change_tags(run, {"a": "1"}, 5)
    assert changed_tags(run) == {"a": "1"}


def test_a_directory_of_another_program_stays_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text('{"log_path": "/tmp/sft"}')
    with pytest.raises(RunDirError, match=r"config\.json: not a run's: restore it or use another log_path$"):
        change_tags(RunDir(tmp_path), {"a": "1"}, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def _tag_many(path, name):
    for i in range(20):
        change_tags(RunDir(path), {f"{name}{i}": "x"}, i)


def test_two_who_tag_at_once_lose_nothing(run):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_tag_many, args=(run.path, name)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert changed_tags(run) == {f"{name}{i}": "x" for name in "ab" for i in range(20)}


def test_tags_of_another_shape_are_told(run):
    document = run.config()
    (run / "config.json").write_text(json.dumps(document | {"config": {"tags": ["a"]}}))
    with pytest.raises(RunDirError, match=r"run: not as the harness writes it \(TypeError: .*\): restore its files$"):
        tags(run)


@pytest.mark.parametrize("line", ["nonsense", '{"key": "a"}', '{"value": "a"}'])
def test_a_damaged_line_is_told_with_its_place(run, line):
    (run / "tags.jsonl").write_text(f'{line}\n{{"ts": 1, "key": "a", "value": "1"}}\n')
    with pytest.raises(RunDirError, match=r"run/tags\.jsonl:1: .*: remove or mend that line$"):
        tags(run)
