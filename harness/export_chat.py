"""How an exported model is talked with: tokenizer, chat template and ends of turns, as it was trained."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config_io import from_json
from harness.exceptions import ConfigError, HarnessError
from harness.export_card import common_config, renderer_name
from harness.renderers import check_renderer_name, get_renderer
from harness.run_dir import Row
from harness.tokenizer_utils import from_pretrained, get_tokenizer

if TYPE_CHECKING:
    from harness.renderers import Renderer

logger = logging.getLogger(__name__)

_GENERATION_CONFIG = "generation_config.json"


class Chat:
    """What a run's renderer writes and stops at, for transformers.

    Attributes:
        notes: What its user must know that no file can say.
    """

    def __init__(self, document: Row):
        """``document`` is ``run.config()``.

        Raises:
            ConfigError, BackendError: where the tokenizer is not there.
        """
        given = common_config(document).get("model_name_for_tokenizer") or document["config"]["model_name"]
        self._tokenizer = copy.copy(get_tokenizer(given))
        self._renderer = _renderer(document, self._tokenizer)
        self.notes: list[str] = []
        if self._renderer is None:
            self.notes.append("what renders the run is not known here: chat template and ends are the base model's")
            return
        self._tokenizer.chat_template = self._renderer.chat_template
        if not self._renderer.chat_template:
            self.notes.append(f"no chat template: there is none that writes what {renderer_name(document)} does")
        stops = self._renderer.get_stop_sequences()
        self._stops = [stop for stop in stops if isinstance(stop, int)]
        # Not in generation_config.json: each call of generate() without the tokenizer would be refused.
        if texts := [stop for stop in stops if isinstance(stop, str)]:
            self.notes.append(f"a turn ends in words: generate(..., stop_strings={texts!r}, tokenizer=tokenizer)")

    def write(self, to: Path, base: str | None) -> None:
        """Write the tokenizer with the chat template, and generation_config.json with the tokens that end a turn.

        Args:
            to: Has the merged model's generation_config.json, if it was merged.
            base: What the base model is loaded by, where it was not.

        Raises:
            OSError: where they cannot be written.
        """
        from transformers import GenerationConfig

        self._tokenizer.save_pretrained(to)
        if self._renderer is None:
            return
        try:
            config = from_pretrained(GenerationConfig, base or str(to))
        except ConfigError:  # many models have none
            config = GenerationConfig()
        own = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        ends = dict.fromkeys([*own, self._tokenizer.eos_token_id, *self._stops])
        config.eos_token_id = [token for token in ends if token is not None]
        config._from_model_config = False
        config.to_json_file(to / _GENERATION_CONFIG)  # save_pretrained refuses some that were published


def _renderer(document: Row, tokenizer: object) -> Renderer | None:
    """The run's, made again; None where its config does not say which, or it is not to be had here."""
    name = renderer_name(document)
    if name is None:
        return None
    try:
        try:
            check_renderer_name(name)
        except ConfigError:  # one of the user's own, which the module of the builder may register
            from_json(document["config"]["dataset_builder"])
        return get_renderer(name, tokenizer)
    except HarnessError as error:
        logger.warning("%s", error)
        return None
