"""Updates under way: asked of the backend in one order, written in another when their answers are there."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import tinker

from harness import run_dir
from harness.backends.base import Future, Saved, TrainingClient
from harness.lr_schedules import lr_multiplier
from harness.run_dir import CheckpointRecord, Row, RunDir
from harness.supervised.batches import Batch, Position
from harness.supervised.config import Config
from harness.supervised.job import Job
from harness.supervised.provenance import now_ms
from harness.supervised.replay import Ledger


@dataclass(frozen=True)
class Save:
    """A checkpoint under way: the next update is ``step``, its batch at ``position``."""

    step: int
    position: Position
    state: Future[Saved]
    sampler: Future[Saved]


@dataclass(frozen=True)
class Update:
    """An update under way. Its requests stand in the backend's queue in the order of these fields."""

    step: int
    batch: Batch
    learning_rate: float
    time_data: float
    evaluations: list[Future[Any]]
    forward_backward: Future[Any]
    optim_step: Future[Any]
    save: Save | None


class Updates:
    """Submits updates and writes what came of them: evaluated examples, row, checkpoint record, in this order."""

    def __init__(self, run: RunDir, config: Config, job: Job, client: TrainingClient, ledger: Ledger):
        self._run = run
        self._config = config
        self._job = job
        self._client = client
        self._ledger = ledger
        self._time_data = 0.0
        self._finished_at = time.monotonic()

    async def next_batch(self, batches: AsyncIterator[Batch]) -> Batch | None:
        """The next batch, or None after the last; the wait for it is noted."""
        asked = time.monotonic()
        batch = await anext(batches, None)
        self._time_data = time.monotonic() - asked
        return batch

    def submit(self, step: int, batch: Batch) -> Update:
        """Ask for update ``step``."""
        config = self._config
        multiplier = lr_multiplier(config.lr_schedule, step, self._job.total_steps, config.warmup_steps)
        learning_rate = config.learning_rate * multiplier
        adam_params = tinker.AdamParams(
            learning_rate=learning_rate,
            beta1=config.adam_beta1,
            beta2=config.adam_beta2,
            eps=config.adam_eps,
            weight_decay=config.weight_decay,
            grad_clip_norm=config.grad_clip_norm,
        )
        return Update(
            step=step,
            batch=batch,
            learning_rate=learning_rate,
            time_data=self._time_data,
            evaluations=self._evaluate() if self._evaluation_due(step) else [],
            forward_backward=self._client.forward_backward(batch.data, "cross_entropy"),
            optim_step=self._client.optim_step(adam_params),
            save=self._save(step + 1, batch.following) if self._save_due(step + 1) else None,
        )

    async def finish(self, update: Update) -> Row:
        """Wait for the answers to an update and write them."""
        metrics, eval_rows = await self._read(update.evaluations)
        batch = update.batch
        score = batch.scorer.score(await update.forward_backward.result_async())
        await update.optim_step.result_async()
        now = time.monotonic()
        row = {
            run_dir.STEP: update.step,
            run_dir.TS: now_ms(),
            run_dir.EPOCH: batch.position.epoch,
            run_dir.PROGRESS: update.step / self._job.total_steps,
            run_dir.BATCH_DIGEST: batch.digest,
            run_dir.LEARNING_RATE: update.learning_rate,
            run_dir.NUM_SEQUENCES: len(batch.data),
            run_dir.NUM_TOKENS: batch.scorer.num_tokens,
            run_dir.NUM_LOSS_TOKENS: sum(batch.scorer.num_loss_tokens),
            run_dir.TRAIN_NLL: score.mean_nll,
            run_dir.TRAIN_BPB: score.bits_per_byte,
            **metrics,
            run_dir.TIME_STEP: now - self._finished_at,
            run_dir.TIME_DATA: update.time_data,
        }
        self._finished_at = now
        self._ledger.write(row, eval_rows)
        if update.save:
            await self._log_checkpoint(update.save)
        return row

    async def save_final(self, step: int, position: Position) -> None:
        """Save the state after the last update."""
        await self._log_checkpoint(self._save(step, position), final=True)

    async def evaluate_final(self, step: int, position: Position) -> Row | None:
        """Measure the weights after the last update, in a row of its own; None where nothing is evaluated."""
        if not self._job.evaluators:
            return None
        metrics, eval_rows = await self._read(self._evaluate())
        row = {
            run_dir.STEP: step,
            run_dir.TS: now_ms(),
            run_dir.EPOCH: position.epoch,
            run_dir.PROGRESS: 1.0,
            **metrics,
        }
        self._ledger.write(row, eval_rows)
        return row

    def delete_others(self, step: int) -> None:
        """Delete the checkpoints that are neither the one at ``step`` nor the best so far, unless all are kept."""
        if self._config.keep == "all":
            return
        for record in self._run.checkpoints():
            if record.step not in (step, self._ledger.best_step) and not record.deleted:
                self._run.append_checkpoint(record.as_deleted())
                self._config.backend.remove_checkpoint(self._run.path, record.state_path)

    def _evaluation_due(self, step: int) -> bool:
        return bool(self._job.evaluators) and step % self._config.eval_every == 0

    def _save_due(self, next_step: int) -> bool:
        """The last one is :meth:`save_final`'s."""
        every = self._config.save_every
        due = every > 0 and (next_step % every == 0 or self._evaluation_due(next_step))
        return due and next_step < self._job.total_steps

    def _evaluate(self) -> list[Future[Any]]:
        return [evaluator.submit(self._client) for evaluator in self._job.evaluators]

    async def _read(self, evaluations: list[Future[Any]]) -> tuple[Row, list[Row]]:
        """The metrics of an evaluation and its rows for eval_examples.jsonl."""
        if not evaluations:
            return {}, []
        asked = time.monotonic()
        metrics: Row = {}
        eval_rows = []
        for evaluator, future in zip(self._job.evaluators, evaluations, strict=True):
            measured, row = evaluator.read(await future.result_async())
            metrics |= measured
            eval_rows.append(row)
        return metrics | {run_dir.TIME_EVAL: time.monotonic() - asked}, eval_rows

    def _save(self, step: int, position: Position) -> Save:
        name = f"{step:06d}"
        return Save(step, position, self._client.save_state(name), self._client.save_weights_for_sampler(name))

    async def _log_checkpoint(self, save: Save, *, final: bool = False) -> None:
        record = CheckpointRecord(
            name=f"{save.step:06d}",
            step=save.step,
            epoch=save.position.epoch,
            batch=save.position.batch,
            state_path=(await save.state.result_async()).path,
            sampler_path=(await save.sampler.result_async()).path,
            final=final,
        )
        self._run.append_checkpoint(record)
        self.delete_others(record.step)
