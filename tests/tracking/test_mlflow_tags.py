import pytest

from harness.run_dir import RunDir
from harness.run_tags import change_tags
from harness.tracking.mlflow_check import check
from harness.tracking.mlflow_mirror import sync
from harness.tracking.mlflow_rebuild import rebuild
from harness.tracking.mlflow_tags import description, exactness, fixed_tags, is_a_users, users_tags
from tests.tracking.conftest import T0, end_attempt, history, mirror_to, row, start_run


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


# ---- a user's, set after the start


def test_they_follow_while_the_run_is_trained_and_by_sync(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "run", tags={"team": "x", "a:b": "1"})
    run_dir.append_metrics(row(0, 4.0))
    change_tags(run_dir, {"early": "yes"}, 1)
    mirror = mirror_to(run_dir, uri)
    mirror.send()

    def there():
        found = client.get_run(mirror.run_id).data.tags
        return {key: found.get(key) for key in ("team", "a_b", "early", "kind")}

    assert there() == {"team": "x", "a_b": "1", "early": "yes", "kind": None}
    change_tags(run_dir, {"team": None, "kind": "k" * 9000, "a:b": "2", "early": None}, 2)
    mirror.send()
    assert there() == {"team": None, "a_b": "2", "early": None, "kind": "k" * 8000}

    client.delete_tag(mirror.run_id, "kind")
    client.set_tag(mirror.run_id, "team", "by hand")
    client.set_tag(mirror.run_id, "mine", "stays")
    assert [str(d) for d in check(run_dir).differences if "tags" in d.what] == [
        "tags to set in MLflow: 1 (kind)",
        "tags to remove in MLflow: 1 (team)",
    ]
    sync(run_dir)
    assert there() == {"team": None, "a_b": "2", "early": None, "kind": "k" * 8000}
    assert client.get_run(mirror.run_id).data.tags["mine"] == "stays"
    assert not [d for d in check(run_dir).differences if "tags" in d.what]


def test_a_tag_of_the_config_that_was_edited_in_mlflow_stays_so(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "run", tags={"team": "x", "kind": "y"})
    run_id = sync(run_dir, uri).run_id
    client.set_tag(run_id, "team", "by hand")
    change_tags(run_dir, {"kind": "z"}, 1)
    sync(run_dir)
    tags = client.get_run(run_id).data.tags
    assert (tags["team"], tags["kind"]) == ("by hand", "z")


def test_another_mlflow_run_in_the_place_of_one_has_them_too(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "run", tags={"team": "x"})
    end_attempt(run_dir, 1)
    change_tags(run_dir, {"team": None, "kind": "y"}, 1)
    client.delete_run(sync(run_dir, uri).run_id)
    tags = client.get_run(rebuild(run_dir)[0].run_id).data.tags
    assert ("team" in tags, tags["kind"]) == (False, "y")


@pytest.mark.parametrize("key", ["harness.run_id", "mlflow.source.name", "/harness.x", "harness.mine"])
def test_names_that_are_not_a_users(tmp_path, key):
    assert not is_a_users(key)
    run_dir = start_run(tmp_path / "run")
    change_tags(run_dir, {key: "1", "harness": "1", "mlflow_x": "1"}, 1)  # by hand, say
    assert users_tags(run_dir) == {"harness": "1", "mlflow_x": "1"}


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
