import pandas as pd
import pytest

from harness.compare import config_differences, load_runs, summarise
from harness.compare.stats import best_runs, by_test_set, comparable
from harness.exceptions import ConfigError
from tests.compare.made_runs import last_row, make_run, train_row


def test_a_run_whose_best_is_in_the_middle(tmp_path):
    rows = [train_row(0, 4.0, 4.5), train_row(1, 3.0), train_row(2, 2.0, 2.25), train_row(3, 1.0), last_row(4, 2.75)]
    make_run(tmp_path / "a", rows)

    summary = summarise(load_runs(tmp_path))

    assert summary.index.tolist() == ["a"]
    assert summary.loc["a"].to_dict() == {
        "state": "FINISHED",
        "steps": 4,
        "num_tokens": 400,
        "num_loss_tokens": 160,
        "last_test_nll": 2.75,
        "last_test_step": 4,
        "best_test_nll": 2.25,
        "best_step": 2,
        "train_nll": 2.0,  # row 2's own batch, measured on the weights that gave 2.25
        "train_step": 2,
        "gap": 0.25,
        "last_train_nll": 1.0,
        "test_fingerprint": "feed",
    }


def test_where_the_last_evaluation_is_best_the_batch_before_it_stands_in(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 4.0, 4.5), train_row(1, 3.25), last_row(2, 3.0)])
    row = summarise(load_runs(tmp_path)).loc["a"]
    assert (row["best_step"], row["last_test_step"], row["train_step"]) == (2, 2, 1)
    assert (row["train_nll"], row["gap"]) == (3.25, -0.25)


def test_of_equal_evaluations_the_first_is_best(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 4.0, 3.0), train_row(1, 3.0, 2.0), last_row(2, 2.0)])
    assert summarise(load_runs(tmp_path)).loc["a", "best_step"] == 1


def test_runs_that_lack_test_rows_train_rows_or_all(tmp_path):
    make_run(tmp_path / "empty", [])
    make_run(tmp_path / "only-test", [last_row(0, 2.0)])
    make_run(tmp_path / "only-train", [train_row(0, 4.0), train_row(1, 3.0)], state=None)

    summary = summarise(load_runs(tmp_path))

    nothing = summary.loc["empty"]
    assert (nothing["steps"], nothing["num_tokens"]) == (0, 0)
    held = {column for column, value in nothing.items() if not pd.isna(value)}
    assert held == {"state", "steps", "num_tokens", "num_loss_tokens", "test_fingerprint"}
    test = summary.loc["only-test"]
    assert (test["best_test_nll"], test["best_step"], test["steps"]) == (2.0, 0, 0)
    assert pd.isna(test[["train_nll", "train_step", "gap"]].tolist()).all()
    train = summary.loc["only-train"]
    assert (train["state"], train["steps"], train["last_train_nll"]) == ("KILLED", 2, 3.0)
    assert pd.isna(train[["best_test_nll", "best_step", "gap"]].tolist()).all()
    assert summary["steps"].dtype == summary["best_step"].dtype == "Int64"


def test_no_run_has_any_row(tmp_path):
    make_run(tmp_path / "a", [])
    make_run(tmp_path / "b", [])
    summary = summarise(load_runs(tmp_path))
    assert summary["steps"].tolist() == [0, 0]
    assert summary["best_test_nll"].dropna().empty


def test_the_chosen_test_set_is_summarised(tmp_path):
    sets = {"math": "aa", "chat": "bb"}
    rows = [train_row(0, 4.0, {"math": 3.0, "chat": 1.0}), last_row(1, {"math": 2.0, "chat": 1.5})]
    make_run(tmp_path / "a", rows, test=sets)
    runs = load_runs(tmp_path)
    math_, chat = summarise(runs, on="math").loc["a"], summarise(runs, on="chat").loc["a"]
    assert (math_["best_test_nll"], math_["best_step"], math_["test_fingerprint"]) == (2.0, 1, "aa")
    assert (chat["best_test_nll"], chat["best_step"], chat["test_fingerprint"]) == (1.0, 0, "bb")


def test_a_test_set_that_no_run_has_is_refused_with_those_there_are(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 4.0, {"math": 3.0, "chat": 1.0})], test={"math": "aa", "chat": "bb"})
    make_run(tmp_path / "b", [train_row(0, 4.0, {"math": 3.0})], test={"math": "aa"})
    runs = load_runs(tmp_path)
    there = r'choose one with --on: "math" \(2 of 2 runs\), "chat" \(1 of 2 runs\)$'
    with pytest.raises(ConfigError, match=f"^no run has an unnamed test set: {there}"):
        summarise(runs)
    with pytest.raises(ConfigError, match=f'^no run has a test set named "code": {there}'):
        summarise(runs, on="code")


def test_the_unnamed_test_set_is_listed_too(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 4.0, 3.0)])
    with pytest.raises(ConfigError, match=r'^no run has a test set named "math": choose one with --on: "" \(1 of 1'):
        summarise(load_runs(tmp_path), on="math")


def test_a_named_test_set_where_nothing_was_evaluated(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 4.0)])
    with pytest.raises(
        ConfigError, match=r'^no run has a test set named "math", or any evaluation: leave out the name$'
    ):
        summarise(load_runs(tmp_path), on="math")


def test_the_best_run_has_the_lowest_best_test_nll_and_equals_share_it(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 4.0, 2.0), last_row(1, 9.0)])
    make_run(tmp_path / "b", [train_row(0, 4.0, 3.0), last_row(1, 2.5)])
    make_run(tmp_path / "untested", [train_row(0, 1.0)])
    assert best_runs(summarise(load_runs(tmp_path))) == ["a"]
    make_run(tmp_path / "c", [last_row(0, 2.0)])
    assert best_runs(summarise(load_runs(tmp_path))) == ["a", "c"]
    assert best_runs(summarise(load_runs([tmp_path / "a", tmp_path / "untested"]))) == []  # nothing to be better than


def test_runs_on_different_test_sets_have_no_best(tmp_path):
    for name, fingerprint in (("a", "aa"), ("b", "bb"), ("c", "aa")):
        make_run(tmp_path / name, [train_row(0, 4.0, 3.0)], test={"": fingerprint})
    make_run(tmp_path / "untested", [train_row(0, 4.0)], test={"": "dd"})
    summary = summarise(load_runs(tmp_path))
    assert by_test_set(summary) == {"aa": ["a", "c"], "bb": ["b"]}
    assert not comparable(summary)
    assert best_runs(summary) == []


def test_test_sets_without_a_fingerprint_are_not_taken_for_one(tmp_path):
    for name in ("a", "b"):
        (make_run(tmp_path / name, [train_row(0, 4.0, 3.0)], evaluated=False) / "config.json").unlink()
    make_run(tmp_path / "known", [train_row(0, 4.0, 3.5)])

    bare = summarise(load_runs([tmp_path / "a", tmp_path / "b"]))
    assert by_test_set(bare) == {"unknown": ["a", "b"]}
    assert best_runs(bare) == []
    mixed = summarise(load_runs([tmp_path / "a", tmp_path / "known"]))
    assert by_test_set(mixed) == {"unknown": ["a"], "feed": ["known"]}
    assert best_runs(mixed) == []


def test_a_test_set_that_changed_within_a_run_equals_no_other(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 4.0, 3.0)], test={"": "aa"})
    changed = make_run(tmp_path / "b", [train_row(0, 4.0, 3.0)], test={"": "aa"})
    changed.append_eval_examples([{"step": 1, "set": "", "fingerprint": "bb"}])
    assert by_test_set(summarise(load_runs(tmp_path))) == {"aa": ["a"], "aa+bb": ["b"]}


def test_only_paths_that_differ_are_differences(tmp_path):
    make_run(tmp_path / "a", [], learning_rate=1e-4, run_name="x", note="first", tags={"who": "me"}, tracking_uri="u")
    make_run(tmp_path / "b", [], dataset_builder__common_config__batch_size=16, warmup=3)
    make_run(tmp_path / "c", [], dataset_builder__common_config__batch_size=16)

    differences = config_differences(load_runs(tmp_path))

    assert differences.columns.tolist() == ["a", "b", "c"]
    assert differences.T.to_dict("list") == {
        "dataset_builder.common_config.batch_size": [8, 16, 16],
        "learning_rate": [1e-4, 2e-4, 2e-4],
        "warmup": [None, 3, None],
    }


def test_versions_numerics_commit_and_training_data_are_differences(tmp_path):
    make_run(tmp_path / "a", [])
    document = {
        "versions": {"torch": "2.14.0"},
        "numerics": {"dtype": "bfloat16"},
        "git_commit": None,
        "data": {"train": "f00d", "test": {"": "feed"}},
        "argv": ["elsewhere"],
        "run_id": "other",
    }
    make_run(tmp_path / "b", [], document=document)
    differences = config_differences(load_runs(tmp_path))
    assert differences.T.to_dict("list") == {
        "versions.torch": ["2.13.0", "2.14.0"],
        "numerics.dtype": ["float32", "bfloat16"],
        "git_commit": ["c0ffee", None],
        "data.train": ["beef", "f00d"],
    }


def builder(kind, **fields):
    return {"type": f"my.data:{kind}", "common_config": {"type": "my.data:Common", "max_length": None}} | fields


def test_a_replaced_builder_is_a_difference_with_all_its_fields(tmp_path):
    make_run(tmp_path / "a", [], dataset_builder=builder("Files", paths=["x", "y"], weights={}))
    make_run(tmp_path / "b", [], dataset_builder=builder("Mixed", weights={"x": 1}, parts=[builder("Part", size=2)]))
    assert config_differences(load_runs(tmp_path)).T.to_dict("list") == {
        "dataset_builder": ["my.data:Files", "my.data:Mixed"],
        "dataset_builder.paths": [["x", "y"], None],
        "dataset_builder.weights": [{}, None],
        "dataset_builder.weights.x": [None, 1],
        "dataset_builder.parts.0": [None, "my.data:Part"],
        "dataset_builder.parts.0.common_config": [None, "my.data:Common"],
        "dataset_builder.parts.0.size": [None, 2],
    }


def test_what_is_only_written_otherwise_is_no_difference(tmp_path):
    spec = {"learning_rate": 1e-4, "betas": (0.9, 0.95), "steps": 100, "grad_clip_norm": None}
    made = make_run(tmp_path / "a", [], **spec)
    text = (made / "config.json").read_text()
    assert "0.0001" in text
    other = make_run(tmp_path / "b", [], learning_rate=0.0001, betas=[0.90, 0.95], steps=100.0)
    (other / "config.json").write_text((other / "config.json").read_text().replace("0.0001", "1e-4"))
    assert config_differences(load_runs(tmp_path)).empty


def test_functions_enum_members_and_lists_are_told_by_what_they_are(tmp_path):
    what = "harness.renderers.messages:TrainOnWhat"
    for name, value in (("a", "all_tokens"), ("b", "all_messages")):
        make_run(
            tmp_path / name,
            [],
            what={"type": what, "value": value},
            map_fn={"callable": f"my:{name}"},
            targets=["q", name],
            same={"callable": "my:f"},
        )
    assert config_differences(load_runs(tmp_path)).T.to_dict("list") == {
        "what": ["all_tokens", "all_messages"],
        "map_fn": ["my:a", "my:b"],
        "targets": [["q", "a"], ["q", "b"]],
    }


def test_what_was_set_comes_first_then_data_code_and_machine(tmp_path):
    document = {
        "versions": {"torch": "3"},
        "numerics": {"dtype": "bfloat16"},
        "git_commit": "f00d",
        "parent": {"run_id": "p", "step": 3},
        "data": {
            "train": "f00d",
            "test": {"": "dead", "math": "aa"},
            "num_examples": {"train": 90, "test": {"": 20, "math": 5}},
            "test_contents": {"": "cc", "math": "dd"},
        },
    }
    make_run(tmp_path / "a", [])
    make_run(tmp_path / "b", [], test=document["data"]["test"], document=document, warmup_steps=3)
    found = config_differences(load_runs(tmp_path))
    assert found.index.tolist() == [
        "warmup_steps",
        "parent.run_id",
        "parent.step",
        "data.train",
        "data.num_examples.train",
        "data.num_examples.test",
        "data.num_examples.test.math",
        "data.test_contents",
        "data.test_contents.math",
        "data.test",
        "git_commit",
        "versions.torch",
        "numerics.dtype",
    ]
    assert found.loc["data.test"].tolist() == ["feed", "dead"]  # a has no test set named math: no other data
    assert found.loc["data.num_examples.train"].tolist() == [None, 90]


def test_which_mlflow_a_run_went_to_is_no_difference(tmp_path):
    make_run(tmp_path / "a", [], mirror=True, experiment="x", system_metrics=False)
    make_run(tmp_path / "b", [], mirror=False, experiment="y", system_metrics=True)
    assert config_differences(load_runs(tmp_path)).empty


def test_a_run_without_config_is_no_difference(tmp_path):
    make_run(tmp_path / "a", [])
    make_run(tmp_path / "b", [])
    for name in ("bare", "bare2"):
        (make_run(tmp_path / name, [train_row(0, 1.0)]) / "config.json").unlink()
    differences = config_differences(load_runs(tmp_path))
    assert differences.empty and differences.columns.tolist() == ["a", "b"]
    assert config_differences(load_runs([tmp_path / "bare", tmp_path / "bare2"])).empty
