"""The trainer: ``await main(config)``.

A run lives in ``log_path``. The same command on an unfinished run resumes it from its last logged checkpoint; what was
trained beyond that is trained again and held against what had been written (``replay``).

Requests go to the backend in an order that makes every answer mean what it says: at step k the evaluation is asked for
before the update, so ``test/nll`` at k and ``train_mean_nll`` at k are of the same weights; a save is asked for right
after an update, so a checkpoint holds exactly the updates before its ``step``, however many requests are under way.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any

import chz
from rich.console import Console

from harness import run_dir
from harness.exceptions import ConfigError
from harness.run_dir import RunDir
from harness.supervised import provenance
from harness.supervised.config import Config as Config
from harness.supervised.interrupts import interruptible
from harness.supervised.logs import logging_to
from harness.supervised.progress import ProgressDisplay


async def main(config: Config) -> None:
    """Train until the run in ``config.log_path`` is complete, from wherever it stands.

    Raises:
        HarnessError: for anything that the user can mend, before weights are loaded where it can be known by then.
    """
    from harness.supervised.attempt import Attempt

    console = Console(highlight=False, soft_wrap=True, markup=False)
    config = with_batch_size(config)
    config.backend.check(config.model_name)
    run = RunDir(config.log_path)
    with run.lock(), logging_to(run / run_dir.LOG, console):
        provenance.check_same_config(run, config)
        if run.is_finished():
            console.print(f"{run}: complete, nothing to train")
            with Attempt(run, config, console) as attempt:
                attempt.start_mirror()  # it may have something to catch up on
            return
        await _train(run, config, console)
    console.print(f"done: {run}\ncompare runs with: python -m harness compare {run} …")


async def _train(run: RunDir, config: Config, console: Console) -> None:
    from harness.supervised.attempt import Attempt
    from harness.supervised.job import announce, prepare, restore  # loads tinker and transformers
    from harness.supervised.updates import Update, Updates

    with interruptible():
        job = prepare(run, config, console)
        restoring = restore(run, config, job)
    with Attempt(run, config, console) as attempt, contextlib.closing(restoring) as restored:
        await announce(run, config, job, restored, console)
        if job.document:
            run.write_quarantine(job.quarantined)
            run.write_config(job.document)
        attempt.begin(restored.checkpoint)
        updates = Updates(run, config, job, restored.client, attempt.ledger)
        step, position = restored.step, restored.position
        under_way: deque[Update] = deque()
        with ProgressDisplay(console, total_steps=job.total_steps, next_step=step) as display:
            async with contextlib.aclosing(job.batches.after(position, ahead=config.submit_ahead + 1)) as batches:
                while step < job.total_steps and (batch := await updates.next_batch(batches)):
                    under_way.append(updates.submit(step, batch))
                    step, position = step + 1, batch.following
                    while len(under_way) > config.submit_ahead:
                        display.update(await updates.finish(under_way.popleft()))
            while under_way:
                display.update(await updates.finish(under_way.popleft()))
            if not (restored.checkpoint and restored.checkpoint.final):
                await updates.save_final(step, position)
            if last := await updates.evaluate_final(step, position):
                display.update(last)
            updates.delete_others(step)


def with_batch_size(config: Config) -> Config:
    """``config`` with its ``batch_size``, where one is given, in its builder.

    Raises:
        ConfigError: where it is no multiple of the accumulation, or the builder has no place for it.
    """
    if config.batch_size is None:
        return config
    size, left = divmod(config.batch_size, config.gradient_accumulation_steps)
    if left or not size:
        raise ConfigError(
            f"batch_size={config.batch_size} is no multiple of gradient_accumulation_steps="
            f"{config.gradient_accumulation_steps}: change one of them"
        )
    builder: Any = config.dataset_builder
    if hasattr(builder, "common_config"):
        common_config = chz.replace(builder.common_config, batch_size=size)
        return chz.replace(config, dataset_builder=chz.replace(builder, common_config=common_config))
    raise ConfigError(
        f"batch_size={config.batch_size} cannot reach {type(builder).__name__}, which has no common_config: "
        "set the builder's own batch size, and leave batch_size open"
    )
