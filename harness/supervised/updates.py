"""Updates under way: asked of the backend in one order, written in another when their answers are there.

A save is written beside the updates that follow it: its record is logged when its state is durable, one at a time.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tinker

from harness import metric_keys
from harness.backends.base import Future, Saved
from harness.checkpoint_record import is_remote
from harness.eval.evaluators import Evaluator
from harness.run_dir import CheckpointRecord, Row, RunDir
from harness.supervised.batches import Batch, Position
from harness.supervised.config import Config
from harness.supervised.datum import Scorer
from harness.supervised.evaluations import Evaluation, Measured
from harness.supervised.evaluators import NLLEvaluator
from harness.supervised.job import Job
from harness.supervised.progress import Awaited
from harness.supervised.provenance import now_ms
from harness.supervised.replay import NUM_NOISE_PASSES, Ledger, noise_of
from harness.supervised.restoring import Restored
from harness.supervised.retention import kept, save_due
from harness.supervised.usage import Usage

_SAVE_SECONDS = 5.0


@dataclass(frozen=True)
class Save:
    """A checkpoint under way: the next update is ``step``, its batch at ``position``."""

    step: int
    position: Position
    state: Future[Saved]
    sampler: Future[Saved] | None
    final: bool
    rolling: bool


@dataclass(frozen=True)
class Update:
    """An update under way. Its requests stand in the backend's queue in the order of these fields."""

    step: int
    batch: Batch
    learning_rate: float
    time_data: float
    evaluation: Evaluation | None
    forward_backward: Future[Any]
    optim_step: Future[Any]
    save: Save | None


class Updates:
    """Submits updates and writes what came of them: evaluated examples and samples, row, checkpoint record, in this
    order.

    Attributes:
        awaited: The answer without which nothing goes on now.
    """

    awaited: Awaited | None = None

    def __init__(self, run: RunDir, config: Config, job: Job, restored: Restored, ledger: Ledger, used: Usage):
        """``used`` is added to whenever something is asked for."""
        self._run = run
        self._config = config
        self._job = job
        self._client = restored.client
        self._ledger = ledger
        self._used = used
        self._time_data = 0.0
        self._finished_at = time.monotonic()
        self._saved_at = time.monotonic()
        self._tokens_since_save = 0
        self._saved_step = restored.checkpoint and restored.step  # of the newest save, logged or asked for
        self._logging: asyncio.Task[None] | None = None  # waits for a save to be durable and logs it
        self._removals: dict[str, asyncio.Task[None]] = {}  # by a checkpoint's name: wait for a service and mark it

    # ---- asking

    async def next_batch(self, batches: AsyncIterator[Batch]) -> Batch | None:
        """The next batch, or None after the last; the wait for it is noted."""
        asked = time.monotonic()
        batch = await anext(batches, None)
        self._time_data = time.monotonic() - asked
        if batch:
            await self._calibrate(batch.data, batch.scorer)
        return batch

    async def evaluate_if_due(self, step: int) -> Evaluation | None:
        """Ask for an evaluation of the weights before update ``step``; None where none is due."""
        due = self._job.evaluations.due(step)
        return await self._evaluate(step, due) if due else None

    def submit(self, step: int, batch: Batch, evaluation: Evaluation | None) -> Update:
        """Ask for update ``step``."""
        config = self._config
        multiplier = self._job.plan.lr_multiplier(config.lr_schedule, step, config.warmup_steps)
        learning_rate = config.learning_rate * multiplier
        adam_params = tinker.AdamParams(
            learning_rate=learning_rate,
            beta1=config.adam_beta1,
            beta2=config.adam_beta2,
            eps=config.adam_eps,
            weight_decay=config.weight_decay,
            grad_clip_norm=config.grad_clip_norm,
        )
        self._tokens_since_save += batch.scorer.num_tokens
        self._used.steps += 1
        self._used.trained += batch.scorer.num_tokens
        return Update(
            step=step,
            batch=batch,
            learning_rate=learning_rate,
            time_data=self._time_data,
            evaluation=evaluation,
            forward_backward=self._client.forward_backward(batch.data, "cross_entropy"),
            optim_step=self._client.optim_step(adam_params),
            save=self._save_if_due(step + 1, batch.following),
        )

    # ---- writing

    async def finish(self, update: Update) -> Row:
        """Wait for the answers to an update and write them."""
        measured = await self._read(update.evaluation)
        batch = update.batch
        with self._awaiting(f"step {update.step}"):
            score = batch.scorer.score(await update.forward_backward.result_async())
            await update.optim_step.result_async()
        now = time.monotonic()
        row = {
            metric_keys.STEP: update.step,
            metric_keys.TS: now_ms(),
            metric_keys.EPOCH: batch.position.epoch,
            metric_keys.PROGRESS: update.step / self._job.plan.total_steps,
            metric_keys.BATCH_DIGEST: batch.digest,
            metric_keys.LEARNING_RATE: update.learning_rate,
            metric_keys.NUM_SEQUENCES: len(batch.data),
            metric_keys.NUM_TOKENS: batch.scorer.num_tokens,
            metric_keys.NUM_LOSS_TOKENS: sum(batch.scorer.num_loss_tokens),
            metric_keys.TRAIN_NLL: score.mean_nll,
            metric_keys.TRAIN_BPB: score.bits_per_byte,
            **measured.metrics,
            metric_keys.TIME_STEP: now - self._finished_at,
            metric_keys.TIME_DATA: update.time_data,
        }
        self._finished_at = now
        self._ledger.write(row, measured.eval_rows, measured.samples, measured.repeatable)
        if self._logging and self._logging.done():
            await self._logging
        if update.save:
            await self._log_beside(update.save)
        return row

    async def stops_improving(self, evaluation: Evaluation) -> bool:
        """Whether with this evaluation ``early_stop_patience`` is used up; one without a test NLL does not count."""
        assert self._config.early_stop_patience is not None
        nll = metric_keys.first_test_nll((await self._read(evaluation)).metrics)
        return (
            nll is not None
            and self._ledger.evaluations_since_best(evaluation.step, nll) >= self._config.early_stop_patience
        )

    async def save(self, step: int, position: Position, *, final: bool) -> None:
        """Save the state before update ``step`` and wait until it is logged; where it was, note ``final``."""
        if self._saved_step != step:
            await self._log_beside(self._save(step, position, final=final))
        await self._saved()
        for record in self._run.checkpoints():
            if final and record.step == step and not record.final:
                sampler_path = record.sampler_path or await self._saved_weights(record.name)
                final_record = dataclasses.replace(record, final=True, rolling=False, sampler_path=sampler_path)
                self._run.append_checkpoint(final_record)

    async def aclose(self) -> None:
        """Let go of what is sampled, of a save that is not logged, and of removals: nothing is written after this. What
        was saved before an error has seconds to be logged."""
        await self._job.evaluations.aclose()
        if self._logging:
            if isinstance(sys.exc_info()[1], Exception):
                await asyncio.wait([self._logging], timeout=_SAVE_SECONDS)
            self._logging.cancel()
            await asyncio.wait([self._logging])
            if not self._logging.cancelled():
                self._logging.exception()  # asked for, so that asyncio does not report it beside the one under way
        for removal in self._removals.values():
            removal.cancel()
        await asyncio.gather(*self._removals.values(), return_exceptions=True)

    async def finish_evaluation(self, evaluation: Evaluation | None, step: int, position: Position) -> Row | None:
        """Measure the weights after the last update, in a row of its own; None where nothing is evaluated."""
        evaluations = self._job.evaluations
        if not evaluations.all:
            return None
        for evaluator in self._job.evaluators[:1]:
            await self._calibrate(evaluator.data, evaluator.scorer)
        others = [e for e in evaluations.all if evaluation is None or e not in evaluation.evaluators]
        measured = await self._read(evaluation, await self._evaluate(step, others))
        row = {
            metric_keys.STEP: step,
            metric_keys.TS: now_ms(),
            metric_keys.EPOCH: position.epoch,
            metric_keys.PROGRESS: step / self._job.plan.total_steps,
            **measured.metrics,
        }
        self._ledger.write(row, measured.eval_rows, measured.samples, measured.repeatable)
        return row

    def delete_others(self, newest_step: int) -> None:
        """Delete the checkpoints that ``keep`` does not name, and the rolling ones before the newest."""
        keep = self._config.keep
        records = [record for record in self._run.checkpoints() if record.is_usable and record.step <= newest_step]
        num_newest = keep if isinstance(keep, int) else len(records) if keep == "all" else 1
        staying = kept(records, num_newest, None if keep == "last" else self._ledger.best_step)
        for record in records:
            if record not in staying and record.name not in self._removals:
                self._remove(record)

    async def conclude(self, last_step: int) -> None:
        """Delete the checkpoints that are not kept; the best and the final one stay for good."""
        self.delete_others(last_step)
        lasting = [r for r in self._run.checkpoints() if r.is_usable and (r.final or r.step == self._ledger.best_step)]
        with self._awaiting("what becomes of the checkpoints"):
            await self._config.backend.conclude([path for record in lasting for path in record.paths])
            await asyncio.gather(*self._removals.values())

    # ----

    @contextlib.contextmanager
    def _awaiting(self, what: str) -> Iterator[None]:
        self.awaited = Awaited(what, time.monotonic())
        try:
            yield
        finally:
            self.awaited = None

    async def _calibrate(self, data: list[tinker.Datum], scorer: Scorer) -> None:
        """Measure the tolerance of a replay where there is one and only a measurement can tell."""
        if self._ledger.tolerance is None and self._ledger.has_recorded:
            answers = [self._client.forward(data, "cross_entropy") for _ in range(NUM_NOISE_PASSES)]
            self._used.measured += NUM_NOISE_PASSES * scorer.num_tokens
            with self._awaiting("the measurement of noise"):
                passes = [scorer.score(await answer.result_async()).nll for answer in answers]
            self._ledger.tolerance = noise_of(passes, sum(scorer.num_loss_tokens))

    async def _evaluate(self, step: int, evaluators: Sequence[NLLEvaluator | Evaluator]) -> Evaluation:
        with self._awaiting(f"the evaluation at step {step}"):
            return await self._job.evaluations.ask(self._client, step, evaluators, self._used)

    async def _read(self, *asked: Evaluation | None) -> Measured:
        """What evaluations of one step found, and how long they took."""
        measured = Measured()
        if not (evaluations := [evaluation for evaluation in asked if evaluation]):
            return measured
        with self._awaiting(f"the evaluation at step {evaluations[0].step}"):
            for evaluation in evaluations:
                measured = measured.plus(await evaluation.read())
        seconds = time.monotonic() - evaluations[0].asked_at
        return measured.plus(Measured({metric_keys.TIME_EVAL: seconds}))

    def _save_if_due(self, next_step: int, position: Position) -> Save | None:
        """The last one is :meth:`save`'s."""
        due = save_due(
            self._config,
            next_step,
            is_evaluated=bool(self._job.evaluations.due(next_step)),
            tokens=self._tokens_since_save,
            seconds=time.monotonic() - self._saved_at,
        )
        if next_step >= self._job.plan.total_steps or not due:
            return None
        return self._save(next_step, position, rolling=due == "rolling")

    def _save(self, step: int, position: Position, *, final: bool = False, rolling: bool = False) -> Save:
        name = f"{step:06d}"
        self._used.checkpoints += 1
        self._saved_step, self._saved_at, self._tokens_since_save = step, time.monotonic(), 0
        state = self._client.save_state(name)
        with_weights = final or self._config.backend.weights_with_every_state
        sampler = self._client.save_weights_for_sampler(name) if with_weights else None
        return Save(step, position, state, sampler, final, rolling)

    def _remove(self, record: CheckpointRecord) -> None:
        """Here it is marked before it goes: what a crash leaves in between, the next attempt removes. With a service it
        is marked after: nothing here shows what is left there."""
        backend, marked = self._config.backend, dataclasses.replace(record, deleted=True)
        if is_remote(record.state_path):
            answers = [backend.remove_checkpoint(self._run.path, path) for path in record.own_paths]
            self._removals[record.name] = asyncio.create_task(self._mark_once_gone(marked, filter(None, answers)))
        else:
            self._run.append_checkpoint(marked)
            for path in record.own_paths:
                backend.remove_checkpoint(self._run.path, path)

    async def _mark_once_gone(
        self, marked: CheckpointRecord, answers: Iterable[concurrent.futures.Future[bool]]
    ) -> None:
        if all([await asyncio.shield(asyncio.wrap_future(answer)) for answer in answers]):
            self._run.append_checkpoint(marked)

    async def _saved(self) -> None:
        if self._logging:
            with self._awaiting(f"checkpoint {self._saved_step:06d}"):
                await self._logging

    async def _saved_weights(self, name: str) -> str:
        with self._awaiting(f"the weights of checkpoint {name}"):
            return (await self._client.save_weights_for_sampler(name).result_async()).path

    async def _log_beside(self, save: Save) -> None:
        """Log a save when its state is durable, while updates go on; the one before it is waited for first."""
        await self._saved()
        self._logging = asyncio.create_task(self._log_checkpoint(save))

    async def _log_checkpoint(self, save: Save) -> None:
        record = CheckpointRecord(
            name=f"{save.step:06d}",
            step=save.step,
            epoch=save.position.epoch,
            batch=save.position.batch,
            state_path=(await save.state.result_async()).path,
            sampler_path=(await save.sampler.result_async()).path if save.sampler else None,
            final=save.final,
            rolling=save.rolling,
        )
        self._run.append_checkpoint(record)
        self.delete_others(record.step)
