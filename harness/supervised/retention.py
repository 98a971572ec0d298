"""When a checkpoint is saved, and which stay: the one rule, for ``keep`` while a run is trained and for ``prune``
afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from harness.run_dir import CheckpointRecord

if TYPE_CHECKING:
    from harness.supervised.config import Config


def save_due(
    config: Config, next_step: int, *, is_evaluated: bool, tokens: float, seconds: float
) -> Literal["lasting", "rolling"] | None:
    """Whether the state before update ``next_step`` is saved, the last of a run aside.

    Args:
        is_evaluated: Whether that state is.
        tokens: Trained since the last save.
        seconds: Since the last save.
    """
    if (
        is_evaluated
        or (config.save_every and next_step % config.save_every == 0)
        or 0 < config.save_every_tokens <= tokens
        or 0 < config.save_every_seconds <= seconds
    ):
        return "lasting"
    return "rolling" if config.rolling_save_every and next_step % config.rolling_save_every == 0 else None


def most_kept(keep: str | int, num_saved: int, *, is_evaluated: bool) -> int:
    """How many of so many checkpoints stay at most; only where something is evaluated is there a best one."""
    if keep == "all":
        return num_saved
    num_newest = keep if isinstance(keep, int) else 1
    return min(num_saved, num_newest + (keep != "last" and is_evaluated))


def kept(records: Sequence[CheckpointRecord], num_newest: int, best_step: int | None) -> list[CheckpointRecord]:
    """The newest of those that last, and the one at ``best_step``. A rolling one lasts until a newer one is there.

    Args:
        records: The usable ones, oldest first.
    """
    lasting = [record for record in records if not record.rolling or record is records[-1]]
    newest = lasting[max(0, len(lasting) - num_newest) :]
    return [record for record in records if record.step == best_step or record in newest]
