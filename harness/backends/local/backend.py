"""The builder of the local backend: its options, what changes its numbers, and the client it makes. Light to import."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import chz

from harness.backends.base import ROUNDING, Backend
from harness.exceptions import BackendError, ConfigError
from harness.hyperparam_utils import lora_parameters

if TYPE_CHECKING:
    from harness.backends.local.client import LocalTrainingClient
    from harness.backends.local.engine import Engine
    from harness.backends.local.sampling_client import LocalSamplingClient

logger = logging.getLogger(__name__)

_REQUIRED = ("torch", "peft")
_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "5000"}  # measured: docs/performance.md
_MICRO_BATCH_TOKENS = {"bfloat16": 2048, "float32": 1024}  # so too: more are no faster, or hardly
_ROUNDING_ALONE: dict[str, Any] = {"tunable": True}  # changes the last digits: a fork may, a resume not
_IN_NUMERICS = _ROUNDING_ALONE | {"in_numerics": True}  # None is what a run took when it was started


@chz.chz
class LocalBackend(Backend):
    """Train a LoRA with torch in this process."""

    name: ClassVar[str] = "local"
    measures_time: ClassVar[bool] = True
    samples_from_a_copy: ClassVar[bool] = True

    dtype: str | None = chz.field(
        default=None,
        doc="Of the frozen weights: bfloat16 or float32. None: bfloat16 where the processor or GPU computes in it.",
    )
    num_threads: int | None = chz.field(
        default=None, doc="Threads of torch. None: torch's own choice.", metadata=_IN_NUMERICS
    )
    micro_batch_tokens: int | None = chz.field(
        default=None,
        doc="Most tokens that go through the model at once. Bounds the memory: of a longer sequence, what the layers "
        "compute is computed again instead of kept. None: 2048 in bfloat16, 1024 in float32.",
        metadata=_IN_NUMERICS,
    )
    eval_micro_batch_tokens: int = chz.field(
        default=8192, doc="The same for evaluation, where little is kept.", metadata=_ROUNDING_ALONE
    )
    lora_alpha: int = chz.field(default=32, doc="The LoRA's output is scaled by lora_alpha / lora_rank. 32 as Tinker.")

    train_attn: bool = chz.field(default=True, doc="Train a LoRA on the attention layers.")
    train_mlp: bool = chz.field(default=True, doc="Train a LoRA on the MLP layers.")
    train_unembed: bool = chz.field(default=False, doc="Train a LoRA on the head.")

    def check(self, model_name: str) -> None:
        from harness.backends.local.model import check_model

        missing = [name for name in _REQUIRED if importlib.util.find_spec(name) is None]
        if missing:
            raise BackendError(f"backend=local needs {', '.join(missing)}: pip install 'sft-harness[local]'")
        if self.dtype not in (None, "bfloat16", "float32"):
            raise ConfigError(f"backend.dtype={self.dtype}: bfloat16 or float32")
        for option in ("num_threads", "micro_batch_tokens", "eval_micro_batch_tokens", "lora_alpha"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise ConfigError(f"backend.{option}={value}: must be at least 1")
        if not (self.train_attn or self.train_mlp or self.train_unembed):
            raise ConfigError("backend.train_attn, train_mlp and train_unembed are all false: nothing to train")
        check_model(model_name)
        # Read when torch is loaded, so set before it is. Threads that spin for long while they wait keep others from
        # running where processors are shared; threads that sleep at once wake up late where they are not.
        if not os.environ.keys() & _WAITING.keys():
            os.environ.update(_WAITING)

    def context_length(self, model_name: str) -> int | None:
        from harness.backends.local.model import context_length

        return context_length(model_name)

    def state_bytes(self, model_name: str, lora_rank: int) -> int | None:
        """Of each parameter the value and Adam's two moments, in float32."""
        parameters = lora_parameters(model_name, lora_rank)
        return None if parameters is None else 3 * 4 * parameters

    def numerics(self) -> dict[str, Any]:
        from harness.backends.local import torch_setup

        here = torch_setup.machine()
        dtype = self.dtype or torch_setup.best_dtype(here["device"])
        return here | {
            "dtype": dtype,
            "num_threads": self.num_threads or torch_setup.default_num_threads(),
            "micro_batch_tokens": self.micro_batch_tokens or _MICRO_BATCH_TOKENS[dtype],
            "eval_micro_batch_tokens": self.eval_micro_batch_tokens,
            "lora_alpha": self.lora_alpha,
        }

    def tolerance(self, numerics: dict[str, Any]) -> float | None:
        """0.0 on the like of the machine that the run was started on, whatever its number of cores."""
        from harness.backends.local import torch_setup

        return ROUNDING[numerics["dtype"]] if torch_setup.differences(numerics) else 0.0

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
    ) -> LocalTrainingClient:
        """See :meth:`Backend.create_training_client`. ``weights_path`` is a checkpoint's folder or any folder that
        PEFT saved an adapter of the same rank and alpha to, as the current directory sees it."""

        def load(engine: Engine) -> None:
            if state_path is not None:
                engine.load_state(run_path / state_path)
            elif weights_path is not None:
                engine.load_weights(Path(weights_path).expanduser())

        return self._client(model_name, lora_rank, seed, numerics, run_path, load)

    def _client(
        self,
        model_name: str,
        lora_rank: int,
        seed: int,
        numerics: dict[str, Any],
        run_path: Path,
        load: Callable[[Engine], None],
    ) -> LocalTrainingClient:
        from harness.backends.local import torch_setup
        from harness.backends.local.client import LocalTrainingClient
        from harness.backends.local.engine import Engine
        from harness.backends.local.model import Layers

        for name, (there, here) in torch_setup.differences(numerics).items():
            logger.warning("%s is %s, the run was started on %s: last digits may differ", name, here, there)
        if numerics["num_threads"] > (os.cpu_count() or 1):  # fewer would give other bits
            logger.warning("%s threads compute on %s processors: slowly", numerics["num_threads"], os.cpu_count())

        layers = Layers(attn=self.train_attn, mlp=self.train_mlp, unembed=self.train_unembed)

        def make_engine() -> Engine:
            torch_setup.apply(numerics)
            with torch_setup.memory_for(
                f"{model_name} with lora_rank={lora_rank}", "lower it, or take a smaller model"
            ):
                engine = Engine(model_name, lora_rank=lora_rank, layers=layers, seed=seed, numerics=numerics)
            try:
                load(engine)
            except BaseException:
                engine.close()
                raise
            return engine

        return LocalTrainingClient(make_engine, run_path)

    def create_sampling_client(
        self,
        *,
        model_name: str,
        lora_rank: int,
        seed: int,
        numerics: dict[str, Any],
        run_path: Path,
        weights_path: str | None,
    ) -> LocalSamplingClient:
        from harness.backends.local import checkpoint

        # Read before the model is: a run that is being trained may remove it meanwhile.
        files = None if weights_path is None else checkpoint.read_adapter(run_path / weights_path)

        def load(engine: Engine) -> None:
            if files is not None:
                engine.take_weights(run_path / str(weights_path), files)

        nowhere = run_path / "nothing is saved"  # the run's own checkpoints are its trainer's to settle
        client = self._client(model_name, lora_rank, seed, numerics, nowhere, load)
        return client.save_weights_and_get_sampling_client().result()

    def close(self, client: LocalTrainingClient | LocalSamplingClient) -> None:
        client.close()

    def checkpoint_path(self, run_path: Path, state_path: str) -> str:
        return str(run_path / state_path)

    def copy_checkpoint(self, from_run: Path, to_run: Path, state_path: str) -> None:
        from harness.backends.local import checkpoint

        checkpoint.copy(from_run / state_path, to_run / state_path)

    def download_checkpoint(self, run_path: Path, state_path: str, to: Path) -> None:
        from harness.backends.local import checkpoint

        checkpoint.copy_adapter(run_path / state_path, to)

    def state_digest(self, run_path: Path, state_path: str) -> str | None:
        from harness.backends.local import checkpoint

        return checkpoint.digest(run_path / state_path)

    def remove_checkpoint(self, run_path: Path, state_path: str) -> None:
        from harness.backends.local import checkpoint

        checkpoint.remove(run_path, state_path)
