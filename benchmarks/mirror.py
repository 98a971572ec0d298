"""What the MLflow mirror costs a training loop, how fast it sends a backlog, and what memory that takes: against
MLflow's own calls, in turn.

    python -m benchmarks.mirror                    # SQLite, and a team's server over PostgreSQL where that is installed
    python -m benchmarks.mirror --steps 10000      # a shorter backlog; one of 100,000 steps takes minutes a store
    python -m benchmarks.mirror --server URI       # a server that is running already

A step of the loop is some 20 ms of NumPy on one core and a row of 15 metrics. Stores and servers compute on the same
machine: it needs another core that is idle, or what they take is charged to the mirror.
"""

import argparse
import contextlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.files import append_jsonl
from harness.metric_keys import STEP, TS
from harness.run_dir import METRICS, Row, RunDir
from harness.tracking.live_mirror import LiveMirror
from harness.tracking.mlflow_mirror import Mirror, sync
from harness.tracking.mlflow_store import Destination, open_store
from tests.tracking.conftest import row, start_run

KEYS = ("train_mean_nll", "train_mean_bpb", "test/nll", *(f"time/{i}" for i in range(12)))
PRODUCTS, SIZE = 60, 190  # of matrices, in a step: each lets the GIL go and takes it again, as torch's operations do
ROUNDS, STEPS_A_ROUND = 4, 150  # of the loop: some passes of the mirror, which works once a second
TURNS = 20  # into which a backlog is cut
RESOLUTION = 0.05  # milliseconds; a cost below is counted as this
METRICS_PER_CALL = 1000  # MLflow takes no more
MEMORY_STEPS = (10_000, 100_000)

Log = Callable[[dict[str, float], int], Any]


def main() -> None:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000, help="of the backlog")
    parser.add_argument("--server", metavar="URI", help="of an MLflow server")
    parser.add_argument("--peak", metavar="RUN", type=Path, help=argparse.SUPPRESS)  # for a process of its own
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak_growth(RunDir(arguments.peak)))
        return
    with tempfile.TemporaryDirectory(dir=".") as name:  # where runs lie, and not in memory
        folder = Path(name).resolve()
        memory(folder)
        for store, uri in stores(folder, arguments.server):
            print(store)
            training(folder, uri)
            backlog(folder, uri, arguments.steps)


def stores(folder: Path, server: str | None) -> Iterator[tuple[str, str]]:
    yield "SQLite", f"sqlite:///{folder}/mlflow.db"
    if server:
        yield "an MLflow server", server
        return
    from tests.e2e.servers import postgres_programs, tracking_server

    try:
        postgres_programs()
    except AssertionError:
        print("no PostgreSQL here: install it, or give the --server of one that is running")
        return
    with tracking_server() as started:
        yield "an MLflow server over PostgreSQL", started.uri.replace("://", f"://admin:{started.password}@")


# ---- the training loop


def training(folder: Path, uri: str) -> None:
    """What a step takes with no tracking, with the mirror's thread beside it, and with MLflow's call in the loop."""
    loops = {"no tracking": untracked, "the mirror": mirrored, "mlflow.log_metrics": logged}
    milliseconds: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(ROUNDS + 1):
        for name, tracking in loops.items():
            run = new_run(folder)
            with tracking(run, uri) as log:
                times = step_times(run, log)
            milliseconds[name] += times if number else []  # the first round imports and connects
    print(f"  a step of {len(KEYS)} metrics: median (mean) of {ROUNDS * STEPS_A_ROUND}")
    typical, mean = (
        {name: average(times) for name, times in milliseconds.items()}
        for average in (statistics.median, statistics.fmean)
    )
    costs = {}
    for name in loops:
        costs[name], mean_cost = (average[name] - average["no tracking"] for average in (typical, mean))
        print(f"  {typical[name]:8.2f} ms ({mean[name]:.2f}), costs {costs[name]:.2f} ms ({mean_cost:.2f})  {name}")
    ratio = costs["mlflow.log_metrics"] / max(costs["the mirror"], RESOLUTION)
    print(f"  {ratio:8.0f}x  mlflow.log_metrics' cost, in the mirror's")


def step_times(run: RunDir, log: Log) -> list[float]:
    """The milliseconds of each step."""
    import numpy as np

    matrix = np.random.default_rng(0).standard_normal((SIZE, SIZE))
    times = []
    for step in range(STEPS_A_ROUND):
        begun = time.perf_counter()
        for _ in range(PRODUCTS):
            matrix @ matrix
        row = new_row(step)
        run.append_metrics(row)
        log({key: row[key] for key in KEYS}, step)
        times.append(1000 * (time.perf_counter() - begun))
    return times


@contextlib.contextmanager
def untracked(run: RunDir, uri: str) -> Iterator[Log]:
    yield lambda metrics, step: None


@contextlib.contextmanager
def mirrored(run: RunDir, uri: str) -> Iterator[Log]:
    destination = Destination.of(run.config(), uri)
    Mirror(run, destination).send()  # raises where something is wrong; the thread would warn
    mirror = LiveMirror(run, destination)
    mirror.start()
    while not mirror.where():
        time.sleep(0.01)
    yield lambda metrics, step: None
    mirror.finish("FINISHED")


@contextlib.contextmanager
def logged(run: RunDir, uri: str) -> Iterator[Log]:
    import mlflow

    mlflow.set_tracking_uri(uri)
    with mlflow.start_run():
        yield mlflow.log_metrics


# ---- a backlog


def backlog(folder: Path, uri: str, num_steps: int) -> None:
    """Points a second of the mirror, against ``log_batch`` with full calls of points that are in memory already."""
    from mlflow.entities import Metric

    client = open_store(uri)
    run_id = client.create_run(client.create_experiment(uuid.uuid4().hex)).info.run_id
    run = new_run(folder)
    mirror = Mirror(run, Destination.of(run.config(), uri))
    mirror.send()

    def send_bare(rows: list[Row]) -> int:
        metrics = [Metric(key, row[key], row[TS], row[STEP]) for row in rows for key in KEYS]
        for i in range(0, len(metrics), METRICS_PER_CALL):
            client.log_batch(run_id, metrics=metrics[i : i + METRICS_PER_CALL])
        return len(metrics)

    senders = {"MlflowClient.log_batch": send_bare, "the mirror": lambda rows: mirror.send()}
    rates: dict[str, list[float]] = {name: [] for name in senders}  # points a second
    steps_a_turn = max(num_steps // TURNS, 1)
    for turn in range(TURNS):
        rows = [new_row(turn * steps_a_turn + i) for i in range(steps_a_turn)]
        append_jsonl(run / METRICS, rows)
        for name, send in senders.items():
            begun = time.perf_counter()
            num_points = send(rows)  # the mirror sends totals besides
            rates[name].append(num_points / (time.perf_counter() - begun))
    print(f"  a backlog of {TURNS * steps_a_turn:,} steps, in {TURNS} turns")
    medians = {name: statistics.median(of_turns) for name, of_turns in rates.items()}
    for name, median in medians.items():
        print(f"  {median:10,.0f} points/s  {median / medians['MlflowClient.log_batch']:5.2f}x  {name}")


# ---- memory


def memory(folder: Path) -> None:
    """By how much a sync of a backlog raises its process's peak."""
    print("memory of a sync: the process's peak grows by")
    for num_steps in MEMORY_STEPS:
        run = new_run(folder)
        append_jsonl(run / METRICS, [new_row(step) for step in range(num_steps)])
        command = [sys.executable, "-m", "benchmarks.mirror", "--peak", str(run)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        print(f"  {float(done.stdout):8.1f} MB  {num_steps:,} steps")


def peak_growth(run: RunDir) -> float:
    """Megabytes. MLflow drops the points: what is measured is what reads and sends them."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{run.path.parent}/memory.db"
    warm = new_run(run.path.parent)
    append_jsonl(warm / METRICS, [new_row(0)])
    sync(warm, uri)
    MlflowClient.log_batch = lambda *args, **kwargs: None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sync(run, uri)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def new_run(folder: Path) -> RunDir:
    return start_run(folder / uuid.uuid4().hex)


def new_row(step: int) -> Row:
    """A row of 15 metrics, each with a value of its own."""
    values = {key: 4.0 + 1e-3 * i + 1e-6 * step for i, key in enumerate(KEYS)}
    return row(step, values.pop("train_mean_nll"), batch_digest=f"{step:032x}", **values)


if __name__ == "__main__":
    main()
