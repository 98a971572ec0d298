"""A run's tags: those of its config, and what was said of them later.

config.json is written once. What ``python -m harness tag`` says is appended to tags.jsonl, a row a tag with its new
value, or null where it was removed. That needs no lock of the run, so that a run can be tagged while it is trained:
nobody else writes the file. Those who do take turns by a lock of its own, since a torn end is cut off first.
"""

from collections.abc import Mapping

from harness.config_io import redact
from harness.exceptions import RunDirError, as_written
from harness.files import append_jsonl, cut_torn_line, read_jsonl
from harness.metric_keys import TS
from harness.run_dir import TAGS, RunDir

_LOCK_SECONDS = 10


def tags(run: RunDir) -> dict[str, str]:
    """The tags that a run has now.

    Raises:
        RunDirError: where config.json or tags.jsonl cannot be read.
    """
    with as_written(run):
        config = run.config().get("config") or {}
        now = (config.get("tags") or {}) | changed_tags(run)
    return {key: value for key, value in now.items() if value is not None}


def changed_tags(run: RunDir) -> dict[str, str | None]:
    """The tags that were set after the run was started, with their last value; None for one that was removed."""
    changed: dict[str, str | None] = {}
    for number, row in enumerate(read_jsonl(run / TAGS), start=1):
        if "key" not in row or "value" not in row:
            raise RunDirError(f"{run / TAGS}:{number}: no key or no value in it: remove or mend that line")
        changed[row["key"]] = row["value"]
    return changed


def change_tags(run: RunDir, changes: Mapping[str, str | None], ts: int) -> None:
    """Set tags, or remove those whose value is None; what is so already is not written again.

    Args:
        ts: Milliseconds since the epoch.

    Raises:
        RunDirError: where ``run`` is none, or they cannot be written.
    """
    import filelock

    run.config()  # before anything is written there: it may be another program's directory
    try:
        with filelock.FileLock(run / f".{TAGS}.lock", timeout=_LOCK_SECONDS):
            before = tags(run)
            wanted = {key: value and redact(value, key) for key, value in changes.items()}
            rows = [{TS: ts, "key": k, "value": v} for k, v in wanted.items() if before.get(k) != v]
            cut_torn_line(run / TAGS)
            append_jsonl(run / TAGS, rows, sync=True)
    except filelock.Timeout:
        raise RunDirError(f"{run}: another process is writing its tags: try again") from None
    except OSError as error:
        raise RunDirError(f"{run}: cannot be written ({error.strerror}): tag a copy of it") from None
