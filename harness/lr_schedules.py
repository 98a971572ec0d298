"""Learning-rate schedules as pure functions of the step."""

import math
from typing import Literal

LRSchedule = Literal["linear", "cosine", "constant"]


def lr_multiplier(schedule: LRSchedule, step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """The factor by which the peak learning rate is multiplied at ``step``.

    The first ``warmup_steps`` steps rise linearly, ``(step + 1) / warmup_steps``; the schedule itself covers the
    steps that are left: it starts at 1 and would reach 0 at ``total_steps``, so that no step is trained at 0.

    Args:
        schedule: "linear", "cosine" or "constant".
        step: The update about to be made, counted from 0.
        total_steps: Updates of the whole run, at least 1.
        warmup_steps: Updates spent rising.

    Raises:
        ValueError: for a name that is no schedule.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if schedule == "constant":
        return 1.0
    raise ValueError(f"unknown lr_schedule {schedule!r}: use linear, cosine or constant")
