"""Runs made from runs: ``rerun`` starts a run's config anew, ``fork`` goes on from one of its checkpoints.

A fork is a run directory whose last checkpoint, and whose rows before it, are its parent's: the trainer resumes it like
any other. So it goes on in the same data with the same model; what else the updates are made with may change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Sequence
from typing import Any

import chz

from harness import cli, metric_keys, run_dir
from harness.backends.base import Backend
from harness.config_io import from_json
from harness.exceptions import ConfigError, RunDirError
from harness.files import append_jsonl, write_json
from harness.run_dir import CheckpointRecord, Row, RunDir
from harness.supervised import provenance
from harness.supervised.train import Config, with_own_builder

_OF_A_FORK = {  # what it has before it is trained
    run_dir.CONFIG,
    run_dir.METRICS,
    run_dir.EVAL_EXAMPLES,
    run_dir.SAMPLES,
    run_dir.EXAMPLES,
    run_dir.CHECKPOINTS,
    run_dir.CHECKPOINTS_DIR,
    run_dir.LOG,
    run_dir.LOCK,
}


def config_again(run: RunDir, overrides: Sequence[str]) -> Config:
    """The config that ``run`` was started with, and ``overrides`` on it; its ``log_path`` is a new one.

    Args:
        overrides: Each ``key=value``.

    Raises:
        ConfigError: for an override that cannot be used, or a config that cannot be made again from config.json.
    """
    cli.import_from_here()
    document = run.config()
    config = from_json(document["config"] | run.changed_extents())
    fields = {name: getattr(config, name) for name in chz.chz_fields(config) if name != "log_path"}
    return cli.make_from_argv(
        chz.Blueprint(type(config)).apply(fields), list(overrides), log_path_prefix=document["recipe"]
    )


def find_checkpoint(run: RunDir, at: str) -> CheckpointRecord:
    """The checkpoint at ``at``: a step, ``best`` (of those that are there, that with the lowest test NLL on the first
    test set) or ``last``.

    Raises:
        ConfigError: where there is none, with those that there are.
    """
    records = {record.step: record for record in run.checkpoints() if record.is_usable}
    tested = {step: nll for step, nll in run.test_nlls().items() if step in records}
    step = {"best": min(tested, key=tested.__getitem__, default=None), "last": max(records, default=None)}.get(
        at, int(at) if at.isdecimal() else None
    )
    if step in records:
        return records[step]
    if not records:
        raise ConfigError(f"{run}: no checkpoint is there: train it on, until its first one is saved")
    gone = next((record for record in run.checkpoints() if record.step == step), None)
    why = "" if gone is None else ", which was deleted" if gone.deleted else ", which a resume left behind"
    there = ", ".join(map(str, records))
    raise ConfigError(f"{run}: no checkpoint at {at}{why}: there is {there} (or say best or last)")


def backend_of(run: RunDir, base_url: str | None = None) -> Backend:
    """The backend that ``run`` was trained with, made again.

    Args:
        base_url: See :func:`at_address`.

    Raises:
        RunDirError: where its config.json names none.
        ConfigError: where it cannot be made.
    """
    cli.import_from_here()  # it may be the user's
    backend = from_json(run.config().get("config", {}).get("backend"))
    if not isinstance(backend, Backend):
        raise RunDirError(f"{run}: its config.json names no backend: restore it")
    return at_address(backend, base_url)


def at_address(backend: Backend, base_url: str | None) -> Backend:
    """``backend`` where its server is now; None: where it was.

    Raises:
        ConfigError: where it has none.
    """
    if base_url is None:
        return backend
    if "base_url" not in chz.chz_fields(backend):
        raise ConfigError(f"--base-url {base_url} is not for backend={backend.name}: leave it out")
    return chz.replace(backend, base_url=base_url)


def make_fork(run: RunDir, at: str, overrides: Sequence[str], *, weights_only: bool) -> Config:
    """Make the run directory of a fork; the config that trains it. One that was made by the same command stays.

    Args:
        at: See :func:`find_checkpoint`.
        weights_only: Start with a fresh optimiser.

    Raises:
        ConfigError: for an override that a fork cannot take, or a checkpoint that is not there.
        RunDirError: where the fork's directory holds something else.
    """
    config = with_own_builder(config_again(run, overrides))
    document = run.config()
    parent = {"run_id": document["run_id"], "path": str(run.path), "at": at, "weights_only": weights_only}
    fork = RunDir(config.log_path)
    if _is_fork(fork, parent):
        return config  # the same command, which resumes it
    changed = provenance.changed_fields(document["config"], config, except_for=("place", "extent", "tunable"))
    if bool(config.eval_every) != bool(document["config"]["eval_every"]):  # whether there is test data at all
        changed["eval_every"] = (document["config"]["eval_every"], config.eval_every)
    record = find_checkpoint(run, at)
    if changed:
        fits = not changed.keys() & {"model_name", "lora_rank"}
        path = config.backend.checkpoint_path(run.path, record.state_path)
        weights, load = (" from these weights", f" load_checkpoint_path={path}") if fits else ("", "")
        raise ConfigError(
            f"a fork goes on in the same data with the same model ({provenance.listed(changed)}): to train something "
            f"else{weights}: python -m harness rerun {run}{load} key=value"
        )
    if config.max_steps is not None and config.max_steps < record.step:
        raise ConfigError(f"max_steps={config.max_steps} lies before the checkpoint at {record.step}: raise it")
    if fork.path.exists() and (not fork.path.is_dir() or any(fork.path.iterdir())):
        raise RunDirError(f"{fork}: there is something else: choose another log_path")
    made = fork.path.with_name(f".{fork.path.name}.fork")
    try:
        shutil.rmtree(made, ignore_errors=True)  # what a crash left
        made.mkdir(parents=True)
        _write_fork(run, RunDir(made), config, record, parent | {"step": record.step})
        os.replace(made, fork.path)
    except OSError as error:
        raise RunDirError(f"{fork}: cannot be written ({error.strerror}): choose another log_path") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return config


def discard_unbegun(fork: RunDir) -> None:
    """Remove a fork of which no attempt began, and which nobody is beginning: it holds copies alone."""
    with contextlib.suppress(RunDirError), fork.lock():
        trained_on = fork.num_steps_trained() > fork.config()["parent"]["step"]
        others = {path.name for path in fork.path.iterdir()} - _OF_A_FORK
        if not fork.attempts() and not trained_on and not others:
            shutil.rmtree(fork.path)


def _is_fork(run: RunDir, parent: dict[str, Any]) -> bool:
    """Whether ``run`` is the fork that the same words made of the same parent, wherever that lies now."""
    try:
        there = run.config().get("parent") or {} if run.exists() else {}
    except OSError as error:
        raise RunDirError(f"{run}: cannot be read ({error.strerror}): choose another log_path") from error
    return all(there.get(key) == parent[key] for key in ("run_id", "at", "weights_only"))


def _numerics(of_parent: Row, config: Config) -> Row:
    """What the backend fixed when the parent was started, but for what ``config`` asks of it otherwise."""
    changed = provenance.changed_fields(of_parent["config"], config, except_for=())
    here = config.backend.numerics() if any(path.startswith("backend.") for path in changed) else {}
    return of_parent["numerics"] | {name: value for name, value in here.items() if f"backend.{name}" in changed}


def _write_fork(run: RunDir, fork: RunDir, config: Config, record: CheckpointRecord, parent: dict[str, Any]) -> None:
    of_parent = run.config()
    document = provenance.document(
        config, recipe=of_parent["recipe"], numerics=_numerics(of_parent, config), data=of_parent["data"]
    )
    if (run / run_dir.EXAMPLES).exists():
        shutil.copyfile(run / run_dir.EXAMPLES, fork / run_dir.EXAMPLES)
    write_json(fork / run_dir.CONFIG, document | {"parent": parent})
    for name, rows in (
        (run_dir.METRICS, run.metrics()),
        (run_dir.EVAL_EXAMPLES, run.eval_examples_from(0)),
        (run_dir.SAMPLES, run.samples()),
    ):
        append_jsonl(fork / name, [row for row in rows if row[metric_keys.STEP] < record.step], sync=True)
    config.backend.copy_checkpoint(run.path, fork.path, record.state_path)
    fork.append_checkpoint(
        dataclasses.replace(
            record,
            final=False,
            rolling=False,
            inherited=True,
            fresh_optimizer=record.fresh_optimizer or parent["weights_only"],
        )
    )
