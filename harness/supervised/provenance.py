"""What config.json says of a run, and whether a config may go on with it."""

from __future__ import annotations

import functools
import getpass
import importlib.metadata
import platform
import shlex
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chz

from harness import __version__
from harness.config_io import differences, flatten, redact_argv, to_json
from harness.exceptions import ConfigError, RunDirError
from harness.run_dir import Row, RunDir

_LIBRARIES = ("torch", "transformers", "peft", "tinker", "datasets", "numpy", "mlflow")


def document(config: Any, *, recipe: str | None, numerics: Row, data: Row) -> Row:
    """The document config.json for a run that starts now."""
    return {
        "run_id": uuid.uuid4().hex,
        "recipe": recipe,
        "started": now_ms(),
        **command_line(),
        "config": to_json(config),
        "numerics": numerics,
        "data": data,
        "versions": _versions(),
        "git_commit": _git_commit(),
        "host": socket.gethostname(),
        "user": _user(),
    }


def command_line() -> Row:
    """The command that this process is, without secrets: its ``argv``, and the ``module`` that ``python -m`` was given,
    of which ``argv`` has only the file: by that alone its own imports may fail, or mean others."""
    return {"argv": redact_argv(sys.argv), "module": _main_module()}


def metadata(run: RunDir, config: Any, recipe: str | None) -> dict[str, str]:
    """What a service may note beside what it keeps of ``run``, as far as it is known now. No secrets."""
    common_config = getattr(config.dataset_builder, "common_config", None)
    mirror = run.mirror() or {}
    address = mirror.get("tracking_uri", "").rstrip("/")
    if address.startswith("http"):
        mlflow_run = f"{address}/#/experiments/{mirror['experiment_id']}/runs/{mirror['run_id']}"
    else:
        mlflow_run = mirror.get("run_id")
    found = {
        "recipe": recipe,
        "renderer_name": getattr(common_config, "renderer_name", None) or config.renderer_name,
        "run_id": run.config()["run_id"] if run.exists() else None,
        "mlflow_run": mlflow_run,
    }
    return {key: value for key, value in found.items() if value}


def where_it_stands(run: RunDir) -> str:
    """From where the same command goes on with a run that a failure ended, to be added to what it says."""
    if not run.exists():
        return ""
    usable = [record for record in run.checkpoints() if record.is_usable]
    command = f"the same command with log_path={shlex.quote(str(run))}"
    if not usable:
        return f"; no checkpoint yet: {command} starts anew"
    return f"; last checkpoint: {usable[-1].name}: {command} goes on from there"


def check_same_config(run: RunDir, config: Any) -> None:
    """Raise ConfigError where ``run`` was started with a config that gives other numbers, RunDirError where it was
    started and its config is gone. A run that was not started takes any config.

    Where its directory or its data lie, how it is tracked and how far requests run ahead are no differences: such
    fields carry ``metadata={"place": True}``. Nor is how long it goes on: ``metadata={"extent": True}``. Nor is what
    the run's numerics say, or None for it: ``metadata={"in_numerics": True}``.
    """
    if not run.exists():
        if run.last_row() or run.checkpoints():
            raise RunDirError(f"{run}: rows of a run, and no config.json: restore it, or choose another log_path")
        return
    changed = changed_fields(run.config()["config"], config, except_for=("place", "extent"))
    for path in _marked(config, "in_numerics") & changed.keys():
        if changed[path][1] in (None, run.config()["numerics"].get(path.rpartition(".")[2])):
            del changed[path]
    if changed:
        anew = changed_fields(run.config()["config"], config, except_for=("place", "extent", "tunable"))
        way = (
            f"train anew: python -m harness rerun {run}" if anew else f"fork it: python -m harness fork {run} --at STEP"
        )
        raise ConfigError(
            f"{run} holds a run of another config ({listed(changed)}): restore these, choose another log_path, or "
            f"{way} log_path=… key=value"
        )


def changed_extents(run: RunDir, config: Any) -> Row:
    """The fields that say how long ``run`` goes on and have another value in ``config`` than in config.json."""
    extents = _marked(config, "extent")
    changed = differences(flatten(run.config()["config"]), flatten(to_json(config)))
    return {path: now for path, (_, now) in changed.items() if path in extents}


def is_as_last_asked(run: RunDir, config: Any) -> bool:
    """Whether ``config`` asks ``run`` to go on for as long as its last attempt did."""
    return run.changed_extents() == changed_extents(run, config)


def changed_fields(before: Row, config: Any, *, except_for: tuple[str, ...]) -> dict[str, tuple[Any, Any]]:
    """Where the document ``before`` and ``config`` differ, by dotted path; fields with one of these marks aside, and
    those that ``before`` is too old to have and that have their default."""
    passed = {path for mark in except_for for path in _marked(config, mark)}
    recorded = flatten(before)
    new = _paths(config, _is_default) - recorded.keys()

    def counts(path: str) -> bool:
        return path not in passed | new and not any(path.startswith(f"{mark}.") for mark in passed)

    changed = differences(recorded, flatten(to_json(config)))
    return {path: values for path, values in changed.items() if counts(path)}


def listed(changed: dict[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{path}: {was!r} there, {now!r} here" for path, (was, now) in changed.items())


def check_same_data(run: RunDir, data: Row) -> None:
    """Raise ConfigError where the data is not what ``run`` was started with."""
    before = run.config()["data"]
    parent = run.config().get("parent")
    way = (
        f"train on it from those weights: python -m harness rerun {parent['path']} load_checkpoint_path=…"
        if parent
        else ""
    )
    for split in ("train", "test"):
        if before[split] != data[split]:
            raise ConfigError(
                f"{run}: the {split} data is not what the run was started with (fingerprint {before[split]} there, "
                f"{data[split]} here): restore it, or {way}"
            )
    _check_same_prompts(run, before, data)


def _check_same_prompts(run: RunDir, before: Row, data: Row) -> None:
    """Raise ConfigError where an evaluator of ``run`` has other data under the same name."""
    for name, now in data.get("evaluators", {}).items():
        was = before.get("evaluators", {}).get(name, now)
        if was != now:
            raise ConfigError(
                f"{run}: the data of evaluator {name} is not what the run was started with (fingerprint {was} there, "
                f"{now} here): restore it, or fork the run with an evaluator of another name"
            )


def recipe_name() -> str | None:
    """The last part of the module given to ``python -m``, or the script's stem; None in an interactive session."""
    if module := _main_module():
        return module.rpartition(".")[2]
    file = getattr(sys.modules["__main__"], "__file__", None)
    return Path(file).stem if file else None


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def _main_module() -> str | None:
    """The module given to ``python -m``; None in a script, a folder that runs as one, or an interactive session."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return None if spec is None or spec.name == "__main__" else spec.name.removesuffix(".__main__")


def _marked(config: Any, mark: str) -> set[str]:
    """The paths of the fields with that mark in their metadata."""
    return _paths(config, lambda field, _: (field.metadata or {}).get(mark))


def _is_default(field: Any, value: Any) -> bool:
    return type(value) is type(field._default) and value == field._default


def _paths(config: Any, chosen: Callable[[Any, Any], Any]) -> set[str]:
    """Of the fields of ``config``, at any depth, that are chosen by themselves and their value."""
    return {
        f"{path}.{name}" if path else name
        for path, holder in chz.traverse(config)
        if chz.is_chz(holder)
        for name, field in chz.chz_fields(holder).items()
        if chosen(field, getattr(holder, name))
    }


@functools.cache
def _versions() -> Row:
    versions = {"harness": __version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return None


def _git_commit() -> str | None:
    """The commit of the working directory's repository; None outside one, or without git."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
