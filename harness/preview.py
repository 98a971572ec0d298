"""Look before you train: what a recipe's data holds, and examples with what is trained on marked. No weights load."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import chz
from rich.console import Console

from harness import cli
from harness.exceptions import ConfigError
from harness.supervised.train import Config, with_own_builder

if TYPE_CHECKING:
    import tinker

    from harness.supervised.evaluators import NLLEvaluator
    from harness.supervised.types import SupervisedDataset

_BAR = 40  # characters of the longest bar


def load_config(recipe: str, overrides: Sequence[str]) -> Config:
    """The config that ``python -m <recipe> <overrides>`` would train.

    Args:
        recipe: A module that defines ``build_config_blueprint()``, or ``build_train_config(cli_config)`` whose
            argument is annotated with the chz class of its options.
        overrides: As on a command line.

    Raises:
        ConfigError: for a module that is not there or defines neither, or an override that cannot be used.
    """
    no_such_module = ConfigError(f"{recipe!r}: no such module: give what stands after python -m, as recipes.sl_basic")
    if not recipe or recipe.startswith("."):
        raise no_such_module
    cli.import_from_here()
    try:
        module = importlib.import_module(recipe)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{recipe}.".startswith(f"{error.name}."):
            raise  # of something that the recipe imports
        raise no_such_module from None
    if hasattr(module, "build_config_blueprint"):
        return cli.make_from_argv(module.build_config_blueprint(), list(overrides))
    if hasattr(module, "build_train_config"):
        cli_config = chz.get_nested_target(module.build_train_config)
        return module.build_train_config(cli.make_from_argv(chz.Blueprint(cli_config), list(overrides)))
    raise ConfigError(f"{recipe} defines neither build_config_blueprint() nor build_train_config(cli_config)")


def preview(config: Config, console: Console, *, num: int) -> None:
    """Print the counts of the data, its lengths and copies, and the first ``num`` examples that are trained.

    Raises:
        HarnessError: for data that a run would refuse.
    """
    from harness.supervised.datum import loss_weights
    from harness.supervised.evaluators import nll_evaluators
    from harness.supervised.job import build_data, tell
    from harness.supervised.survey import caption, coloured, survey

    train_set, test_sets, tokenizer = build_data(with_own_builder(config))
    evaluators = nll_evaluators(test_sets, tokenizer)
    counted = survey(train_set, config.gradient_accumulation_steps)
    trained = [datum for datum in counted.data if loss_weights(datum).any()]

    console.print(f"{config.model_name}, {type(config.dataset_builder).__name__}")
    tell(counted, evaluators, console)
    for line in copies(train_set, trained, evaluators):
        console.print(f"  {line}")
    bars = histogram([datum.model_input.length + 1 for datum in counted.data])
    console.print("\n  tokens a conversation")
    for bounds, count in bars.items():
        bar = "█" * -(-_BAR * count // max(bars.values()))
        console.print(f"  {bounds:>13}  {bar} {count:,}")
    for number, datum in enumerate(trained[:num], start=1):
        console.print(f"\n{caption(number, datum)}")
        console.print(coloured(datum, tokenizer, brackets=console.color_system is None))


def copies(train_set: SupervisedDataset, data: Sequence[tinker.Datum], evaluators: Sequence[NLLEvaluator]) -> list[str]:
    """What to say of examples that stand more than once: see :mod:`harness.supervised.copies`."""
    from harness.supervised.copies import num_copies, trained_on

    lines = []
    num, num_compared = num_copies(train_set, data)
    if num:
        lines.append(f"copies: {num:,} of the {num_compared:,} training examples compared are copies of another")
    for name, (num, of) in trained_on(train_set, data, evaluators).items():
        if num:
            examples = f"test examples of {name}" if name else "test examples"
            lines.append(f"copies: {num:,} of {of:,} {examples} are trained on too: their NLL says little")
    return lines or [f"copies: none among the {num_compared:,} training examples compared, and none of a test example"]


def histogram(lengths: Sequence[int]) -> dict[str, int]:
    """How many of ``lengths`` are in each of ``1-16``, ``17-32``, ``33-64`` ...: from the first that holds any to the
    last, which ends at the longest."""
    counts = Counter(max(4, (length - 1).bit_length()) for length in lengths)
    bars = {}
    for power in range(min(counts), max(counts) + 1):
        first, last = 2 ** (power - 1) + 1 if power > 4 else 1, min(2**power, max(lengths))
        bars[f"{first:,}-{last:,}"] = counts[power]
    return bars
