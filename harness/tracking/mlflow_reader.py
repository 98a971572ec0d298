"""MLflow runs read back: which are meant, where their run directories lie, their files, or their points."""

from __future__ import annotations

import ast
import difflib
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config_io import redact
from harness.exceptions import RunDirError, TrackingError
from harness.metric_keys import (
    EPOCH,
    LEARNING_RATE,
    NUM_LOSS_TOKENS,
    NUM_SEQUENCES,
    NUM_TOKENS,
    PROGRESS,
    STEP,
    TIME_STEP,
    TRAIN_BPB,
    TRAIN_NLL,
    TS,
)
from harness.run_dir import METRICS, Row, RunDir
from harness.tracking import mlflow_artifacts, mlflow_run, mlflow_store, mlflow_tags
from harness.tracking.mlflow_data import UNKNOWN
from harness.tracking.mlflow_store import one_line_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

_PREFIX = "mlflow:"
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_OF_TRAINING = (
    TRAIN_NLL,
    TRAIN_BPB,
    NUM_SEQUENCES,
    NUM_TOKENS,
    NUM_LOSS_TOKENS,
    EPOCH,
    PROGRESS,
    LEARNING_RATE,
    TIME_STEP,
)
_SHOWN = 10  # of the experiments that there are


def is_source(source: str) -> bool:
    """Whether ``source`` means something in MLflow: ``mlflow:EXPERIMENT``, ``mlflow:RUN_ID`` or a bare run id."""
    return source.startswith(_PREFIX) or bool(_RUN_ID.fullmatch(source))


class MlflowRun:
    """A run as MLflow has it.

    Attributes:
        run_id: In MLflow.
        name: In MLflow's list.
        state: RUNNING, FINISHED, FAILED, KILLED or NEW, as MLflow says.
        directory: Its run directory, where that is there and holds this run.
        config: Its params by config path, then versions, git commit and the fingerprint of the training data.
        test_sets: (set, fingerprint) of what it is tested on, as far as its tags tell.
        last_step: The highest that has a point of those that :meth:`history` gives; -1 where none has.
    """

    def __init__(self, run: Run, client: MlflowClient, uri: str):
        self._client, self._uri = client, uri
        last_steps = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        self._keys = [key for key in last_steps if key in _OF_TRAINING or key.startswith("test/")]
        self.run_id = run.info.run_id
        self.name = run.info.run_name or run.info.run_id
        self.state = "NEW" if run.info.status == "SCHEDULED" else run.info.status
        self.directory = _directory(run.data.tags)
        self.config = _config(run)
        self.test_sets = _test_sets(run.data.tags)
        self.last_step = max((last_steps[key] for key in self._keys), default=-1)

    def __str__(self) -> str:
        return f"MLflow run {self.run_id}"

    def download(self, folder: Path) -> bool:
        """Copy the run's files into ``folder``, which is made; False where there are no rows among its artifacts.

        Raises:
            TrackingError: where they cannot be had.
        """
        with one_line_errors(self._uri):
            there = {file.path for file in self._client.list_artifacts(self.run_id)}
            if METRICS not in there:
                return False
            folder.mkdir()
            for name in mlflow_artifacts.FILES:
                if name in there:
                    self._client.download_artifacts(self.run_id, name, str(folder))
        return True

    def history(self) -> list[Row]:
        """The run's points as rows of metrics.jsonl, of the metrics that a comparison asks for. Where a step has
        several points of a metric, the one logged last counts; an evaluation older than the update before it is of
        weights of a history that a resume left.

        Raises:
            TrackingError: where they cannot be had.
        """
        rows: dict[int, Row] = defaultdict(dict)
        trained: dict[int, int] = {}
        with one_line_errors(self._uri):
            for key in sorted(self._keys, key=lambda key: key != TRAIN_NLL):
                for point in sorted(self._client.get_metric_history(self.run_id, key), key=lambda p: p.timestamp):
                    if key == TRAIN_NLL:
                        trained[point.step] = point.timestamp
                    elif key.startswith("test/") and point.timestamp < trained.get(point.step - 1, 0):
                        continue
                    row = rows[point.step]
                    row |= {STEP: point.step, TS: max(point.timestamp, row.get(TS, 0)), key: point.value}
        return [rows[step] for step in sorted(rows)]


class MlflowReader:
    """The store that ``MLFLOW_TRACKING_URI`` names, else the embedded one of the working directory. Nothing in it is
    changed, nor made where it is not there.

    Raises:
        TrackingError: where it is not there or cannot be reached.
    """

    def __init__(self):
        self._uri = mlflow_store.uri_here()
        with one_line_errors(self._uri):
            if not mlflow_store.unless_gone(self._uri):
                raise TrackingError(
                    f"{self._uri}: no such database: go where the runs were trained, or set "
                    f"{mlflow_store.TRACKING_URI_VARIABLE}"
                )
            self._client = mlflow_store.open_store(self._uri)

    def find(self, source: str) -> list[MlflowRun]:
        """The run of that id, or the runs of that experiment, the oldest first. Of an experiment those that hold
        nothing to compare are left out: neither points nor a run directory.

        Args:
            source: See :func:`is_source`.

        Raises:
            TrackingError: where there is none, or it was deleted.
        """
        wanted = source.removeprefix(_PREFIX)
        with one_line_errors(self._uri):
            if not wanted:
                raise TrackingError(f"{source} names no experiment{self._near('')}")
            run = mlflow_run.get_run(self._client, wanted) if _RUN_ID.fullmatch(wanted) else None
            if run is not None:
                self._check_run(run, source)
            runs = [run] if run else self._runs_of_experiment(wanted, source)
        return [MlflowRun(run, self._client, self._uri) for run in runs]

    def _check_run(self, run: Run, source: str) -> None:
        if mlflow_run.is_deleted(run):
            raise TrackingError(
                f"{source}: this run was deleted at {redact(self._uri)}: restore it there "
                f"(MLFLOW_TRACKING_URI={redact(self._uri)} mlflow runs restore --run-id {run.info.run_id})"
            )

    def _runs_of_experiment(self, name: str, source: str) -> list[Run]:
        experiment = self._experiment(name, source)
        runs: list[Run] = []
        page = None
        while page is None or page.token:
            page = self._client.search_runs(
                [experiment.experiment_id],
                order_by=["attributes.start_time ASC"],
                page_token=page.token if page is not None else None,
            )
            runs += page
        runs = [run for run in runs if mlflow_run.REBUILT_AS not in run.data.tags]
        runs = [run for run in runs if run.data.metrics or mlflow_tags.RUN_ID in run.data.tags]
        if not runs:
            raise TrackingError(f"{source}: no run in this experiment at {redact(self._uri)}: name another")
        return runs

    def _experiment(self, name: str, source: str) -> Experiment:
        experiment = self._client.get_experiment_by_name(name)
        at = f"at {redact(self._uri)}"
        if experiment is None:
            what = "run or experiment" if _RUN_ID.fullmatch(name) else "experiment"
            raise TrackingError(f"{source}: no such {what} {at}{self._near(name)}")
        if experiment.lifecycle_stage == "deleted":
            raise TrackingError(
                f"{source}: this experiment was deleted {at}: restore it there "
                f"(MLFLOW_TRACKING_URI={redact(self._uri)} mlflow experiments restore -x {experiment.experiment_id})"
            )
        return experiment

    def _near(self, name: str) -> str:
        names = [experiment.name for experiment in self._client.search_experiments()]
        near = difflib.get_close_matches(name, names, n=3)
        if near:
            return f"; did you mean {' or '.join(near)}?"
        more = ", …" if len(names) > _SHOWN else ""
        return f": choose one of {', '.join(names[:_SHOWN])}{more}"


def _directory(tags: Mapping[str, str]) -> RunDir | None:
    """The run directory that was mirrored last, where it still holds this run; what lies at a path can be another's."""
    if mlflow_tags.LOG_PATH not in tags:
        return None
    run_dir = RunDir(tags[mlflow_tags.LOG_PATH])
    try:
        return run_dir if run_dir.config()["run_id"] == tags.get(mlflow_tags.RUN_ID) else None
    except (RunDirError, OSError):  # gone, another's, or where one may not look
        return None


def _config(run: Run) -> Row:
    tags = run.data.tags
    of_versions = {key: value for key, value in tags.items() if key.startswith(mlflow_tags.VERSION)}
    recorded = {
        **{f"versions.{key.removeprefix(mlflow_tags.VERSION)}": value for key, value in of_versions.items()},
        "git_commit": tags.get(mlflow_tags.COMMIT),
        "data.train": tags.get(mlflow_tags.TRAIN_DATA, UNKNOWN),
    }
    config = {key: _value(redact(text, key.rpartition(".")[2])) for key, text in run.data.params.items()}
    return config | {key: value for key, value in recorded.items() if value not in (None, UNKNOWN)}


def _value(param: str) -> Any:
    """A param, which MLflow keeps as text, as the value that has this text."""
    try:
        value = ast.literal_eval(param)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return param
    return value if str(value) == param else param


def _test_sets(tags: Mapping[str, str]) -> list[tuple[str, str]]:
    of_tests = {key: value for key, value in tags.items() if f"{key}.".startswith(f"{mlflow_tags.TEST_DATA}.")}
    named = {key[len(mlflow_tags.TEST_DATA) + 1 :]: fingerprint for key, fingerprint in of_tests.items()}
    return [(name, fingerprint) for name, fingerprint in named.items() if fingerprint != UNKNOWN]
