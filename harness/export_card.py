"""The model card of what is exported: README.md, as the Hugging Face hub reads it."""

from __future__ import annotations

from collections.abc import Iterator

from harness import __version__
from harness.exceptions import ConfigError
from harness.metric_keys import STEP, TRAIN_NLL, is_test_nll
from harness.model_info import PACKAGED_MODELS
from harness.run_details import command_again, config_lines
from harness.run_dir import SUPERSEDED_BY, CheckpointRecord, Row, RunDir
from harness.tokenizer_utils import local_folder
from harness.tracking.mlflow_data import DataSet, test_sets, train_set


def model_card(run: RunDir, document: Row, record: CheckpointRecord, dtype: str | None) -> str:
    """Front matter, then in words what the weights are, what they were trained on and how well.

    Args:
        document: ``run.config()``.
        dtype: Of merged weights; None for an adapter.
    """
    from huggingface_hub import ModelCardData

    model_name = document["config"]["model_name"]
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
        f"# {run.path.name}",
        "",
        f"`{model_name}` with a LoRA merged in, in {dtype}." if dtype else f"A LoRA (PEFT) for `{model_name}`.",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in _facts(run, document, record)),
        "",
        "Made by:",
        "",
        "```text",
        command_again(run, document),
        "```",
        "",
        "Config:",
        "",
        "```text",
        *config_lines(run),
        "```",
    ]
    return "\n".join(lines) + "\n"


def renderer_name(document: Row) -> str | None:
    """What the run's conversations were rendered with; None where its builder does not say it."""
    config = document["config"]
    return (config["dataset_builder"].get("common_config") or {}).get("renderer_name") or config.get("renderer_name")


def _facts(run: RunDir, document: Row, record: CheckpointRecord) -> Iterator[tuple[str, str]]:
    planned = [row["total_steps"] for row in run.attempts() if "total_steps" in row]
    yield "updates", f"{record.step} of {planned[-1]}" if planned else str(record.step)
    if train := train_set(document):
        yield "trained on", _described(train)
    for name, data in test_sets(document).items():
        yield f"test set {name}".strip(), _described(data)
    for key, nll in _nlls(run, record):
        yield key, f"{nll:.4f} nats per token"
    if renderer := renderer_name(document):
        yield "renderer", f"`{renderer}`"
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
    return f"{data.described()}, fingerprint `{data.digest}`"


def _is_hub_id(name: str) -> bool:
    """Whether a name can be one of the hub's: ``owner/name``, and neither a folder here nor a packaged model."""
    if name in PACKAGED_MODELS or name.count("/") != 1:
        return False
    try:
        return local_folder(name) is None
    except ConfigError:  # a path to a folder that is gone
        return False
