"""One run, read for what it holds: what is damaged in it is noted and leaves the rest readable."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from harness import config_io
from harness.compare import tinker_cookbook
from harness.compare.cache import cached
from harness.compare.metric_table import notes_of, read_table, sorted_by_step, table_of
from harness.exceptions import RunDirError, TrackingError, as_written
from harness.metric_keys import STEP
from harness.run_dir import EVAL_EXAMPLES, METRICS, SUPERSEDED_BY, Row, RunDir
from harness.run_tags import tags

if TYPE_CHECKING:
    import pyarrow as pa

    from harness.tracking.mlflow_reader import MlflowRun

UNREADABLE = "UNREADABLE"  # the state of a run whose attempts.jsonl is damaged
TEST_CONTENTS = "test_contents"  # of config.json's data: fingerprints of what test sets say, before it was rendered
REPLANNED = "planned_updates"  # the config path that only a run has which was extended
_T = TypeVar("_T")

# What config.json records beside the config and can explain a difference between two runs.
_RECORDED = ("versions", "numerics", "git_commit", "parent")


@dataclasses.dataclass(frozen=True)
class RunData:
    """What one run holds.

    Attributes:
        metrics: A row a step, sorted by step.
        config: By path; empty where there is none.
        test_sets: (set, fingerprint) of what it was evaluated on.
        state: As :class:`harness.compare.load.Runs` has it.
        origin: What it was read from, in words.
        notes: What could not be read of it, and what means something else than in other runs.
        files: The run directory, or a copy of its files.
    """

    metrics: "pa.Table"
    config: Row
    test_sets: list[tuple[str, str]]
    state: str
    origin: str
    notes: list[str]
    files: RunDir | None


def read_directory(run: RunDir) -> RunData:
    """A run directory, of ours or of tinker-cookbook."""
    notes: list[str] = []
    held = functools.partial(_held, notes, run)
    document: Row = {}
    theirs = None
    try:
        with as_written(run):
            document = run.config() if run.exists() else {}
    except RunDirError as error:
        theirs = tinker_cookbook.config(run)
        if theirs is None:
            notes.append(str(error))
    trained = held(lambda: read_metrics(run), table_of([]))
    notes += notes_of(trained)
    later = held(lambda: [row for row in run.later_evaluations() if SUPERSEDED_BY not in row], [])
    metrics = with_later_evaluations(trained, later)
    if theirs is not None:
        metrics, more = tinker_cookbook.as_ours(metrics)
        state = held(lambda: tinker_cookbook.state(run), UNREADABLE)
        config, test_sets, origin = config_io.flatten(theirs), [], f"{run} (tinker-cookbook)"
        notes += more
    else:
        asked = held(lambda: _as_last_asked(run, document), document)
        config = held(lambda: _flatten(asked), {})
        evaluated = [*held(lambda: _evaluated(run), []), *((row["set"], row["fingerprint"]) for row in later)]
        test_sets = held(lambda: _test_sets(list(dict.fromkeys(evaluated)), document), [])
        state, origin = held(lambda: _state(run), UNREADABLE), str(run)
        held(run.superseded_metrics, [])  # they are counted for who asks: what is damaged is told now
    return RunData(sorted_by_step(metrics), config, test_sets, state, origin, list(dict.fromkeys(notes)), run)


def read_metrics(run: RunDir) -> "pa.Table":
    """The rows of a run directory, in the order in which they were written.

    Raises:
        OSError: where they cannot be read.
    """
    return cached(run / METRICS, read_table)


def with_later_evaluations(metrics: "pa.Table", later: Sequence[Row]) -> "pa.Table":
    """``metrics`` with what was measured after training: in the row of its step, or in one of its own.

    Args:
        later: Rows of later_evaluations.jsonl.
    """
    if not later:
        return metrics
    rows = metrics.to_pylist()
    places = {row[STEP]: i for i, row in enumerate(rows)}
    for evaluation in later:
        step = evaluation[STEP]
        if step not in places:
            places[step] = len(rows)
            rows.append({STEP: step})
        rows[places[step]] |= evaluation["metrics"]
    return table_of(rows)


def read_mlflow_run(run: "MlflowRun", folder: Path) -> RunData:
    """A run whose directory is not here: from its files among its artifacts, else from its points.

    Args:
        folder: Made, for its files.

    Raises:
        TrackingError: where MLflow cannot be asked.
    """
    notes: list[str] = []
    points = RunData(table_of([]), run.config, run.test_sets, run.state, f"points of {run}", notes, None)
    try:
        has_files = run.download(folder)
    except TrackingError as error:  # artifacts have a store, and credentials, of their own
        has_files = False
        notes.append(f"its artifacts cannot be read: {error}")
    if has_files:
        copy = read_directory(RunDir(folder))
        steps = copy.metrics[STEP]
        if len(steps) and steps[-1].as_py() >= run.last_step:
            return dataclasses.replace(copy, state=run.state, origin=f"artifacts of {run}")
        points = dataclasses.replace(points, config=copy.config, test_sets=copy.test_sets, files=copy.files)
    return dataclasses.replace(points, metrics=table_of(run.history()))  # files are uploaded when an attempt ends


def _held(notes: list[str], run: RunDir, read: Callable[[], _T], otherwise: _T) -> _T:
    """What ``read`` returns; where it cannot be read, that is noted."""
    try:
        with as_written(run):
            return read()
    except RunDirError as error:
        notes.append(str(error))
    return otherwise


def _state(run: RunDir) -> str:
    """That of an attempt that wrote its end; only where it did not it is looked whether a process is writing."""
    attempts = run.attempts()
    return (attempts[-1].get("state") if attempts else None) or run.state()


def _as_last_asked(run: RunDir, document: Row) -> Row:
    """config.json, with what was said otherwise later: by the last attempt how long the run goes on, and its tags."""
    if "config" not in document:
        return document
    said_later = run.changed_extents() | {"tags": tags(run)} | _replanned(run)
    return document | {"config": document["config"] | said_later}


def _replanned(run: RunDir) -> Row:
    """Over how many updates the schedule of an extended run was drawn: one that was planned so from the start had other
    learning rates."""
    starts = [row for row in run.attempts() if "schedule" in row]
    if not starts:
        return {}
    (_, first), *later = starts[-1]["schedule"]
    if not later and first == starts[-1]["total_steps"]:
        return {}
    return {REPLANNED: ", ".join([str(first), *(f"from step {step} on {total}" for step, total in later)])}


def _flatten(document: Row) -> Row:
    if not document:
        return {}
    recorded = {key: document[key] for key in _RECORDED if key in document}
    return config_io.flatten(document.get("config", {}) | recorded) | _of_data(document.get("data") or {})


def data_path(key: str, test_set: str) -> str:
    """The config path of what is known of a test set."""
    return f"data.{key}.{test_set}" if test_set else f"data.{key}"


def _of_data(data: Row) -> Row:
    """What config.json says of the data, by path. Fingerprints of test sets are left to ``Runs.test_sets``: they depend
    on the tokenizer, those of their contents do not."""
    counts = data.get("num_examples", {"test": {}})
    known = {"data.train": data.get("train"), "data.num_examples.train": counts.get("train")}
    known |= {data_path("num_examples.test", name): count for name, count in counts["test"].items()}
    known |= {data_path(TEST_CONTENTS, name): found for name, found in data.get(TEST_CONTENTS, {}).items()}
    return {path: value for path, value in known.items() if value is not None}


def _test_sets(evaluated: Sequence[tuple[str, str]], document: Row) -> list[tuple[str, str]]:
    """(set, fingerprint) of what the run was evaluated on; of what its config names, where it was not yet."""
    known = {name for name, _ in evaluated}
    named = (document.get("data") or {}).get("test") or {}
    return [*evaluated, *((name, fingerprint) for name, fingerprint in named.items() if name not in known)]


def _evaluated(run: RunDir) -> list[tuple[str, str]]:
    """(set, fingerprint) of what was evaluated in training; the examples themselves are not parsed."""
    if not (run / EVAL_EXAMPLES).exists():
        return []

    def read(_: Path) -> "pa.Table":
        import pyarrow as pa

        pairs = dict.fromkeys((row["set"], row["fingerprint"]) for row in run.evaluations(later=False))
        names = {"set": [name for name, _ in pairs], "fingerprint": [fingerprint for _, fingerprint in pairs]}
        return pa.table(names, pa.schema([("set", pa.string()), ("fingerprint", pa.string())]))

    return [(row["set"], row["fingerprint"]) for row in cached(run / EVAL_EXAMPLES, read).to_pylist()]
