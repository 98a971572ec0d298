import dataclasses
import multiprocessing

import pytest

from harness import run_dir
from harness.exceptions import RunDirError
from harness.files import append_jsonl, read_jsonl, write_json
from harness.run_dir import CheckpointRecord, RunDir
from harness.run_folders import find_runs


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "run")


def test_a_torn_last_line_is_dropped_by_readers_and_cut_by_the_next_writer(run):
    with run.lock():
        run.append_metrics({"step": 0})
    with (run / run_dir.METRICS).open("a") as file:
        file.write('{"step": 1, "train_me')
    assert run.metrics() == [{"step": 0}]
    with run.lock():
        run.append_metrics({"step": 1})
    assert run.metrics() == [{"step": 0}, {"step": 1}]


def test_zeros_that_a_power_cut_left_are_a_torn_line(run):
    with run.lock():
        run.append_metrics({"step": 0})
    with (run / run_dir.METRICS).open("ab") as file:
        file.write(b"\0" * 20 + b"\n")
    with run.lock():
        run.append_metrics({"step": 1})
    assert run.metrics() == [{"step": 0}, {"step": 1}]


@pytest.mark.parametrize(
    "end", ["", '{"step": 3, "tr', "\0\0\0\n", "\0\0\0\ntorn"], ids=["whole", "torn", "zeros", "zeros, torn"]
)
def test_rows_one_at_a_time_are_the_same_rows(run, end):
    with run.lock():
        for step in range(3):
            run.append_metrics({"step": step})
    with (run / run_dir.METRICS).open("a") as file:
        file.write(end)
    for first in range(4):
        assert list(run.iter_metrics(first)) == run.metrics_from(first) == [{"step": i} for i in range(first, 3)]


def test_rows_one_at_a_time_are_not_read_before_they_are_asked_for(run):
    assert list(run.iter_metrics()) == []
    with run.lock():
        run.append_metrics({"step": 0})
        with (run / run_dir.METRICS).open("a") as file:
            file.write('not JSON\n{"train_mean_nll": 1.0}\n')
    rows = run.iter_metrics()
    assert next(rows) == {"step": 0}
    with pytest.raises(RunDirError, match=r"metrics\.jsonl:2: not a JSON row"):
        next(rows)
    with pytest.raises(RunDirError, match=r"metrics\.jsonl: a row without 'step': remove or mend that line"):
        next(run.iter_metrics(1))


def _try_to_lock(path, answer):
    try:
        with RunDir(path).lock():
            answer.put("locked")
    except RunDirError as error:
        answer.put(str(error))


def _in_another_process(path):
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_try_to_lock, args=(path, answer))
    process.start()
    said = answer.get(timeout=60)
    process.join()
    return said


def test_one_writer_at_a_time_and_the_lock_is_released_on_return_and_exception(run):
    with run.lock():
        run.write_config({"run_id": "x"})
        assert "another process is writing to this run" in _in_another_process(run.path)
    assert not run.is_locked()
    with pytest.raises(KeyboardInterrupt), run.lock():
        raise KeyboardInterrupt
    assert _in_another_process(run.path) == "locked"


def test_a_lock_that_starts_nothing_leaves_no_directory_behind(run):
    with pytest.raises(ValueError), run.lock():
        (run / run_dir.LOG).write_text("warning")
        raise ValueError
    assert not run.path.exists()


def test_a_lock_that_starts_nothing_leaves_a_folder_of_the_user_s_as_it_is(run):
    run.path.mkdir()
    (run / run_dir.LOG).write_text("mine")
    with pytest.raises(ValueError), run.lock():
        raise ValueError
    assert (run / run_dir.LOG).read_text() == "mine"


def test_a_path_that_cannot_be_a_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match="cannot be written"), RunDir(tmp_path / "file" / "run").lock():
        pass


def test_checkpoint_records_keep_unknown_keys_and_the_last_row_of_a_name_counts(run):
    with run.lock():
        first = CheckpointRecord("000002", 2, 0, 2, "checkpoints/000002", extra={"of_a_later_version": 1})
        run.append_checkpoint(first)
        run.append_checkpoint(CheckpointRecord("000004", 4, 1, 0, "checkpoints/000004"))
        run.append_checkpoint(dataclasses.replace(first, deleted=True))
    records = run.checkpoints()
    assert [(r.name, r.deleted) for r in records] == [("000002", True), ("000004", False)]
    assert records[0].extra == {"of_a_later_version": 1}


def test_superseded_rows_move_aside_once_even_when_moved_twice(run):
    rows = [{"step": step, "ts": step} for step in range(4)]
    with run.lock():
        append_jsonl(run / run_dir.METRICS, rows)
        append_jsonl(run / run_dir.EVAL_EXAMPLES, [{"step": 0, "set": ""}, {"step": 2, "set": ""}])
        run.supersede(2, attempt=2)
        append_jsonl(run / run_dir.METRICS, rows[2:])  # as if a crash had come before they were cut
        with (run / "metrics.superseded.jsonl").open("a") as file:
            file.write('{"step": 3, "torn')
        run.supersede(2, attempt=3)
    assert run.is_superseded()
    assert run.metrics() == rows[:2]
    assert run.eval_examples() == [{"step": 0, "set": ""}]
    aside = read_jsonl(run / "metrics.superseded.jsonl")
    assert [(row["step"], row["superseded_by_attempt"]) for row in aside] == [(2, 2), (3, 2)]


def test_states(run):
    assert run.state() == "NEW"
    with run.lock():
        run.write_config({})
        run.append_attempt({"attempt": 1, "event": "start"})
        assert run.state() == "RUNNING"
    assert run.state() == "KILLED"
    with run.lock():
        run.append_attempt({"attempt": 1, "event": "end", "state": "FINISHED"})
    assert run.state() == "FINISHED"
    assert run.is_finished()


@pytest.mark.parametrize("text", ["{", '"x"', "{}", '{"tracking_uri": 5, "run_id": 7}'])
def test_a_mirror_that_names_no_run_is_told(run, text):
    run.path.mkdir(exist_ok=True)
    (run / "mirror.json").write_text(text)
    with pytest.raises(RunDirError, match=r"mirror\.json: .*: remove it and sync again"):
        run.mirror()


def test_find_runs_in_folders_and_not_in_checkpoints(tmp_path):
    for name in ("b", "a/deep"):
        (tmp_path / name / "checkpoints" / "000001").mkdir(parents=True)
        write_json(tmp_path / name / "config.json", {"run_id": "x"})
        write_json(tmp_path / name / "checkpoints" / "000001" / "config.json", {"model_type": "llama"})
    copy = tmp_path / "mlruns" / "artifacts" / "0" / "artifacts"
    copy.mkdir(parents=True)
    append_jsonl(copy / "metrics.jsonl", [{"step": 0}])
    found = find_runs([tmp_path / "b", tmp_path])
    assert [run.path.relative_to(tmp_path).as_posix() for run in found] == ["b", "a/deep"]
    with pytest.raises(RunDirError, match="no such run directory"):
        find_runs([tmp_path / "c"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunDirError, match="no run in it"):
        find_runs([tmp_path / "empty"])


def test_evaluations_of_one_step_and_their_heads(run):
    rows = [{"step": step, "set": name, "fingerprint": "aa", "ids": ["x"]} for step in (2, 21) for name in ("", "b")]
    with run.lock():
        run.append_eval_examples(rows)
    assert run.eval_examples(2) == rows[:2]
    assert run.eval_examples(1) == []
    assert run.evaluations() == [{key: row[key] for key in ("step", "set", "fingerprint")} for row in rows]


def later(step, name="new", ts=1):
    head = {"step": step, "ts": ts, "metrics": {f"test/{name}/nll": 2.0}, "set": name, "fingerprint": "aa"}
    return head | {"ids": ["x"], "nll": [2.0]}


def test_evaluations_made_after_training_stand_beside_those_of_training(run):
    in_training = {"step": 8, "set": "", "fingerprint": "bb", "ids": ["x"]}
    with run.lock():
        run.append_eval_examples([in_training])
        run.append_later_evaluation(later(80))
        run.append_later_evaluation(later(8))
    with (run / run_dir.LATER_EVALUATIONS).open("a") as file:
        file.write('{"step": 8, "set": "torn"')
    assert run.eval_examples(8) == [in_training, later(8)]
    assert run.eval_examples() == [in_training, later(80), later(8)]
    assert run.eval_examples_from(0) == [in_training]
    assert [(row["step"], row["set"]) for row in run.evaluations()] == [(8, ""), (80, "new"), (8, "new")]
    assert [row.keys() & {"ids", "nll"} for row in run.later_evaluations()] == [set(), set()]
    with run.lock():
        run.append_later_evaluation(later(8, "next"))
    assert [row["set"] for row in run.later_evaluations()] == ["new", "new", "next"]


@pytest.mark.parametrize("key", ["step", "ts", "metrics", "set", "fingerprint"])
def test_an_evaluation_made_after_training_that_lacks_a_key_is_told_with_its_place(run, key):
    with run.lock():
        run.append_later_evaluation(later(8))
        run.append_later_evaluation({k: v for k, v in later(9).items() if k != key})
    with pytest.raises(RunDirError, match=rf"later_evaluations\.jsonl:2: no '{key}' in it: remove or mend that line$"):
        run.later_evaluations()


def test_evaluations_of_checkpoints_that_a_resume_left_do_not_count(run):
    with run.lock():
        for step in (4, 6, 8):
            run.append_later_evaluation(later(step))
        run.supersede_later_evaluations(6, attempt=2)
        run.append_later_evaluation(later(8, ts=2))
        run.supersede_later_evaluations(4, attempt=3)
        run.append_later_evaluation(later(8, ts=3))
    rows = run.later_evaluations()
    assert [(row["step"], row.get("superseded_by_attempt")) for row in rows] == [
        (4, None), (6, 3), (8, 2), (8, 3), (8, None),
    ]  # fmt: skip
    assert run.eval_examples(8) == [later(8, ts=3)]
    assert [row["step"] for row in run.evaluations()] == [4, 8]
