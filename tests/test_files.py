import json
import os

import pytest

from harness.exceptions import RunDirError
from harness.files import append_jsonl, read_jsonl, write_json


def test_a_bad_line_that_is_not_the_last_is_an_error_that_names_it(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\nnot json\n{"step": 2}\n')
    with pytest.raises(RunDirError, match=r"metrics\.jsonl:2: not a JSON row"):
        read_jsonl(tmp_path / "metrics.jsonl")


def test_lines_that_are_left_out_are_looked_at(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text('{"a": 1}\n{"b": 2}\n{"a": 3}\n')
    assert read_jsonl(path, having='"b"') == [{"b": 2}]
    for garbage in ('{"garb', "", "12"):
        path.write_text(f'{{"a": 1}}\n{garbage}\n{{"b": 3}}\n')
        with pytest.raises(RunDirError, match=r"f\.jsonl:2: not a JSON row"):
            read_jsonl(path, having='"b"')


def test_what_stands_from_a_key_on_is_not_parsed_where_that_is_asked_for(tmp_path):
    file = tmp_path / "eval_examples.jsonl"
    file.write_text('{"step": 0, "set": "a, \\"ids\\": ", "ids": [what]}\n{"step": 1}\n{"ids": [1], "step": 2}\n')
    rows = read_jsonl(file, until="ids")
    assert rows == [{"step": 0, "set": 'a, "ids": '}, {"step": 1}, {"ids": [1], "step": 2}]


def test_nan_never_reaches_a_file(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_jsonl(tmp_path / "metrics.jsonl", [{"train_mean_nll": float("nan")}])


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "metrics.jsonl"
    append_jsonl(file, [{"step": 0}])
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:5]))  # what a full disk does: it writes a part
    with pytest.raises(RunDirError, match=r"cannot be written \(No space left on device\): make room"):
        append_jsonl(file, [{"step": 1}])
    assert file.read_text() == '{"step": 0}\n'


def test_a_json_document_is_replaced_whole(tmp_path):
    file = tmp_path / "mirror.json"
    write_json(file, {"a": 1})
    with pytest.raises(ValueError):
        write_json(file, {"a": float("inf")})
    assert json.loads(file.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["mirror.json"]
