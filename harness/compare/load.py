"""Run directories -> frames. A run that is still training, or died, is read for what it holds."""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from harness import config_io
from harness.exceptions import RunDirError
from harness.run_dir import EVAL_EXAMPLES, STEP, SUPERSEDED_BY, Row, RunDir
from harness.run_folders import find_runs
from harness.run_tags import tags

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

RUN = "run"  # the column, or index, that holds a run's name

TEST_CONTENTS = "test_contents"  # of config.json's data: fingerprints of what test sets say, before it was rendered

# What config.json records beside the config and can explain a difference between two runs.
_RECORDED = ("versions", "numerics", "git_commit", "parent")


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What one evaluation measured of each example of a test set, in its order.

    Attributes:
        fingerprint: Of the test set: equal ones hold the same tokens with the same loss weights.
        ids: One an example; examples that share one come from one source.
        slices: The part of the data that each belongs to, or None.
        nll: ``(num_examples,)``, float64, summed NLL in nats.
        num_loss_tokens: ``(num_examples,)``, int64.
    """

    fingerprint: str
    ids: list[str]
    slices: list[str | None]
    nll: "np.ndarray"
    num_loss_tokens: "np.ndarray"


@dataclasses.dataclass(frozen=True, eq=False)
class Runs:
    """What several run directories hold, in the order in which they were named.

    Attributes:
        metrics: A row a run and step, sorted by step within each run: ``run``, ``step``, and every metric key of any
            of the runs; NaN where a row has none.
        configs: A row a run, indexed by ``run``: every config path of any of the runs (``learning_rate``,
            ``dataset_builder.common_config.batch_size``), then ``versions.*``, ``numerics.*``, ``git_commit`` and
            ``data.*``: fingerprints and counts. None where a run has no such path: everywhere, where it has no
            config.json.
        test_sets: A row a run, ``set`` ("" for the unnamed one) and ``fingerprint`` that it was evaluated on.
        states: RUNNING, FINISHED, FAILED, KILLED or NEW, by run.
        directories: The run directory, by run.
    """

    metrics: "pd.DataFrame"
    configs: "pd.DataFrame"
    test_sets: "pd.DataFrame"
    states: dict[str, str]
    directories: dict[str, RunDir]

    def _repr_html_(self) -> str:
        from harness.compare.notebook import runs_as_html

        return runs_as_html(self)

    def evaluation(self, run: str, step: int, on: str = "") -> Evaluation | None:
        """What ``run`` measured of each example of test set ``on`` at ``step``; None where it measured nothing. It is
        read now, and no other: the files are large.

        Raises:
            RunDirError: for an evaluation that is damaged.
        """
        import numpy as np

        directory = self.directories[run]
        rows = [row for row in directory.eval_examples(step) if row["set"] == on]
        if not rows:
            return None
        nll = np.array(rows[-1].get("nll", ()), dtype=np.float64)
        if not np.isfinite(nll).all():
            raise RunDirError(
                f"{directory / EVAL_EXAMPLES}: the evaluation at step {step} has NaN in it: remove that line"
            )
        lengths = {name: len(rows[-1].get(name, ())) for name in ("ids", "slices", "nll", "num_loss_tokens")}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise RunDirError(
                f"{directory / EVAL_EXAMPLES}: the evaluation at step {step} has columns of different lengths "
                f"({found}): remove that line"
            )
        return Evaluation(
            fingerprint=rows[-1]["fingerprint"],
            ids=rows[-1]["ids"],
            slices=rows[-1]["slices"],
            nll=nll,
            num_loss_tokens=np.array(rows[-1]["num_loss_tokens"], dtype=np.int64),
        )


def load_runs(sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Runs:
    """Read run directories, and those in folders that hold some. A run is named by its folder, with as many of the
    folders above it as tell it from the others.

    Raises:
        RunDirError: for a path without a run, or a file that is damaged before its last line.
    """
    import pandas as pd

    if isinstance(sources, (str, os.PathLike)):
        sources = [sources]
    found = find_runs([Path(source) for source in sources])
    by_path = {Path(os.path.abspath(run.path)): run for run in found}  # "a" and "b/../a" are one run
    runs = dict(zip(_names(list(by_path)), by_path.values(), strict=True))
    documents = {name: _as_last_asked(run) if run.exists() else {} for name, run in runs.items()}

    rows = [{RUN: name} | row for name, run in runs.items() for row in _with_later_evaluations(run.metrics(), run)]
    metrics = pd.DataFrame(rows) if rows else pd.DataFrame(columns=[RUN, STEP])

    flat = {name: _flatten(document) for name, document in documents.items()}
    paths = list(dict.fromkeys(path for row in flat.values() for path in row))
    cells = [[row.get(path) for path in paths] for row in flat.values()]
    configs = pd.DataFrame(cells, index=pd.Index(flat, name=RUN), columns=paths, dtype=object)

    test_sets = [(name, *pair) for name, run in runs.items() for pair in _test_sets(run, documents[name])]
    return Runs(
        metrics=metrics,
        configs=configs,
        test_sets=pd.DataFrame(test_sets, columns=[RUN, "set", "fingerprint"]),
        states={name: run.state() for name, run in runs.items()},
        directories=runs,
    )


def _with_later_evaluations(rows: list[Row], run: RunDir) -> list[Row]:
    """``rows`` by step, with what was measured after training: in the row of its step, or in one of its own."""
    by_step = {row[STEP]: row for row in rows}
    for evaluation in run.later_evaluations():
        if SUPERSEDED_BY not in evaluation:
            step = evaluation[STEP]
            by_step[step] = by_step.get(step, {STEP: step}) | evaluation["metrics"]
    return [by_step[step] for step in sorted(by_step)]


def _names(paths: list[Path]) -> list[str]:
    """The shortest end of each path that no other path has."""

    def name(path: Path) -> str:
        for depth in range(1, len(path.parts)):
            end = path.parts[-depth:]
            if sum(other.parts[-depth:] == end for other in paths) == 1:
                return str(Path(*end))
        return str(path)

    return [name(path) for path in paths]


def _as_last_asked(run: RunDir) -> Row:
    """config.json, with what was said otherwise later: by the last attempt how long the run goes on, and its tags."""
    document = run.config()
    changed = run.changed_extents() | {"tags": tags(run)}
    return document | {"config": document["config"] | changed} if "config" in document else document


def _flatten(document: Row) -> Row:
    if not document:
        return {}
    recorded = {key: document[key] for key in _RECORDED if key in document}
    return config_io.flatten(document["config"] | recorded) | _of_data(document.get("data", {}))


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


def _test_sets(run: RunDir, document: Row) -> list[tuple[str, str]]:
    """(set, fingerprint) of what the run was evaluated on; of what its config names, where it was not yet."""
    evaluated = list(dict.fromkeys((row["set"], row["fingerprint"]) for row in run.evaluations()))
    known = {name for name, _ in evaluated}
    named = document.get("data", {}).get("test") or {}
    return evaluated + [(name, fingerprint) for name, fingerprint in named.items() if name not in known]
