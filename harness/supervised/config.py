"""The config of a run: data, frozen, and without a side effect when it is made."""

import math
from typing import Any, Literal

import chz

from harness.backends import BackendFactory
from harness.backends.base import Backend, OpenBackend
from harness.eval.evaluators import EvaluatorBuilder
from harness.lr_schedules import LRSchedule
from harness.supervised.plan import LRPolicy
from harness.supervised.types import SupervisedDatasetBuilder

# What a resume may change: places do not change the numbers, extents only how far they go.
_PLACE: dict[str, Any] = {"place": True}
_EXTENT: dict[str, Any] = {"extent": True}
_TUNABLE: dict[str, Any] = {"tunable": True}  # what a fork may change besides

_MLFLOW_NAME_LENGTH = 250  # a server's database; SQLite would take more, and the run could not be sent to a team


@chz.chz
class Config:
    """Supervised fine-tuning of one model on one dataset."""

    model_name: str = chz.field(doc="Model to tune: a folder, a hub id, or a name of harness.model_info.")
    log_path: str = chz.field(doc="The run's directory; an unfinished run in it is resumed.", metadata=_PLACE)
    dataset_builder: SupervisedDatasetBuilder = chz.field(doc="Builds the training set and its test sets.")
    load_checkpoint_path: str | None = chz.field(
        default=None, doc="Checkpoint whose weights to start from, with a fresh optimiser."
    )
    renderer_name: str | None = chz.field(default=None, doc="Chat format; given, it sets the builder's renderer_name.")
    backend: Backend = chz.field(
        default_factory=OpenBackend,
        meta_factory=BackendFactory(),
        doc="What trains: local or tinker; left open, tinker where base_url or a key for it is there, else local.",
    )
    base_url: str | None = chz.field(
        default=None, doc="A Tinker server; given, it sets the backend's base_url.", metadata=_PLACE
    )

    learning_rate: float = chz.field(default=2e-4, doc="Peak learning rate.", metadata=_TUNABLE)
    lr_schedule: LRSchedule = chz.field(default="linear", doc="linear, cosine or constant.", metadata=_TUNABLE)
    warmup_steps: int = chz.field(
        default=0, doc="Updates over which the learning rate rises to its peak.", metadata=_TUNABLE
    )
    num_epochs: int = chz.field(default=1, doc="Passes over the training set.", metadata=_EXTENT)
    max_steps: int | None = chz.field(
        default=None, doc="Stop after so many updates, if the epochs last longer.", metadata=_EXTENT
    )
    early_stop_patience: int | None = chz.field(
        default=None,
        doc="Stop after so many evaluations in a row without a better test NLL (of the first test set).",
        metadata=_EXTENT,
    )
    lr_policy: LRPolicy = chz.field(
        default="rescale",
        doc="When a resume changes the number of updates: rescale draws lr_schedule over the new number, from the "
        "first update without a row on; keep stays with the old one, whose last value holds.",
        metadata=_EXTENT,
    )
    batch_size: int | None = chz.field(
        default=None, doc="Conversations an update; given, it sets the builder's batch_size."
    )
    gradient_accumulation_steps: int = chz.field(default=1, doc="Batches of the builder an update.")
    lora_rank: int = chz.field(default=32, doc="Rank of the LoRA adapter.")
    adam_beta1: float = chz.field(default=0.9, doc="Decay of the gradient's running mean.", metadata=_TUNABLE)
    adam_beta2: float = chz.field(default=0.95, doc="Decay of the squared gradient's running mean.", metadata=_TUNABLE)
    adam_eps: float = chz.field(default=1e-8, doc="Added to Adam's denominator.", metadata=_TUNABLE)
    weight_decay: float = chz.field(default=0.0, doc="Decoupled weight decay.", metadata=_TUNABLE)
    grad_clip_norm: float = chz.field(
        default=0.0, doc="Norm to which the summed gradient is clipped; 0 = off.", metadata=_TUNABLE
    )
    seed: int = chz.field(default=0, doc="Decides the LoRA initialisation, the order of the data and random splits.")

    eval_every: int = chz.field(
        default=10, doc="Updates between evaluations; one more follows the last; 0 = off.", metadata=_TUNABLE
    )
    evaluator_builders: list[EvaluatorBuilder] = chz.field(
        default_factory=list, doc="Build what else is measured at each evaluation.", metadata=_TUNABLE
    )
    infrequent_evaluator_builders: list[EvaluatorBuilder] = chz.field(
        default_factory=list, doc="Build what is measured every infrequent_eval_every updates.", metadata=_TUNABLE
    )
    infrequent_eval_every: int = chz.field(
        default=100, doc="As eval_every, for infrequent_evaluator_builders.", metadata=_TUNABLE
    )
    save_every: int = chz.field(
        default=20,
        doc="Updates between checkpoints, besides one at each evaluation and the last; 0 = off.",
        metadata=_PLACE,
    )
    save_every_tokens: int = chz.field(default=0, doc="Tokens between checkpoints; 0 = off.", metadata=_PLACE)
    save_every_seconds: int = chz.field(default=0, doc="Seconds between checkpoints; 0 = off.", metadata=_PLACE)
    rolling_save_every: int = chz.field(
        default=0,
        doc="Updates between checkpoints that are deleted as soon as a newer one is there; 0 = off.",
        metadata=_PLACE,
    )
    keep: Literal["best_and_last", "last", "all"] | int = chz.field(
        default="best_and_last",
        doc="Checkpoints that stay when one is saved: best_and_last, last, all, or n: the best and the n newest.",
        metadata=_PLACE,
    )
    ttl_seconds: int | None = chz.field(
        default=None,
        doc="Seconds after which a service deletes a checkpoint; given, it sets the backend's ttl_seconds.",
        metadata=_PLACE,
    )
    submit_ahead: int = chz.field(
        default=1, doc="Updates submitted beyond the one whose result is awaited.", metadata=_PLACE
    )

    price_table: str | None = chz.field(
        default=None, doc="TOML or JSON file with the prices of a million tokens, by model.", metadata=_PLACE
    )

    mirror: bool = chz.field(default=True, doc="Mirror the run into MLflow.", metadata=_PLACE)
    tracking_uri: str | None = chz.field(
        default=None, doc="MLflow store; else MLFLOW_TRACKING_URI, else mlruns/mlflow.db here.", metadata=_PLACE
    )
    experiment: str = chz.field(default="sft", doc="MLflow experiment.", metadata=_PLACE)
    run_name: str | None = chz.field(default=None, doc="MLflow run name; else the directory's.", metadata=_PLACE)
    tags: dict[str, str] = chz.field(default_factory=dict, doc="MLflow tags.", metadata=_PLACE)
    system_metrics: bool = chz.field(
        default=False, doc="Mirror the load of this machine too: CPU, memory, disk, network, GPU.", metadata=_PLACE
    )
    note: str = chz.field(default="", doc="The run's description in MLflow.", metadata=_PLACE)

    @chz.validate
    def _check(self) -> None:
        positive = ("learning_rate", "num_epochs", "gradient_accumulation_steps", "lora_rank", "adam_eps")
        for name in (
            *positive,
            *(n for n in ("max_steps", "batch_size", "early_stop_patience") if getattr(self, n) is not None),
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: must be greater than 0")
        not_negative = ("warmup_steps", "eval_every", "infrequent_eval_every", "submit_ahead", "seed")
        not_negative += ("save_every", "save_every_tokens", "save_every_seconds", "rolling_save_every")
        for name in (*not_negative, "weight_decay", "grad_clip_norm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 0 and less than 1")
        if isinstance(self.keep, int) and self.keep < 1:
            raise ValueError(f"keep={self.keep}: must be at least 1")
        if self.early_stop_patience and not self.eval_every:
            raise ValueError("early_stop_patience without evaluations: set eval_every")
        if self.seed >= 2**32:
            raise ValueError(f"seed={self.seed}: must be less than 2**32")
        for name in ("experiment", "run_name"):
            if len(getattr(self, name) or "") > _MLFLOW_NAME_LENGTH:
                raise ValueError(f"{name} has more than the {_MLFLOW_NAME_LENGTH} characters that MLflow takes")
        if not self.model_name:
            raise ValueError("model_name is empty: give a folder, a hub id, or a name of harness.model_info")
        if not self.log_path:
            raise ValueError("log_path is empty: give the run a directory")
