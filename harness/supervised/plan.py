"""How many updates a run makes, and which schedule the learning rate of each follows.

``max_steps`` or ``num_epochs`` may be changed when a run is resumed. What was trained stays as it is: the schedule is
drawn anew over the new number of updates from the first that has no row on (``lr_policy="rescale"``), or stays the
first one, whose last value then holds (``"keep"``). So a step's learning rate is a function of the step and of what
attempts.jsonl says, and a replay meets the rates that it met before.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from harness.exceptions import ConfigError
from harness.lr_schedules import LRSchedule, lr_multiplier
from harness.run_dir import Row, RunDir

LRPolicy = Literal["rescale", "keep"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The updates of a run.

    Attributes:
        total_steps: Updates of the whole run.
        schedule: ``(from_step, total_steps)`` in rising order, the first from step 0: from that step on the learning
            rate follows the schedule that is drawn over that many updates.
    """

    total_steps: int
    schedule: tuple[tuple[int, int], ...]

    @classmethod
    def of_new_run(cls, total_steps: int) -> Plan:
        return cls(total_steps, ((0, total_steps),))

    @classmethod
    def of_resumed_run(cls, run: RunDir, total_steps: int, lr_policy: LRPolicy) -> Plan:
        """The plan of the last attempt, with another number of updates where the config now gives one.

        Raises:
            ConfigError: where more updates than ``total_steps`` are trained already, or where only ``lr_policy`` is
                another than the one that the rates were drawn with.
        """
        starts = [row for row in run.attempts() if "schedule" in row]
        before = cls(starts[-1]["total_steps"], tuple((a, b) for a, b in starts[-1]["schedule"])) if starts else None
        if before and total_steps == before.total_steps:
            if before.lr_policy not in (None, lr_policy):
                raise ConfigError(
                    f"{run}: lr_policy={lr_policy} here, and its {total_steps} updates were planned with "
                    f"lr_policy={before.lr_policy}, which counts only when their number changes: restore it"
                )
            return before
        trained = run.num_steps_trained()
        if total_steps < trained:
            there = [r.step for r in run.checkpoints() if r.is_usable and r.step <= total_steps]
            fork = f", or fork: python -m harness fork {run} --at {there[-1]} log_path=…" if there else ""
            raise ConfigError(
                f"{run}: {trained} updates are trained, and the config asks for {total_steps}: raise max_steps or "
                f"num_epochs, choose another log_path{fork}"
            )
        if before is None:
            return cls.of_new_run(total_steps)
        if lr_policy == "keep":
            return dataclasses.replace(before, total_steps=total_steps)
        kept = tuple(segment for segment in before.schedule if segment[0] < trained)
        return cls(total_steps, (*kept, (trained, total_steps)))

    @property
    def lr_policy(self) -> LRPolicy | None:
        """The one that made this plan; None where the number of updates is the first one."""
        if self.schedule[-1][1] != self.total_steps:
            return "keep"
        return "rescale" if len(self.schedule) > 1 else None

    def lr_multiplier(self, schedule: LRSchedule, step: int, warmup_steps: int) -> float:
        """The factor of the peak learning rate at ``step``; see :func:`harness.lr_schedules.lr_multiplier`."""
        total_steps = next(total for from_step, total in reversed(self.schedule) if from_step <= step)
        return lr_multiplier(schedule, min(step, total_steps - 1), total_steps, warmup_steps)

    def to_row(self) -> Row:
        """What the row of an attempt's start says of it."""
        return {"total_steps": self.total_steps, "schedule": [list(segment) for segment in self.schedule]}
