"""Whether MLflow holds what a run directory holds, point by point. Nothing is changed, here or there."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config_io import redact
from harness.metric_keys import STEP, TS
from harness.run_dir import SUPERSEDED_BY, RunDir
from harness.tracking import mlflow_artifacts, mlflow_data, mlflow_models, mlflow_run, mlflow_store, mlflow_tags
from harness.tracking.mlflow_mirror import destination, locate, params, run_tags, valid_cursor
from harness.tracking.mlflow_store import one_line_errors
from harness.tracking.points import Cursor, Totals, clean_key, points, unsent

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_SHOWN = 3  # of each kind of difference

_Place = tuple[int, int]  # step and timestamp
_NOTHING_SENT = Cursor(step=-1, ts=0, num_points=0, before=Totals())


@dataclasses.dataclass(frozen=True)
class Difference:
    """One kind of it.

    Attributes:
        what: What is missing, of another value, …
        found: Each instance in words.
        stays: Whether MLflow cannot be brought to forget it.
    """

    what: str
    found: tuple[str, ...]
    stays: bool = False

    def __str__(self) -> str:
        more = ", …" if len(self.found) > _SHOWN else ""
        return f"{self.what}: {len(self.found)} ({', '.join(self.found[:_SHOWN])}{more})"


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """What :func:`check` found.

    Attributes:
        run_id: The MLflow run; None where there is none.
        tracking_uri: Without user info.
        num_points: That were compared.
        differences: None where MLflow is equal to the files, or there is no MLflow run.
        until: The step up to which was compared, where the run is being trained: what is later is on its way.
        sync_sends: Whether ``sync`` sends what is missing though it does not compare.
    """

    run_id: str | None
    tracking_uri: str
    num_points: int = 0
    differences: tuple[Difference, ...] = ()
    until: int | None = None
    sync_sends: bool = True

    def __str__(self) -> str:
        if self.run_id is None:
            return f"not in MLflow at {self.tracking_uri}"
        training = f"; still being trained, compared up to step {self.until}" if self.until is not None else ""
        there = f"{self.num_points} points, run {self.run_id} at {self.tracking_uri}{training}"
        return f"{'equal' if self.is_equal else 'not equal'} ({there})"

    @property
    def is_equal(self) -> bool:
        return self.run_id is not None and not self.differences

    @property
    def needs_rebuild(self) -> bool:
        """Whether MLflow holds what cannot be taken from it."""
        return any(difference.stays for difference in self.differences)

    @property
    def mended_by(self) -> str:
        """The verb that makes MLflow equal to the files."""
        return "sync --rebuild" if self.needs_rebuild or not self.sync_sends else "sync"


def check(run_dir: RunDir, tracking_uri: str | None = None) -> CheckResult:
    """Compare the files of ``run_dir`` with its MLflow run.

    Args:
        tracking_uri: As for ``sync``.

    Raises:
        TrackingError: where MLflow cannot be reached.
        RunDirError: where ``run_dir`` is none, or its files cannot be read.
    """
    is_training = run_dir.is_locked()
    uri, mirrored = locate(run_dir, destination(run_dir, tracking_uri), Path.cwd())
    place = redact(uri)
    if mlflow_store.unless_gone(uri) is None:  # to open it would make it
        return CheckResult(None, place)
    with one_line_errors(uri):
        client = mlflow_store.open_store(uri)
        run, _ = mlflow_run.find_run(client, run_dir, mirrored.get("run_id"))
        if run is None:
            return CheckResult(None, place)
        run_id = run.info.run_id
        if mlflow_run.is_deleted(run):
            return CheckResult(run_id, place, differences=(Difference("run deleted in MLflow", (run_id,), stays=True),))
        cursor = valid_cursor(run_dir, run, mirrored)
        until = (cursor or _NOTHING_SENT) if is_training else None
        found = _compare_points(client, run, run_dir, until)
        differences = [*found.differences(), *_compare_rest(client, run, run_dir, is_training)]
    will_send = {(key, row.step) for row in unsent(run_dir, cursor) for key in row.values} if found.missing else set()
    sync_sends = will_send.issuperset(found.missing)
    named = tuple(difference for difference in differences if difference.found)
    return CheckResult(run_id, place, found.num, named, until.step if until else None, sync_sends)


@dataclasses.dataclass
class _Points:
    """How the points differ, each named by its key and step."""

    num: int = 0  # in the files
    missing: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    surplus: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    superseded: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    other: list[tuple[str, int]] = dataclasses.field(default_factory=list)

    def differences(self) -> list[Difference]:
        return [
            Difference("points missing in MLflow", _words(self.missing)),
            Difference("points only in MLflow", _words(self.surplus), stays=True),
            Difference("superseded points in MLflow", _words(self.superseded), stays=True),
            Difference("points with another value in MLflow", _words(self.other), stays=True),
        ]


def _compare_points(client: MlflowClient, run: Run, run_dir: RunDir, until: Cursor | None) -> _Points:
    here: dict[str, dict[_Place, float]] = defaultdict(dict)
    for row in unsent(run_dir, None):
        if until is None or (row.step <= until.step and row.cursor.num_later <= until.num_later):
            for key, value in row.values.items():
                here[key][row.step, row.ts] = value
    left = {(row.step, row.ts): set(row.values) for row in points(run_dir.superseded_metrics())}
    left |= {
        (row[STEP], row[TS]): set(map(clean_key, row["metrics"]))
        for row in run_dir.later_evaluations()
        if SUPERSEDED_BY in row
    }
    found = _Points(num=sum(map(len, here.values())))
    for key in sorted(here.keys() | set().union(*left.values())):  # other keys are a user's own
        wanted = here.get(key, {})
        seen: dict[_Place, set[float]] = defaultdict(set)
        for metric in client.get_metric_history(run.info.run_id, key):
            if until is None or metric.step <= until.step:
                seen[metric.step, metric.timestamp].add(metric.value)
        for place in sorted(wanted.keys() | seen.keys()):
            if place not in seen:
                found.missing.append((key, place[0]))
            elif place not in wanted:
                (found.superseded if place in left else found.surplus).append((key, place[0]))
            elif seen[place] != {wanted[place]}:
                found.other.append((key, place[0]))
    return found


def _compare_rest(client: MlflowClient, run: Run, run_dir: RunDir, is_training: bool) -> Iterator[Difference]:
    """Params, tags, status, data sets, checkpoints and files; the last two are sent when a run has ended."""
    wanted, there = params(run_dir.config()), run.data.params
    yield Difference("params missing in MLflow", tuple(key for key in wanted if key not in there))
    changed = tuple(f"{k} ({there[k]!r}, not {v!r})" for k, v in wanted.items() if there.get(k, v) != v)
    yield Difference("params with another value in MLflow", changed, stays=True)
    to_set, to_remove = mlflow_run.tag_changes(run, mlflow_tags.users_tags(run_dir) | run_tags(run_dir))
    yield Difference("tags to set in MLflow", tuple(to_set))
    yield Difference("tags to remove in MLflow", tuple(to_remove))
    state = run_dir.state()
    if state != "NEW" and run.info.status != state:
        yield Difference("status to set in MLflow", (f"{run.info.status}, not {state}",))
    yield Difference("data sets missing in MLflow", tuple(mlflow_data.missing_data(run, run_dir.config())))
    if not is_training:
        yield Difference("checkpoints missing in MLflow", tuple(mlflow_models.missing_models(client, run, run_dir)))
        sizes = {file.path: file.file_size for file in client.list_artifacts(run.info.run_id)}
        here = {name: (run_dir / name).stat().st_size for name in mlflow_artifacts.FILES if (run_dir / name).exists()}
        other = tuple(name for name, size in here.items() if sizes.get(name, -1) not in (size, None))
        figure = (mlflow_artifacts.FIGURE,) if mlflow_artifacts.nll_curves(run_dir) else ()
        yield Difference("files to upload to MLflow", other + tuple(name for name in figure if name not in sizes))


def _words(found: list[tuple[str, int]]) -> tuple[str, ...]:
    return tuple(f"{key} at step {step}" for key, step in found)
