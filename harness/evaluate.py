"""Old checkpoints scored on new data: what a run would have measured, had it been tested on that set as well.

The data is rendered and the weights compute as in the run's training, so that on a test set of its own the same numbers
come out. What comes out is a row of later_evaluations.jsonl: metrics.jsonl stays what training wrote.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import TYPE_CHECKING, Any

import chz
from rich.console import Console

from harness import __version__, cli, metric_keys, run_dir
from harness.config_io import from_json, redact
from harness.derive import at_address, find_checkpoint
from harness.exceptions import BackendError, ConfigError, DataError, HarnessError, RunDirError
from harness.run_dir import CheckpointRecord, Row, RunDir
from harness.supervised.data import FromConversationFileBuilder
from harness.supervised.logs import logging_to
from harness.supervised.provenance import now_ms
from harness.supervised.train import Config, with_own_builder
from harness.supervised.types import ChatDatasetBuilderCommonConfig
from harness.tracking.mlflow_mirror import update

if TYPE_CHECKING:
    from harness.supervised.evaluators import NLLEvaluator

logger = logging.getLogger(__name__)


class NewTestSet:
    """The conversations of a JSONL file, as test set ``name`` of any run. Runs that render alike share what is made.

    Attributes:
        file: Its path, as the user gave it.
    """

    def __init__(self, name: str, file: str):
        """
        Raises:
            ConfigError: for a name that no test set may have.
        """
        from harness.supervised.evaluators import check_name

        check_name(name)
        self.name = name
        self.file = file
        self._made: list[tuple[ChatDatasetBuilderCommonConfig, NLLEvaluator]] = []
        self._trained_on: list[tuple[Any, tuple[int, int]]] = []

    def evaluator(self, config: Config, console: Console) -> NLLEvaluator:
        """The conversations as the builder of ``config`` renders its own; told what they hold when they are made.

        Raises:
            ConfigError: where it does not say how it renders.
            DataError: for a file that cannot be used.
        """
        from harness.supervised.evaluators import NLLEvaluator

        builder: Any = config.dataset_builder
        common_config = getattr(builder, "common_config", None)
        if not isinstance(common_config, ChatDatasetBuilderCommonConfig):
            raise ConfigError(
                f"{type(builder).__name__} has no common_config that says how a conversation is rendered: give that "
                "builder the data as a test set, and train anew"
            )
        for like, evaluator in self._made:
            if like == common_config:
                return evaluator
        reader = FromConversationFileBuilder(common_config=common_config, file_path=self.file)
        dataset, _ = reader()
        evaluator = NLLEvaluator(self.name, dataset, reader.tokenizer)
        for line in evaluator.counts.lines():
            console.print(f"{self.name}: {line}")
        self._made.append((common_config, evaluator))
        return evaluator

    def trained_on(self, config: Config, evaluator: NLLEvaluator) -> tuple[int, int]:
        """How many of the examples stand in the training set that the builder of ``config`` makes now, and of how many.

        Raises:
            HarnessError: where it cannot be made.
        """
        from harness.supervised.copies import trained_on
        from harness.supervised.job import build_data
        from harness.supervised.survey import survey

        made_of = (config.dataset_builder, config.seed)
        for like, found in self._trained_on:
            if like == made_of:
                return found
        train_set, _, _ = build_data(config)
        found = trained_on(train_set, survey(train_set).data, [evaluator])[self.name]
        self._trained_on.append((made_of, found))
        return found


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What :func:`evaluate` found.

    Attributes:
        row: Of later_evaluations.jsonl; without its examples where it was there before.
        is_new: Whether it was computed now.
    """

    row: Row
    is_new: bool


def evaluate(run: RunDir, at: str, test_set: NewTestSet, console: Console, *, base_url: str | None = None) -> Evaluated:
    """Score a checkpoint of ``run`` on ``test_set``, and keep the result in the run directory and in MLflow. One that
    is kept already is not computed again.

    Args:
        at: See :func:`harness.derive.find_checkpoint`.
        console: Takes warnings, and what the data holds.
        base_url: See :func:`harness.derive.at_address`.

    Raises:
        HarnessError: for a run that is being trained, one whose config cannot be made again, a checkpoint that is not
            there, a name that means another test set there, or data that cannot be used.
    """
    document = run.config()  # before anything is written there: it may be another program's directory
    if run.is_locked():
        raise RunDirError(f"{run}: another process is writing to this run: evaluate it once that has ended")
    with run.lock(), logging_to(run / run_dir.LOG, console):
        cli.import_from_here()
        config = with_own_builder(from_json(document["config"]))
        config = chz.replace(config, backend=at_address(config.backend, base_url))
        config.backend.check(config.model_name)
        checkpoint = find_checkpoint(run, at)
        evaluator = test_set.evaluator(config, console)
        row = _kept(run, checkpoint, evaluator)
        is_new = row is None
        if row is None:
            _warn_of_training_examples(run, config, test_set, evaluator)
            head = {metric_keys.STEP: checkpoint.step, metric_keys.TS: now_ms(), "checkpoint": checkpoint.name}
            head |= {"data": redact(test_set.file), "contents": evaluator.dataset.fingerprint()}
            row = head | {"harness": __version__} | _score(run, config, checkpoint, evaluator)
            run.append_later_evaluation(row)
    with logging_to(run / run_dir.LOG, console):  # no longer locked: a run that is being trained is not updated
        for trouble in update([run], make=config.mirror):
            logger.warning("%s: python -m harness sync %s completes the MLflow run", trouble, run)
    return Evaluated(row, is_new)


def _warn_of_training_examples(run: RunDir, config: Config, test_set: NewTestSet, evaluator: NLLEvaluator) -> None:
    try:
        num, of = test_set.trained_on(config, evaluator)
    except HarnessError as error:  # its data lies elsewhere by now: it can be scored all the same
        logger.warning("%s: whether it was trained on examples of %s is not known: %s", run, test_set.name, error)
        return
    if num:
        logger.warning(
            "%s: it was trained on %s of the %s examples of %s, which makes their NLL look better than it is: leave "
            "them out",
            run,
            f"{num:,}",
            f"{of:,}",
            test_set.name,
        )


def _kept(run: RunDir, checkpoint: CheckpointRecord, evaluator: NLLEvaluator) -> Row | None:
    """The row of the same evaluation, made before.

    Raises:
        ConfigError: where the name means another test set.
    """
    of_name = [row for row in run.evaluations() if row["set"] == evaluator.name]
    if evaluator.name in run.config()["data"]["test"] or any("metrics" not in row for row in of_name):
        raise ConfigError(f"{run}: {evaluator.name} is a test set of its training: choose another --name")
    for row in of_name:
        if row["fingerprint"] != evaluator.fingerprint:
            raise ConfigError(
                f"{run}: {evaluator.name} is other data there ({row['data']}, fingerprint {row['fingerprint']}; "
                f"{evaluator.fingerprint} here): choose another --name"
            )
    return next((row for row in of_name if row[metric_keys.STEP] == checkpoint.step), None)


def _score(run: RunDir, config: Config, checkpoint: CheckpointRecord, evaluator: NLLEvaluator) -> Row:
    """The metrics and each example's NLL, under the checkpoint's weights."""
    limit = config.backend.context_length(config.model_name)
    if limit is not None and evaluator.counts.longest > limit:
        raise DataError(
            f"{evaluator.name}: a conversation has {evaluator.counts.longest:,} tokens, and the context of "
            f"{config.model_name} is {limit:,}: leave it out"
        )
    client = config.backend.create_training_client(
        model_name=config.model_name,
        lora_rank=config.lora_rank,
        seed=config.seed,
        numerics=run.config()["numerics"],
        run_path=run.path,
        weights_path=config.backend.checkpoint_path(run.path, checkpoint.state_path),
    )
    try:
        metrics, examples = evaluator.read(evaluator.submit(client).result())
    finally:
        config.backend.close(client)
    for key, value in metrics.items():
        if not math.isfinite(value):
            raise BackendError(f"{run}: {key} is {value} at step {checkpoint.step}: take another checkpoint")
    counts = {"num_examples": len(evaluator.data), metric_keys.NUM_TOKENS: evaluator.scorer.num_tokens}
    return {"metrics": metrics} | counts | examples
