"""Which checkpoints stay: the one rule, for ``keep`` while a run is trained and for ``prune`` afterwards."""

from collections.abc import Sequence

from harness.run_dir import CheckpointRecord


def kept(records: Sequence[CheckpointRecord], num_newest: int, best_step: int | None) -> list[CheckpointRecord]:
    """The newest of those that last, and the one at ``best_step``. A rolling one lasts until a newer one is there.

    Args:
        records: The usable ones, oldest first.
    """
    lasting = [record for record in records if not record.rolling or record is records[-1]]
    newest = lasting[max(0, len(lasting) - num_newest) :]
    return [record for record in records if record.step == best_step or record in newest]
