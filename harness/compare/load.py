"""Runs -> frames. A run that is still training, died, or is damaged is read for what it holds."""

import atexit
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from harness.compare import cache
from harness.compare.metric_table import concat
from harness.compare.read_run import TEST_CONTENTS, RunData, data_path, read_directory, read_mlflow_run
from harness.compare.sources import find_sources
from harness.exceptions import RunDirError
from harness.metric_keys import STEP
from harness.run_dir import EVALUATIONS, METRICS, Row, RunDir

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    from harness.tracking.mlflow_reader import MlflowRun

RUN = "run"  # the column, or index, that holds a run's name


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What one evaluation measured of each example of a test set, in its order.

    Attributes:
        fingerprint: Of the test set: equal ones hold the same tokens with the same loss weights.
        contents: Of what the test set says, before it was rendered; None where that is not known.
        ids: One an example; examples that share one come from one source.
        slices: The part of the data that each belongs to, or None.
        nll: ``(num_examples,)``, float64, summed NLL in nats.
        num_loss_tokens: ``(num_examples,)``, int64.
    """

    fingerprint: str
    contents: str | None
    ids: list[str]
    slices: list[str | None]
    nll: "np.ndarray"
    num_loss_tokens: "np.ndarray"


@dataclasses.dataclass(frozen=True, eq=False)
class Runs:
    """What several runs hold, in the order in which they were named.

    Attributes:
        metrics: A row a run and step, sorted by step within each run: ``run``, ``step`` (int64), and every metric key
            of any of the runs: numbers (float64, int64 where every row has a whole one) or text. Missing where a row
            has none.
        configs: A row a run, indexed by ``run``: every config path of any of the runs (``learning_rate``,
            ``dataset_builder.common_config.batch_size``), then ``versions.*``, ``numerics.*``, ``git_commit`` and
            ``data.*``: fingerprints and counts. None where a run has no such path: everywhere, where it has no
            config.
        test_sets: A row a run, ``set`` ("" for the unnamed one) and ``fingerprint`` that it was evaluated on.
        states: By run: RUNNING, FINISHED, FAILED, KILLED or NEW; UNKNOWN where tinker-cookbook does not tell;
            UNREADABLE where attempts.jsonl is damaged.
        directories: The run directory, by run; a run that MLflow alone has is not among them.
        files: Where a run's files are read, by run: its directory, or a copy of its MLflow artifacts that lasts until
            this process ends. A run that has left nothing but points in MLflow is not among them.
        origins: What each run was read from, in words.
        notes: By run, what could not be read of it, and what means something else than in other runs; in words.
    """

    metrics: "pd.DataFrame"
    configs: "pd.DataFrame"
    test_sets: "pd.DataFrame"
    states: dict[str, str]
    directories: dict[str, RunDir]
    files: dict[str, RunDir]
    origins: dict[str, str]
    notes: dict[str, list[str]]

    def _repr_html_(self) -> str:
        from harness.compare.notebook import runs_as_html

        return runs_as_html(self)

    def evaluation(self, run: str, step: int, on: str = "") -> Evaluation | None:
        """What ``run`` measured of each example of test set ``on`` at ``step``; None where it measured nothing. It is
        read now, and no other: the files are large.

        Raises:
            RunDirError: for an evaluation that is damaged.
        """
        directory = self.files.get(run)
        if directory is None:
            return None
        for name in EVALUATIONS:  # one after the other: damage in the later file spoils nothing that training measured
            if rows := [row for row in directory.eval_examples(step, [name]) if row["set"] == on]:
                in_training = self.configs.get(data_path(TEST_CONTENTS, on))
                contents = None if in_training is None else in_training[run]
                try:
                    return _evaluation({"contents": contents} | rows[-1], directory / name)
                except (LookupError, TypeError, ValueError) as error:
                    raise RunDirError(
                        f"{directory / name}: the evaluation at step {step} is not as the harness writes it "
                        f"({type(error).__name__}: {error}): remove that line"
                    ) from error
        directory.evaluations()  # a line that is damaged may be the one
        return None


def _evaluation(row: Row, file: Path) -> Evaluation:
    import numpy as np

    nll = np.array(row.get("nll", ()), dtype=np.float64)
    if not np.isfinite(nll).all():
        raise RunDirError(f"{file}: the evaluation at step {row[STEP]} has NaN in it: remove that line")
    lengths = {name: len(row.get(name, ())) for name in ("ids", "slices", "nll", "num_loss_tokens")}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise RunDirError(
            f"{file}: the evaluation at step {row[STEP]} has columns of different lengths ({found}): remove that line"
        )
    return Evaluation(
        fingerprint=row["fingerprint"],
        contents=row["contents"],
        ids=row["ids"],
        slices=row["slices"],
        nll=nll,
        num_loss_tokens=np.array(row["num_loss_tokens"], dtype=np.int64),
    )


def load_runs(sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Runs:
    """Read runs for what they hold. A run is named by its folder, with as many of the folders above it as tell it from
    the others; one that MLflow alone has by its name there, with its id before it where others have that name.

    Args:
        sources: Run directories, of tinker-cookbook too; folders and patterns (``runs/lr-*``) of them; experiments and
            runs of the MLflow store that ``MLFLOW_TRACKING_URI`` names, else of ``mlruns/`` here
            (``mlflow:EXPERIMENT``, ``mlflow:RUN_ID``, or a run id).

    Raises:
        RunDirError: for a path without a run, and where no source is named.
        TrackingError: for what is not in MLflow, or was deleted there, and where MLflow cannot be reached.
    """
    import pandas as pd

    found = find_sources([sources] if isinstance(sources, (str, os.PathLike)) else sources)
    if not found:
        raise RunDirError("no runs to compare: name a run directory, a folder that holds some, or mlflow:EXPERIMENT")
    read = _read(found)
    cache.trim()
    table, text_left_out = concat([_metrics(data) for data in read.values()])
    for data, keys in zip(read.values(), text_left_out, strict=True):
        data.notes.extend(f"{key}: text left out: other runs have numbers there" for key in keys)

    paths = list(dict.fromkeys(path for data in read.values() for path in data.config))
    cells = [[data.config.get(path) for path in paths] for data in read.values()]
    test_sets = [(name, *pair) for name, data in read.items() for pair in data.test_sets]
    return Runs(
        metrics=_frame(table, {name: data.metrics.num_rows for name, data in read.items()}),
        configs=pd.DataFrame(cells, index=pd.Index(read, name=RUN), columns=paths, dtype=object),
        test_sets=pd.DataFrame(test_sets, columns=[RUN, "set", "fingerprint"]),
        states={name: data.state for name, data in read.items()},
        directories={name: run for name, run in found.items() if isinstance(run, RunDir)},
        files={name: data.files for name, data in read.items() if data.files},
        origins={name: data.origin for name, data in read.items()},
        notes={name: data.notes for name, data in read.items() if data.notes},
    )


def _read(found: "Mapping[str, RunDir | MlflowRun]") -> dict[str, RunData]:
    if all(isinstance(run, RunDir) for run in found.values()):
        downloads = Path()
    else:
        downloads = Path(tempfile.mkdtemp(prefix="harness-compare-"))
        atexit.register(shutil.rmtree, downloads, ignore_errors=True)

    def read(run: "RunDir | MlflowRun") -> RunData:
        return read_directory(run) if isinstance(run, RunDir) else read_mlflow_run(run, downloads / run.run_id)

    with ThreadPoolExecutor() as pool:  # Arrow lets the GIL go while it reads, and a server answers several at once
        reading = {name: pool.submit(read, run) for name, run in found.items() if not _is_quick(run)}
        done = {name: read(run) for name, run in found.items() if name not in reading}
        return {name: done[name] if name in done else reading[name].result() for name in found}


def _is_quick(run: "RunDir | MlflowRun") -> bool:
    """Whether reading it takes less time than a thread waits for the GIL."""
    return isinstance(run, RunDir) and cache.holds(run / METRICS)


def _metrics(data: RunData) -> "pa.Table":
    if RUN not in data.metrics.column_names:
        return data.metrics
    data.notes.append(f"{RUN}: left out: runs' names stand in the column of that name")
    return data.metrics.drop_columns([RUN])


def _frame(table: "pa.Table", num_rows: Mapping[str, int]) -> "pd.DataFrame":
    """``table``, in which the rows of each run stand together, with the name of the run."""
    import numpy as np
    import pyarrow as pa

    index = np.repeat(np.arange(len(num_rows)), list(num_rows.values()))
    return table.add_column(0, RUN, pa.array(num_rows, pa.string()).take(pa.array(index))).to_pandas()
