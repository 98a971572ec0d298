"""Run directory -> MLflow run: a mirror that can be made again, by one code path for live runs and finished ones.

:meth:`Mirror.send` sends what MLflow lacks. ``live_mirror`` calls it about every second from a thread while training
appends to the files; :func:`sync` calls it once. Sending again is harmless: a point in MLflow is the
tuple (run, key, step, timestamp, value), every row carries its own timestamp, and an exact resend is dropped. The
cursor in mirror.json only saves the work; where MLflow turns out to have lost points, all are sent.

Points cannot be deleted from MLflow: where a resume superseded rows, a step has an older point beside the right one,
and the tag ``harness.exactness`` says ``inexact``. ``mlflow_rebuild`` makes a run without them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config_io import flatten, redact
from harness.exceptions import HarnessError, TrackingError, as_written
from harness.metric_keys import TS
from harness.run_dir import MIRROR, Row, RunDir
from harness.tracking import mlflow_artifacts, mlflow_data, mlflow_models, mlflow_run, mlflow_store, mlflow_tags
from harness.tracking.attempt_tags import attempt_tags
from harness.tracking.mlflow_parents import parent_tags
from harness.tracking.mlflow_store import Destination, one_line_errors
from harness.tracking.points import Cursor, RowPoints, clean_key, later_points, sent_row, unsent

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

    from harness.tracking.mlflow_system import SystemMetrics

_METRICS_PER_CALL = 1000  # MLflow's limits, this one and that below
_PARAM_LENGTH = 6000
_CURSOR_SECONDS = 1.0  # the cursor is a file that is made durable: not after each call
_LOCK_SECONDS = 60


class Mirror:
    """One run directory's MLflow run. Errors are TrackingErrors (RunDirErrors for the files), without secrets."""

    def __init__(self, run_dir: RunDir, destination: Destination):
        self._run_dir = run_dir
        self._destination = destination
        self._cwd = Path.cwd()  # now: it may be another one when the store is opened
        self._client: MlflowClient | None = None
        self._uri = ""  # with its user info
        self._document: Row = {}  # mirror.json but for the cursor
        self._cursor: Cursor | None = None
        self._tags: dict[str, str | None] = {}  # the user's, as they were sent
        self.where: str | None = None  # the MLflow run in one line for the user, once it is open

    @property
    def run_id(self) -> str:
        """The MLflow run, once it is open."""
        return self._document["run_id"]

    @property
    def tracking_uri(self) -> str:
        """Without user info, once the run is open."""
        return self._document["tracking_uri"]

    def send(self) -> int:
        """Send what MLflow lacks and return the number of points; the first call finds or makes the MLflow run."""
        with self._lock():
            client = self._client or self._open()
            self._client = None
            try:
                sent = self._send(client)
            except TrackingError:  # the run or its whole store may be gone, or be an older copy: opening tells
                client = self._open()
                sent = self._send(client)
            self._client = client
            return sent

    def send_all(self) -> int:
        """:meth:`send`, whatever the cursor says."""
        with self._lock():
            self._client = self._open(afresh=True)
            return self._send(self._client)

    def rebuild(self) -> int:
        """Make a new MLflow run in the place of the one there is, and send all. Both name each other."""
        with self._lock():
            self._client = self._open(rebuild=True)
            return self._send(self._client)

    def log_system_metrics(self, system: SystemMetrics, *, last: bool) -> None:
        """Log the load of this machine where it is due. Call :meth:`send` before it."""
        assert self._client is not None, "send() comes before log_system_metrics()"
        with one_line_errors(self._uri):
            system.log_if_due(self._client, self.run_id, last=last)

    def close(self, state: str, error: str | None = None) -> None:
        """Upload the run's files and set the status: FINISHED, FAILED or KILLED. Call :meth:`send` before it."""
        assert self._client is not None, "send() comes before close()"
        tags = run_tags(self._run_dir)
        if error:
            tags[mlflow_tags.ERROR] = redact(error)
        signs_of_life = [self._run_dir.config()["started"]]
        signs_of_life += [row[TS] for row in [*self._run_dir.attempts(), self._run_dir.last_row()] if row]
        with self._lock(), one_line_errors(self._uri):
            uploaded = self._document.get("artifacts") or {}
            self._document["artifacts"] = mlflow_artifacts.upload(self._client, self.run_id, self._run_dir, uploaded)
            self._note()
            mlflow_run.set_tags(self._client, self.run_id, tags)
            self._client.set_terminated(self.run_id, state, end_time=max(signs_of_life))
            mlflow_models.log_checkpoints(self._client, self.run_id, self._run_dir)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One mirror of a run at a time: two that find no MLflow run would both make one."""
        import filelock

        lock = filelock.FileLock(self._run_dir / f".{MIRROR}.lock", timeout=_LOCK_SECONDS)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise TrackingError(f"{self._run_dir}: another process is mirroring this run: wait for it") from None
        except OSError as error:
            raise TrackingError(
                f"{self._run_dir}: cannot be written ({error.strerror}), and {MIRROR} must be: sync a copy of it"
            ) from None
        try:
            yield
        finally:
            lock.release()

    # ---- the run

    def _open(self, *, rebuild: bool = False, afresh: bool = False) -> MlflowClient:
        """Open the store; find or make the run and bring its params, tags and status up to date.

        Args:
            rebuild: Make another run in the place of the one there is.
            afresh: Forget what mirror.json notes of the run.
        """
        config = self._run_dir.config()
        self._uri, mirrored = locate(self._run_dir, self._destination, self._cwd)
        with one_line_errors(self._uri):
            client = mlflow_store.open_store(self._uri)
            run, original = mlflow_run.find_run(client, self._run_dir, mirrored.get("run_id"))
            if rebuild and run is not None:
                run = self._make_again(client, run)
            elif run is None:
                links = {mlflow_run.COPY_OF: original} if original else {}
                run = self._make(client, links)
            if mlflow_run.is_deleted(run):
                raise TrackingError(
                    f"{self._run_dir}: its MLflow run {run.info.run_id} was deleted at {redact(self._uri)}: "
                    f"restore it there (MLFLOW_TRACKING_URI={redact(self._uri)} mlflow runs restore --run-id "
                    f"{run.info.run_id}), or make another: "
                    f"python -m harness sync --rebuild {self._run_dir}"
                )
            self._bring_up_to_date(client, run, config)
            experiment = client.get_experiment(run.info.experiment_id)
        self._cursor = None if afresh else valid_cursor(self._run_dir, run, mirrored)
        self._tags = {}
        place = {
            "tracking_uri": redact(self._uri),
            "experiment_id": experiment.experiment_id,
            "run_id": run.info.run_id,
        }
        self._document = (mirrored if self._cursor else {}) | place  # what is noted of a run that lost points is not so
        self._note()
        self.where = f'experiment "{experiment.name}", run "{run.info.run_name}" at {address(self._document)}'
        return client

    def _make(self, client: MlflowClient, links: Mapping[str, str]) -> Run:
        """A new run; a copy's has the name of its directory, since the first one has that of the config."""
        destination = self._destination
        if mlflow_run.COPY_OF in links:
            destination = dataclasses.replace(destination, run_name=self._run_dir.path.name)
        return mlflow_run.make_run(client, self._run_dir, destination, self._uri, links)

    def _make_again(self, client: MlflowClient, old: Run) -> Run:
        """A new run in the place of ``old``, of which nothing is lost. One that was deleted can take no tag."""
        links = {mlflow_run.REBUILDS: old.info.run_id}
        if mlflow_run.COPY_OF in old.data.tags:
            links[mlflow_run.COPY_OF] = old.data.tags[mlflow_run.COPY_OF]
        others = mlflow_run.runs_of(client, self._run_dir.config()["run_id"])
        # a crash can have come before mirror.json was written
        begun = [run for run in others if run.data.tags.get(mlflow_run.REBUILDS) == old.info.run_id]
        new = begun[0] if begun else self._make(client, links)
        if not mlflow_run.is_deleted(old):
            client.set_tag(old.info.run_id, mlflow_run.REBUILT_AS, new.info.run_id)
        mlflow_models.delete_models(client, old.info.run_id)
        return new

    def _bring_up_to_date(self, client: MlflowClient, run: Run, config: Row) -> None:
        from mlflow.entities import Param

        missing = [Param(key, value) for key, value in params(config).items() if key not in run.data.params]
        for i in range(0, len(missing), mlflow_run.PARAMS_PER_CALL):  # one that changed would have its batch refused
            batch = missing[i : i + mlflow_run.PARAMS_PER_CALL]
            client.log_batch(run.info.run_id, params=batch, synchronous=True)
        mlflow_data.log_data(client, run.info.run_id, config)
        tags = mlflow_run.place_tags(self._run_dir) | run_tags(self._run_dir)
        mlflow_run.set_tags(client, run.info.run_id, tags | parent_tags(client, run, self._run_dir, config))
        if mlflow_tags.ERROR in run.data.tags and self._run_dir.state() != "FAILED":  # an earlier attempt's
            client.delete_tag(run.info.run_id, mlflow_tags.ERROR)
        if self._run_dir.state() == "RUNNING":
            client.update_run(run.info.run_id, status="RUNNING")

    # ---- what is added to it

    def _send_tags(self, client: MlflowClient) -> None:
        tags = mlflow_tags.users_tags(self._run_dir)
        if tags != self._tags:
            with one_line_errors(self._uri):
                mlflow_run.change_tags(client, self.run_id, tags)
            self._tags = tags

    def _send(self, client: MlflowClient) -> int:
        self._send_tags(client)
        sent = 0
        noted, noted_at = self._cursor, time.monotonic()
        try:
            for metrics, cursor in self._calls(unsent(self._run_dir, self._cursor)):
                with one_line_errors(self._uri):
                    client.log_batch(self.run_id, metrics=metrics, synchronous=True)
                sent += len(metrics)
                self._cursor = cursor  # never ahead of what is sent
                if time.monotonic() - noted_at > _CURSOR_SECONDS:
                    self._note()
                    noted, noted_at = self._cursor, time.monotonic()
        finally:
            if self._cursor != noted:
                self._note()
        return sent

    def _calls(self, rows: Iterable[RowPoints]) -> Iterator[tuple[list[Metric], Cursor | None]]:
        """Points by the call, as many as it takes, with the cursor once the call is made: at the last whole row."""
        from mlflow.entities import Metric

        metrics: list[Metric] = []
        cursor = self._cursor
        for row in rows:
            for key, value in row.values.items():
                if len(metrics) == _METRICS_PER_CALL:
                    yield metrics, cursor
                    metrics = []
                metrics.append(Metric(key, value, row.ts, row.step))
            cursor = row.cursor
        if metrics:
            yield metrics, cursor

    def _note(self) -> None:
        self._run_dir.write_mirror(self._document | (self._cursor.to_row() if self._cursor else {"sent_step": None}))


@dataclasses.dataclass(frozen=True)
class SyncResult:
    """What :func:`sync` did.

    Attributes:
        num_points: Points sent now; 0 where MLflow had them all.
        run_id: The MLflow run.
        tracking_uri: Without user info.
    """

    num_points: int
    run_id: str
    tracking_uri: str


def sync(run_dir: RunDir, tracking_uri: str | None = None, send: Callable[[Mirror], int] = Mirror.send) -> SyncResult:
    """Bring the MLflow run of ``run_dir`` up to date: what a live mirror missed, a run made offline, a store made anew.

    Args:
        tracking_uri: None for where the run was mirrored before, else where its config or the environment says.
        send: What to send it with: :meth:`Mirror.send`, :meth:`Mirror.send_all` or :meth:`Mirror.rebuild`.

    Raises:
        TrackingError: where MLflow cannot be reached or written.
        RunDirError: where ``run_dir`` is none, or its files cannot be read or written.
    """
    state = run_dir.state()  # before the rows are read: a run that is over adds none
    mirror = Mirror(run_dir, destination(run_dir, tracking_uri))
    num_points = send(mirror)
    if state in ("FINISHED", "FAILED", "KILLED") and not run_dir.is_locked():  # resumed meanwhile: it closes its own
        mirror.close(state, run_dir.attempts()[-1].get("error"))
    return SyncResult(num_points, mirror.run_id, mirror.tracking_uri)


def update(run_dirs: Iterable[RunDir], *, make: bool = False) -> list[str]:
    """:func:`sync` those that are in MLflow already, and are not being trained: their own mirror follows the files.

    Args:
        make: Those that are not there too.

    Returns:
        What went wrong, each once: a dead server fails every run alike.
    """
    failures: dict[str, None] = {}
    for run_dir in run_dirs:
        try:
            with as_written(run_dir):
                uri, mirrored = locate(run_dir, destination(run_dir), Path.cwd())
                is_there = mirrored and mlflow_store.unless_gone(uri)
                if (is_there or make) and not run_dir.is_locked():
                    sync(run_dir)
        except HarnessError as error:
            failures[str(error)] = None
    return list(failures)


def destination(run_dir: RunDir, tracking_uri: str | None = None) -> Destination:
    """Where a run that is not being started goes: ``tracking_uri``, else where it was mirrored before, else where its
    config or the environment says."""
    mirrored = mlflow_store.unless_gone((run_dir.mirror() or {}).get("tracking_uri"))
    return Destination.of(run_dir.config(), tracking_uri or mirrored)


def locate(run_dir: RunDir, destination: Destination, cwd: Path) -> tuple[str, Row]:
    """The store of a run, with its user info, and mirror.json where that is of this store."""
    mirrored = run_dir.mirror() or {}
    before = mirrored.get("tracking_uri")
    uri = destination.tracking_uri or mlflow_store.unless_gone(before) or mlflow_store.embedded_uri(cwd)
    with one_line_errors(uri):
        uri = mlflow_store.absolute_uri(uri, cwd)
    return uri, mirrored if before == redact(uri) else {}


def address(mirrored: Row) -> str:
    """Where a browser finds the run that mirror.json names; its store, where that is no server."""
    uri = mirrored["tracking_uri"].rstrip("/")
    page = f"/#/experiments/{mirrored.get('experiment_id')}/runs/{mirrored['run_id']}"
    return uri + page if uri.startswith("http") else uri


def valid_cursor(run_dir: RunDir, run: Run, mirrored: Row) -> Cursor | None:
    """The cursor in mirror.json; None where it is another run's, its row was superseded, or MLflow lost points."""
    cursor = Cursor.from_row(mirrored)
    if cursor is None or mirrored["run_id"] != run.info.run_id:
        return None
    sent = sent_row(run_dir, cursor)
    if sent is None or mlflow_run.lacks(run, sent, cursor.num_points):
        return None
    later = later_points(run_dir.later_evaluations()[: cursor.num_later], cursor)
    return None if any(mlflow_run.lacks(run, row, len(row.values)) for row in later) else cursor


def params(config: Row) -> dict[str, str]:
    """A run's config as MLflow takes it.

    Args:
        config: ``RunDir.config()``.
    """
    return {clean_key(key): str(value)[:_PARAM_LENGTH] for key, value in flatten(config["config"]).items()}


def run_tags(run_dir: RunDir) -> dict[str, str]:
    """Those set again whenever a mirror opens or closes the run."""
    identity = {mlflow_tags.RUN_ID: run_dir.config()["run_id"], mlflow_tags.LOG_PATH: str(run_dir.path)}
    return identity | mlflow_tags.progress_tags(run_dir) | attempt_tags(run_dir)
