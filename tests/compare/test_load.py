import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from harness.compare import align, load_runs
from harness.exceptions import RunDirError
from harness.metric_keys import STEP, TRAIN_NLL
from harness.run_dir import METRICS
from harness.run_tags import change_tags
from tests.compare.made_runs import last_row, make_run, scored, train_row


def test_metrics_are_tidy_and_sorted_by_step(tmp_path):
    make_run(tmp_path / "a", [last_row(1, 1.0), train_row(0, 3.0, 2.0)])
    make_run(tmp_path / "b", [train_row(0, 5.0)])

    metrics = load_runs([tmp_path / "b", tmp_path / "a"]).metrics

    assert metrics[["run", STEP]].values.tolist() == [["b", 0], ["a", 0], ["a", 1]]
    assert metrics[TRAIN_NLL].dropna().tolist() == [5.0, 3.0]
    assert metrics["test/nll"].dropna().tolist() == [2.0, 1.0]
    assert pd.api.types.is_integer_dtype(metrics[STEP])


def test_a_folder_stands_for_the_runs_in_it_and_a_run_is_read_once(tmp_path, monkeypatch):
    make_run(tmp_path / "runs" / "b", [train_row(0, 1.0)])
    make_run(tmp_path / "runs" / "a", [train_row(0, 1.0)])
    monkeypatch.chdir(tmp_path)
    assert list(load_runs("runs").states) == ["a", "b"]
    assert list(load_runs(["runs/b", "runs", "runs/a/../b"]).states) == ["b", "a"]


def test_runs_of_one_folder_name_get_names_that_tell_them_apart(tmp_path):
    for folder in ("x/1/run", "y/1/run", "y/2/run", "other"):
        make_run(tmp_path / folder, [train_row(0, 1.0)])
    names = list(load_runs(tmp_path).states)
    assert names == ["other", *(os.path.join(*end) for end in (("x", "1", "run"), ("y", "1", "run"), ("2", "run")))]


def test_configs_hold_every_path_with_its_own_type(tmp_path):
    make_run(tmp_path / "a", [], lora_rank=8, targets=["q", "v"])
    make_run(tmp_path / "b", [], grad_clip_norm=None)

    configs = load_runs(tmp_path).configs

    a, b = (configs.loc[run].to_dict() for run in ("a", "b"))
    assert a["dataset_builder.common_config.batch_size"] == 8
    assert a["dataset_builder"] == "harness.supervised.data:FromConversationFileBuilder"
    assert (a["lora_rank"], a["targets"], a["learning_rate"]) == (8, ["q", "v"], 2e-4)
    assert type(a["lora_rank"]) is int
    assert b["targets"] is None
    assert (b["versions.torch"], b["numerics.dtype"], b["git_commit"]) == ("2.13.0", "float32", "c0ffee")
    assert b["data.train"] == "beef"


def test_test_sets_come_from_the_evaluations_and_before_the_first_from_the_config(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 1.0, {"x": 1.0})], test={"x": "aa", "y": "bb"})
    make_run(tmp_path / "b", [train_row(0, 1.0, 1.0)], test={"": "cc"}, evaluated=False)
    make_run(tmp_path / "c", [train_row(0, 1.0)], document={"data": {"train": "beef", "test": None}})
    test_sets = load_runs(tmp_path).test_sets
    assert test_sets.values.tolist() == [["a", "x", "aa"], ["a", "y", "bb"], ["b", "", "cc"]]


def test_what_the_evaluation_was_made_on_counts_not_what_the_config_promised(tmp_path):
    run = make_run(tmp_path / "a", [train_row(0, 1.0, 1.0)], test={"": "aa"}, evaluated=False)
    run.append_eval_examples([{"step": 0, "set": "", "fingerprint": "bb", "ids": [], "nll": []}])
    assert load_runs(tmp_path).test_sets["fingerprint"].tolist() == ["bb"]


def test_tags_that_were_changed_later_are_those_of_the_run(tmp_path):
    run = make_run(tmp_path / "a", [], tags={"team": "x", "kind": "y"})
    change_tags(run, {"team": None, "new": "z"}, 1)
    configs = load_runs(tmp_path).configs
    assert configs.loc["a", ["tags.kind", "tags.new"]].tolist() == ["y", "z"]
    assert "tags.team" not in configs.columns


def test_states_of_runs_that_train_died_failed_or_never_began(tmp_path):
    make_run(tmp_path / "done", [])
    make_run(tmp_path / "failed", [], state="FAILED")
    make_run(tmp_path / "killed", [], state=None)
    (make_run(tmp_path / "new", []) / "attempts.jsonl").unlink()
    training = make_run(tmp_path / "training", [], state=None)
    with training.lock():
        states = load_runs(tmp_path).states
    assert states == {
        "done": "FINISHED",
        "failed": "FAILED",
        "killed": "KILLED",
        "new": "NEW",
        "training": "RUNNING",
    }


def test_a_torn_last_line_is_left_out(tmp_path):
    run = make_run(tmp_path / "a", [train_row(0, 3.0, 2.0), train_row(1, 2.0)])
    with (run / METRICS).open("a") as file:
        file.write('{"step": 2, "train_mea')
    assert load_runs(run.path).metrics[STEP].tolist() == [0, 1]
    assert (run / METRICS).read_text().endswith("train_mea")  # nothing is mended: it may be the writer's next row


def test_a_run_without_rows_and_one_without_config_are_read_for_what_they_hold(tmp_path):
    make_run(tmp_path / "empty", [])
    bare = make_run(tmp_path / "bare", [train_row(0, 3.0)])
    (bare / "config.json").unlink()

    runs = load_runs(tmp_path)

    assert list(runs.states) == ["bare", "empty"]
    assert runs.metrics["run"].tolist() == ["bare"]
    assert runs.configs.loc["bare"].isna().all()


def test_a_path_without_a_run_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunDirError, match=r"^nope: no such run directory$"):
        load_runs("nope")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunDirError, match=r"^empty: no run in it \(a run directory holds config.json and"):
        load_runs(["empty"])


def test_a_pattern_stands_for_what_it_matches(tmp_path, monkeypatch):
    for name in ("lr-1/seed-0", "lr-1/seed-1", "lr-2", "[x]"):
        make_run(tmp_path / "runs" / name, [train_row(0, 1.0)])
    (tmp_path / "runs" / "lr-notes.txt").touch()
    (tmp_path / "runs" / "lr-empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert list(load_runs("runs/lr-*").states) == ["seed-0", "seed-1", "lr-2"]
    assert list(load_runs(["runs/**/seed-[1-9]", "runs/[x]"]).states) == ["seed-1", "[x]"]
    with pytest.raises(RunDirError, match=r"^runs/z\*: nothing matches this pattern$"):
        load_runs("runs/z*")
    with pytest.raises(RunDirError, match=r"^runs/\*-e\*: no run in what it matches \(a run directory holds"):
        load_runs("runs/*-e*")


def test_a_damaged_run_is_read_for_what_it_holds_and_the_others_are_not_touched_by_it(tmp_path, monkeypatch):
    for name in ("damaged", "whole"):
        make_run(tmp_path / name, [train_row(0, 3.0, 2.0), train_row(1, 2.0), last_row(2, 1.0)])
    monkeypatch.chdir(tmp_path)
    for file in ("config.json", "metrics.jsonl", "attempts.jsonl", "eval_examples.jsonl"):
        lines = Path("damaged", file).read_text().splitlines(keepends=True)
        Path("damaged", file).write_text("".join(["{damaged\n", *lines[1:]]))

    runs = load_runs(["damaged", "whole"])

    assert runs.metrics.loc[runs.metrics["run"] == "damaged", STEP].tolist() == [1, 2]
    assert runs.states == {"damaged": "UNREADABLE", "whole": "FINISHED"}
    assert list(runs.notes) == ["damaged"]
    config, metrics, examples, attempts = runs.notes["damaged"]
    assert config.startswith(f"{tmp_path}/damaged/config.json: not JSON (")
    assert metrics == "metrics.jsonl: line 1 left out: not a row with a 'step'"
    assert attempts.startswith(f"{tmp_path}/damaged/attempts.jsonl:1: not a JSON row (")
    assert examples.startswith(f"{tmp_path}/damaged/eval_examples.jsonl:1: not a JSON row (")
    assert runs.configs.loc["damaged"].isna().all()
    assert runs.test_sets["run"].tolist() == ["whole"]


def test_text_where_other_runs_have_numbers_is_left_out(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 3.0) | {"grade": "A", "digest": "ff"}])
    make_run(tmp_path / "b", [train_row(0, 3.0) | {"grade": 1.5, "digest": "ee"}])
    runs = load_runs(tmp_path)
    assert runs.metrics["grade"].dropna().tolist() == [1.5]
    assert runs.metrics["digest"].tolist() == ["ff", "ee"]
    assert runs.notes == {"a": ["grade: text left out: other runs have numbers there"]}


def test_columns_that_no_run_has_a_value_in_are_of_numbers(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 3.0) | {"test/nll": None}])
    assert load_runs(tmp_path).metrics["test/nll"].dtype == "float64"


def test_no_source_is_a_mistake():
    with pytest.raises(RunDirError) as error:
        load_runs([])
    assert str(error.value) == (
        "no runs to compare: name a run directory, a folder that holds some, or mlflow:EXPERIMENT"
    )


def test_a_metric_that_is_called_run_is_left_out(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 3.0, 2.0) | {"run": 7.0}])
    make_run(tmp_path / "b", [train_row(0, 3.0, 2.0)])
    runs = load_runs(tmp_path)
    assert align(runs, [0])["run"].tolist() == ["a", "b"]
    assert runs.notes == {"a": ["run: left out: runs' names stand in the column of that name"]}


def test_a_damaged_evaluation_spoils_no_other(tmp_path):
    run = make_run(tmp_path / "a", [train_row(0, 3.0, 2.0), train_row(4, 2.5, 1.5), last_row(40, 1.0)])
    lines = (run / "eval_examples.jsonl").read_text().splitlines()
    (run / "eval_examples.jsonl").write_text("\n".join([lines[0], lines[1], lines[2][:60], lines[0], ""]))
    runs = load_runs(tmp_path)
    assert runs.test_sets["fingerprint"].tolist() == ["feed"]
    for step in (0, 4):
        evaluation = runs.evaluation("a", step)
        assert evaluation is not None and evaluation.nll.tolist() == [2.0]
    with pytest.raises(RunDirError, match=r"eval_examples.jsonl:3: not a JSON row"):
        runs.evaluation("a", 40)


def test_the_second_time_comes_from_the_cache_and_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("harness.compare.cache.SETTLED_SECONDS", -1.0)
    for name in ("a", "b"):
        make_run(tmp_path / "runs" / name, [train_row(0, 3.0, 2.0) | {"digest": name}, last_row(1, 1.0)])
    with Path(tmp_path, "runs", "b", "metrics.jsonl").open("a") as file:
        file.write("{damaged\n" + json.dumps(last_row(2, 0.5)) + "\n")
    first = load_runs(tmp_path / "runs")
    monkeypatch.setattr("harness.compare.read_run.read_table", None)
    monkeypatch.setattr("harness.run_dir.RunDir.evaluations", None)
    second = load_runs(tmp_path / "runs")
    pd.testing.assert_frame_equal(first.metrics, second.metrics)
    pd.testing.assert_frame_equal(first.test_sets, second.test_sets)
    assert first.notes == second.notes == {"b": ["metrics.jsonl: line 3 left out: not a row with a 'step'"]}


def test_a_copy_elsewhere_is_read_the_same(tmp_path):
    rows = [train_row(0, 3.0, 2.5), last_row(1, 2.0)]
    original = make_run(tmp_path / "a", rows)
    shutil.copytree(original.path, tmp_path / "b" / "a")
    here, there = load_runs(original.path), load_runs(tmp_path / "b")
    pd.testing.assert_frame_equal(here.metrics, there.metrics)
    pd.testing.assert_frame_equal(here.configs, there.configs)


def test_an_evaluation_is_read_when_it_is_asked_for(tmp_path):
    run = make_run(tmp_path / "a", [train_row(2, 3.0, 2.0)], examples=scored([4.0, 2.0], [2, 1], ["x", "y"]))
    other = {"step": 2, "set": "math", "fingerprint": "aa"} | scored([9.0], [3])
    later = {"step": 21, "set": "", "fingerprint": "feed"} | scored([8.0], [5])
    run.append_eval_examples([other, later])

    runs = load_runs(run.path)

    found = runs.evaluation("a", 2)
    assert found is not None
    assert (found.fingerprint, found.ids, found.slices) == ("feed", ["x", "y"], [None, None])
    assert found.nll.tolist() == [4.0, 2.0] and found.nll.dtype == "float64"
    assert found.num_loss_tokens.tolist() == [2, 1] and found.num_loss_tokens.dtype == "int64"
    of_math = runs.evaluation("a", 2, "math")
    assert of_math is not None and of_math.nll.tolist() == [9.0]
    assert runs.evaluation("a", 1) is None and runs.evaluation("a", 21, "math") is None


def test_the_examples_of_evaluations_are_not_parsed_before_they_are_asked_for(tmp_path):
    run = make_run(tmp_path / "a", [train_row(0, 3.0, 2.0)], evaluated=False)
    heads = [{"step": step, "set": "", "fingerprint": "aa"} for step in (0, 1)]
    lines = [json.dumps(head | {"ids": "IDS"}).replace('"IDS"', "[damaged") for head in heads]
    (run / "eval_examples.jsonl").write_text("\n".join([*lines, ""]))
    runs = load_runs(run.path)
    assert runs.test_sets["fingerprint"].tolist() == ["aa"]
    with pytest.raises(RunDirError, match=r"eval_examples.jsonl:1: not a JSON row .*: remove or mend that line$"):
        runs.evaluation("a", 0)


def test_an_evaluation_without_all_of_its_columns_is_named(tmp_path):
    run = make_run(tmp_path / "a", [train_row(0, 3.0, 2.0)], examples=scored([4.0, 2.0], [2]))
    with pytest.raises(RunDirError) as error:
        load_runs(run.path).evaluation("a", 0)
    assert str(error.value) == (
        f"{run / 'eval_examples.jsonl'}: the evaluation at step 0 has columns of different lengths (ids 2, slices 2, "
        "nll 2, num_loss_tokens 1): remove that line"
    )


def test_what_was_evaluated_after_training_stands_at_its_step(tmp_path):
    run = make_run(tmp_path / "a", [train_row(0, 3.0, 2.0), train_row(1, 2.5)])
    for step, nll in ((2, 1.0), (0, 1.5)):
        head = {"step": step, "ts": 9, "metrics": {"test/new/nll": nll}, "set": "new", "fingerprint": "aa"}
        run.append_later_evaluation(head | scored([nll], [1]))
    run.append_later_evaluation(
        {"superseded_by_attempt": 2, "step": 1, "ts": 9, "metrics": {"test/new/nll": 9.0}, "set": "new"}
        | {"fingerprint": "aa", "ids": []}
    )

    runs = load_runs(run.path)

    columns = [STEP, TRAIN_NLL, "test/nll", "test/new/nll"]
    assert runs.metrics[columns].fillna(-1).values.tolist() == [[0, 3.0, 2.0, 1.5], [1, 2.5, -1, -1], [2, -1, -1, 1.0]]
    assert runs.metrics["ts"].tolist()[0] == run.metrics()[0]["ts"]
    assert runs.test_sets.values.tolist() == [["a", "", "feed"], ["a", "new", "aa"]]
    evaluation = runs.evaluation("a", 2, "new")
    assert evaluation is not None and evaluation.nll.tolist() == [1.0]


def test_a_damaged_later_evaluation_spoils_nothing_that_training_measured(tmp_path):
    run = make_run(tmp_path / "a", [train_row(0, 1.0, 1.0)], test={"": "aa"}, examples=scored([2.0], [1]))
    (run / "later_evaluations.jsonl").write_text('{damaged\n{"step": 0}\n')
    runs = load_runs(tmp_path)
    assert runs.test_sets.values.tolist() == [["a", "", "aa"]]
    evaluation = runs.evaluation("a", 0)
    assert evaluation is not None and evaluation.nll.tolist() == [2.0]
    with pytest.raises(RunDirError, match=r"later_evaluations\.jsonl:1: "):
        runs.evaluation("a", 0, "mine")


def test_what_a_test_set_says_is_known_from_the_config_or_from_the_later_evaluation(tmp_path):
    data = {"train": "beef", "test": {"": "feed"}, "test_contents": {"": "text"}}
    later = {"step": 1, "ts": 1, "fingerprint": "aa", "metrics": {}} | scored([2.0], [1])
    for name, document, contents in (("a", {"data": data}, {"contents": "mine"}), ("b", {}, {})):
        run = make_run(tmp_path / name, [last_row(1, 2.0)], document=document)
        run.append_later_evaluation(later | {"set": "mine"} | contents)
    runs = load_runs(tmp_path)
    found = {(run, on): runs.evaluation(run, 1, on) for run in "ab" for on in ("", "mine")}
    assert {key: of and of.contents for key, of in found.items()} == {
        ("a", ""): "text", ("a", "mine"): "mine", ("b", ""): None, ("b", "mine"): None,
    }  # fmt: skip


def test_rows_that_are_all_damaged_are_told(tmp_path):
    run = make_run(tmp_path / "a", [])
    (run / "metrics.jsonl").write_text("garbage\nmore\nand more\n")
    assert "metrics.jsonl: 2 lines, the first of them 1, left out" in load_runs(tmp_path).notes["a"][0]


@pytest.mark.parametrize(
    "config",
    [
        {"config": "x", "run_id": "r"},
        {"config": {"tags": "x"}, "run_id": "r"},
        {"config": {}, "run_id": "r", "data": "x"},
    ],
)
def test_a_config_of_another_shape_is_told_and_leaves_the_others_readable(tmp_path, config):
    run = make_run(tmp_path / "a", [train_row(0, 4.0, 3.0)])
    make_run(tmp_path / "b", [train_row(0, 4.0, 3.0)])
    (run / "config.json").write_text(json.dumps(config))
    runs = load_runs(tmp_path)
    assert "not as the harness writes it" in runs.notes["a"][0] and list(runs.notes) == ["a"]
    assert runs.metrics["run"].tolist() == ["a", "b"]


def test_no_path_is_not_this_folder(tmp_path, monkeypatch):
    make_run(tmp_path / "a", [])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunDirError, match=r"^an empty path: name a run directory or a folder; this one is \.$"):
        load_runs([""])


def test_an_extended_run_says_over_how_many_updates_its_schedule_was_drawn(tmp_path):
    for name, schedule in (("extended", [[0, 2], [2, 5]]), ("kept", [[0, 2]]), ("straight", [[0, 5]])):
        run = make_run(tmp_path / name, [])
        run.append_attempt({"attempt": 2, "event": "start", "ts": 1, "total_steps": 5, "schedule": schedule})
    planned = load_runs(tmp_path).configs["planned_updates"]
    assert planned.to_dict() == {"extended": "2, from step 2 on 5", "kept": "2", "straight": None}
