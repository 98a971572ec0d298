"""What an MLflow run says of the attempts that trained it, and of what they changed."""

from harness.config_io import flatten
from harness.exceptions import as_written
from harness.metric_keys import TS
from harness.run_dir import Row, RunDir
from harness.times import utc


def attempt_tags(run_dir: RunDir) -> dict[str, str]:
    """``harness.attempt.<n>``: when, from where, what was verified, what it used, how it ended.
    ``harness.changed.<path>``: a field that an attempt was given otherwise than config.json says, with both values.

    Raises:
        RunDirError: where the files say something else.
    """
    with as_written(run_dir):
        return _attempt_tags(run_dir)


def _attempt_tags(run_dir: RunDir) -> dict[str, str]:
    rows = run_dir.attempts()
    starts = {row["attempt"]: row for row in rows if row["event"] == "start"}
    ends = {row["attempt"]: row for row in rows if row["event"] == "end"}
    last_state = run_dir.state()  # of an attempt that has no end yet, or had none because it was killed
    tags = {
        f"harness.attempt.{number}": _attempt(
            start, ends.get(number), last_state if number == max(starts) else "KILLED"
        )
        for number, start in starts.items()
    }
    before = flatten(run_dir.config().get("config") or {})
    now = before | run_dir.changed_extents()
    changed = {path for start in starts.values() for path in start.get("changed") or {}}
    return tags | {f"harness.changed.{path}": f"{before.get(path)} → {now.get(path)}" for path in sorted(changed)}


def _attempt(start: Row, end: Row | None, state: str) -> str:
    begun = f"from checkpoint {start['resumed_from']}" if start.get("resumed_from") else "from the start"
    words = [f"{utc(start[TS], 'minutes')} UTC", begun]
    if end and end.get("verified_rows"):
        verdict = "equal to the bit" if end.get("exact") else "equal within the tolerance"
        words.append(f"{end['verified_rows']} rows made again, {verdict}")
    if end and end.get("is_inexact"):
        words.append("a row came out differently")
    if used := (end or {}).get("used"):
        price = "" if used["price"] is None else f" for {used['price']:,.4f}"
        tokens = sum(used.get(kind, 0) for kind in ("trained", "evaluated", "measured", "asked", "sampled"))
        words.append(f"{tokens:,} tokens used{price}")
    return ", ".join([*words, (end or {}).get("state") or state])
