"""Checkpoints of past runs removed to save room: what goes is listed first, and the same is removed.

A run keeps what it is asked to keep, and while it is unfinished the newest state that it can be resumed from. Besides
checkpoints, only what a killed process left of them is removed; never another file, and nothing that a link leads to.
What lies with a service is deleted there, where the service does it.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from harness.backends.base import Backend
from harness.backends.local import checkpoint
from harness.checkpoint_record import is_remote
from harness.derive import backend_of
from harness.disk_usage import in_words, size_of
from harness.exceptions import CheckpointDamagedError, ConfigError, RunDirError
from harness.run_dir import CHECKPOINTS_DIR, CheckpointRecord, RunDir
from harness.supervised.retention import kept

BEST, LAST, FINAL = "best", "last", "final"


@dataclasses.dataclass(frozen=True)
class Keep:
    """What stays of each run.

    Attributes:
        best: The checkpoint with the lowest test NLL of those that are there, on the first test set.
        final: The one after the run's last update.
        num_newest: As many of the newest.
    """

    best: bool
    final: bool
    num_newest: int

    @classmethod
    def of(cls, text: str) -> Keep:
        """``best,final``: words with commas between them: best, last, final, or a number, of the newest.

        Raises:
            ConfigError: for another word.
        """
        words = [word.strip() for word in text.split(",")]
        for word in words:
            if word not in (BEST, LAST, FINAL) and not (word.isdecimal() and int(word)):
                raise ConfigError(f"--keep {text}: {word!r} is none of best, last, final, or how many of the newest")
        numbers = [int(word) for word in words if word.isdecimal()]
        return cls(BEST in words, FINAL in words, max([*numbers, int(LAST in words)]))


@dataclasses.dataclass(frozen=True)
class Removal:
    """A folder that goes, or what a service keeps of a checkpoint.

    Attributes:
        path: The folder; None where it lies with a service.
        size: Bytes on this machine.
        about: What it is, for people.
        record: The checkpoint whose state it is; None for a leftover.
    """

    name: str
    path: Path | None
    size: int
    about: str
    record: CheckpointRecord | None = None

    def __str__(self) -> str:
        return f"{self.name}  {self.about}  {'with the service' if self.path is None else in_words(self.size)}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What goes of a run, and what stays.

    Attributes:
        stays: The name of each checkpoint that stays, with why.
        refused: What would go and cannot, each in a line.
    """

    run: RunDir
    backend: Backend
    stays: dict[str, str]
    removals: list[Removal]
    refused: list[str]

    @property
    def size(self) -> int:
        return sum(removal.size for removal in self.removals)

    def lines(self) -> list[str]:
        there = ", ".join(f"{name} ({why})" for name, why in self.stays.items())
        head = f"{self.run}: keeps {there or 'no checkpoint'}{'' if self.removals else '; nothing to remove'}"
        return [head, *(f"  {removal}" for removal in self.removals), *(f"  {line}" for line in self.refused)]


def plan(run: RunDir, keep: Keep, forks: Sequence[RunDir] = (), *, base_url: str | None = None) -> Plan:
    """What of ``run`` goes. Nobody may be training it; a service is not asked.

    Args:
        forks: Runs that may have begun at a state of ``run`` with a service, and have no copy of their own.
        base_url: See :func:`harness.derive.at_address`.

    Raises:
        RunDirError: where its files cannot be read.
        ConfigError: where its backend cannot be made again.
        BackendError: for a checkpoint that a later version of the harness wrote.
    """
    backend = backend_of(run, base_url)
    records = run.checkpoints()
    usable = [record for record in records if record.is_usable]
    nlls = run.test_nlls()
    stays = _stays(run, backend, usable, keep, nlls)
    removals: list[Removal] = []
    refused: list[str] = []
    needed = {record.state_path for record in records if record.name in stays}
    there_is_a_service = any(is_remote(record.state_path) for record in records)
    begun_at = _begun_at(fork for fork in forks if fork.path != run.path) if there_is_a_service else {}
    for record in records if stays or not usable else []:
        if record.state_path in needed:
            continue
        path = run / record.state_path
        about = _about(record, nlls.get(record.step))
        if is_remote(record.state_path):
            if record.state_path in begun_at:
                refused.append(f"{record.name}  {begun_at[record.state_path]} goes on from it: left as it is")
            elif record.own_paths and not record.deleted:
                removals.append(Removal(record.name, None, 0, about, record))
        elif not _is_within(run, path):
            if path.exists() and not record.deleted:
                refused.append(f"{record.name}  {path} lies outside of {run / CHECKPOINTS_DIR}: left as it is")
        elif path.exists() or record.is_usable:
            removals.append(Removal(path.name, path, size_of(path), about, record))
    if usable and not stays:
        refused.append(f"none of its {len(usable)} checkpoints is one to keep: all left as they are")
    return Plan(run, backend, stays, [*_leftovers(run, records), *removals], refused)


def carry_out(plan: Plan) -> dict[str, str]:
    """Remove what is planned. The caller holds the run's lock, and planned while it did.

    As the trainer does it, a record is marked deleted before its state goes: where a crash comes between, the state is
    a leftover that the next call lists. With a service it is marked after: nothing here shows what is left there.

    Returns:
        The names of those that a service did not delete, with why.

    Raises:
        RunDirError: where something cannot be removed or written.
        ServiceError: where a service cannot be asked.
    """
    run = plan.run
    kept_there: dict[str, str] = {}
    for removal in plan.removals:
        record = removal.record
        try:
            if record is None:
                _remove_leftover(run, removal)
            elif removal.path is None:
                if reason := _deleted_there(plan.backend, record):
                    kept_there[removal.name] = reason
                else:
                    run.append_checkpoint(dataclasses.replace(record, deleted=True))
            else:
                if not record.deleted:
                    run.append_checkpoint(dataclasses.replace(record, deleted=True))
                plan.backend.remove_checkpoint(run.path, record.state_path)
        except OSError as error:
            raise RunDirError(
                f"{removal.path}: cannot be removed ({error.strerror}): mend it, then prune again"
            ) from error
    return kept_there


def _deleted_there(backend: Backend, record: CheckpointRecord) -> str | None:
    """Delete what a service keeps of a checkpoint, its state last: why it did not, or None."""
    for path in reversed(record.own_paths):
        if reason := backend.delete_checkpoint(path):
            return reason
    return None


def _begun_at(forks: Iterable[RunDir]) -> dict[str, RunDir]:
    """The states of others that ``forks`` begin at and still count on, each with its fork."""
    return {
        record.state_path: fork
        for fork in forks
        for record in fork.checkpoints()
        if record.inherited and record.is_usable
    }


def _stays(
    run: RunDir, backend: Backend, usable: Sequence[CheckpointRecord], keep: Keep, nlls: dict[int, float]
) -> dict[str, str]:
    """The names of the checkpoints that stay, oldest first, with why."""
    tested = {record.step: nlls[record.step] for record in usable if record.step in nlls}
    best_step = min(tested, key=tested.__getitem__, default=None) if keep.best else None
    staying = {record.name for record in kept(usable, keep.num_newest, best_step)}
    needed = None if run.is_finished() else _resumed_from(run, backend, usable)

    def why(record: CheckpointRecord) -> Iterator[str]:
        if record.name in staying:
            yield BEST if record.step == best_step else "newest"
        if record.final and keep.final:
            yield FINAL
        if record is needed:
            yield "needed to resume"

    reasons = {record.name: ", ".join(why(record)) for record in usable}
    return {name: reason for name, reason in reasons.items() if reason}


def _resumed_from(run: RunDir, backend: Backend, usable: Sequence[CheckpointRecord]) -> CheckpointRecord | None:
    """The checkpoint that the next attempt begins at, as the trainer finds it."""
    num_recorded = run.num_steps_recorded()
    for record in reversed(usable):
        try:
            if record.step <= num_recorded:
                backend.state_digest(run.path, record.state_path)
                return record
        except CheckpointDamagedError:
            continue
    return None


def _about(record: CheckpointRecord, nll: float | None) -> str:
    if record.deleted:
        return "deleted before, but still there"
    tested = "" if nll is None else f", test NLL {nll:.4f}"
    return f"step {record.step}{tested}{', superseded' if record.superseded else ''}"


def _leftovers(run: RunDir, records: Sequence[CheckpointRecord]) -> list[Removal]:
    logged = {Path(record.state_path).name for record in records}
    return [
        Removal(path.name, path, size_of(path), "half written" if path.name.startswith(".") else "never logged")
        for path in checkpoint.leftovers(run.path, logged)
        if _is_within(run, path)
    ]


def _remove_leftover(run: RunDir, removal: Removal) -> None:
    path = removal.path
    assert path is not None
    if path.name.startswith("."):
        shutil.rmtree(path)
    else:
        checkpoint.remove(run.path, str(path.relative_to(run.path)))


def _is_within(run: RunDir, path: Path) -> bool:
    """Whether ``path`` is a folder of the run's own ``checkpoints``, and no link leads elsewhere on the way."""
    return not path.is_symlink() and path.resolve().parent == run.path.resolve() / CHECKPOINTS_DIR
