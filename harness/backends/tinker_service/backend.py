"""The builder of the service backend: its options, what is checked before anything is paid for, and the client."""

from __future__ import annotations

import concurrent.futures
import functools
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import chz

from harness.backends.base import Backend
from harness.backends.tinker_service import credentials, failures, waiting
from harness.config_io import redact
from harness.exceptions import CheckpointDamagedError, ConfigError
from harness.model_info import near_matches

if TYPE_CHECKING:
    from harness.backends.tinker_service.client import ServiceSamplingClient, ServiceTrainingClient
    from harness.backends.tinker_service.server import Server

logger = logging.getLogger(__name__)

_WEEK = 7 * 24 * 3600
_TTL_RANGE = (3600, 10 * 365 * 24 * 3600)  # as the service takes it: an hour to ten years
_CLOSE_SECONDS = 5.0
_CLOSE_SECONDS_AFTER_AN_ERROR = 1.0
_SCHEME = "tinker://"
_OF_A_STATE = "/weights/"  # in its path; how a server names weights to sample with differs
_MAY_KEEP_OPTIMIZER = "it may have loaded the optimiser with the weights, where a fresh one was asked for (SkyRL does)"
_PLACE: dict[str, Any] = {"place": True}  # does not change the numbers


@chz.chz
class TinkerBackend(Backend):
    """Train a LoRA with the Tinker service, or with any server that speaks its protocol."""

    name: ClassVar[str] = "tinker"
    weights_with_every_state: ClassVar[bool] = False

    base_url: str | None = chz.field(
        default=None, doc="The server; else TINKER_BASE_URL, else the hosted service.", metadata=_PLACE
    )
    ttl_seconds: int = chz.field(
        default=_WEEK,
        doc="Seconds after which the service deletes a checkpoint; 0 = never. The best and the final one of a "
        "complete run stay.",
        metadata=_PLACE,
    )
    timeout_seconds: float | None = chz.field(
        default=None,
        doc="Seconds that an answer is waited for; None = for ever, and a minute for what does not train.",
        metadata=_PLACE,
    )
    train_attn: bool = chz.field(default=True, doc="Train a LoRA on the attention layers.")
    train_mlp: bool = chz.field(default=True, doc="Train a LoRA on the MLP layers.")
    train_unembed: bool = chz.field(default=True, doc="Train a LoRA on the head.")

    def check(self, model_name: str) -> None:
        """Also raises ServiceError where the server cannot be reached. The key comes first: without one nothing is
        asked of anybody."""
        least, most = _TTL_RANGE
        if self.ttl_seconds and not least <= self.ttl_seconds <= most:
            raise ConfigError(f"ttl_seconds={self.ttl_seconds}: 0 (never), or {least} (an hour) to {most} (ten years)")
        if self.timeout_seconds is not None and not self.timeout_seconds > 0:
            raise ConfigError(f"backend.timeout_seconds={self.timeout_seconds}: must be greater than 0")
        if not (self.train_attn or self.train_mlp or self.train_unembed):
            raise ConfigError("backend.train_attn, train_mlp and train_unembed are all false: nothing to train")
        self._check_there()

    @property
    def described(self) -> str:
        return f"tinker at {self._server.address}"

    def located(self, address: str | None) -> TinkerBackend:
        from tinker.lib.base_url import resolve_base_url

        return chz.replace(self, base_url=self.base_url or address or resolve_base_url())

    def context_length(self, model_name: str) -> int | None:
        return (self._server.models() or {}).get(model_name)

    def numerics(self) -> dict[str, Any]:
        """Nothing: a server does not say what it computes on."""
        return {}

    def tolerance(self, numerics: dict[str, Any]) -> float | None:
        return None

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
    ) -> ServiceTrainingClient:
        """See :meth:`Backend.create_training_client`. ``weights_path`` is a ``tinker://`` path.

        Raises:
            CheckpointDamagedError: where ``state_path`` is not there any more.
            ServiceError: for what the service refuses or fails.
            ConfigError: for a model that it does not have, or a ``weights_path`` that is none, or of another model.
        """
        import tinker

        from harness.backends.tinker_service.client import ServiceTrainingClient

        if weights_path is not None and not weights_path.startswith(_SCHEME):
            raise ConfigError(f"load_checkpoint_path={weights_path}: backend=tinker loads {_SCHEME}… paths alone")
        metadata = dict(describe())
        path = state_path or weights_path
        if path is not None:
            self._check_renderer(path, metadata)
        else:
            self._check_model(model_name)
            self._warn_of_layers()
        service = tinker.ServiceClient(base_url=self._url, user_metadata=metadata)

        def create() -> tinker.TrainingClient:
            if state_path is not None:
                made = service.create_training_client_from_state_with_optimizer(state_path, user_metadata=metadata)
            elif weights_path is not None:
                made = service.create_training_client_from_state(weights_path, user_metadata=metadata)
            else:
                made = service.create_lora_training_client(
                    base_model=model_name,
                    rank=lora_rank,
                    seed=seed,
                    train_mlp=self.train_mlp,
                    train_attn=self.train_attn,
                    train_unembed=self.train_unembed,
                    user_metadata=metadata,
                )
            return made.result() if hasattr(made, "result") else made  # older SDKs return the client itself

        doing = f"loading {path}" if path else f"making a model of {model_name} with lora_rank={lora_rank}"
        with failures.in_plain_words(doing, self._server.address):
            try:
                creating = self._server.worker.submit(create)
                client = waiting.wait(creating, doing, self._server.address, self.timeout_seconds)
            except Exception as error:
                if state_path is not None and failures.is_gone(error):
                    raise CheckpointDamagedError(f"{state_path}: {failures.said(error)}: take another") from error
                raise
        waiting.end_at_exit(client.holder.get_loop())
        if weights_path is not None:
            self._check_fits(client.get_info(), weights_path, model_name, lora_rank)
        return ServiceTrainingClient(
            service,
            client,
            self._server,
            ttl_seconds=self.ttl_seconds,
            limit=self.timeout_seconds,
            describe=describe,
            caution=None if weights_path is None or self._server.is_hosted_service else _MAY_KEEP_OPTIMIZER,
        )

    def create_sampling_client(
        self,
        *,
        model_name: str,
        lora_rank: int,
        seed: int,
        numerics: dict[str, Any],
        run_path: Path,
        weights_path: str | None,
    ) -> ServiceSamplingClient:
        """See :meth:`Backend.create_sampling_client`. A state without weights for sampling beside it is loaded to be
        trained, and its weights saved from there."""
        import tinker

        from harness.backends.tinker_service.client import ServiceSamplingClient

        if weights_path is not None and _OF_A_STATE in weights_path:
            training_client = self.create_training_client(
                model_name=model_name,
                lora_rank=lora_rank,
                seed=seed,
                numerics=numerics,
                run_path=run_path,
                weights_path=weights_path,
            )
            return training_client.save_weights_and_get_sampling_client().result()
        if weights_path is None:
            self._check_model(model_name)
        service = tinker.ServiceClient(base_url=self._url)
        base_model = model_name if weights_path is None else None  # servers take one of them
        doing = f"loading {weights_path or model_name}"
        with failures.in_plain_words(doing, self._server.address):
            try:
                creating = self._server.worker.submit(
                    lambda: service.create_sampling_client(model_path=weights_path, base_model=base_model).result()
                )
                client = waiting.wait(creating, doing, self._server.address, self.timeout_seconds)
            except Exception as error:
                if weights_path is not None and failures.is_gone(error):
                    raise CheckpointDamagedError(f"{weights_path}: {failures.said(error)}: take another") from error
                raise
        waiting.end_at_exit(client.holder.get_loop())
        return ServiceSamplingClient(service, client, self._server.address, self.timeout_seconds)

    def close(self, client: ServiceTrainingClient | ServiceSamplingClient) -> None:
        """End the session, so that the server lets go of the model. What is under way is dropped."""
        error = sys.exc_info()[1]  # what the run ends with
        if isinstance(error, GeneratorExit):  # the end of a conversation
            error = None
        status = "success" if error is None else "errored" if isinstance(error, Exception) else "interrupted"
        closing = client.service.close(status).future()
        if status != "interrupted":
            try:
                closing.result(_CLOSE_SECONDS if error is None else _CLOSE_SECONDS_AFTER_AN_ERROR)
            except Exception as trouble:  # the session then ends by itself
                logger.info("%s: the session was not ended: %s", self._server.address, failures.said(trouble))

    def checkpoint_path(self, run_path: Path, state_path: str) -> str:
        return state_path

    def copy_checkpoint(self, from_run: Path, to_run: Path, state_path: str) -> None:
        """Nothing to copy: both name the same state on the server."""

    def remove_checkpoint(self, run_path: Path, state_path: str) -> concurrent.futures.Future[bool]:
        """Asked for, and not waited for: see :meth:`conclude`."""
        return self._server.remove(state_path)

    def download_checkpoint(self, run_path: Path, state_path: str, to: Path) -> None:
        """The service loads the state once more, and saves a copy of it in PEFT's format, which is fetched."""
        from harness.backends.tinker_service import download

        self._check_there()
        client = self.create_training_client(  # of the model and rank that the state says
            model_name="", lora_rank=0, seed=0, numerics={}, run_path=run_path, state_path=state_path
        )
        try:
            download.adapter(self._server, client, to)
        finally:
            self.close(client)

    def delete_checkpoint(self, path: str) -> str | None:
        self._check_there()
        return self._server.delete(path)

    async def conclude(self, lasting: Sequence[str]) -> None:
        await self._server.settle(lasting if self.ttl_seconds else ())

    @functools.cached_property
    def _url(self) -> str:
        """The server's; that of TINKER_BASE_URL with its password, which no file holds."""
        from tinker.lib.base_url import resolve_base_url

        environment = resolve_base_url()
        return environment if redact(environment) == self.base_url else resolve_base_url(self.base_url)

    @functools.cached_property
    def _server(self) -> Server:
        from harness.backends.tinker_service.server import Server

        return Server(self._url, self.timeout_seconds)

    def _check_there(self) -> None:
        credentials.check()
        self._server.check_reachable()

    def _check_model(self, model_name: str) -> None:
        """Raise ConfigError where the server says which models it has, and this is none of them: some servers take any
        name, and train what they have."""
        models = self._server.models()
        if models and model_name not in models:
            raise ConfigError(
                f"model_name={model_name}: {self._server.address} has no such model"
                f"{near_matches(model_name, models)}: it has {', '.join(sorted(models))}; or train here with "
                "backend=local"
            )

    def _warn_of_layers(self) -> None:
        """No server says which layers it trains: the hosted service does as asked, SkyRL 0.3.0 trains them all."""
        names = [name for name in ("train_attn", "train_mlp", "train_unembed") if not getattr(self, name)]
        if names and not self._server.is_hosted_service:
            logger.warning(
                "%s: it does not say whether it heeds %s: it may train all layers (SkyRL does)",
                self._server.address,
                " and ".join(f"backend.{name}=false" for name in names),
            )

    def _check_renderer(self, path: str, metadata: Mapping[str, str]) -> None:
        ours, theirs = metadata.get("renderer_name"), self._server.renderer_of(path)
        if ours and theirs and ours != theirs:
            logger.warning("%s was trained with renderer_name=%s, and now goes on with %s", path, theirs, ours)

    def _check_fits(self, info: Any, weights_path: str, model_name: str, lora_rank: int) -> None:
        """Raise ConfigError where a checkpoint is not of this model and rank: servers go on with the checkpoint's."""
        rank = self._server.rank_of(weights_path) if info.lora_rank is None else info.lora_rank
        if rank is None:
            logger.warning("%s: its lora_rank is not known: training goes on with it, whatever it is", weights_path)
        for name, asked, has in (
            ("model_name", model_name, info.model_data.model_name),
            ("lora_rank", lora_rank, rank),
        ):
            if has is not None and has != asked:
                raise ConfigError(f"{weights_path}: of {name}={has}, not {asked}: set {name}={has}")
