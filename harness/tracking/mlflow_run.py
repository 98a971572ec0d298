"""Which MLflow run is a run directory's: found again, or made.

The tag ``harness.run_id`` is config.json's, and ``harness.log_path`` says which directory was mirrored last. One that
was moved keeps its MLflow run; a copy, whose original is still there, gets one of its own with the tag
``harness.copy_of``. A copy on another machine cannot be told from a directory that was moved there.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from harness.config_io import redact
from harness.exceptions import RunDirError, TrackingError
from harness.run_dir import Row, RunDir
from harness.tracking import mlflow_store, mlflow_tags
from harness.tracking.mlflow_store import Destination
from harness.tracking.points import RowPoints, clean_key

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

COPY_OF = "harness.copy_of"  # the MLflow run of the directory that this one is a copy of
REBUILDS = "harness.rebuilds"  # the MLflow run that this one stands for
REBUILT_AS = "harness.rebuilt_as"  # the MLflow run that stands for this one
LOG_HOST = "harness.log_host"  # the machine that harness.log_path is of
PARAMS_PER_CALL = 100  # MLflow's limits
TAGS_PER_CALL = 100
TAG_LENGTH = 8000


def find_run(client: MlflowClient, run_dir: RunDir, mirrored_id: str | None) -> tuple[Run | None, str | None]:
    """The MLflow run of ``run_dir``, deleted or not; where it has none, the id of the one that it is a copy of.

    Args:
        mirrored_id: The run that mirror.json names, where that is of this store.
    """
    mirrored = get_run(client, mirrored_id) if mirrored_id else None
    if mirrored is not None and (REBUILT_AS in mirrored.data.tags or _went_with_its_experiment(client, mirrored)):
        mirrored = None
    if mirrored is not None and not _is_elsewhere(mirrored, run_dir):
        return mirrored, None
    others = runs_of(client, run_dir.config()["run_id"])
    here = next((run for run in others if _is_here(run, run_dir)), None)
    if here is not None:
        return here, None
    if mirrored is not None:
        return None, mirrored.info.run_id
    moved = next((run for run in others if not _is_elsewhere(run, run_dir)), None)
    first = min(others, key=lambda run: COPY_OF in run.data.tags, default=None)
    return moved, first.info.run_id if first is not None and moved is None else None


def runs_of(client: MlflowClient, run_id: str) -> list[Run]:
    """The MLflow runs of run directories with this id, but for those that were rebuilt; the deleted ones last."""
    runs = runs_having(client, mlflow_tags.RUN_ID, run_id)
    rebuilt = {run.data.tags.get(REBUILDS) for run in runs}
    there = [run for run in runs if run.info.run_id not in rebuilt and REBUILT_AS not in run.data.tags]
    return sorted(there, key=is_deleted)


def runs_having(client: MlflowClient, tag: str, value: str) -> list[Run]:
    """The runs of any experiment with this tag, deleted or not."""
    from mlflow.entities import ViewType

    experiments = [experiment.experiment_id for experiment in _experiments(client)]
    return list(client.search_runs(experiments, f"tags.`{tag}` = '{value}'", run_view_type=ViewType.ALL))


def running(client: MlflowClient) -> list[Run]:
    """The runs of any experiment that say RUNNING and are a run directory's."""
    experiments = [experiment.experiment_id for experiment in _experiments(client)]
    runs: list[Run] = []
    page = None
    while page is None or page.token:
        page = client.search_runs(
            experiments, "attributes.status = 'RUNNING'", page_token=page.token if page is not None else None
        )
        runs += page
    return [run for run in runs if mlflow_tags.RUN_ID in run.data.tags]


def make_run(
    client: MlflowClient, run_dir: RunDir, destination: Destination, uri: str, links: Mapping[str, str]
) -> Run:
    """A new MLflow run for ``run_dir``.

    Args:
        uri: The store of ``client``.
        links: Tags that name other MLflow runs.
    """
    config = run_dir.config()
    tags = {clean_key(key): value for key, value in destination.tags.items()}
    tags |= mlflow_tags.fixed_tags(run_dir, config, destination.note)
    tags |= place_tags(run_dir)
    tags |= links
    return client.create_run(
        experiment_id(client, destination.experiment, uri),
        start_time=config["started"],
        tags={key: value[:TAG_LENGTH] for key, value in tags.items()},
        run_name=destination.run_name,
    )


def place_tags(run_dir: RunDir) -> dict[str, str]:
    """Where the directory lies, for who opens its MLflow run."""
    return {mlflow_tags.LOG_PATH: str(run_dir.path), LOG_HOST: socket.gethostname()}


def get_run(client: MlflowClient, run_id: str) -> Run | None:
    """The run, deleted or not; None in a store that never had it, because it was made anew."""
    from mlflow import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def is_deleted(run: Run) -> bool:
    return run.info.lifecycle_stage == "deleted"


def lacks(run: Run, sent: RowPoints, num_points: int) -> bool:
    """Whether MLflow lost points: of the keys of the last row that was sent, fewer than were sent stand there or later.

    Args:
        num_points: As many as the row had when it was sent; it can have grown.
    """
    last = {metric.key: (metric.step, metric.timestamp) for metric in run.data.to_proto().metrics}
    return sum(last.get(key, (-1, 0)) >= (sent.step, sent.ts) for key in sent.values) < num_points


def set_tags(client: MlflowClient, run_id: str, tags: Row) -> None:
    from mlflow.entities import RunTag

    entities = [RunTag(key, value[:TAG_LENGTH]) for key, value in tags.items()]
    for i in range(0, len(entities), TAGS_PER_CALL):
        client.log_batch(run_id, tags=entities[i : i + TAGS_PER_CALL], synchronous=True)


def tag_changes(run: Run, wanted: Mapping[str, str | None]) -> tuple[dict[str, str], list[str]]:
    """The tags to set in ``run``, and those to remove: they are ``wanted`` to be None."""
    there = run.data.tags
    to_set = {key: value for key, value in wanted.items() if value is not None and there.get(key) != value[:TAG_LENGTH]}
    return to_set, [key for key, value in wanted.items() if value is None and key in there]


def change_tags(client: MlflowClient, run_id: str, wanted: Mapping[str, str | None]) -> None:
    """Set and remove tags, so that they are as ``wanted``; None is of one that is not to be there."""
    to_set, to_remove = tag_changes(client.get_run(run_id), wanted)
    set_tags(client, run_id, to_set)
    for key in to_remove:
        client.delete_tag(run_id, key)


def experiment_id(
    client: MlflowClient, name: str, uri: str, another: str = "give the run's command again with experiment=NAME"
) -> str:
    """The experiment of that name, made where it is missing.

    Args:
        uri: The store of ``client``.
        another: How the user chooses another one.

    Raises:
        TrackingError: where it was deleted.
    """
    from mlflow import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name, mlflow_store.artifact_location(uri))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:  # so it is not that another process made it in between
                raise
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f'the experiment "{name}" was deleted at {redact(uri)}: restore it there '
            f"(MLFLOW_TRACKING_URI={redact(uri)} mlflow experiments restore -x {experiment.experiment_id}), or choose "
            f"another: {another}"
        )
    return experiment.experiment_id


def _experiments(client: MlflowClient) -> Iterator:
    page = None
    while page is None or page.token:
        page = client.search_experiments(page_token=page.token if page is not None else None)
        yield from page


def _went_with_its_experiment(client: MlflowClient, run: Run) -> bool:
    """Whether the run was deleted as one of all those of its experiment."""
    return is_deleted(run) and client.get_experiment(run.info.experiment_id).lifecycle_stage == "deleted"


def _is_here(run: Run, run_dir: RunDir) -> bool:
    """Whether it was ``run_dir`` that was mirrored last, by whatever path."""
    path = run.data.tags.get(mlflow_tags.LOG_PATH, "")
    try:
        return path == str(run_dir.path) or os.path.samefile(path, run_dir.path)
    except OSError:
        return False


def _is_elsewhere(run: Run, run_dir: RunDir) -> bool:
    """Whether another directory was mirrored last, and still holds the run."""
    path = run.data.tags.get(mlflow_tags.LOG_PATH)
    if path is None or _is_here(run, run_dir):
        return False
    try:
        return RunDir(path).config()["run_id"] == run_dir.config()["run_id"]
    except RunDirError:
        return False
    except OSError:  # another user's, who lets nobody look
        return True
