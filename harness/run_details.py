"""One run for a person: all that its directory says of it, and the commands that go on with it."""

from __future__ import annotations

import importlib
import os
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import chz

from harness.blueprints import defaults_of
from harness.config_io import flatten, to_json
from harness.disk_usage import in_words, size_of
from harness.exceptions import as_written
from harness.metric_keys import NUM_LOSS_TOKENS, NUM_TOKENS, STEP, TIME_STEP, TRAIN_NLL, is_test_nll
from harness.run_dir import CHECKPOINTS_DIR, METRICS, CheckpointRecord, Row, RunDir
from harness.run_tags import tags
from harness.supervised.config import Config
from harness.supervised.progress import duration
from harness.times import utc
from harness.tracking.attempt_tags import attempt_tags
from harness.tracking.mlflow_data import test_sets, train_set
from harness.tracking.mlflow_mirror import address
from harness.tracking.mlflow_tags import progress_tags

_WIDTH = 120
_SAID_ABOVE = ("type", "tags", "note")
_SHOWN_VERSIONS = ("harness", "python", "torch", "transformers")


def details(run: RunDir) -> str:
    """Every part with its heading.

    Raises:
        RunDirError: where ``run`` is none, or its files cannot be read.
    """
    with as_written(run):
        document = run.config()
        parts = {
            str(run): _identity(run, document),
            "Config": config_lines(document["config"] | run.changed_extents()),
            "Data": _data(document),
            "Metrics": _metrics(run, document),
            "Attempts": _attempts(run),
            "Checkpoints": _checkpoints(run),
            "Files": _files(run),
            "To go on": _commands(run, document),
        }
        lines = {heading: list(part) for heading, part in parts.items()}
    texts = [[heading, *(f"  {line}" for line in part)] for heading, part in lines.items() if part]
    return "\n\n".join("\n".join(lines) for lines in texts)


def _identity(run: RunDir, document: Row) -> Iterator[str]:
    versions = document.get("versions") or {}
    shown = [f"{name} {versions[name]}" for name in _SHOWN_VERSIONS if name in versions]
    parent, mirrored = document.get("parent"), run.mirror()
    facts = {
        "state": run.state(),
        "run id": document["run_id"],
        "recipe": document.get("recipe"),
        "started": _started(document),
        "git commit": document.get("git_commit"),
        "versions": ", ".join(shown),
        "exactness": progress_tags(run)["harness.exactness"],
        "forked from": parent and f"{parent['path']} at step {parent['step']} (run id {parent['run_id']})",
        "tags": ", ".join(f"{key}={value}" for key, value in tags(run).items()),
        "note": document["config"].get("note"),
        "MLflow": f"run {mirrored['run_id']} at {address(mirrored)}" if mirrored else "not there",
        "size": in_words(size_of(run.path)),
    }
    return _aligned([key, str(value)] for key, value in facts.items() if value)


def _started(document: Row) -> str | None:
    if "started" not in document:
        return None
    by = "".join(f" {word} {document[key]}" for word, key in (("by", "user"), ("on", "host")) if document.get(key))
    return f"{utc(document['started'])} UTC{by}"


# ---- the config


def config_lines(config: Row) -> Iterator[str]:
    """What was chosen, then what is as ``Config`` and its parts have it when nobody chooses."""
    flat, defaults = flatten(config), flatten(_defaults(config, Config))
    flat = {path: value for path, value in flat.items() if path.partition(".")[0] not in _SAID_ABOVE}
    unchosen = {path: value for path, value in flat.items() if path in defaults and defaults[path] == value}
    yield from _aligned([path, str(value)] for path, value in flat.items() if path not in unchosen)
    text = "by default: " + ", ".join(f"{path}={value}" for path, value in unchosen.items())
    yield from textwrap.wrap(text, _WIDTH - 2, break_long_words=False, break_on_hyphens=False)


def _defaults(document: Row, cls: type | None) -> Row:
    """The fields of ``cls`` that have a default, and in a nested object those of its own class."""
    found: Row = {name: to_json(value, name) for name, value in defaults_of(cls).items()} if cls else {}
    for name, value in document.items():
        is_object = isinstance(value, dict) and "type" in value
        if is_object and (found.get(name) or {}).get("type") != value["type"]:
            found[name] = _defaults(value, _class_of(value["type"]))
    return found


def _class_of(type_name: str) -> type | None:
    """A chz class of the harness; None for others: to import a user's module may run it."""
    module, _, name = type_name.partition(":")
    if module.partition(".")[0] != __name__.partition(".")[0]:
        return None
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:  # of another version
        return None
    return found if isinstance(found, type) and chz.is_chz(found) else None


# ---- what it trained on, and what came of it


def _data(document: Row) -> Iterator[str]:
    train = train_set(document)
    named = {f"test {name}".strip(): data for name, data in test_sets(document).items()}
    sets = ({"train": train} if train else {}) | named
    return _aligned(
        [name, data.name, "" if data.num_examples is None else f"{data.num_examples:,} examples", data.digest]
        for name, data in sets.items()
    )


def _metrics(run: RunDir, document: Row) -> Iterator[str]:
    first = (document.get("parent") or {}).get("step", 0)  # rows before it are the parent's
    totals = dict.fromkeys((NUM_TOKENS, NUM_LOSS_TOKENS, TIME_STEP), 0)
    found: dict[str, list[tuple[float, int]]] = {}  # NLL and step
    for row in run.iter_metrics():
        for key in totals:
            totals[key] += row.get(key, 0)
        for key in row:
            if key == TRAIN_NLL or is_test_nll(key):
                found.setdefault(key, []).append((row[key], row[STEP]))
    if not found:
        return
    planned = [row["total_steps"] for row in run.attempts() if "total_steps" in row]
    of = f" of {planned[-1]}" if planned else ""
    counts = f"{totals[NUM_TOKENS]:,} tokens, {totals[NUM_LOSS_TOKENS]:,} of them with loss"
    yield f"{run.num_steps_trained()}{of} updates, {counts}, {duration(totals[TIME_STEP])}"
    rows = []
    for key, nlls in found.items():
        last, at = nlls[-1]
        own = [(nll, step) for nll, step in nlls if step >= first] if is_test_nll(key) else []
        lowest = ["lowest {:.4f} at step {}".format(*min(own))] if own else []
        rows.append([key, f"last {last:.4f} at step {at}", *lowest])
    yield from _aligned(rows)


def _attempts(run: RunDir) -> Iterator[str]:
    for key, text in attempt_tags(run).items():
        yield f"{key.removeprefix('harness.').removeprefix('attempt.')}  {text}"
    for row in run.attempts():
        if row.get("error"):
            yield f"{row['attempt']}  failed: {row['error']}"


def _checkpoints(run: RunDir) -> Iterator[str]:
    nlls = run.test_nlls()
    rows = []
    for record in run.checkpoints():
        nll = nlls.get(record.step)
        tested = "" if nll is None else f"test NLL {nll:.4f}"
        is_there = record.is_usable and "://" not in record.state_path
        size = in_words(size_of(run / record.state_path)) if is_there else ""
        rows.append([record.name, tested, _became(run, record), size, record.state_path])
    return _aligned(rows)


def _became(run: RunDir, record: CheckpointRecord) -> str:
    if not record.is_usable:
        return "deleted" if record.deleted else "superseded"
    if "://" not in record.state_path and not (run / record.state_path).exists():
        return "gone"
    return "final" if record.final else "rolling" if record.rolling else "kept"


def _files(run: RunDir) -> Iterator[str]:
    files = sorted(path for path in run.path.iterdir() if path.is_file() and not path.name.startswith("."))
    sizes = [[path.name, in_words(size_of(path))] for path in files]
    return _aligned([*sizes, [f"{CHECKPOINTS_DIR}/", in_words(size_of(run / CHECKPOINTS_DIR))]])


# ---- commands


def _commands(run: RunDir, document: Row) -> Iterator[str]:
    place = shlex.quote(str(run))
    started = next((row for row in [*reversed(run.attempts()), document] if row.get("argv")), None)
    commands = {
        "resume": command_again(run, started) if started and not run.is_finished() else None,
        "fork": any(record.is_usable for record in run.checkpoints()) and f"fork {place} --at best log_path=NEW",
        "rerun": f"rerun {place} log_path=NEW KEY=VALUE",
        "compare": (run / METRICS).exists() and f"compare {place} OTHER",
        "mirror": None if run.mirror() else f"sync {place}",
    }
    return _aligned(
        [name, text if name == "resume" else f"python -m harness {text}"] for name, text in commands.items() if text
    )


def command_again(run: RunDir, started: Row) -> str:
    """The command line that ``started`` recorded, as it would be typed, for this directory."""
    program, *arguments = started["argv"]
    if module := started.get("module"):
        words = ["python", "-m", module, *arguments]
    else:
        python = ["python"] if program.endswith(".py") else []
        words = [*python, _from_here(Path(program)), *arguments]
    named = any(word.lstrip("-").replace("-", "_").startswith("log_path") for word in arguments)
    return shlex.join(words if named else [*words, f"log_path={run}"])


def _from_here(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _aligned(rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Rows of words as lines, each column as wide as its widest word."""
    rows = [list(row) for row in rows]
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows), default=0))]
    for row in rows:
        yield "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=False)).rstrip()
