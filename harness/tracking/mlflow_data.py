"""The data sets of a run, as MLflow's inputs: names, digests and where the data comes from. No data is loaded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from harness.run_dir import Row

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

UNKNOWN = "unknown"  # the digest of data that has no fingerprint: MLflow takes none without one


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set of one run.

    Attributes:
        digest: The fingerprint that config.json has of it.
        source_type: ``local``, ``hugging_face`` or ``code``, as MLflow names them.
        source: What MLflow keeps for such a type.
        num_examples: None where config.json does not say it.
    """

    name: str
    digest: str
    source_type: str
    source: Row
    num_examples: int | None

    def described(self) -> str:
        """For people, in Markdown."""
        count = "" if self.num_examples is None else f" ({self.num_examples:,} examples)"
        return f"`{self.name}`{count}"


def train_set(document: Row) -> DataSet | None:
    """The data that the run trains on; None where its config.json has no fingerprints at all.

    Args:
        document: ``RunDir.config()``.
    """
    data = document.get("data")
    return _data_set(document, "", data.get("train"), _num_examples(data).get("train")) if data else None


def test_sets(document: Row) -> dict[str, DataSet]:
    """The data that it is tested on, by the name of the test set; "" is the unnamed one."""
    data = document.get("data") or {}
    counts = _num_examples(data).get("test") or {}
    tested = data.get("test") or {}
    return {name: _data_set(document, name, digest, counts.get(name), test=True) for name, digest in tested.items()}


def log_data(client: MlflowClient, run_id: str, document: Row) -> None:
    """Make them inputs of the MLflow run; what is one already is not added again."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    inputs = [
        DatasetInput(
            Dataset(
                data.name,
                data.digest,
                data.source_type,
                json.dumps(data.source),
                profile=None if data.num_examples is None else json.dumps({"num_rows": data.num_examples}),
            ),
            [InputTag(MLFLOW_DATASET_CONTEXT, context)],
        )
        for context, data in _used(document)
    ]
    if inputs:
        client.log_inputs(run_id, inputs)


def missing_data(run: Run, document: Row) -> list[str]:
    """The names of those that are no inputs of the MLflow run."""
    there = {(given.dataset.name, given.dataset.digest) for given in run.inputs.dataset_inputs} if run.inputs else set()
    return [data.name for _, data in _used(document) if (data.name, data.digest) not in there]


def _used(document: Row) -> list[tuple[str, DataSet]]:
    """What each is used for, ``train`` or ``test``."""
    train = train_set(document)
    return [*([("train", train)] if train else []), *(("test", data) for data in test_sets(document).values())]


def _num_examples(data: Row) -> dict[str, Any]:
    return data.get("num_examples") or {}


def _data_set(
    document: Row, set_name: str, digest: str | None, num_examples: int | None, *, test: bool = False
) -> DataSet:
    builder = document["config"].get("dataset_builder") or {}
    made_by = builder.get("type") or builder.get("callable") or UNKNOWN
    file = (builder.get("test_file_path") if test else None) or builder.get("file_path")
    if file:
        name, source_type, source = PurePath(file).name, "local", {"uri": file}
    elif builder.get("hf_path"):
        name, source_type = builder["hf_path"], "hugging_face"
        source = {"path": builder["hf_path"], "config_name": builder.get("hf_name")}
    else:
        name, source_type = made_by.rpartition(":")[2], "code"
        source = {"tags": {"mlflow.source.type": "LOCAL", "mlflow.source.name": made_by}}
    return DataSet(set_name or name, digest or UNKNOWN, source_type, source, num_examples)
