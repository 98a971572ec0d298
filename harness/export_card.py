"""The model card of what is exported: README.md, as the Hugging Face hub reads it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from harness import __version__
from harness.exceptions import ConfigError
from harness.metric_keys import STEP, TRAIN_NLL, is_test_nll
from harness.model_info import PACKAGED_MODELS
from harness.run_details import command_again, config_lines
from harness.run_dir import SUPERSEDED_BY, CheckpointRecord, Row, RunDir
from harness.tokenizer_utils import local_folder
from harness.tracking.mlflow_data import DataSet, test_sets, train_set

_MARKS = re.compile(r"[\\`*{}\[\]<>#~&]|(?<!\w)_|_(?!\w)")  # of Markdown; an underscore within a word is none
_PATH = re.compile(r"""(?s)(^|=|:///(?=/)|://)([/~].*)|(["'])([/~].*?)\3""")


def model_card(
    run: RunDir, document: Row, record: CheckpointRecord, dtype: str | None, notes: Sequence[str] = ()
) -> str:
    """Front matter, then in words what the weights are, what they were trained on and how well.

    Where things lie on this machine is left out: of a path from its root there is the last name.

    Args:
        document: ``run.config()``.
        dtype: Of merged weights; None for an adapter.
        notes: What else there is to say of how the weights are used.
    """
    from huggingface_hub import ModelCardData

    model_name = document["config"]["model_name"]
    base = _code(_without_folders(model_name))
    run_name = run.path.resolve().name
    config = document["config"] | run.changed_extents()
    document = _without_folders(document)
    train = train_set(document)
    front_matter = ModelCardData(
        base_model=model_name if _is_hub_id(model_name) else None,
        datasets=[train.name] if train and train.source_type == "hugging_face" and _is_hub_id(train.name) else None,
        library_name="transformers" if dtype else "peft",
        pipeline_tag="text-generation",
        tags=["sft", "lora", "sft-harness"],
    )
    lines = [
        "---",
        front_matter.to_yaml(),
        "---",
        "",
        f"# {_text(run_name)}",
        "",
        f"{base} with a LoRA merged in, in {dtype}." if dtype else f"A LoRA (PEFT) for {base}.",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {_cell(name)} | {_cell(value)} |" for name, value in _facts(run, document, record)),
        *(f"| note | {_cell(_text(note))} |" for note in notes),
        "",
        "Made by:",
        "",
        *_block([command_again(RunDir(Path.cwd() / run_name), document)]),
        "",
        "Config:",
        "",
        *_block(config_lines(_without_folders(config))),
    ]
    return "\n".join(lines) + "\n"


def renderer_name(document: Row) -> str | None:
    """What the run's conversations were rendered with; None where its builder does not say it."""
    return common_config(document).get("renderer_name") or document["config"].get("renderer_name")


def common_config(document: Row) -> Row:
    """What the run's builder shares with others; empty where it has none."""
    return document["config"]["dataset_builder"].get("common_config") or {}


def _facts(run: RunDir, document: Row, record: CheckpointRecord) -> Iterator[tuple[str, str]]:
    planned = [row["total_steps"] for row in run.attempts() if "total_steps" in row]
    yield "updates", f"{record.step} of {planned[-1]}" if planned else str(record.step)
    if train := train_set(document):
        yield "trained on", _described(train)
    for name, data in test_sets(document).items():
        yield f"test set {_text(name)}".strip(), _described(data)
    for key, nll in _nlls(run, record):
        yield _text(key), f"{nll:.4f} nats per token"
    if renderer := renderer_name(document):
        yield "renderer", _code(renderer)
    yield "run id", f"`{document['run_id']}`"
    yield "harness", f"{(document.get('versions') or {}).get('harness', 'unknown')}; exported by {__version__}"


def _nlls(run: RunDir, record: CheckpointRecord) -> Iterator[tuple[str, float]]:
    """Of the last update in the weights, and of every evaluation of them."""
    for row in run.metrics_from(record.step - 1):
        if row[STEP] == record.step - 1 and TRAIN_NLL in row:
            yield TRAIN_NLL, row[TRAIN_NLL]
        if row[STEP] == record.step:
            yield from ((key, row[key]) for key in row if is_test_nll(key))
    for row in run.later_evaluations():
        if row[STEP] == record.step and SUPERSEDED_BY not in row:
            yield from ((key, value) for key, value in row["metrics"].items() if is_test_nll(key))


def _described(data: DataSet) -> str:
    count = "" if data.num_examples is None else f" ({data.num_examples:,} examples)"
    return f"{_code(data.name)}{count}, fingerprint `{data.digest}`"


def _without_folders(value: Any) -> Any:
    """Any value of JSON's types; in its texts, of each path from the root the last name."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return _PATH.sub(_last_name, value) if isinstance(value, str) else value


def _last_name(found: re.Match[str]) -> str:
    before, path, quote, quoted = found.groups(default="")
    return f"{before}{quote}{PurePath(path or quoted).name or path or quoted}{quote}"


# ---- Markdown, in which whatever a user named is said as it is


def _text(text: str) -> str:
    return _MARKS.sub(r"\\\g<0>", " ".join(text.splitlines()))


def _code(text: str) -> str:
    ticks = "`" * _more_ticks(text)
    room = " " if "`" in text else ""
    return f"{ticks}{room}{' '.join(text.splitlines())}{room}{ticks}"


def _block(lines: Iterable[str]) -> list[str]:
    lines = list(lines)
    fence = "`" * max(3, _more_ticks("\n".join(lines)))
    return [f"{fence}text", *lines, fence]


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _more_ticks(text: str) -> int:
    """One more than stand in a row anywhere in ``text``."""
    return 1 + max(map(len, re.findall("`+", text)), default=0)


def _is_hub_id(name: str) -> bool:
    """Whether a name can be one of the hub's: ``owner/name``, and neither a folder here nor a packaged model."""
    if name in PACKAGED_MODELS or name.count("/") != 1:
        return False
    try:
        return local_folder(name) is None
    except ConfigError:  # a path to a folder that is gone
        return False
