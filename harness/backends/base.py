"""The seam between the loop and what trains: the part of ``tinker.TrainingClient`` that we call.

The SDK's client satisfies :class:`TrainingClient` unwrapped; the local backend's behaves alike. ``tinker.Datum`` is
the only currency. Requests run in the order of their submission, each returns a future at once.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import chz

if TYPE_CHECKING:
    import tinker

T_co = TypeVar("T_co", covariant=True)

ROUNDING = {"float32": 1e-4, "bfloat16": 1e-1}
"""Nats per token by which a loss may differ on another processor, by the dtype of the frozen weights: several times
what another number of threads was seen to change over eight updates of SmolLM2 (2e-6 and 3e-2), with room for another
order of summation."""


def temperature_fault(temperature: float) -> str | None:
    """Why a temperature cannot be sampled at; None where it can. At these bounds it is the likeliest token, or
    noise; far beyond them float32 has no numbers left."""
    if temperature == 0 or 1e-6 <= temperature <= 1e6:
        return None
    return f"temperature={temperature}: must be 0, or from 0.000001 to 1000000"


class Future(Protocol[T_co]):
    """What ``tinker.APIFuture`` promises: await it in a coroutine, or block on ``result``."""

    def result(self, timeout: float | None = None) -> T_co: ...

    async def result_async(self, timeout: float | None = None) -> T_co: ...


class Saved(Protocol):
    """The answer to a save: ``path`` can be given back to the backend that made it."""

    @property
    def path(self) -> str: ...


class SamplingClient(Protocol):
    """Samples with weights that do not change, as in the Tinker SDK. ``sample_async`` is its older name."""

    def sample(
        self, prompt: tinker.ModelInput, num_samples: int, sampling_params: tinker.SamplingParams
    ) -> Future[tinker.SampleResponse]:
        """Continue ``prompt`` ``num_samples`` times.

        The tokens of a sequence end with what it stopped at. Their log-probabilities are those at the temperature (of
        0: at 1), before top_k and top_p.
        """
        ...


class TrainingClient(Protocol):
    """The requests of the training loop, as in the Tinker SDK."""

    def forward(self, data: list[tinker.Datum], loss_fn: Any) -> Future[tinker.ForwardBackwardOutput]:
        """Log-probabilities of each datum's ``target_tokens``, under ``loss_fn_outputs[i]["logprobs"]``."""
        ...

    def forward_backward(self, data: list[tinker.Datum], loss_fn: Any) -> Future[tinker.ForwardBackwardOutput]:
        """The same, and add the gradient of ``-sum(logprobs * weights)`` over all of ``data`` to what is there."""
        ...

    def optim_step(self, adam_params: tinker.AdamParams) -> Future[Any]:
        """One Adam update with the summed gradient, which is then cleared."""
        ...

    def save_state(self, name: str) -> Future[Saved]:
        """Save weights and optimiser as they are after every request submitted so far."""
        ...

    def save_weights_for_sampler(self, name: str) -> Future[Saved]:
        """Save weights alone, as they are after every request submitted so far."""
        ...

    def save_weights_and_get_sampling_client(self) -> Future[SamplingClient]:
        """What samples with the weights as they are after every request submitted so far, for as long as this client
        is there."""
        ...


@chz.chz
class Backend:
    """What trains. ``backend=local`` names one on the command line; ``backend.<field>=…`` sets its options."""

    name: ClassVar[str]
    measures_time: ClassVar[bool] = False
    """Whether a request more costs nothing but time, so that the time a run takes can be measured beforehand."""
    weights_with_every_state: ClassVar[bool] = True
    """Whether the weights alone are saved beside every state; else beside the final one."""
    samples_from_a_copy: ClassVar[bool] = False
    """Whether what samples has a copy of the weights, so that updates may go on meanwhile. A server may put the weights
    that it samples with in the place of those that it trains."""

    def check(self, model_name: str) -> None:
        """Raise BackendError where this backend cannot run here, ConfigError for an option or a model that is not
        there, at once: loads nothing."""
        raise NotImplementedError

    @property
    def described(self) -> str:
        """Its name, and where it is, for people."""
        return self.name

    def located(self, address: str | None) -> Backend:
        """This backend with its address written out, where it has one: its own, else ``address`` (that of a run that it
        goes on with), else what it would ask now."""
        return self

    def context_length(self, model_name: str) -> int | None:
        """The most input tokens that the model takes, where that can be known without loading it."""
        return None

    def state_bytes(self, model_name: str, lora_rank: int) -> int | None:
        """About how large a saved state is, where that can be known without loading the model."""
        return None

    def numerics(self) -> dict[str, Any]:
        """What changes the numbers beyond the config, in JSON's types: chosen at a run's first start, kept by its
        resumes."""
        raise NotImplementedError

    def tolerance(self, numerics: dict[str, Any]) -> float | None:
        """Nats per token by which a loss that is computed again here may differ from the one that a run with these
        ``numerics`` recorded: 0.0 where the same bits come out, None where only a measurement can tell."""
        return 0.0

    def create_training_client(
        self,
        *,
        model_name: str,
        lora_rank: int,
        seed: int,
        numerics: dict[str, Any],
        run_path: Path,
        state_path: str | None = None,
        weights_path: str | None = None,
        describe: Callable[[], Mapping[str, str]] = dict,
    ) -> TrainingClient:
        """A client that holds the model.

        Args:
            numerics: What :meth:`numerics` gave at the run's first start.
            run_path: The run directory; what is saved in it is named by a path relative to it.
            state_path: Resume weights and optimiser from here (a checkpoint record's).
            weights_path: Start from these weights with a fresh optimiser (``load_checkpoint_path``).
            describe: What the run is, as it is known at the time: metadata for what a service keeps of it.

        Raises:
            CheckpointDamagedError: where ``state_path`` is not what was saved.
            BackendError: for a checkpoint that is not there, or another LoRA's.
            ConfigError: for a model that is not there.
        """
        raise NotImplementedError

    def create_sampling_client(
        self,
        *,
        model_name: str,
        lora_rank: int,
        seed: int,
        numerics: dict[str, Any],
        run_path: Path,
        weights_path: str | None,
    ) -> SamplingClient:
        """A client that samples with saved weights. Writes nothing: the run may be trained meanwhile.

        Args:
            weights_path: A path of one of the run's checkpoint records; None: the model without a LoRA.

        Raises:
            CheckpointDamagedError: where ``weights_path`` is not what was saved.
            BackendError, ConfigError: as :meth:`create_training_client`.
        """
        raise NotImplementedError

    def close(self, client: Any) -> None:
        """Let go of a client of either kind: finish the request that runs, drop the others."""
        raise NotImplementedError

    def checkpoint_path(self, run_path: Path, state_path: str) -> str:
        """A checkpoint of a run as another run can be given it (``load_checkpoint_path``)."""
        raise NotImplementedError

    def copy_checkpoint(self, from_run: Path, to_run: Path, state_path: str) -> None:
        """Give another run its own copy of a saved state, under the same ``state_path``.

        Raises:
            CheckpointDamagedError: where there is none.
        """
        raise NotImplementedError

    def state_digest(self, run_path: Path, state_path: str) -> str | None:
        """A hash of all that a saved state holds; None where it cannot be looked into."""
        return None

    def remove_checkpoint(self, run_path: Path, state_path: str) -> concurrent.futures.Future[bool] | None:
        """Delete a saved state that is no longer kept; one that is gone already is no error.

        Returns:
            Whether a service has done so; None where it is gone.
        """
        raise NotImplementedError

    def download_checkpoint(self, run_path: Path, state_path: str, to: Path) -> None:
        """Write the LoRA of a saved state to the folder ``to``, as PEFT's ``adapter_config.json`` and
        ``adapter_model.safetensors``.

        Raises:
            CheckpointDamagedError: where it is not there, or not what was saved.
            ServiceError: where a service does not give it out.
        """
        raise NotImplementedError

    def delete_checkpoint(self, path: str) -> str | None:
        """Delete what a service keeps at ``path``, and wait for it: why it is still there, or None where it is gone.

        Raises:
            ServiceError: where the service cannot be asked.
        """
        raise NotImplementedError

    async def conclude(self, lasting: Sequence[str]) -> None:
        """A run is complete: keep the states at these paths for good, and finish what was asked of the others."""


@chz.chz
class OpenBackend(Backend):
    """The one that suits, chosen when a run starts: see :func:`harness.backends.chosen`."""

    name: ClassVar[str] = "open"
