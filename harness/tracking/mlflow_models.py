"""The checkpoints that a run keeps, as models of MLflow whose weights lie elsewhere; the best of them in its registry.

A checkpoint that was deleted from disk is deleted here as well: its model would point at nothing.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from harness.config_io import redact
from harness.metric_keys import STEP, TS, first_test_nll, test_key
from harness.run_dir import CheckpointRecord, Row, RunDir
from harness.tracking import mlflow_run
from harness.tracking.mlflow_data import test_sets
from harness.tracking.mlflow_tags import RUN_ID, renderer_name
from harness.tracking.points import clean_key

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Metric, Run
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

BEST = "best"  # the alias

# Tags of models and of their versions in the registry.
_STEP = "harness.step"
_MODEL_ID = "harness.model_id"
_TEST_NLL = "harness.test_nll"
_TEST_DIGEST = "harness.test_digest"

_METRICS_PER_CALL = 1000  # MLflow's limit
_NO_REGISTRY = ("ENDPOINT_NOT_FOUND", "FEATURE_DISABLED")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is kept.

    Attributes:
        row: Of metrics.jsonl: the evaluation of its weights; None where there was none.
    """

    record: CheckpointRecord
    row: Row | None

    @property
    def name(self) -> str:
        return f"ckpt-{self.record.step:06d}"

    @property
    def test_nll(self) -> float:
        """On the first test set; infinite where it was not measured."""
        nll = first_test_nll(self.row) if self.row else None
        return nll if nll is not None and math.isfinite(nll) else math.inf


def kept_checkpoints(run_dir: RunDir) -> list[Checkpoint]:
    """An evaluation at step k measures the weights before update k: those of the checkpoint whose ``step`` is k."""
    kept = [record for record in run_dir.checkpoints() if record.is_usable]
    steps = {record.step for record in kept}
    rows = {row[STEP]: row for row in run_dir.iter_metrics() if row[STEP] in steps and first_test_nll(row) is not None}
    return [Checkpoint(record, rows.get(record.step)) for record in kept]


def log_checkpoints(client: MlflowClient, run_id: str, run_dir: RunDir) -> None:
    """Make the run's models in MLflow, and the version of the best, what the run directory says; what is right stays.

    Args:
        run_id: The MLflow run.
    """
    document = run_dir.config()
    kept = kept_checkpoints(run_dir)
    models = _log_models(client, run_id, run_dir, document, kept)
    best = min(kept, key=lambda checkpoint: checkpoint.test_nll, default=None)
    if best and best.row and math.isfinite(best.test_nll):
        _with_registry(lambda: _register(client, run_id, document, models[best.name], best))


def missing_models(client: MlflowClient, run: Run, run_dir: RunDir) -> list[str]:
    """The names of the kept checkpoints that are no models of the MLflow run."""
    there = {model.name for model in _own_models(client, run)}
    return [checkpoint.name for checkpoint in kept_checkpoints(run_dir) if checkpoint.name not in there]


def delete_models(client: MlflowClient, run_id: str) -> None:
    """Delete the models of an MLflow run for which another one stands."""
    for model in _own_models(client, client.get_run(run_id)):
        client.delete_logged_model(model.model_id)


# ---- models


def _log_models(
    client: MlflowClient, run_id: str, run_dir: RunDir, document: Row, kept: list[Checkpoint]
) -> dict[str, LoggedModel]:
    """The model of each checkpoint, by name."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    run = client.get_run(run_id)
    wanted = {checkpoint.name: checkpoint for checkpoint in kept}
    models: dict[str, LoggedModel] = {}
    for model in _own_models(client, run):
        checkpoint = wanted.get(model.name)
        if checkpoint is None or model.name in models or _is_left(model, checkpoint, run_id, document):
            client.delete_logged_model(model.model_id)
        else:
            models[model.name] = model
    linked = {output.model_id for output in run.outputs.model_outputs} if run.outputs else set()
    outputs, missing = [], []
    for name, checkpoint in wanted.items():
        tags = _tags(checkpoint.record, run_dir, document)
        model = models.get(name) or client.create_logged_model(
            run.info.experiment_id, name=name, source_run_id=run_id, tags=tags, params=_params(document)
        )
        if tags.items() - model.tags.items():
            client.set_logged_model_tags(model.model_id, tags)
        if model.status != LoggedModelStatus.READY:
            client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        if model.model_id not in linked:
            outputs.append(LoggedModelOutput(model.model_id, checkpoint.record.step))
        there = {_value(metric) for metric in model.metrics or []}
        missing += [point for point in _points(checkpoint, document, model.model_id) if _value(point) not in there]
        models[name] = model
    if outputs:
        client.log_outputs(run_id, outputs)
    for i in range(0, len(missing), _METRICS_PER_CALL):
        client.log_batch(run_id, metrics=missing[i : i + _METRICS_PER_CALL], synchronous=True)
    return models


def _own_models(client: MlflowClient, run: Run) -> list[LoggedModel]:
    """Those that were made here, and not by a user."""
    experiment, of_run = [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
    found = _pages(lambda token: client.search_logged_models(experiment, of_run, page_token=token))
    return [model for model in found if RUN_ID in model.tags]


def _is_left(model: LoggedModel, checkpoint: Checkpoint, run_id: str, document: Row) -> bool:
    """Whether the model has an evaluation of a history that was left: a point cannot be taken back."""
    ours = {clean_key(key) for name in test_sets(document) for key in _keys(name)}
    logged = {_value(metric) for metric in model.metrics or [] if metric.key in ours and metric.run_id == run_id}
    return not logged <= {_value(point) for point in _points(checkpoint, document, model.model_id)}


def _points(checkpoint: Checkpoint, document: Row, model_id: str) -> list[Metric]:
    """The evaluation of a checkpoint, each number against its data set. They are the run's own points, which MLflow
    therefore drops from the run's history and keeps for the model alone."""
    from mlflow.entities import Metric

    if checkpoint.row is None:
        return []
    row = checkpoint.row
    return [
        Metric(
            clean_key(key),
            float(row[key]),
            row[TS],
            row[STEP],
            model_id=model_id,
            dataset_name=data.name,
            dataset_digest=data.digest,
        )
        for name, data in test_sets(document).items()
        for key in _keys(name)
        if key in row and math.isfinite(row[key])
    ]


def _keys(set_name: str) -> tuple[str, str]:
    return test_key(set_name, "nll"), test_key(set_name, "bpb")


def _value(metric: Metric) -> tuple[Any, ...]:
    return metric.key, metric.value, metric.step, metric.timestamp, metric.dataset_name, metric.dataset_digest


def _tags(record: CheckpointRecord, run_dir: RunDir, document: Row) -> dict[str, str]:
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

    def place(path: str) -> str:
        return path if "://" in path else str(run_dir / path)

    tags = {
        MLFLOW_MODEL_IS_EXTERNAL: "true",
        RUN_ID: document["run_id"],
        _STEP: str(record.step),
        "harness.state_path": place(record.state_path),
        "harness.final": str(record.final).lower(),
    }
    return tags | ({"harness.sampler_path": place(record.sampler_path)} if record.sampler_path else {})


def _params(document: Row) -> dict[str, str]:
    config = document["config"]
    params = {
        "model_name": config["model_name"],
        "lora_rank": config.get("lora_rank"),
        "renderer_name": renderer_name(config),
    }
    return {key: str(value) for key, value in params.items() if value is not None}


# ---- the registry


def registered_name(experiment: str) -> str:
    """The registered model of an experiment; its name has no characters that MLflow refuses or that end a filter."""
    return re.sub(r"[^\w .\-]", "-", experiment).strip(" .") or "runs"


def _with_registry(register: Callable[[], None]) -> None:
    """A store that has no model registry, or none for this user, is no reason to leave the rest undone."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

    try:
        register()
    except MlflowException as error:
        if error.error_code == "PERMISSION_DENIED":
            logger.warning("MLflow did not let the best checkpoint be registered: %s", redact(str(error)))
        elif isinstance(error, UnsupportedModelRegistryStoreURIException) or error.error_code in _NO_REGISTRY:
            logger.debug("no model registry: %s", redact(str(error)))
        else:
            raise


def _register(client: MlflowClient, run_id: str, document: Row, model: LoggedModel, best: Checkpoint) -> None:
    """Register the best checkpoint of the run as a version; point the alias at the best version of all runs.

    Only versions that were scored on the data of the newest one compare, and of each run only its last.
    """
    name = registered_name(client.get_experiment(model.experiment_id).name)
    tags = {
        RUN_ID: document["run_id"],
        _STEP: str(best.record.step),
        _MODEL_ID: model.model_id,
        _TEST_NLL: repr(best.test_nll),
        _TEST_DIGEST: next(iter(test_sets(document).values())).digest,
    }
    last: dict[str | None, ModelVersion] = {}  # of each run
    found = _pages(lambda token: client.search_model_versions(f"name = '{name}'", page_token=token))
    for version in sorted(found, key=lambda version: int(version.version)):
        if RUN_ID in version.tags:  # else a user's own
            last[version.run_id] = version
    mine = last.get(run_id)
    if mine is None or tags.items() - mine.tags.items():
        _make_registered_model(client, name)
        # models:/<id> would be looked up in the store of the process, not in this client's
        mine = client.create_model_version(
            name, model.artifact_location, run_id=run_id, tags=tags, model_id=model.model_id
        )
        last[run_id] = mine
    newest = max(last.values(), key=lambda version: int(version.version))
    compared = [v for v in last.values() if v.tags[_TEST_DIGEST] == newest.tags[_TEST_DIGEST]]
    compared.sort(key=lambda version: (float(version.tags[_TEST_NLL]), -int(version.version)))
    winner = next((version for version in compared if _is_active(client, version.run_id)), mine)
    aliases = client.get_registered_model(name).aliases
    if str(aliases.get(BEST)) != str(winner.version):
        client.set_registered_model_alias(name, BEST, str(winner.version))


def _is_active(client: MlflowClient, run_id: str | None) -> bool:
    """Whether a version's run is there, and was not deleted."""
    run = mlflow_run.get_run(client, run_id) if run_id else None
    return run is not None and not mlflow_run.is_deleted(run)


def _make_registered_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _pages(search: Callable[[str | None], Any]) -> Iterator[Any]:
    """Everything that a search of MLflow finds, page after page."""
    page = search(None)
    yield from page
    while page.token:
        page = search(page.token)
        yield from page
