"""Where a run goes on, and the model as it was there."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.backends.base import Backend, TrainingClient
from harness.checkpoint_record import is_remote
from harness.exceptions import CheckpointDamagedError, RunDirError
from harness.run_dir import METRICS, CheckpointRecord, Row, RunDir
from harness.supervised import provenance
from harness.supervised.batches import Position
from harness.supervised.config import Config

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restored:
    """A client that holds the model, and the place from which to go on."""

    client: TrainingClient
    checkpoint: CheckpointRecord | None
    _backend: Backend

    @property
    def step(self) -> int:
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def position(self) -> Position:
        return Position(self.checkpoint.epoch, self.checkpoint.batch) if self.checkpoint else Position(0, 0)

    def close(self) -> None:
        self._backend.close(self.client)


def restore(run: RunDir, config: Config, numerics: Row, recipe: str | None) -> Restored:
    """Load the model as the last logged checkpoint left it; passed over for one before it is a checkpoint that
    is damaged, or whose rows are not all there.

    Args:
        numerics: What the backend fixed at the run's first start.

    Raises:
        RunDirError: where a service has none of them, or a fork cannot go on from any.
    """

    def create(state_path: str | None = None, weights_path: str | None = None) -> TrainingClient:
        return config.backend.create_training_client(
            model_name=config.model_name,
            lora_rank=config.lora_rank,
            seed=config.seed,
            numerics=numerics,
            run_path=run.path,
            state_path=state_path,
            weights_path=weights_path,
            describe=lambda: provenance.metadata(run, config, recipe),
        )

    def load(record: CheckpointRecord) -> TrainingClient:
        if record.fresh_optimizer:
            return create(weights_path=config.backend.checkpoint_path(run.path, record.state_path))
        return create(state_path=record.state_path)

    restored = None
    passed_over: list[tuple[CheckpointRecord, CheckpointDamagedError]] = []
    for record in checkpoints_to_resume(run):
        try:
            restored = Restored(load(record), record, config.backend)
            break
        except CheckpointDamagedError as error:
            passed_over.append((record, error))
    if not restored and any(is_remote(record.state_path) for record, _ in passed_over):
        raise RunDirError(_none_is_there(run, config.backend, [record for record, _ in passed_over]))
    for record, error in passed_over:
        logger.warning("going back before checkpoint %s: %s", record.name, error)
    if restored:
        return restored
    if run.exists() and run.config().get("parent"):  # its first rows are of its parent's config
        raise RunDirError(f"{run}: a fork, and none of its checkpoints can be used: fork its parent again")
    return Restored(create(weights_path=config.load_checkpoint_path), None, config.backend)


def _none_is_there(run: RunDir, backend: Backend, records: Sequence[CheckpointRecord]) -> str:
    """That a service has no checkpoint of ``run``: it may be another than the one that was asked to save them."""
    names = ", ".join(record.name for record in records)
    starts = [row for row in run.attempts() if row["event"] == "start"]
    saved_on = starts[-1].get("backend") if starts else None
    elsewhere = ""
    if saved_on and saved_on != backend.described:
        elsewhere = f", and they were saved on {saved_on}: give that one's base_url, or"
    if run.config().get("parent"):
        anew = "fork its parent again"
    else:
        anew = f"train anew: python -m harness rerun {shlex.quote(str(run))} log_path=…"
    return f"{run}: {backend.described} has none of its checkpoints ({names}){elsewhere or ':'} {anew}"


def checkpoints_to_resume(run: RunDir) -> Iterator[CheckpointRecord]:
    """Those from which ``run`` can go on, the newest first, as long as they are not damaged."""
    num_recorded = run.num_steps_recorded()
    for record in reversed([record for record in run.checkpoints() if record.is_usable]):
        if record.step > num_recorded:
            logger.warning("going back before checkpoint %s: %s has no step %d", record.name, METRICS, num_recorded)
        else:
            yield record
