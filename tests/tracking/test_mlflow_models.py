import dataclasses

import pytest

from harness.run_dir import CheckpointRecord, RunDir
from harness.tracking.mlflow_mirror import sync
from harness.tracking.mlflow_models import delete_models, log_checkpoints, registered_name
from harness.tracking.mlflow_store import artifact_location
from tests.tracking.conftest import T0, end_attempt, history, row, start_run

NLLS = {0: 4.0, 2: 3.0, 4: 3.5}


def record(step: int, **more) -> CheckpointRecord:
    path = f"checkpoints/{step:06d}"
    return CheckpointRecord(f"{step:06d}", step, 0, step, path, sampler_path=path, **more)


def trained(path, nlls: dict[int, float], *, digest="feed", **changes) -> RunDir:
    """A finished run that evaluated and saved at the steps of ``nlls``; 0 is only evaluated."""
    data = {"train": "beef", "test": {"": digest}}
    run_dir = start_run(path, document={"data": data}, lora_rank=8, **changes)
    go_on(run_dir, nlls)
    return run_dir


def go_on(run_dir: RunDir, nlls: dict[int, float]) -> None:
    last = max(nlls)
    for step in range(min(nlls), last + 1):
        tested = {"test/nll": nlls[step], "test/bpb": nlls[step] / 4} if step in nlls else {}
        run_dir.append_metrics(row(step, 5.0) | tested)
        if step and step in nlls:
            run_dir.append_checkpoint(record(step, final=step == last))
    end_attempt(run_dir, 1)


def models(client, experiment="exp") -> dict:
    """By name, the model of the lowest test NLL first."""
    found = client.search_logged_models(
        [client.get_experiment_by_name(experiment).experiment_id],
        order_by=[{"field_name": "metrics.test/nll", "ascending": True}],
    )
    assert len({model.name for model in found}) == len(found)
    return {model.name: model for model in found}


def versions(client, name="exp") -> list[tuple[int, str, str]]:
    """(version, step, test NLL)."""
    found = client.search_model_versions(f"name = '{name}'")
    return sorted((int(v.version), v.tags["harness.step"], v.tags["harness.test_nll"]) for v in found)


def best(client, name="exp") -> int:
    return int(client.get_model_version_by_alias(name, "best").version)


# ---- models


def test_the_kept_checkpoints_are_models_and_a_search_finds_the_best(tmp_path, uri, client):
    run_dir = trained(tmp_path / "run", NLLS)
    run_id = sync(run_dir, uri).run_id
    found = models(client)

    assert list(found) == ["ckpt-000002", "ckpt-000004"]
    model = found["ckpt-000004"]
    assert (model.source_run_id, model.status.value) == (run_id, "READY")
    assert model.tags == {
        "mlflow.model.isExternal": "true",
        "harness.run_id": run_dir.config()["run_id"],
        "harness.step": "4",
        "harness.state_path": str(tmp_path / "run" / "checkpoints" / "000004"),
        "harness.sampler_path": str(tmp_path / "run" / "checkpoints" / "000004"),
        "harness.final": "true",
    }
    assert model.params == {"model_name": "tiny/model", "lora_rank": "8", "renderer_name": "role_colon"}
    metrics = {(m.key, m.value, m.step, m.timestamp, m.dataset_name, m.dataset_digest) for m in model.metrics}
    assert metrics == {
        ("test/nll", 3.5, 4, T0 + 4000, "Builder", "feed"),
        ("test/bpb", 0.875, 4, T0 + 4000, "Builder", "feed"),
    }
    outputs = {(output.model_id, output.step) for output in client.get_run(run_id).outputs.model_outputs}
    assert outputs == {(found["ckpt-000002"].model_id, 2), (model.model_id, 4)}


def test_they_add_no_point_to_the_run_and_a_resend_adds_nothing(tmp_path, uri, client):
    run_dir = trained(tmp_path / "run", NLLS)
    run_id = sync(run_dir, uri).run_id
    before = models(client)
    for _ in range(2):
        (run_dir / "mirror.json").unlink()
        assert sync(run_dir, uri).run_id == run_id
    assert history(client, run_id, "test/nll") == [(k, T0 + 1000 * k, nll) for k, nll in NLLS.items()]
    after = models(client)
    assert {m.model_id for m in after.values()} == {m.model_id for m in before.values()}
    assert [len(m.metrics) for m in after.values()] == [2, 2]
    assert len(client.get_run(run_id).outputs.model_outputs) == 2
    assert versions(client) == [(1, "2", "3.0")]


def test_the_models_come_before_the_points_where_these_are_sent_later(tmp_path, uri, client):
    """Whichever is sent first, the history holds each point once."""
    run_dir = trained(tmp_path / "run", NLLS)
    experiment = client.create_experiment("exp", artifact_location(uri))
    run_id = client.create_run(experiment, tags={"harness.run_id": run_dir.config()["run_id"]}).info.run_id
    log_checkpoints(client, run_id, run_dir)
    sync(run_dir, uri)
    assert history(client, run_id, "test/nll") == [(k, T0 + 1000 * k, nll) for k, nll in NLLS.items()]


def test_what_is_deleted_on_disk_is_deleted_here_and_a_users_own_model_stays(tmp_path, uri, client):
    run_dir = trained(tmp_path / "run", NLLS)
    result = sync(run_dir, uri)
    experiment = client.get_experiment_by_name("exp").experiment_id
    client.create_logged_model(experiment, name="mine", source_run_id=result.run_id)
    kept = models(client)["ckpt-000002"].model_id
    run_dir.append_checkpoint(dataclasses.replace(record(4), deleted=True))
    go_on(run_dir, {5: 3.2, 6: 2.0})
    sync(run_dir)
    found = models(client)
    assert list(found) == ["ckpt-000006", "ckpt-000002", "ckpt-000005", "mine"]
    assert found["ckpt-000002"].model_id == kept


def test_a_checkpoint_that_was_trained_again_otherwise_is_another_model(tmp_path, uri, client):
    run_dir = trained(tmp_path / "run", NLLS)
    sync(run_dir, uri)
    before = models(client)
    run_dir.append_checkpoint(dataclasses.replace(record(4), superseded=True))
    run_dir.supersede(3, attempt=2)
    run_dir.append_metrics(row(3, 5.0))
    run_dir.append_metrics(row(4, 5.0, ts=T0 + 90_000) | {"test/nll": 2.5})
    run_dir.append_checkpoint(record(4, final=True))
    sync(run_dir)
    after = models(client)
    assert list(after) == ["ckpt-000004", "ckpt-000002"]
    assert [m.value for m in after["ckpt-000004"].metrics] == [2.5]
    assert after["ckpt-000004"].model_id != before["ckpt-000004"].model_id
    assert after["ckpt-000002"].model_id == before["ckpt-000002"].model_id


def test_what_a_user_measures_of_a_checkpoint_stays(tmp_path, uri, client):
    from mlflow.entities import Metric

    run_dir = trained(tmp_path / "run", NLLS)
    run_id = sync(run_dir, uri).run_id
    model_id = models(client)["ckpt-000002"].model_id
    other_id = client.create_run(client.get_run(run_id).info.experiment_id).info.run_id
    client.log_batch(run_id, metrics=[Metric("judge/score", 7.0, T0, 2, model_id=model_id)])
    client.log_batch(other_id, metrics=[Metric("test/nll", 9.0, T0, 2, model_id=model_id)])
    sync(run_dir)
    model = client.get_logged_model(model_id)
    assert {(m.key, m.value) for m in model.metrics} == {
        ("test/nll", 3.0), ("test/bpb", 0.75), ("judge/score", 7.0), ("test/nll", 9.0),
    }  # fmt: skip


def test_the_models_of_a_run_that_is_replaced(tmp_path, uri, client):
    run_id = sync(trained(tmp_path / "run", NLLS), uri).run_id
    sync(trained(tmp_path / "other", {0: 4.0, 3: 3.0}), uri)
    client.create_logged_model(client.get_run(run_id).info.experiment_id, name="mine", source_run_id=run_id)
    delete_models(client, run_id)
    assert set(models(client)) == {"ckpt-000003", "mine"}


def test_an_evaluation_that_came_later_and_a_directory_that_was_moved(tmp_path, uri, client):
    run_dir = trained(tmp_path / "run", {0: 4.0, 2: 3.0})
    run_dir.append_checkpoint(record(3))  # stopped there, before it was evaluated
    sync(run_dir, uri)
    before = models(client)["ckpt-000003"]
    assert not before.metrics
    moved = RunDir((tmp_path / "run").rename(tmp_path / "moved"))
    moved.append_metrics(row(3, 5.0) | {"test/nll": 2.0})
    sync(moved)
    after = models(client)["ckpt-000003"]
    assert after.model_id == before.model_id
    assert [m.value for m in after.metrics] == [2.0]
    assert after.tags["harness.state_path"] == str(tmp_path / "moved" / "checkpoints" / "000003")


def test_named_test_sets_and_what_is_not_a_number(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "run", document={"data": {"train": "b", "test": {"math": "m1", "code": "c1"}}})
    run_dir.append_metrics(row(0, 5.0) | {"test/math/nll": 2.0, "test/code/nll": 3.0})
    run_dir.append_checkpoint(record(0))
    sync(run_dir, uri)
    metrics = models(client)["ckpt-000000"].metrics
    assert {(m.key, m.value, m.dataset_name, m.dataset_digest) for m in metrics} == {
        ("test/math/nll", 2.0, "math", "m1"),
        ("test/code/nll", 3.0, "code", "c1"),
    }
    assert versions(client) == [(1, "0", "2.0")]  # of the first


def test_a_service_keeps_its_own_addresses_and_a_run_without_tests_has_models_and_no_best(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "run", document={"data": {"train": "beef", "test": {}}})
    run_dir.append_metrics(row(0, 5.0))
    run_dir.append_checkpoint(CheckpointRecord("000001", 1, 0, 1, "tinker://a/b", "tinker://a/c"))
    sync(run_dir, uri)
    tags = models(client)["ckpt-000001"].tags
    assert (tags["harness.state_path"], tags["harness.sampler_path"]) == ("tinker://a/b", "tinker://a/c")
    assert not client.search_registered_models()


# ---- the registry


def test_each_run_has_a_version_and_best_is_the_lowest_of_them(tmp_path, uri, client):
    runs = [trained(tmp_path / str(i), {0: 4.0, 2: nll}) for i, nll in enumerate((3.0, 2.5, 2.8))]
    chosen = []
    for run_dir in runs:
        sync(run_dir, uri)
        chosen.append(best(client))
    assert chosen == [1, 2, 2]
    for run_dir in runs:
        sync(run_dir, uri)
    assert versions(client) == [(1, "2", "3.0"), (2, "2", "2.5"), (3, "2", "2.8")]
    version = client.get_model_version_by_alias("exp", "best")
    model = client.get_logged_model(version.tags["harness.model_id"])
    assert (model.tags["harness.run_id"], version.run_id) == (runs[1].config()["run_id"], model.source_run_id)


def test_a_run_deleted_in_mlflow_does_not_count(tmp_path, uri, client):
    good = sync(trained(tmp_path / "good", {0: 4.0, 2: 2.0}), uri)
    sync(trained(tmp_path / "bad", {0: 4.0, 2: 3.5}), uri)
    assert best(client) == 1
    client.delete_run(good.run_id)
    sync(trained(tmp_path / "other", {0: 4.0, 2: 3.0}), uri)
    assert best(client) == 3


def test_an_extended_run_whose_best_moved_has_a_new_version_which_alone_counts(tmp_path, uri, client):
    run_dir = trained(tmp_path / "run", NLLS)
    sync(run_dir, uri)
    go_on(run_dir, {5: 3.4, 6: 3.1})
    sync(run_dir)
    assert versions(client) == [(1, "2", "3.0")]  # it did not move
    go_on(run_dir, {7: 2.9, 8: 2.0})
    sync(run_dir)
    assert (versions(client), best(client)) == ([(1, "2", "3.0"), (2, "8", "2.0")], 2)
    run_dir.append_checkpoint(dataclasses.replace(record(8), deleted=True))
    sync(run_dir)
    assert (versions(client)[2:], best(client)) == ([(3, "7", "2.9")], 3)


def test_best_compares_what_was_tested_on_the_data_of_the_newest(tmp_path, uri, client):
    for name, nll, digest in (("a", 1.0, "old"), ("b", 3.0, "new"), ("c", 3.5, "new")):
        sync(trained(tmp_path / name, {0: 4.0, 2: nll}, digest=digest), uri)
    assert best(client) == 2


def test_versions_of_a_users_own_and_its_aliases_stay(tmp_path, uri, client):
    client.create_registered_model("exp")
    client.create_model_version("exp", "s3://somewhere/else")
    client.set_registered_model_alias("exp", "champion", "1")
    sync(trained(tmp_path / "run", NLLS), uri)
    assert client.get_registered_model("exp").aliases == {"champion": 1, "best": 2}


@pytest.mark.parametrize(
    ("experiment", "name"),
    [("sft", "sft"), ("team/a: b's", "team-a- b-s"), ("..", "runs"), ("日本 v1.2", "日本 v1.2"), (" x. ", "x")],
)
def test_an_experiment_is_a_registered_model_of_a_name_that_mlflow_takes(tmp_path, uri, client, experiment, name):
    assert registered_name(experiment) == name
    sync(trained(tmp_path / "run", NLLS, experiment=experiment), uri)
    assert best(client, name) == 1


def test_a_store_without_a_registry_is_told_at_debug_level(tmp_path, uri, client, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "nosuch://registry")
    with caplog.at_level("DEBUG", "harness.tracking"):
        run_id = sync(trained(tmp_path / "run", NLLS), uri).run_id
    assert client.get_run(run_id).info.status == "FINISHED"
    assert len(models(client)) == 2
    assert [r.levelname for r in caplog.records if "no model registry" in r.message] == ["DEBUG"]


def test_models_and_versions_through_a_server(tmp_path, serve):
    from mlflow import MlflowClient

    server = serve(0)
    address = f"http://127.0.0.1:{server.server_port}"
    client = MlflowClient(address)
    run_dir = trained(tmp_path / "run", NLLS, experiment="served models")
    run_id = sync(run_dir, address).run_id
    (run_dir / "mirror.json").unlink()
    sync(run_dir, address)
    assert list(models(client, "served models")) == ["ckpt-000002", "ckpt-000004"]
    assert history(client, run_id, "test/nll") == [(k, T0 + 1000 * k, nll) for k, nll in NLLS.items()]
    assert (versions(client, "served models"), best(client, "served models")) == ([(1, "2", "3.0")], 1)
    inputs = client.get_run(run_id).inputs
    assert inputs
    assert len(inputs.dataset_inputs) == 2
