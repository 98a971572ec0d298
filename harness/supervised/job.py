"""All that is settled before the first update: data, evaluators, numbers of steps; and how it is told."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from harness import metric_keys
from harness.backends.base import TrainingClient
from harness.eval.responses import ResponsesEvaluator
from harness.exceptions import (
    ConfigError,
    DataError,
    DataFileNotFoundError,
    HarnessError,
)
from harness.prices import Prices, read_prices
from harness.run_dir import CheckpointRecord, Row, RunDir
from harness.supervised import provenance
from harness.supervised.batches import Batches
from harness.supervised.config import Config
from harness.supervised.copies import trained_on
from harness.supervised.custom import by_index
from harness.supervised.datum import loss_weights
from harness.supervised.evaluations import Evaluations, build_evaluators
from harness.supervised.evaluators import NLLEvaluator, nll_evaluators
from harness.supervised.plan import Plan
from harness.supervised.progress import duration
from harness.supervised.restoring import Restored
from harness.supervised.stream_seek import is_of_datasets, one_line
from harness.supervised.survey import Survey, caption, coloured, survey
from harness.supervised.types import SupervisedDataset, SupervisedDatasetBuilder, TestSets
from harness.supervised.usage import NUM_TIMED_PASSES, Estimate, Usage, number
from harness.tokenizer_utils import get_tokenizer

if TYPE_CHECKING:
    import tinker

logger = logging.getLogger(__name__)

_NUM_EXAMPLES = 5  # in examples.txt
_FEW_STEPS = 100  # below this a run is told that it is short
_CADENCES = (("eval_every", "evaluator_builders"), ("infrequent_eval_every", "infrequent_evaluator_builders"))


@dataclass(frozen=True)
class Work:
    """What will be trained, as the data and the config say it.

    Attributes:
        evaluators: One a test set; none where there is no test set or ``eval_every`` is 0.
        evaluations: These and those that the config builds, with when they are due.
        plan: How many updates the whole run makes, and their learning rates.
        survey: Counts of the training set; None in a resume, which was told them at its first start.
        prices: None where no table was given.
    """

    batches: Batches
    evaluators: list[NLLEvaluator]
    evaluations: Evaluations
    plan: Plan
    survey: Survey | None
    prices: Prices | None


@dataclass(frozen=True)
class Job(Work):
    """The same, and what a run is begun with.

    Attributes:
        numerics: What the backend fixed at the run's first start.
        document: What config.json will say once training starts; None in a resume.
        examples: The first examples that are trained, for people; "" in a resume.
        quarantined: Rows that the builder set aside as bad.
    """

    numerics: Row
    document: Row | None
    examples: str
    quarantined: Sequence[Mapping[str, Any]]


def prepare(run: RunDir, config: Config, console: Console, recipe: str | None) -> Job:
    """Build and check the data; tell what it is, or in a resume hold it against what the run was started with.

    Raises:
        HarnessError: for data that cannot be used, or that is not what the run was started with.
    """
    _check_system_metrics(config)
    prices = read_prices(config.price_table, config.model_name) if config.price_table else None
    train_set, test_sets, tokenizer = build_data(config)
    batches = batches_of(config, train_set, tokenizer)
    evaluators = nll_evaluators(test_sets, tokenizer) if config.eval_every else []
    if config.eval_every and not evaluators:
        logger.warning("no test set: test/nll will not be measured (give test_size or test_file_path)")
    for every, builders in _CADENCES:
        if getattr(config, builders) and not getattr(config, every):
            logger.warning("%s=0: nothing is measured of %s (set %s)", every, builders, every)

    evaluations = evaluations_of(config, evaluators, test_sets)
    _check_prompts(config, evaluations)
    data = data_fingerprints(batches, evaluations)
    is_new = not run.exists()
    if not is_new:
        provenance.check_same_data(run, data)
    numerics = config.backend.numerics() if is_new else run.config()["numerics"]
    fixed = ", ".join(f"{key} {value}" for key, value in numerics.items())
    console.print(f"{config.model_name} on {config.backend.described}{f' ({fixed})' if fixed else ''} → {run}")
    plan = plan_of(run, config, batches)
    if is_new and plan.total_steps < _FEW_STEPS:
        logger.warning(
            "%d updates are few: aim for %d or more (a smaller batch size, more epochs)", plan.total_steps, _FEW_STEPS
        )
    counted = survey(train_set, config.gradient_accumulation_steps) if is_new else None
    if counted:
        _check_lengths(config, counted, evaluators)
        tell(counted, evaluators, console)
        console.print("  an example; what is trained on is marked:")
        console.print(coloured(counted.shown, tokenizer, brackets=console.color_system is None))
        _warn_of_overlap(train_set, counted, evaluators)
        data["num_examples"] = {
            "train": counted.num_examples,
            "test": {e.name: len(e.data) for e in evaluators},
        }
        data["test_contents"] = {e.name: e.dataset.fingerprint() for e in evaluators}  # before they were rendered
    return Job(
        batches=batches,
        evaluators=evaluators,
        evaluations=evaluations,
        plan=plan,
        numerics=numerics,
        survey=counted,
        document=provenance.document(config, recipe=recipe, numerics=numerics, data=data) if is_new else None,
        examples=_examples(counted, tokenizer) if counted else "",
        prices=prices,
        quarantined=[row for dataset in (train_set, *(e.dataset for e in evaluators)) for row in dataset.quarantined],
    )


def batches_of(config: Config, train_set: SupervisedDataset, tokenizer: Any) -> Batches:
    return Batches(
        train_set,
        tokenizer=tokenizer,
        num_epochs=config.num_epochs,
        accumulation=config.gradient_accumulation_steps,
        seed=config.seed,
    )


def data_fingerprints(batches: Batches, evaluations: Evaluations) -> Row:
    """Of the data, by which a resume knows it again."""
    tested = {e.name: e.fingerprint for e in evaluations.all if isinstance(e, NLLEvaluator)}
    found: Row = {"train": batches.dataset.fingerprint(), "test": tested}
    if fingerprints := evaluations.fingerprints():
        found["evaluators"] = fingerprints
    return found


def plan_of(run: RunDir, config: Config, batches: Batches) -> Plan:
    """The updates that ``config`` asks for, of a run that is new or not."""
    total_steps = _total_steps(config, batches)
    return Plan.of_resumed_run(run, total_steps, config.lr_policy) if run.exists() else Plan.of_new_run(total_steps)


def evaluations_of(config: Config, evaluators: list[NLLEvaluator], test_sets: TestSets) -> Evaluations:
    """The evaluators of ``config`` beside those of the test sets; what is never due is not built."""
    cadences = []
    for every, of_test_sets, builders in (
        (config.eval_every, evaluators, config.evaluator_builders),
        (config.infrequent_eval_every, [], config.infrequent_evaluator_builders),
    ):
        built = build_evaluators(builders, config.dataset_builder, test_sets, config.seed) if every else []
        cadences.append((every, [*of_test_sets, *built]))
    return Evaluations(*cadences, from_a_copy=config.backend.samples_from_a_copy)


def build_data(config: Config) -> tuple[SupervisedDataset, TestSets, Any]:
    """The training set, the test sets, and the tokenizer that made them; the same whenever it is called."""
    from transformers import set_seed

    set_seed(config.seed)  # Python, NumPy and torch: some builders split at random
    builder: Any = config.dataset_builder
    train_set, test_sets = _built(builder)
    tokenizer = builder.tokenizer if hasattr(builder, "tokenizer") else get_tokenizer(config.model_name)
    if isinstance(test_sets, SupervisedDataset):
        test_sets = by_index(test_sets, builder)
    elif test_sets:
        test_sets = {name: by_index(test_set, builder) for name, test_set in test_sets.items()}
    return by_index(train_set, builder), test_sets, tokenizer


def _built(builder: SupervisedDatasetBuilder) -> tuple[SupervisedDataset, TestSets]:
    """What ``builder`` builds. What datasets says of files that it cannot load is the user's to mend."""
    try:
        return builder()
    except HarnessError:
        raise
    except FileNotFoundError as error:
        raise DataFileNotFoundError(f"{type(builder).__name__}: {error}: give a path or a name that exists") from error
    except StopIteration as error:  # of an empty file
        raise DataError(f"{type(builder).__name__}: its data is empty: give a file with rows") from error
    except Exception as error:
        if not is_of_datasets(error):
            raise
        said = one_line(error.__cause__ or error)
        raise DataError(f"{type(builder).__name__}: {said}: mend the data, or what is asked of it") from error


async def announce(
    run: RunDir, config: Config, job: Job, restored: Restored, to_use: Estimate, used: Usage, console: Console
) -> None:
    """Say what is to do, what it will use and how long it may take; to measure that is added to ``used``."""
    expected = ""
    if job.survey and config.backend.measures_time:
        seconds = await _expected_seconds(to_use.usage, job.survey.shown, restored.client, used)
        expected = f", about {duration(seconds)}"
    tell_what_is_left(run, job, restored.checkpoint, to_use, console, expected)
    if len(job.plan.schedule) > 1:
        parts = ", ".join(f"from step {start} on over {total} steps" for start, total in job.plan.schedule)
        console.print(f"learning rate: {config.lr_schedule} {parts}")


def tell_what_is_left(
    run: RunDir,
    work: Work,
    checkpoint: CheckpointRecord | None,
    to_use: Estimate,
    console: Console,
    expected: str = "",
) -> None:
    """Print from where the run goes on, how far, and what that will use."""
    step = checkpoint.step if checkpoint else 0
    if checkpoint:
        beyond = sum(metric_keys.TRAIN_NLL in row for row in run.metrics_from(step))
        replayed = f"; {number(beyond, 'step')} beyond it to be made again and compared" if beyond else ""
        console.print(f"resuming at step {step} from checkpoint {checkpoint.name}{replayed}")
    total_steps = work.plan.total_steps
    console.print(f"{number(max(0, total_steps - step), 'step')} to train of {total_steps:,}{expected}")
    for line in to_use.lines():
        console.print(line)


async def _expected_seconds(to_use: Usage, example: tinker.Datum, client: TrainingClient, used: Usage) -> float:
    """From the time that one example takes forward, once warm; an update takes a token about 3.5 times as long."""
    times = []
    for _ in range(NUM_TIMED_PASSES):
        started = time.monotonic()
        await client.forward([example], "cross_entropy").result_async()
        times.append(time.monotonic() - started)
    used.measured += NUM_TIMED_PASSES * example.model_input.length
    return min(times) / example.model_input.length * (3.5 * to_use.trained + to_use.evaluated)


def _total_steps(config: Config, batches: Batches) -> int:
    in_epochs = batches.steps_per_epoch * config.num_epochs
    if config.max_steps is None:
        return in_epochs
    if config.max_steps > in_epochs:
        logger.warning(
            "max_steps=%d, but num_epochs=%d ends after %d steps: raise num_epochs to train longer",
            config.max_steps,
            config.num_epochs,
            in_epochs,
        )
    return min(config.max_steps, in_epochs)


def _examples(counted: Survey, tokenizer: Any) -> str:
    """The text of examples.txt."""
    trained = [datum for datum in counted.data if loss_weights(datum).any()][:_NUM_EXAMPLES]
    shown = [f"{caption(n, d)}\n{coloured(d, tokenizer, brackets=True)}\n" for n, d in enumerate(trained, start=1)]
    return "\n".join(["What is trained on stands between ⟦ and ⟧.\n", *shown])


def _check_system_metrics(config: Config) -> None:
    if config.system_metrics and config.mirror and not importlib.util.find_spec("psutil"):
        raise ConfigError("system_metrics=True needs psutil: pip install psutil, or leave system_metrics out")


def _check_lengths(config: Config, counted: Survey, evaluators: list[NLLEvaluator]) -> None:
    limit = config.backend.context_length(config.model_name)
    longest = max([counted.longest, *(evaluator.counts.longest for evaluator in evaluators)])
    if limit is not None and longest > limit:
        raise DataError(
            f"an example has {longest:,} tokens, and the context of {config.model_name} is {limit:,}: "
            f"set max_length={limit}"
        )


def _check_prompts(config: Config, evaluations: Evaluations) -> None:
    prompted = [evaluator for evaluator in evaluations.all if isinstance(evaluator, ResponsesEvaluator)]
    limit = config.backend.context_length(config.model_name) if prompted else None
    for evaluator in prompted:
        if limit is not None and evaluator.longest >= limit:
            raise DataError(
                f"evaluator {evaluator.name}: a prompt has {evaluator.longest:,} tokens, and the context of "
                f"{config.model_name} is {limit:,}: leave it out"
            )


def _warn_of_overlap(train_set: SupervisedDataset, counted: Survey, evaluators: list[NLLEvaluator]) -> None:
    for name, (num, of) in trained_on(train_set, counted.data, evaluators).items():
        if num:
            logger.warning(
                "%s of the %s test examples%s are trained on as well, which makes test NLL look better than it is: "
                "keep them apart (of a stream: test = train_dataset.take(n))",
                f"{num:,}",
                f"{of:,}",
                f" of {name}" if name else "",
            )


def tell(counted: Survey, evaluators: list[NLLEvaluator], console: Console) -> None:
    """Print what the training set and the test sets hold."""
    for line in counted.lines():
        console.print(f"  train  {line}")
    for evaluator in evaluators:
        for line in evaluator.counts.lines():
            console.print(f"  test   {evaluator.name}{': ' if evaluator.name else ''}{line}")
