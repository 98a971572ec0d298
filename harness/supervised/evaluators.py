"""What is measured on held-out data."""

from __future__ import annotations

import re
from typing import Any

from harness.backends.base import Future, TrainingClient
from harness.exceptions import ConfigError, DataError
from harness.metric_keys import test_key
from harness.run_dir import Row
from harness.supervised.batches import trainable
from harness.supervised.datum import Scorer, digest, example_id
from harness.supervised.survey import count
from harness.supervised.types import SupervisedDataset, TestSets


class NLLEvaluator:
    """Mean NLL and bits per byte of one test set, every example of it, tokenised once.

    The reduction is that of training: the mean over loss-carrying tokens.

    Attributes:
        data: The examples that are measured.
        counts: Of these and of those that are dropped because they carry no loss.
    """

    def __init__(self, name: str, dataset: SupervisedDataset, tokenizer: Any):
        data = [datum for batch in dataset.all_batches() for datum in batch]
        self.name = name
        self.dataset = dataset
        self.data = trainable(data)
        self.counts = count(data)
        if not self.data:
            raise DataError(
                f"the test set {name or '(unnamed)'} is empty: none of its {len(data)} examples carries loss; "
                "give other test data, or none"
            )
        self.fingerprint = digest(self.data)
        self.scorer = Scorer(self.data, tokenizer)

    def submit(self, client: TrainingClient) -> Future[Any]:
        """Ask for the log-probabilities under the weights as they are after every request submitted so far."""
        return client.forward(self.data, "cross_entropy")

    def read(self, output: Any) -> tuple[dict[str, float], Row]:
        """The metrics, and the row of eval_examples.jsonl without its step."""
        score = self.scorer.score(output)
        metrics = {test_key(self.name, "nll"): score.mean_nll}
        if score.bits_per_byte is not None:
            metrics[test_key(self.name, "bpb")] = score.bits_per_byte
        return metrics, {
            "set": self.name,
            "fingerprint": self.fingerprint,
            "ids": [example_id(datum) for datum in self.data],
            "slices": [getattr(datum, "slice", None) for datum in self.data],
            "nll": score.nll,
            "num_loss_tokens": self.scorer.num_loss_tokens,
        }


def nll_evaluators(test_sets: TestSets, tokenizer: Any) -> list[NLLEvaluator]:
    """An evaluator for each test set.

    Raises:
        DataError: for an empty one.
        ConfigError: for a name that MLflow could not show.
    """
    if test_sets is None:
        return []
    named = {"": test_sets} if isinstance(test_sets, SupervisedDataset) else test_sets
    for name in filter(None, named):
        check_name(name)
    return [NLLEvaluator(name, dataset, tokenizer) for name, dataset in named.items()]


def check_name(name: str) -> None:
    """Raise ConfigError where MLflow could not show a test set of that name, or would show it as another."""
    if not re.fullmatch(r"[A-Za-z0-9_.\- ]+", name) or not name.strip(". "):
        raise ConfigError(f"test set {name!r}: use letters, digits, _ - . and spaces in its name")
