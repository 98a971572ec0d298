import json

import pytest

from harness.tracking import mlflow_data
from harness.tracking.mlflow_data import log_data, train_set
from harness.tracking.mlflow_mirror import sync
from tests.tracking.conftest import start_run

COUNTED = {"train": "aa11", "test": {"": "bb22"}, "num_examples": {"train": 1200, "test": {"": 50}}}


def builder(**fields):
    return {"type": "my.data:Builder", **fields}


def inputs(client, run_id):
    """(context, name, digest, source type, source, profile) of each."""
    return sorted(
        (
            i.tags[0].value,
            i.dataset.name,
            i.dataset.digest,
            i.dataset.source_type,
            json.loads(i.dataset.source),
            i.dataset.profile,
        )
        for i in client.get_run(run_id).inputs.dataset_inputs
    )


def test_what_a_run_trains_on_and_what_it_is_tested_on_are_its_inputs_once(tmp_path, uri, client):
    files = builder(file_path="data/train.jsonl", test_file_path="data/test.jsonl")
    run_dir = start_run(tmp_path / "run", document={"data": COUNTED}, dataset_builder=files)
    run_id = sync(run_dir, uri).run_id
    expected = [
        ("test", "test.jsonl", "bb22", "local", {"uri": "data/test.jsonl"}, '{"num_rows": 50}'),
        ("train", "train.jsonl", "aa11", "local", {"uri": "data/train.jsonl"}, '{"num_rows": 1200}'),
    ]
    assert inputs(client, run_id) == expected
    sync(run_dir)
    (run_dir / "mirror.json").unlink()
    sync(run_dir, uri)
    log_data(client, run_id, run_dir.config())
    assert inputs(client, run_id) == expected


def test_two_runs_on_the_same_data_share_the_data_set(tmp_path, uri, client):
    digests = set()
    for name in ("a", "b"):
        run_id = sync(start_run(tmp_path / name, document={"data": COUNTED}), uri).run_id
        digests |= {(i.dataset.name, i.dataset.digest) for i in client.get_run(run_id).inputs.dataset_inputs}
    assert digests == {("Builder", "aa11"), ("Builder", "bb22")}


@pytest.mark.parametrize(
    ("dataset_builder", "name", "source_type", "source"),
    [
        (builder(file_path="d.jsonl", test_size=4), "d.jsonl", "local", {"uri": "d.jsonl"}),
        (
            builder(hf_path="HuggingFaceH4/no_robots", hf_name="default"),
            "HuggingFaceH4/no_robots",
            "hugging_face",
            {"path": "HuggingFaceH4/no_robots", "config_name": "default"},
        ),
        (
            builder(),
            "Builder",
            "code",
            {"tags": {"mlflow.source.type": "LOCAL", "mlflow.source.name": "my.data:Builder"}},
        ),
    ],
)
def test_the_source_is_the_file_the_hub_or_the_builder(
    tmp_path, uri, client, dataset_builder, name, source_type, source
):
    from mlflow.data import get_source

    data = {"train": "aa11", "test": {"": "bb22"}}
    run_id = sync(start_run(tmp_path / "run", document={"data": data}, dataset_builder=dataset_builder), uri).run_id
    expected = [("test", name, "bb22", source_type, source, None), ("train", name, "aa11", source_type, source, None)]
    assert inputs(client, run_id) == expected
    for dataset_input in client.get_run(run_id).inputs.dataset_inputs:  # as MLflow itself reads it
        read = get_source(dataset_input).to_dict()
        assert source.items() <= read.items()


def test_named_test_sets_and_data_without_a_fingerprint(tmp_path, uri, client):
    data = {"train": None, "test": {"math": "cc33", "code": "dd44"}}
    run_id = sync(start_run(tmp_path / "run", document={"data": data}), uri).run_id
    assert [found[:3] for found in inputs(client, run_id)] == [
        ("test", "code", "dd44"),
        ("test", "math", "cc33"),
        ("train", "Builder", "unknown"),
    ]


def test_what_config_json_lacks_is_not_known():
    document = {"config": {"dataset_builder": {"callable": "mine:build"}}, "data": {"train": "aa", "test": None}}
    train = train_set(document)
    assert train is not None and (train.name, train.digest, train.num_examples) == ("build", "aa", None)
    assert mlflow_data.test_sets(document) == {}
    bare = train_set({"config": {}, "data": {"num_examples": {"test": {}}}})
    assert bare is not None and (bare.name, bare.digest) == ("unknown", "unknown")


def test_a_run_without_fingerprints_has_no_inputs(tmp_path, uri, client):
    assert not inputs(client, sync(start_run(tmp_path / "run"), uri).run_id)
