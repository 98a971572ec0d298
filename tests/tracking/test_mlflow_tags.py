import pytest

from harness.run_dir import RunDir
from harness.tracking.mlflow_mirror import sync
from harness.tracking.mlflow_rebuild import rebuild
from harness.tracking.mlflow_tags import description, exactness, fixed_tags
from tests.tracking.conftest import T0, history, row, start_run


def start(attempt: int) -> dict:
    return {"attempt": attempt, "event": "start"}


def end(attempt: int, exact: bool | None, verified_rows: int = 0, *, is_inexact: bool = False) -> dict:
    row = {"attempt": attempt, "event": "end", "exact": exact, "verified_rows": verified_rows}
    return row | {"is_inexact": is_inexact}


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        ([start(1)], "uninterrupted"),
        ([start(1), end(1, None)], "uninterrupted"),
        ([start(1), start(2), end(2, True, 2)], "exact"),
        ([start(1), start(2), end(2, True, 1)], "unverified"),  # one row does not show a lost optimiser state
        ([start(1), end(1, None), start(2), end(2, None)], "unverified"),
        ([start(1), start(2), start(3), end(3, True, 5)], "unverified"),  # the second one was killed
        ([start(1), start(2), end(2, False, 4, is_inexact=True), start(3), end(3, True, 5)], "inexact"),
        ([start(1), start(2), end(2, False, 4), start(3), end(3, True, 5)], "within tolerance"),
    ],
)
def test_exactness(attempts, expected):
    assert exactness(attempts) == expected


DOCUMENT = {
    "data": {"train": "aa11", "test": {"": "bb22"}, "num_examples": {"train": 1200, "test": {"": 50}}},
    "versions": {"torch": "2.9.0", "transformers": "5.2.0", "numpy": "2.3"},
}


def test_what_a_run_says_of_itself(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "run", document=DOCUMENT)
    tags = client.get_run(sync(run_dir, uri).run_id).data.tags
    expected = {
        "mlflow.user": "ann",
        "mlflow.source.git.commit": "abc123",
        "harness.host": "node7",
        "harness.backend": "LocalBackend",
        "harness.model": "tiny/model",
        "harness.renderer": "role_colon",
        "harness.data.train": "aa11",
        "harness.data.test": "bb22",
        "harness.version.torch": "2.9.0",
        "harness.version.transformers": "5.2.0",
    }
    assert {key: tags.get(key) for key in expected} == expected
    assert "harness.parent" not in tags


def test_the_digests_of_named_test_sets_and_the_configs_own_renderer(tmp_path):
    data = {"train": None, "test": {"math": "cc33", "code": "dd44"}}
    run_dir = start_run(tmp_path / "run", document={"data": data}, renderer_name="qwen3")
    tags = fixed_tags(run_dir, run_dir.config(), "")
    assert {key: value for key, value in tags.items() if ".data." in key} == {
        "harness.data.train": "unknown",
        "harness.data.test.math": "cc33",
        "harness.data.test.code": "dd44",
    }
    assert tags["harness.renderer"] == "qwen3"


def test_a_builder_without_common_config_has_no_renderer(tmp_path):
    run_dir = start_run(tmp_path / "run", dataset_builder={"type": "my.data:Builder"})
    assert "harness.renderer" not in fixed_tags(run_dir, run_dir.config(), "")


def test_the_description(tmp_path):
    files = {
        "type": "my.data:Builder",
        "file_path": "data/train.jsonl",
        "common_config": {"renderer_name": "role_colon", "batch_size": 8},
    }
    run_dir = start_run(
        tmp_path / "run",
        document=DOCUMENT | {"parent": {"run_id": "p", "path": "runs/parent", "step": 20}},
        dataset_builder=files,
        lora_rank=32,
        lr_schedule="linear",
        num_epochs=2,
        gradient_accumulation_steps=2,
    )
    assert description(run_dir, run_dir.config()).splitlines() == [
        "Supervised fine-tuning of `tiny/model`, LoRA of rank 32, chat format role_colon.",
        "",
        "- Data: `train.jsonl` (1,200 examples), tested on `train.jsonl` (50 examples)",
        "- Updates: 2 epochs of 16 conversations each, learning rate 0.0002, linear",
        "- Command: `train.py learning_rate=2e-4`",
        f"- Run directory: `{tmp_path / 'run'}`",
        "- Forked from `runs/parent` at step 20",
    ]


# ---- parents


def forked(path, parent: RunDir, **changes) -> RunDir:
    """The parent's rows before step 2, then one of its own."""
    origin = {"run_id": parent.config()["run_id"], "path": str(parent), "at": "2", "step": 2}
    fork = start_run(path, document={"parent": origin}, **changes)
    for step in range(2):
        fork.append_metrics(parent.metrics()[step])
    fork.append_metrics(row(2, 2.0, ts=T0 + 50_000))
    return fork


def test_a_fork_is_nested_under_its_parent_and_holds_its_rows(tmp_path, uri, client):
    parent = start_run(tmp_path / "parent")
    for step in range(4):
        parent.append_metrics(row(step, 4.0 - step))
    fork = forked(tmp_path / "fork", parent, experiment="another")
    before = sync(fork, uri).run_id
    tags = client.get_run(before).data.tags
    assert (tags["harness.parent"], "mlflow.parentRunId" in tags) == (parent.config()["run_id"], False)

    parent_id = sync(parent, uri).run_id
    run_id = sync(fork).run_id
    assert run_id == before
    assert client.get_run(run_id).data.tags["mlflow.parentRunId"] == parent_id
    assert history(client, run_id, "train_mean_nll") == [(0, T0, 4.0), (1, T0 + 1000, 3.0), (2, T0 + 50_000, 2.0)]
    assert len(history(client, parent_id, "train_mean_nll")) == 4

    client.delete_run(parent_id)
    replaced, _ = rebuild(parent)
    sync(fork)
    assert client.get_run(run_id).data.tags["mlflow.parentRunId"] == replaced.run_id
