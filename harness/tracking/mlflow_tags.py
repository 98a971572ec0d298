"""What an MLflow run says about a run directory beside its points and params."""

from __future__ import annotations

import shlex

from harness.config_io import redact_argv
from harness.run_dir import Row, RunDir
from harness.run_tags import changed_tags
from harness.tracking.mlflow_data import test_sets, train_set
from harness.tracking.points import clean_key

RUN_ID = "harness.run_id"  # config.json's run_id: finds a run directory's MLflow run again
ERROR = "harness.error"  # only where the last attempt failed
LOG_PATH = "harness.log_path"  # the run directory
PARENT = "harness.parent"  # of a fork: its parent's run_id
COMMIT = "mlflow.source.git.commit"
TRAIN_DATA = "harness.data.train"  # its fingerprint
TEST_DATA = "harness.data.test"  # of a named set: with "." and its name after it
VERSION = "harness.version."  # of the library whose name follows
_NOT_A_USERS = ("harness.", "mlflow.")  # what names of tags begin with that the mirror and MLflow set
_LIBRARIES = ("torch", "transformers")


def fixed_tags(run_dir: RunDir, document: Row, note: str) -> dict[str, str]:
    """Those set when the MLflow run is made, and not again: a user may edit them there.

    Args:
        document: ``RunDir.config()``.
        note: The description; "" for one made from the document.
    """
    argv = redact_argv(document["argv"])
    config = document["config"]
    train, tests, versions = train_set(document), test_sets(document), document.get("versions") or {}
    tags = {
        "mlflow.user": document.get("user"),
        "mlflow.source.name": argv[0] if argv else None,
        "mlflow.source.type": "LOCAL",
        COMMIT: document["git_commit"],
        "mlflow.note.content": note or description(run_dir, document),
        RUN_ID: document["run_id"],
        PARENT: (document.get("parent") or {}).get("run_id"),
        "harness.recipe": document["recipe"],
        "harness.host": document.get("host"),
        "harness.backend": ((config["backend"] or {}).get("type") or "").rpartition(":")[2],
        "harness.model": config["model_name"],
        "harness.renderer": renderer_name(config),
        TRAIN_DATA: train and train.digest,
        **{f"{TEST_DATA}{f'.{name}' if name else ''}": data.digest for name, data in tests.items()},
        **{f"{VERSION}{library}": versions.get(library) for library in _LIBRARIES},
    }
    return {key: value for key, value in tags.items() if value}


def is_a_users(key: str) -> bool:
    """Whether a user may set a tag of this name."""
    return not clean_key(key).startswith(_NOT_A_USERS)


def users_tags(run_dir: RunDir) -> dict[str, str | None]:
    """What the user said of tags after the run was started, None of one that was removed. Those of the config are
    ``fixed_tags``' like: a user may edit them in MLflow."""
    return {clean_key(key): value for key, value in changed_tags(run_dir).items() if is_a_users(key)}


def description(run_dir: RunDir, document: Row) -> str:
    """A run in a few lines of Markdown."""
    config = document["config"]
    common = config["dataset_builder"].get("common_config") or {}
    renderer = renderer_name(config)
    lines = []
    if train := train_set(document):
        tested = [data.described() for data in test_sets(document).values()]
        on = f", tested on {', '.join(tested)}" if tested else ""
        lines.append(f"Data: {train.described()}{on}")
    batch_size = config.get("batch_size") or common.get("batch_size", 0) * config.get("gradient_accumulation_steps", 1)
    epochs = config.get("num_epochs", 1)
    steps = config.get("max_steps") or f"{epochs} epoch{'s' if epochs > 1 else ''}"
    of = f" of {batch_size} conversations each" if batch_size else ""
    schedule = f", {config['lr_schedule']}" if config.get("lr_schedule") else ""
    lines += [
        f"Updates: {steps}{of}, learning rate {config['learning_rate']:g}{schedule}",
        f"Command: `{shlex.join(redact_argv(document['argv']))}`",
        f"Run directory: `{run_dir.path}`",
    ]
    if parent := document.get("parent"):
        lines.append(f"Forked from `{parent['path']}` at step {parent['step']}")
    rank = f", LoRA of rank {config['lora_rank']}" if config.get("lora_rank") else ""
    chat_format = f", chat format {renderer}" if renderer else ""
    first = f"Supervised fine-tuning of `{config['model_name']}`{rank}{chat_format}.\n"
    return "\n".join([first, *(f"- {line}" for line in lines)])


def renderer_name(config: Row) -> str | None:
    """The chat format that a config names: its own, which goes before the builder's, or the builder's."""
    common = config["dataset_builder"].get("common_config") or {}
    return config.get("renderer_name") or common.get("renderer_name")


def progress_tags(run_dir: RunDir) -> dict[str, str]:
    """Those set again whenever a mirror opens or closes the run."""
    attempts = run_dir.attempts()
    return {
        "harness.attempts": str(sum(row["event"] == "start" for row in attempts)),
        "harness.exactness": "inexact" if run_dir.is_superseded() else exactness(attempts),
    }


def exactness(attempts: list[Row]) -> str:
    """What the rows of attempts.jsonl say of the resumes.

    ``uninterrupted`` where there was none, ``inexact`` where one could not reproduce the rows that it replayed,
    ``unverified`` where one replayed fewer than two, ``exact`` where all were equal to the bit, else
    ``within tolerance``.
    """
    ends = {row["attempt"]: row for row in attempts if row["event"] == "end"}
    resumes = [ends.get(row["attempt"]) for row in attempts if row["event"] == "start"][1:]
    if not resumes:
        return "uninterrupted"
    if any(end and end.get("is_inexact", end.get("exact") is False) for end in resumes):
        return "inexact"
    if not all(end and (end.get("verified_rows") or 0) >= 2 for end in resumes):
        return "unverified"
    return "exact" if all(end and end.get("exact") for end in resumes) else "within tolerance"
