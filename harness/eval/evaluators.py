"""What an evaluator is: called with a client during training, it returns metrics. The names are tinker-cookbook's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class TrainingClientEvaluator:
    """An evaluator that asks the training client: for forward passes."""

    async def __call__(self, training_client: Any) -> dict[str, float]:
        """Metrics by name, of the weights as they are now.

        Args:
            training_client: See :class:`harness.backends.base.TrainingClient`; ``forward_async`` works too.
        """
        raise NotImplementedError


class SamplingClientEvaluator:
    """An evaluator that samples."""

    async def __call__(self, sampling_client: Any) -> dict[str, float]:
        """Metrics by name.

        Args:
            sampling_client: See :class:`harness.backends.base.SamplingClient`. Its weights stay what they were at the
                evaluation's step, whatever is trained meanwhile.
        """
        raise NotImplementedError


Evaluator = TrainingClientEvaluator | SamplingClientEvaluator
EvaluatorBuilder = Callable[[], Evaluator]
"""Makes an evaluator, once an attempt. A chz object stands in config.json with its fields, so that the config can be
made again; of any other callable the name alone does."""
SamplingClientEvaluatorBuilder = Callable[[], SamplingClientEvaluator]
