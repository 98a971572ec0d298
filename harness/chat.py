"""A conversation with a checkpoint of a run, as the run's renderer writes it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from harness import cli
from harness.backends.base import temperature_fault
from harness.config_io import from_json
from harness.derive import find_checkpoint
from harness.exceptions import ConfigError
from harness.run_dir import RunDir

if TYPE_CHECKING:
    import tinker

    from harness.backends.base import SamplingClient
    from harness.renderers import Renderer


class Conversation:
    """What was said so far, and who answers.

    Attributes:
        checkpoint: The name of the checkpoint that answers.
    """

    def __init__(self, client: SamplingClient, renderer: Renderer, params: tinker.SamplingParams, checkpoint: str):
        self.checkpoint = checkpoint
        self._client = client
        self._renderer = renderer
        self._params = params
        self._messages: list[dict[str, Any]] = []

    def say(self, text: str) -> tuple[str, str | None]:
        """The answer to what a user says, and what cut it; None where it ended by itself.

        Raises:
            HarnessError: for what cannot be rendered or sampled; it is as if it had not been said.
        """
        messages = [*self._messages, {"role": "user", "content": text}]
        prompt = self._renderer.build_generation_prompt(messages)
        (sequence,) = self._client.sample(prompt, 1, self._params).result().sequences
        message, is_whole = self._renderer.parse_response(sequence.tokens)
        self._messages = [*messages, message]
        said = message["content"]
        if not said and message.keys() > {"role", "content"}:  # a thought, a call of a tool
            said = self._renderer.tokenizer.decode(sequence.tokens, skip_special_tokens=True)
        if is_whole or sequence.stop_reason == "stop":
            return said, None
        num_tokens = len(sequence.tokens)
        is_full = num_tokens != self._params.max_tokens
        return said, f"at {num_tokens} tokens: {'the context is full' if is_full else '--max-tokens'}"


@contextlib.contextmanager
def conversation(run: RunDir, at: str, *, temperature: float, max_tokens: int, seed: int) -> Iterator[Conversation]:
    """A conversation with a checkpoint, while the context lasts. Nothing is written: the run may be trained meanwhile.

    Of the run's config only what answers is made again: its model, its backend, how it renders.

    Args:
        at: See :func:`harness.derive.find_checkpoint`.

    Raises:
        HarnessError: for a run whose builder does not say how it renders, a checkpoint that is not there, or a
            temperature that cannot be sampled at.
    """
    import tinker

    if fault := temperature_fault(temperature):
        raise ConfigError(fault)
    config = run.config()["config"]
    cli.import_from_here()
    checkpoint = find_checkpoint(run, at)
    common_config = config["dataset_builder"].get("common_config")
    if common_config is None:
        raise ConfigError(f"{run}: its dataset_builder has no common_config that says how a conversation is rendered")
    renderer = from_json(common_config).renderer
    backend = from_json(config["backend"])
    backend.check(config["model_name"])
    client = backend.create_sampling_client(
        model_name=config["model_name"],
        lora_rank=config["lora_rank"],
        seed=config["seed"],
        numerics=run.config()["numerics"],
        run_path=run.path,
        weights_path=checkpoint.sampler_path or checkpoint.state_path,
    )
    try:
        params = tinker.SamplingParams(
            max_tokens=max_tokens, temperature=temperature, seed=seed, stop=renderer.get_stop_sequences()
        )
        yield Conversation(client, renderer, params, checkpoint.name)
    finally:
        backend.close(client)
