"""What is measured of the weights before an update: NLL on the test sets, and what the config's evaluators return.

An evaluator that asks the training client is waited for before the update is submitted. So is one that samples, unless
the backend samples from a copy of the weights: then it samples while updates go on.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import numbers
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from harness import metric_keys
from harness.backends.base import Future, SamplingClient, TrainingClient
from harness.eval.evaluators import Evaluator, EvaluatorBuilder, SamplingClientEvaluator, TrainingClientEvaluator
from harness.eval.responses import ResponsesBuilder, ResponsesEvaluator
from harness.exceptions import ConfigError
from harness.run_dir import Row
from harness.supervised.counted import CountedTrainingClient
from harness.supervised.evaluators import NLLEvaluator
from harness.supervised.types import SupervisedDataset, TestSets

if TYPE_CHECKING:
    from harness.supervised.usage import Usage

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What an evaluation found.

    Attributes:
        metrics: By name, without those of time.
        eval_rows, samples: Rows of eval_examples.jsonl and of samples.jsonl, without their step.
        repeatable: The metrics that are the same bits wherever the weights and the place are.
    """

    metrics: Row = dataclasses.field(default_factory=dict)
    eval_rows: Sequence[Row] = ()
    samples: Sequence[Row] = ()
    repeatable: frozenset[str] = frozenset()

    def plus(self, other: Measured) -> Measured:
        """Both.

        Raises:
            ConfigError: where a metric is in both.
        """
        if twice := self.metrics.keys() & other.metrics.keys():
            raise ConfigError(f"two evaluators return {min(twice)}: give one of them another name")
        return Measured(
            self.metrics | other.metrics,
            [*self.eval_rows, *other.eval_rows],
            [*self.samples, *other.samples],
            self.repeatable | other.repeatable,
        )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was asked of evaluators, of the weights before update ``step``.

    Attributes:
        nll: Answers that are awaited.
        measured: What is known already.
        sampling: Samples; None where no evaluator does.
    """

    step: int
    asked_at: float
    evaluators: Sequence[NLLEvaluator | Evaluator]
    nll: Sequence[tuple[NLLEvaluator, Future[Any]]]
    measured: Measured
    sampling: asyncio.Task[Measured] | None

    async def read(self) -> Measured:
        """Wait for all of it."""
        measured = Measured()
        for evaluator, answer in self.nll:
            metrics, row = evaluator.read(await answer.result_async())
            measured = measured.plus(Measured(metrics, [row]))
        measured = measured.plus(self.measured)
        return measured.plus(await self.sampling) if self.sampling else measured


class Evaluations:
    """The evaluators of a run, and when each is due.

    Attributes:
        all: Of either cadence.
    """

    def __init__(self, *cadences: tuple[int, Sequence[NLLEvaluator | Evaluator]], from_a_copy: bool):
        """
        Args:
            cadences: Updates between evaluations, 0 for never, and the evaluators.
            from_a_copy: See :attr:`Backend.samples_from_a_copy`.
        """
        self._from_a_copy = from_a_copy
        self._cadences = [(every, evaluators) for every, evaluators in cadences if every]
        self.all = [evaluator for _, evaluators in self._cadences for evaluator in evaluators]
        self._sampling: set[asyncio.Task[Measured]] = set()

    def due(self, step: int) -> list[NLLEvaluator | Evaluator]:
        """Those that measure the weights before update ``step``."""
        return [evaluator for every, evaluators in self._cadences if step % every == 0 for evaluator in evaluators]

    def fingerprints(self) -> dict[str, str]:
        """Of the data of those that say it, by name.

        Raises:
            ConfigError: where two have one name.
        """
        found: dict[str, str] = {}
        for evaluator in self.all:
            if isinstance(evaluator, ResponsesEvaluator):
                if evaluator.name in found:
                    raise ConfigError(f"two evaluators are called {evaluator.name}: give one of them another name")
                found[evaluator.name] = evaluator.fingerprint
        return found

    async def ask(
        self, client: TrainingClient, step: int, evaluators: Sequence[NLLEvaluator | Evaluator], used: Usage
    ) -> Evaluation:
        """Ask ``evaluators``. Once this returns, updates may be submitted: they do not change what is measured.

        What is asked is added to ``used``."""
        asked_at = time.monotonic()
        nll = [(e, e.submit(client)) for e in evaluators if isinstance(e, NLLEvaluator)]
        used.evaluated += sum(evaluator.scorer.num_tokens for evaluator, _ in nll)
        client = cast(TrainingClient, CountedTrainingClient(client, used))
        measured = Measured()
        for evaluator in evaluators:
            if isinstance(evaluator, TrainingClientEvaluator):
                measured = measured.plus(Measured(_checked(evaluator, await evaluator(client), step)))
        sampling = None
        if samplers := [e for e in evaluators if isinstance(e, SamplingClientEvaluator)]:
            sampling = asyncio.create_task(_sample(samplers, client.save_weights_and_get_sampling_client(), step))
            self._sampling.add(sampling)
            sampling.add_done_callback(self._done)
            if not self._from_a_copy:
                await sampling
        return Evaluation(step, asked_at, evaluators, nll, measured, sampling)

    def _done(self, sampling: asyncio.Task[Measured]) -> None:
        self._sampling.discard(sampling)
        if not sampling.cancelled():
            sampling.exception()  # asked for, so that asyncio does not report it where another one ends the run first

    async def aclose(self) -> None:
        """Let go of what is still sampled."""
        for task in (sampling := [*self._sampling]):
            task.cancel()
        await asyncio.gather(*sampling, return_exceptions=True)


async def _sample(evaluators: Sequence[SamplingClientEvaluator], answer: Future[SamplingClient], step: int) -> Measured:
    client = await answer.result_async()
    measured = Measured()
    for evaluator in evaluators:
        if isinstance(evaluator, ResponsesEvaluator):
            responses = await evaluator.responses(client, step)
            metrics = evaluator.metrics(responses)
            found = Measured(metrics, samples=evaluator.rows(responses), repeatable=frozenset(metrics))
        else:
            found = Measured(_checked(evaluator, await evaluator(client), step))
        measured = measured.plus(found)
    return measured


def _checked(evaluator: Evaluator, found: Any, step: int) -> Row:
    """What an evaluator returned, as floats; what is not finite is left out, with a warning."""
    name = type(evaluator).__name__
    if not isinstance(found, Mapping):
        raise ConfigError(f"evaluator {name} returned a {type(found).__name__}: it must return numbers by name")
    metrics: Row = {}
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, numbers.Real):
            raise ConfigError(f"evaluator {name} returned {key!r}: {value!r:.80}: it must return numbers by name")
        if metric_keys.is_own(key):
            raise ConfigError(f"evaluator {name} returned {key}, a name of the trainer's own: give it another one")
        if math.isfinite(value):
            metrics[key] = float(value)
        else:
            logger.warning("evaluator %s: %s is %s at step %d: left out", name, key, value, step)
    return metrics


def build_evaluators(
    builders: Sequence[EvaluatorBuilder], dataset_builder: Any, test_sets: TestSets, seed: int
) -> list[Evaluator]:
    """The evaluators that ``builders`` build.

    Args:
        dataset_builder: The run's.
        test_sets: What it built.
        seed: The run's.

    Raises:
        ConfigError: for what is no evaluator.
        HarnessError: for data that cannot be used.
    """
    first = next(iter(test_sets.values()), None) if isinstance(test_sets, Mapping) else test_sets
    evaluators: list[Evaluator] = []
    for builder in builders:
        if isinstance(builder, ResponsesBuilder):
            common_config = getattr(dataset_builder, "common_config", None)
            made = builder.of_run(common_config, _contents(first), seed)
        else:
            made: Any = builder()
        if not isinstance(made, Evaluator):
            raise ConfigError(
                f"an evaluator builder made a {type(made).__name__}: derive its class from SamplingClientEvaluator or "
                "TrainingClientEvaluator of harness.eval.evaluators"
            )
        evaluators.append(made)
    return evaluators


def _contents(test_set: SupervisedDataset | None) -> Sequence[Any]:
    contents = test_set.contents() if test_set else None
    return [] if contents is None else list(contents)
