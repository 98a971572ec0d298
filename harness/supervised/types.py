"""What a dataset is, and the configs that build one."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import chz

from harness.renderers import Renderer, TrainOnWhat, check_renderer_name, get_renderer
from harness.tokenizer_utils import get_tokenizer

if TYPE_CHECKING:
    import tinker


class EpochEnded(Exception):
    """``get_batch`` asked for more than there is: the data of a stream ended before ``len`` said."""


class SupervisedDataset:
    """Batches by index. Position is an integer, so that a resume stores no iterator.

    Define ``get_batch`` and ``__len__``; where epochs differ, ``set_epoch`` too. Or define ``__len__`` and ``__iter__``
    that yields datums: see :mod:`harness.supervised.custom`.

    Attributes:
        quarantined: What its builder set aside as bad, a row each with its file, line and reason.
    """

    quarantined: Sequence[Mapping[str, Any]] = ()

    def get_batch(self, index: int) -> list[tinker.Datum]:
        """Batch ``index`` of the epoch that was set last: the same datums whenever it is asked for.

        Raises:
            EpochEnded: where the data ended before it; the epoch is over then.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        """Batches an epoch."""
        raise NotImplementedError

    def set_epoch(self, seed: int = 0) -> None:
        """Put the batches of another epoch in order; ``seed`` alone decides it. Does nothing unless overridden."""

    def num_tokens(self, index: int) -> int | None:
        """Input tokens that batch ``index`` of the epoch that was set last trains: of its datums that carry loss. None:
        finding out would cost as much as training on it, as of a stream."""
        return None

    def all_batches(self) -> list[list[tinker.Datum]]:
        """Every example once, in order, for evaluation: also those that training would leave over."""
        return [self.get_batch(index) for index in range(len(self))]

    @property
    def num_left_over(self) -> int:
        """Examples an epoch that training leaves out because they do not fill a batch."""
        return 0

    def contents(self) -> Iterable[Any] | None:
        """What each row says, as values of JSON's types, read without rendering it. None: only rendering shows it."""
        return None

    def fingerprint(self) -> str | None:
        """A digest of the data itself, wherever it lies. None: unknown, and a resume cannot see that it changed."""
        return None


TestSets = SupervisedDataset | Mapping[str, SupervisedDataset] | None
"""One unnamed test set (``test/nll``), several named ones (``test/<name>/nll``), or none."""


@chz.chz
class SupervisedDatasetBuilder:
    """A config that builds a training set and its test sets."""

    def __call__(self) -> tuple[SupervisedDataset, TestSets]:
        raise NotImplementedError


@chz.chz
class ChatDatasetBuilderCommonConfig:
    """What every builder of chat datasets needs to know."""

    model_name_for_tokenizer: str = chz.field(doc="Model whose tokenizer is used; follows model_name in a recipe.")
    renderer_name: str = chz.field(
        doc="Chat format: chat_template (the model's own), llama3, qwen3, role_colon (for base models), …"
    )
    max_length: int | None = chz.field(doc="Tokens at which a conversation is cut; None never cuts.")
    batch_size: int = chz.field(doc="Conversations a batch.")
    train_on_what: TrainOnWhat | None = chz.field(
        default=None, doc="Which messages carry loss; None is all_assistant_messages."
    )

    @chz.validate
    def _check(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: must be at least 1")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"max_length={self.max_length}: must be at least 2, or None")

    @functools.cached_property
    def renderer(self) -> Renderer:
        """The renderer of ``renderer_name`` for the model's tokenizer, made once: whoever has this config shares it."""
        check_renderer_name(self.renderer_name)  # before the tokenizer loads
        return get_renderer(self.renderer_name, get_tokenizer(self.model_name_for_tokenizer))

    def __getstate__(self) -> dict[str, Any]:
        """The same whether the renderer was made or not: datasets knows what it has mapped by what a function pickles
        to, and with it the builder that it is a method of."""
        return {name: value for name, value in self.__dict__.items() if name != "renderer"}


@chz.chz
class ChatDatasetBuilder(SupervisedDatasetBuilder):
    """Base of builders of chat datasets: subclass it and define ``__call__``."""

    common_config: ChatDatasetBuilderCommonConfig

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer of ``model_name_for_tokenizer``, loaded once."""
        return get_tokenizer(self.common_config.model_name_for_tokenizer)

    @property
    def renderer(self) -> Renderer:
        """The renderer of ``renderer_name`` for that tokenizer, made once."""
        return self.common_config.renderer
