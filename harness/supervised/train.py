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
from typing import TYPE_CHECKING, Any

import chz
from rich.console import Console

from harness import run_dir
from harness.backends import chosen
from harness.backends.base import OpenBackend
from harness.config_io import from_json
from harness.exceptions import ConfigError, ServiceError
from harness.run_dir import RunDir
from harness.supervised import provenance
from harness.supervised.config import Config as Config
from harness.supervised.interrupts import finishing_the_step, interruptible
from harness.supervised.logs import logging_to
from harness.supervised.progress import ProgressDisplay

if TYPE_CHECKING:
    from harness.supervised.job import Job
    from harness.supervised.restoring import Restored
    from harness.supervised.updates import Update, Updates


async def main(config: Config) -> None:
    """Train until the run in ``config.log_path`` is complete, from wherever it stands.

    Ctrl-C and SIGTERM end it after the step in flight, with a checkpoint; a second one at once. Both leave a run that
    the same command goes on with.

    Raises:
        HarnessError: for anything that the user can mend, before weights are loaded where it can be known by then.
    """
    await train(config)


async def train(config: Config, *, recipe: str | None = None) -> None:
    """:func:`main`; ``recipe`` is what config.json says that the run was made by, by default the script that runs."""
    from harness.supervised.attempt import Attempt

    console = Console(highlight=False, soft_wrap=True, markup=False)
    run = RunDir(config.log_path)
    config = with_backend(with_own_builder(config), run, console)
    config.backend.check(config.model_name)
    if run.exists():
        run.config()  # what is no run's is refused before anything in it is touched
    with interruptible(), run.lock(), logging_to(run / run_dir.LOG, console):
        provenance.check_same_config(run, config)
        if run.is_finished() and provenance.is_as_last_asked(run, config):
            console.print(f"{run}: complete, nothing to train")
            with Attempt(run, config, console) as attempt:
                attempt.start_mirror()  # it may have something to catch up on
            return
        try:
            await _train(run, config, console, recipe or provenance.recipe_name())
        except ServiceError as error:
            raise ServiceError(f"{error}{provenance.where_it_stands(run)}") from error
    console.print(f"done: {run}\ncompare runs with: python -m harness compare {run} …")


async def _train(run: RunDir, config: Config, console: Console, recipe: str | None) -> None:
    from harness.supervised.attempt import Attempt
    from harness.supervised.job import announce, prepare  # loads tinker and transformers
    from harness.supervised.restoring import restore
    from harness.supervised.updates import Updates
    from harness.supervised.usage import estimate

    job = prepare(run, config, console, recipe)
    restoring = restore(run, config, job.numerics, recipe)
    with Attempt(run, config, console) as attempt, contextlib.closing(restoring) as restored:
        to_use = estimate(run, config, job, restored.checkpoint)
        await announce(run, config, job, restored, to_use, attempt.used, console)
        if job.document:
            run.write_quarantine(job.quarantined)
            run.write_examples(job.examples)
            run.write_config(job.document)
        attempt.begin(restored.checkpoint, job.plan, config.backend.tolerance(job.numerics), to_use)
        updating = Updates(run, config, job, restored, attempt.ledger, attempt.used)
        async with contextlib.aclosing(updating) as updates:
            await _update(updates, config, job, restored, console)
        if restored.checkpoint or attempt.ledger.num_verified:
            console.print(f"resume: {attempt.ledger.verdict()}")
        for line in to_use.outcome(attempt.used):
            console.print(line)


async def _update(updates: Updates, config: Config, job: Job, restored: Restored, console: Console) -> None:
    """Make the updates that are left, save and evaluate what came of them."""
    step, position = restored.step, restored.position
    under_way: deque[Update] = deque()
    evaluation = None
    with (
        ProgressDisplay(console, total_steps=job.plan.total_steps, next_step=step) as display,
        finishing_the_step(display.say) as stop,
        display.watching(lambda: updates.awaited),
    ):

        async def finish(*, leave: int) -> None:
            while len(under_way) > leave:
                display.update(await updates.finish(under_way.popleft()))

        async with contextlib.aclosing(job.batches.after(position, ahead=config.submit_ahead + 1)) as batches:
            while step < job.plan.total_steps and not stop.signal:
                evaluation = await updates.evaluate_if_due(step)
                if evaluation and config.early_stop_patience:  # whether there is an update hangs on what it says
                    await finish(leave=0)
                    if await updates.stops_improving(evaluation):
                        display.say(f"no better test NLL in {config.early_stop_patience} evaluations: stopping early")
                        break
                if not (batch := await updates.next_batch(batches)):
                    break
                under_way.append(updates.submit(step, batch, evaluation))
                step, position, evaluation = step + 1, batch.following, None
                await finish(leave=config.submit_ahead)
        await finish(leave=0)
        if step > restored.step or not stop.signal:
            await updates.save(step, position, final=not stop.signal)
        stop.raise_if_made()
        if last := await updates.finish_evaluation(evaluation, step, position):
            display.update(last)
        await updates.conclude(step)


def with_backend(config: Config, run: RunDir, console: Console) -> Config:
    """``config`` with its backend chosen where it is left open, which has the ``base_url`` and the ``ttl_seconds`` of
    ``config`` where they are given. A run goes on with the backend that it was started with, at the address that it was
    started at: there are its checkpoints.

    Raises:
        ConfigError: where the backend has no place for them.
    """
    backend = config.backend
    recorded = run.config().get("config", {}).get("backend", {}) if run.exists() else {}
    if isinstance(backend, OpenBackend) and recorded:
        backend = from_json(recorded)
    elif isinstance(backend, OpenBackend):
        backend, reason = chosen(config.base_url)
        if reason:
            console.print(f"backend={backend.name}, since {reason}")
    for name in ("base_url", "ttl_seconds"):
        if (value := getattr(config, name)) is not None:
            if name not in chz.chz_fields(backend):
                raise ConfigError(f"{name}={value} is not for backend={backend.name}: leave it out, or backend=tinker")
            backend = chz.replace(backend, **{name: value})
    return chz.replace(config, backend=backend.located(recorded.get("base_url")))


def with_own_builder(config: Config) -> Config:
    """``config`` with a builder of its own, which has the ``batch_size`` and the ``renderer_name`` of ``config`` where
    they are given. It shares no renderer with that of another run, and a renderer warns once.

    Raises:
        ConfigError: where the batch size is no multiple of the accumulation, or the builder has no place for them.
    """
    given: dict[str, Any] = {}
    if config.batch_size is not None:
        given["batch_size"], left = divmod(config.batch_size, config.gradient_accumulation_steps)
        if left or not given["batch_size"]:
            raise ConfigError(
                f"batch_size={config.batch_size} is no multiple of gradient_accumulation_steps="
                f"{config.gradient_accumulation_steps}: change one of them"
            )
    if config.renderer_name is not None:
        given["renderer_name"] = config.renderer_name
    builder: Any = config.dataset_builder
    common_config = getattr(builder, "common_config", None)
    fields = chz.chz_fields(common_config) if chz.is_chz(common_config) else {}
    for name in given:
        if name not in fields:
            raise ConfigError(
                f"{name}={getattr(config, name)} cannot reach {type(builder).__name__}, which has no "
                f"common_config.{name}: set the builder's own, and leave {name} open"
            )
    if not fields:
        return config
    return chz.replace(config, dataset_builder=chz.replace(builder, common_config=chz.replace(common_config, **given)))
