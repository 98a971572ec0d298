"""A line of checkpoints.jsonl."""

import dataclasses

from harness.files import Row


@dataclasses.dataclass(frozen=True)
class CheckpointRecord:
    """A line of checkpoints.jsonl.

    Attributes:
        name: Its name in the backend, for instance ``000020``.
        step: The next update to make from here: the state holds the updates 0..step-1.
        epoch: Epoch of the next batch.
        batch: Index within that epoch of the next batch.
        state_path: Weights and optimiser; relative to the run directory for the local backend, ``tinker://…`` on a
            service.
        sampler_path: Weights alone; None where a service was asked for none.
        final: True for the one after the last update.
        rolling: True for one that is deleted as soon as a newer one is there (``rolling_save_every``).
        fresh_optimizer: True where its weights alone are taken: a fork's, on request.
        inherited: True for a fork's first one.
        deleted: True once the state is removed to save room; on a service once it is gone there.
        superseded: True once a resume had to go back to one before it: its state is of a history that was left.
        extra: Keys of other versions; kept when the record is written again.
    """

    name: str
    step: int
    epoch: int
    batch: int
    state_path: str
    sampler_path: str | None = None
    final: bool = False
    rolling: bool = False
    fresh_optimizer: bool = False
    inherited: bool = False
    deleted: bool = False
    superseded: bool = False
    extra: Row = dataclasses.field(default_factory=dict)

    def to_row(self) -> Row:
        row = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        return row | self.extra

    @property
    def is_usable(self) -> bool:
        """Whether its state is there, and is of the run's history."""
        return not (self.deleted or self.superseded)

    @property
    def paths(self) -> list[str]:
        """Where its state is, and its weights alone where they lie apart."""
        return [*dict.fromkeys(path for path in (self.state_path, self.sampler_path) if path)]

    @property
    def own_paths(self) -> list[str]:
        """Those that are this run's to delete. What a fork inherits is copied on this machine; on a service it is still
        its parent's."""
        return [] if self.inherited and is_remote(self.state_path) else self.paths

    @classmethod
    def from_row(cls, row: Row) -> "CheckpointRecord":
        known = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        return cls(
            **{k: v for k, v in row.items() if k in known},
            extra={k: v for k, v in row.items() if k not in known},
        )


def is_remote(path: str) -> bool:
    """Whether a state lies on a service, not in the run directory."""
    return "://" in path
