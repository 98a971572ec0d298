import pytest

from harness.exceptions import RunDirError
from harness.run_dir import RunDir
from harness.sweep_record import read_record, sweep_folders, write_record


def write(root, started, values):
    write_record(root, started=started, recipe="r", argv=["sweep"], grid={"x": values}, runs=[f"x={v}" for v in values])
    record = read_record(root)
    assert record is not None
    return record


def test_a_folder_keeps_its_id_and_start_and_learns_what_was_asked_last(tmp_path):
    assert read_record(tmp_path) is None and read_record(tmp_path / "nowhere") is None
    first = write(tmp_path, 1, ["a"])
    again = write(tmp_path, 2, ["a", "b"])
    assert (again.sweep_id, again.started) == (first.sweep_id, 1)
    assert (again.grid, again.runs) == ({"x": ["a", "b"]}, ["x=a", "x=b"])


def test_folders_of_sweeps_among_those_of_runs(tmp_path):
    (tmp_path / "sw").mkdir()
    write(tmp_path / "sw", 1, ["a"])
    runs = [RunDir(tmp_path / path) for path in ("sw/x=a", "alone", "sw/x=b")]
    assert sweep_folders(runs) == [tmp_path / "sw"]


@pytest.mark.parametrize("text", ["[]", '{"recipe": "r"}'])
def test_another_programs_file_of_that_name_is_none(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    assert read_record(tmp_path) is None


def test_a_folder_of_that_name_is_one_line(tmp_path):
    (tmp_path / "sweep.json").mkdir()
    with pytest.raises(RunDirError, match=r"sweep\.json: cannot be read \(Is a directory\): choose another --root$"):
        read_record(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"sweep_id": "x"}'])
def test_a_damaged_record_is_one_line(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(RunDirError, match=r"sweep\.json: not a sweep's \(.*\): restore it, or choose another --root"):
        read_record(tmp_path)
