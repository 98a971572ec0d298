"""The whole way on a tiny real model: a script as the seeds write it, the local backend, MLflow, a resume, compare."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.compare import load_runs, summarise
from harness.run_dir import RunDir
from tests.tiny_model import make_tiny_model

ROOT = Path(__file__).parent.parent

SCRIPT = """
import chz
import sys
import asyncio
from harness.supervised import train
from harness.supervised.types import ChatDatasetBuilderCommonConfig
from harness.supervised.data import FromConversationFileBuilder
from harness.renderers import TrainOnWhat
from harness.model_info import get_recommended_renderer_name

def build_config_blueprint() -> chz.Blueprint[train.Config]:
    model_name = "tiny"
    renderer_name = get_recommended_renderer_name(model_name)

    common_config = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=model_name,
        renderer_name=renderer_name,
        max_length=64,
        batch_size=4,
        train_on_what=TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    )

    dataset_builder = FromConversationFileBuilder(
        common_config=common_config,
        file_path="data.jsonl",
        test_size=4,
    )

    return chz.Blueprint(train.Config).apply({
        "log_path": "training",
        "model_name": model_name,
        "dataset_builder": dataset_builder,
        "learning_rate": 1e-2,
        "lr_schedule": "cosine",
        "num_epochs": 3,
        "lora_rank": 4,
        "eval_every": 4,
    })

if __name__ == "__main__":
    blueprint = build_config_blueprint()
    blueprint.make_from_argv(sys.argv[1:])
    asyncio.run(train.main(blueprint.make()))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    make_tiny_model(folder / "tiny")
    (folder / "script.py").write_text(SCRIPT)
    words = ["paris", "sea", "wind", "fox", "dog", "poem", "one", "two", "three", "four"]
    with (folder / "data.jsonl").open("w") as file:
        for i in range(24):
            asked, answered = words[i % 10], " ".join([words[(i * 3 + 1) % 10]] * 3)
            messages = [{"role": "user", "content": f"{asked} {i}?"}, {"role": "assistant", "content": answered}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return folder


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "script.py", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def test_a_seed_s_script_trains_tracks_and_compares(folder):
    done = run_script(folder)
    assert done.returncode == 0, done.stderr
    run = RunDir(folder / "training")
    rows = run.metrics()
    assert [row["step"] for row in rows] == list(range(16))
    assert rows[-1]["test/nll"] < rows[0]["test/nll"] - 0.5
    assert (run.mirror() or {})["sent_step"] == 15
    assert "mlruns/mlflow.db" in done.stdout

    other = run_script(folder, "log_path=other", "learning_rate=1e-3")
    assert other.returncode == 0, other.stderr
    summary = summarise(load_runs([folder / "training", folder / "other"]))
    best = summary["best_test_nll"].to_dict()
    assert best["training"] < best["other"]

    again = run_script(folder)
    assert again.returncode == 0
    assert "complete, nothing to train" in again.stdout
    assert run.metrics() == rows


def test_chz_s_own_error_for_a_typo_stays_chz_s(folder):
    done = run_script(folder, "learning_rat=1")
    assert done.returncode == 1
    assert "Did you mean 'learning_rate'?" in done.stderr
