"""How fast many runs are loaded and compared: against a bare read of their files by Arrow, and MLflow's own, in turn.

    python -m benchmarks.compare                           # 1,000 runs of 1,000 steps: minutes, and 1.2 GB of disk
    python -m benchmarks.compare --runs 100 --steps 100    # smaller: what a run costs beside its rows weighs more

A row holds 15 metrics of 17 digits and a digest. The files are in memory by the time that they are read.
"""

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.compare import cache, load_runs
from harness.compare.paired import RESAMPLES, compare_examples
from harness.metric_keys import STEP, TRAIN_NLL, TS
from harness.run_dir import METRICS, Row
from harness.tracking.mlflow_store import open_store
from tests.compare.made_runs import make_run

KEYS = (TRAIN_NLL, "train_mean_bpb", "test/nll", *(f"time/{i}" for i in range(12)))
ROUNDS = 5
DIFFERENT = 10  # runs of other numbers; the others are copies of these
COMPARED, STORED = 100, 20  # with MLflow, and in it
POINTS_PER_CALL = 1000  # MLflow takes no more
EXAMPLES, MODELS = 1000, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1000, help="of each run")
    parser.add_argument("--peak", metavar="FOLDER", help=argparse.SUPPRESS)  # for a process of its own
    arguments = parser.parse_args()
    if arguments.peak:
        load_runs(arguments.peak)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    bootstrap()
    with tempfile.TemporaryDirectory(dir=".") as name:  # where runs lie, and not in memory
        folder = Path(name).resolve()
        make_runs(folder / "runs", arguments.runs, arguments.steps)
        loading(folder, arguments.runs, arguments.steps)
        against_mlflow(folder)


def make_runs(folder: Path, num_runs: int, num_steps: int) -> None:
    numbers = random.Random(0)
    bodies = ["".join(json.dumps(new_row(step, numbers)) + "\n" for step in range(num_steps)) for _ in range(DIFFERENT)]
    for i in range(num_runs):
        run = make_run(folder / f"{i:04d}", [], learning_rate=1e-4 * (i + 1))
        (run / METRICS).write_text(bodies[i % DIFFERENT])
    time.sleep(cache.SETTLED_SECONDS + 1)  # before that nothing is kept


def new_row(step: int, numbers: random.Random) -> Row:
    values = {key: numbers.uniform(0.1, 9) for key in KEYS}
    return {STEP: step, TS: 1_790_000_000_000 + step, "batch_digest": f"{numbers.getrandbits(128):032x}"} | values


# ---- loading


def loading(folder: Path, num_runs: int, num_steps: int) -> None:
    """A bare read of the files, :func:`load_runs` without its cache (which it writes then), and from its cache."""
    import pyarrow.json

    files = sorted((folder / "runs").glob(f"*/{METRICS}"))

    def bare() -> None:
        for file in files:
            pyarrow.json.read_json(file)

    def cold() -> None:
        shutil.rmtree(cache.folder(), ignore_errors=True)
        load_runs(folder / "runs")

    def cached() -> None:
        load_runs(folder / "runs")

    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    size = sum(file.stat().st_size for file in files)
    print(f"{num_runs:,} runs of {num_steps:,} steps, {size / 1e6:,.0f} MB: median of {ROUNDS}")
    medians = timed({"pyarrow.json.read_json": bare, "load_runs": cold, "load_runs, from its cache": cached}, ROUNDS)
    for name, seconds in medians.items():
        print(f"  {seconds:8.2f} s  {seconds / medians['pyarrow.json.read_json']:5.2f}x  {name}")
    for name in ("from its cache", "without it"):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.compare", "--peak", str(folder / "runs")],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        print(f"  {float(done.stdout):8.0f} MB peak of a process that loads them {name}")
        shutil.rmtree(cache.folder())


def timed(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median seconds of each, called in turn; the first round imports, and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            seconds[name] += [time.perf_counter() - begun] if number else []
    return {name: statistics.median(times) for name, times in seconds.items()}


# ---- MLflow


def against_mlflow(folder: Path) -> None:
    """100 of the runs against MLflow's own call from an SQLite store, by the point: the store holds some of these runs,
    because to make it takes longer than to read it."""
    from mlflow.entities import Metric

    run_dirs = sorted((folder / "runs").iterdir())[:COMPARED]
    client = open_store(f"sqlite:///{folder}/mlflow.db")
    experiment = client.create_experiment("compared")
    run_ids = []
    for run_dir in run_dirs[:STORED]:
        run_ids.append(client.create_run(experiment).info.run_id)
        rows = [json.loads(line) for line in (run_dir / METRICS).read_text().splitlines()]
        points = [Metric(key, row[key], row[TS], row[STEP]) for row in rows for key in KEYS]
        for i in range(0, len(points), POINTS_PER_CALL):
            client.log_batch(run_ids[-1], metrics=points[i : i + POINTS_PER_CALL])
    num_points = len((run_dirs[0] / METRICS).read_text().splitlines()) * len(KEYS)  # of each run

    def histories() -> None:
        assert num_points == sum(len(client.get_metric_history(run_ids[0], key)) for key in KEYS)
        for run_id in run_ids[1:]:
            for key in KEYS:
                client.get_metric_history(run_id, key)

    def cold() -> None:
        shutil.rmtree(cache.folder(), ignore_errors=True)
        load_runs(run_dirs)

    def cached() -> None:
        load_runs(run_dirs)

    calls = {"MlflowClient.get_metric_history": histories, "load_runs": cold, "load_runs, from its cache": cached}
    num_runs = (len(run_ids), len(run_dirs), len(run_dirs))
    medians = timed(calls, rounds=3)
    by_point = {name: s / n / num_points for (name, s), n in zip(medians.items(), num_runs, strict=True)}
    print(f"a point, of {len(run_ids)} runs in MLflow and of {len(run_dirs)} run directories: median of 3")
    for name, seconds in by_point.items():
        print(f"  {1e6 * seconds:8.2f} us  {by_point['MlflowClient.get_metric_history'] / seconds:5.0f}x  {name}")


# ---- statistics


def bootstrap() -> None:
    """The paired comparison of many models with one, over their examples."""
    import numpy as np

    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 200, EXAMPLES)
    differences = rng.normal(0, 1, (EXAMPLES, MODELS)) * tokens[:, None]
    ids = [str(i) for i in range(EXAMPLES)]
    (seconds,) = timed({"": lambda: compare_examples(differences, tokens, ids)}, ROUNDS).values()
    print(f"{seconds:.2f} s for {RESAMPLES:,} resamples of {EXAMPLES:,} examples, {MODELS} models: median of {ROUNDS}")


if __name__ == "__main__":
    main()
