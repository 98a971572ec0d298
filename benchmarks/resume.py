"""The time to a resumed run's first new row, after 10, 1,000 and 100,000 steps, as ratios of runs resumed in turn.

    python -m benchmarks.resume                    # SmolLM2-135M from its package

The run is one of ten real updates whose files are then made as long as those of a run of that many: a row a step, an
evaluation of 32 examples every 10, a checkpoint every 20, of which the newest is there. Timed from calling the trainer
to the row's own time stamp: data, model, state and the files read back.
"""

import asyncio
import contextlib
import io
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import chz

from harness import cli, metric_keys, run_dir
from harness.run_dir import RunDir
from harness.supervised import train
from recipes.sl_basic import build_config_blueprint

STEPS = (10, 1_000, 100_000)
ROUNDS = 5


def main() -> None:
    small = (
        "...batch_size=2",
        "...max_length=64",
        "lora_rank=8",
        "num_epochs=1000000",
        "mirror=false",
        "eval_every=10",
    )
    with tempfile.TemporaryDirectory(dir=".") as folder:
        overrides = [f"log_path={folder}/begun", "max_steps=10", "keep=all", *small]
        config = cli.make_from_argv(build_config_blueprint(), overrides)
        _quietly(config)
        grown = {steps: _grown(RunDir(config.log_path), Path(folder) / str(steps), steps) for steps in STEPS}
        seconds: dict[int, list[float]] = {steps: [] for steps in STEPS}
        for number in range(ROUNDS):
            for steps in STEPS:
                seconds[steps].append(_first_row(config, grown[steps], steps, f"{folder}/resumed-{number}-{steps}"))
    medians = {steps: statistics.median(times) for steps, times in seconds.items()}
    for steps, median in medians.items():
        print(f"  {median:6.2f} s  {median / medians[STEPS[0]]:5.2f}x  resumed at step {steps:,}")


def _first_row(config: train.Config, begun: Path, steps: int, log_path: str) -> float:
    shutil.copytree(begun, log_path)
    started = time.time()
    _quietly(chz.replace(config, log_path=log_path, max_steps=steps + 1))
    (row,) = (row for row in RunDir(log_path).metrics_from(steps) if row[metric_keys.STEP] == steps)
    shutil.rmtree(log_path)
    return row[metric_keys.TS] / 1000 - started


def _grown(run: RunDir, folder: Path, steps: int) -> Path:
    """A copy of ``run`` that looks like one of ``steps`` updates."""
    shutil.copytree(run.path, folder)
    grown = RunDir(folder)
    document = run.config()
    document["config"]["max_steps"] = steps + 1
    (grown / run_dir.CONFIG).write_text(json.dumps(document))
    rows, evaluations = run.metrics()[:10], run.eval_examples()[:1]
    _write(grown / run_dir.METRICS, [rows[step % 10] | {metric_keys.STEP: step} for step in range(steps)])
    examples = [evaluations[0] | {metric_keys.STEP: step} for step in range(0, steps, 10)]
    _write(grown / run_dir.EVAL_EXAMPLES, examples)
    records = [record.to_row() for record in run.checkpoints()][-1:]
    (grown / records[0]["state_path"]).rename(grown / run_dir.CHECKPOINTS_DIR / f"{steps:06d}")
    path = f"{run_dir.CHECKPOINTS_DIR}/{steps:06d}"
    newest = {"name": f"{steps:06d}", metric_keys.STEP: steps, "state_path": path, "sampler_path": path, "final": False}
    older = [{"name": f"{step:06d}", metric_keys.STEP: step, "deleted": True} for step in range(20, steps, 20)]
    _write(grown / run_dir.CHECKPOINTS, [records[0] | {"final": False} | row for row in (*older, newest)])
    start = run.attempts()[0] | {"total_steps": steps + 1, "schedule": [[0, steps + 1]]}
    _write(grown / run_dir.ATTEMPTS, [start])
    return folder


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _quietly(config: train.Config) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        asyncio.run(train.main(config))


if __name__ == "__main__":
    main()
