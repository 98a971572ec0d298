import json
import math

import pyarrow as pa
import pytest

from harness.compare.metric_table import concat, notes_of, read_rows, read_table, sorted_by_step

FAST = [  # Arrow may read these
    b'{"step": 0, "nll": 1}\n{"step": 1, "nll": 1.5}\n',
    b'{"step": 0, "nll": 0.1}\n{"step": 1}\n{"step": 2, "test/nll": 3.25}\n',
    b'{"step": 0, "nll": null}\n{"step": 1}\n',
    b'{"step": 0, "note": "x"}\n{"step": 1, "note": null}\n',
    b'{"step": 0, "note": "\\u00e9\\ud83d\\ude00"}\n',
    b'{"step": 0, "n": 9007199254740993}\n{"step": 1, "n": -9223372036854775808}\n',
    b'{"step": 0, "n": 9223372036854775808}\n{"step": 1, "n": 1}\n',
    b'{"step": 0, "n": 9007199254740993}\n{"step": 1, "n": 0.5}\n',
    b'{"step": 0, "n": 123456789.123456789123456789}\n{"step": 1, "n": 5e-324}\n{"step": 2, "n": -0.0}\n',
    b'{"step": 0, "n": 1e5}\n{"step": 1, "n": -1}\n',
    b'{"nll": 2.5, "step": 1}\n{"other": 1, "step": 0}\n',
]
SLOW = [  # these it refuses, reads as something else, or might
    b"",
    b'{"step": 0, "nll": NaN}\n{"step": 1, "nll": 2}\n',
    b'{"step": 0, "nll": Infinity}\n{"step": 1, "nll": -Infinity}\n',
    b'{"step": 0, "nll": 1e400}\n',
    b'{"step": 0, "day": "2026-01-01"}\n',
    b'{"step": 0, "note": "\xc3\xa9"}\n',
    b'{"step": 0, "note": "\\ud800"}\n',
    b'{"step": 0, "nll": 1, "nll": 2}\n',
    b'{"step": 0, "flag": true}\n',
    b'{"step": 0, "parts": [1, 2]}\n{"step": 1, "parts": {"a": 1}}\n',
    b'{"step": 0, "nll": "high"}\n{"step": 1, "nll": 1.5}\n',
    b'{"step": 0}{"step": 1}\n',
    b'{"step": 0}{"step": 1}\n\n{"step": 2}\n',
    b'{"step": 0}\n   \n{"step": 2}\n',
    b'{"step": 0}\n{"step": 1, "nll": Inf}\n{"step": 2}\n',
    b'{"step": 0}\n{"step": 1, "nll": -NaN}\n{"step": 2}\n',
    b'{"step": 0}\n{"step": 1, "nl\n{"step": 2}\n',
    b'{"step": 0}\n{"nll": 1.0}\n',
    b'{"step": 0}\n{"step": "1"}\n{"step": 2.0}\n{"step": true}\n{"step": null}\n',
    b'{"step": 0}\r\n{"step": 1} \n',
    b'{"step": 0}\n[1]\n5\n"x"\n',
    b'{"step": 0}\n\0\0\0\0\n',
    b'\xef\xbb\xbf{"step": 0}\n{"step": 1}\n',
]


def content(table: pa.Table) -> tuple:
    """A table's types and values; NaN is equal to NaN."""
    return [(field.name, str(field.type)) for field in table.schema], repr(table.to_pylist()), notes_of(table)


@pytest.mark.parametrize("data", [*FAST, *SLOW])
@pytest.mark.parametrize("end", [b"", b'{"step": 9, "tor', b'{"step": 9}', b"\0\0"])
def test_arrow_reads_what_json_reads(data, end, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(data + end)
    assert content(read_table(path)) == content(read_rows(data.split(b"\n")[:-1], path.name))


@pytest.mark.parametrize("data", FAST)
def test_the_common_case_is_read_by_arrow(data, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.compare.metric_table.read_rows", None)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(data)
    assert read_table(path).num_rows == data.count(b"\n")


def test_numbers_are_those_of_python(tmp_path):
    path = tmp_path / "metrics.jsonl"
    numbers = [0.1, 1 / 3, 1e-320, 1.7976931348623157e308, 123456789.12345679, 2**-1074, math.pi * 1e200]
    path.write_text("".join(json.dumps({"step": i, "nll": number}) + "\n" for i, number in enumerate(numbers)))
    assert read_table(path)["nll"].to_pylist() == numbers


def test_columns_are_typed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 0, "n": 3, "x": 1, "digest": "aa", "flag": true, "gone": null, "day": "2026-01-01"}\n'
        '{"step": 1, "n": null, "x": 0.5, "digest": "bb", "parts": [1]}\n'
    )
    table = read_table(path)
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {"step": "int64", "n": "int64", "x": "double", "gone": "null"} | dict.fromkeys(
        ("digest", "flag", "day", "parts"), "string"
    )
    assert table.to_pylist()[0] == {
        "step": 0, "n": 3, "x": 1.0, "digest": "aa", "flag": "true", "gone": None, "day": "2026-01-01", "parts": None
    }  # fmt: skip


def test_what_is_damaged_is_left_out_and_noted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "nll": "?"}\n{"step": 1, "nl\n{"step": 2, "nll": 0.5}\n{"step": 3, "nl')
    table = read_table(path)
    assert table.to_pylist() == [{"step": 0, "nll": None}, {"step": 2, "nll": 0.5}]
    assert notes_of(table) == [
        "metrics.jsonl: line 2 left out: not a row with a 'step'",
        "nll: 1 value left out: no number",
    ]
    path.write_text('{"step": 0}\n{}\n[]\n{"step": 3}\n')
    assert notes_of(read_table(path)) == [
        "metrics.jsonl: 2 lines, the first of them 2, left out: not a row with a 'step'"
    ]


def test_a_last_line_that_a_power_cut_filled_with_zeros_is_torn(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n\0\0\0\n')
    table = read_table(path)
    assert (table.num_rows, notes_of(table)) == (1, [])


def test_a_missing_file_has_no_rows(tmp_path):
    table = read_table(tmp_path / "metrics.jsonl")
    assert (table.num_rows, table.column_names, notes_of(table)) == (0, ["step"], [])


def test_tables_of_other_types_come_to_one():
    whole = pa.table({"step": [0], "n": [2**53 + 1], "t": ["a"], "only": pa.nulls(1)})
    broken = pa.table({"step": [0], "n": [0.5], "t": [1]})
    text = pa.table({"step": [1], "n": ["x"], "u": ["b"]})
    table, left_out = concat([whole, broken, text, whole])
    assert {field.name: str(field.type) for field in table.schema} == {
        "step": "int64", "n": "double", "t": "int64", "only": "double", "u": "string"
    }  # fmt: skip
    assert table["n"].to_pylist() == [float(2**53 + 1), 0.5, None, float(2**53 + 1)]
    assert table["t"].to_pylist() == [None, 1, None, None]
    assert left_out == [["t"], [], ["n"], ["t"]]


def test_no_table_is_an_empty_one():
    table, left_out = concat([])
    assert (table.num_rows, table.column_names, left_out) == (0, ["step"], [])


def test_rows_are_sorted_by_step_and_those_of_one_step_stay_in_order():
    table = pa.table({"step": [2, 0, 2, 1], "n": [1, 2, 3, 4]})
    assert sorted_by_step(table)["n"].to_pylist() == [2, 4, 1, 3]
