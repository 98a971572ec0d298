"""Run directories as tinker-cookbook's supervised loop writes them: its keys, and no others."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.compare import load_runs, summarise
from harness.compare.align import positions

CONFIG = {
    "log_path": "/tmp/sft",
    "model_name": "Qwen/Qwen3-8B",
    "recipe_name": "chat_sl",
    "load_checkpoint_path": None,
    "dataset_builder": {"common_config": {"batch_size": 4, "max_length": 32768}, "file_path": "train.jsonl"},
    "learning_rate": 1e-4,
    "evaluator_builders": [],
    "base_url": "https://ann:secret@host/v1",
}


def row(step: int, total: int, nll: float, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": 0,
        "progress": (step + 1) / total,
        "learning_rate": 1e-4 * (1 - step / total),
        "num_sequences": 4,
        "num_tokens": 100,
        "num_loss_tokens": 40.0,
        "train_mean_nll": nll,
        "time/step": 2.0,
        "time/total": 3.0,
    } | more


def make(path: Path, rows: list[dict[str, Any]], checkpoints: tuple[str, ...] = ("000002", "final")) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(CONFIG, indent=2))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = [
        {"name": name, "batch": 2, "epoch": 0, "state_path": f"tinker://r/weights/{name}", "sampler_path": "tinker://s"}
        for name in checkpoints
    ]
    (path / "checkpoints.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_its_runs_are_read_as_ours(tmp_path):
    make(tmp_path / "theirs", [row(0, 4, 3.0, **{"test/nll": 3.5}), row(1, 4, 2.0), row(2, 4, 1.5), row(3, 4, 1.0)])
    runs = load_runs(tmp_path)
    assert runs.states == {"theirs": "FINISHED"}
    assert runs.origins["theirs"].endswith("theirs (tinker-cookbook)")
    assert runs.notes == {}
    assert runs.metrics["train_mean_nll"].tolist() == [3.0, 2.0, 1.5, 1.0]
    summary = summarise(runs).loc["theirs"]
    assert (summary["num_loss_tokens"], summary["best_test_nll"], summary["test_fingerprint"]) == (160, 3.5, None)
    assert runs.evaluation("theirs", 0) is None


def test_its_config_is_the_whole_document_without_secrets(tmp_path):
    config = load_runs(make(tmp_path / "a", [])).configs.loc["a"].to_dict()
    assert config["dataset_builder.common_config.batch_size"] == 4
    assert (config["learning_rate"], config["load_checkpoint_path"], config["evaluator_builders"]) == (1e-4, None, [])
    assert config["base_url"] == "https://host/v1"


def test_its_progress_comes_to_be_that_before_the_update(tmp_path):
    make(tmp_path / "now", [row(step, 4, 1.0) for step in range(4)])
    make(tmp_path / "early", [row(step, 4, 1.0, progress=step / 4) for step in range(4)])
    runs = load_runs([tmp_path / "now", tmp_path / "early"])
    assert runs.metrics["progress"].tolist() == [0, 0.25, 0.5, 0.75] * 2
    assert positions(runs, "fraction").tolist() == [0, 0.25, 0.5, 0.75] * 2


def test_its_time_of_a_step_is_no_duration_that_adds_up(tmp_path):
    runs = load_runs(make(tmp_path / "a", [row(0, 2, 1.0), row(1, 2, 1.0)]))
    assert "time/step" not in runs.metrics and runs.metrics["time/total"].tolist() == [3.0, 3.0]


def test_a_resume_leaves_the_rows_of_the_history_that_went_on(tmp_path):
    before = [row(step, 9, 10.0 + step) for step in range(5)]  # died after step 4
    again = [row(step, 9, 20.0 + step) for step in range(2, 4)]  # from the checkpoint of step 2, died after step 3
    once_more = [row(2, 9, 32.0)]
    runs = load_runs(make(tmp_path / "a", before + again + once_more, checkpoints=("000002",)))
    assert runs.metrics[["step", "train_mean_nll"]].values.tolist() == [[0, 10.0], [1, 11.0], [2, 32.0]]
    assert runs.notes == {"a": ["resumed: 5 rows that it trained again, or went back behind, left out"]}
    assert runs.states == {"a": "UNKNOWN"}


def test_weights_that_are_normalised_by_conversation_are_told(tmp_path):
    rows = [row(0, 2, 3.0, num_loss_tokens=3.9999998), row(1, 2, 2.0, num_loss_tokens=4.0)]
    runs = load_runs(make(tmp_path / "a", rows))
    assert runs.notes == {"a": ["its NLLs are means over conversations, not over tokens"]}
    assert "num_loss_tokens" not in runs.metrics
    assert summarise(runs)["num_loss_tokens"].isna().tolist() == [True]


def test_weights_that_are_not_0_or_1_are_counted_as_near_as_can_be(tmp_path):
    runs = load_runs(make(tmp_path / "a", [row(0, 2, 3.0, num_loss_tokens=40.3), row(1, 2, 2.0)]))
    assert runs.metrics["num_loss_tokens"].tolist() == [40, 40]


def test_nan_as_it_writes_it_is_missing(tmp_path):
    runs = load_runs(make(tmp_path / "a", [row(0, 2, float("nan")), row(1, 2, 2.0)]))
    assert runs.metrics["train_mean_nll"].dropna().tolist() == [2.0]


def test_a_loop_without_some_of_the_keys(tmp_path):
    run = make(tmp_path / "a", [{"step": 0, "train_mean_nll": 2.0, "num_tokens": 10}])
    (run / "checkpoints.jsonl").unlink()
    runs = load_runs(run)
    assert runs.metrics.columns.tolist() == ["run", "step", "train_mean_nll", "num_tokens"]
    assert runs.states == {"a": "UNKNOWN"}


@pytest.mark.parametrize("config", ['{"model_type": "llama"}', '{"log_path', "[]"])
def test_another_config_is_not_taken_for_one_of_its(tmp_path, config):
    run = make(tmp_path / "a", [row(0, 2, 2.0)])
    (run / "config.json").write_text(config)
    runs = load_runs(run)
    assert runs.configs.loc["a"].isna().all()
    assert "config.json: not" in runs.notes["a"][0]
    assert runs.metrics["time/step"].tolist() == [2.0]
