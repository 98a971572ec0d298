"""A conversation with a checkpoint of a run, as the run's renderer writes it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from harness import cli
from harness.backends.base import temperature_fault
from harness.config_io import from_json
from harness.derive import backend_of, find_checkpoint
from harness.exceptions import CheckpointDamagedError, ConfigError, ServiceError
from harness.run_dir import CheckpointRecord, RunDir

if TYPE_CHECKING:
    import tinker

    from harness.backends.base import Backend, SamplingClient
    from harness.renderers import Renderer


class Conversation:
    """What was said so far, and who answers.

    Attributes:
        checkpoint: The name of the checkpoint that answers.
    """

    def __init__(
        self, clients: Iterator[SamplingClient], renderer: Renderer, params: tinker.SamplingParams, checkpoint: str
    ):
        """``clients``: Those that answer alike; the next one is taken where a service refuses the one before."""
        self.checkpoint = checkpoint
        self._clients = clients
        self._client = next(clients)
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
        (sequence,) = self._sample(prompt).sequences
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

    def _sample(self, prompt: tinker.ModelInput) -> tinker.SampleResponse:
        while True:
            try:
                return self._client.sample(prompt, 1, self._params).result()
            except ServiceError:
                following = next(self._clients, None)
                if following is None:
                    raise
                self._client = following


@contextlib.contextmanager
def conversation(
    run: RunDir, at: str, *, temperature: float, max_tokens: int, seed: int, base_url: str | None = None
) -> Iterator[Conversation]:
    """A conversation with a checkpoint, while the context lasts. Nothing is written: the run may be trained meanwhile.

    Of the run's config only what answers is made again: its model, its backend, how it renders.

    Args:
        at: See :func:`harness.derive.find_checkpoint`.
        base_url: See :func:`harness.derive.at_address`.

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
    backend = backend_of(run, base_url)
    params = tinker.SamplingParams(
        max_tokens=max_tokens, temperature=temperature, seed=seed, stop=renderer.get_stop_sequences()
    )
    with contextlib.closing(_clients(run, backend, checkpoint)) as clients:
        yield Conversation(clients, renderer, params, checkpoint.name)


def _clients(run: RunDir, backend: Backend, checkpoint: CheckpointRecord) -> Generator[SamplingClient, None, None]:
    """Of the weights for sampling, then of the state: a server may let go of the former before the latter. Each is
    closed before the next one."""
    document = run.config()
    config = document["config"]
    paths = checkpoint.paths[::-1]
    for path in paths:
        backend.check(config["model_name"])
        try:
            client = backend.create_sampling_client(
                model_name=config["model_name"],
                lora_rank=config["lora_rank"],
                seed=config["seed"],
                numerics=document["numerics"],
                run_path=run.path,
                weights_path=path,
            )
        except (CheckpointDamagedError, ServiceError):
            if path == paths[-1]:
                raise
            continue
        try:
            yield client
        finally:
            backend.close(client)
