"""What is asked of a server beside training: whether it is there, its models, what becomes of checkpoints."""

from __future__ import annotations

import concurrent.futures
import functools
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from harness.backends.tinker_service import failures, waiting
from harness.config_io import redact
from harness.exceptions import ConfigError, ServiceError

if TYPE_CHECKING:
    import tinker

T = TypeVar("T")
logger = logging.getLogger(__name__)

_PROBE_SECONDS = 5.0
_MOST_SECONDS = 60.0  # for an answer, where the user sets no limit: nothing here has to wait for other work
_HEALTH, _CAPABILITIES = "/api/v1/healthz", "/api/v1/get_server_capabilities"
_UNKNOWN = (404, 405, 501)


class Server:
    """A server, and what this process knows of it.

    Attributes:
        address: Its URL, without user info.
        is_hosted_service: Whether it is the one that is used where no address is given.
        saved: Paths of the states that this process saved there.
        worker: Where calls of the SDK that block are made.
    """

    def __init__(self, base_url: str | None, limit: float | None = None):
        """
        Args:
            limit: Seconds that an answer is waited for.
        """
        from tinker.lib.base_url import DEFAULT_BASE_URL, resolve_base_url

        self._url = resolve_base_url(base_url)
        self._limit = limit
        self.address = redact(self._url)
        self.is_hosted_service = self._url == DEFAULT_BASE_URL
        self.saved: set[str] = set()
        self.worker = waiting.Worker()
        self._told: set[str] = set()
        self._removals: list[concurrent.futures.Future[bool]] = []
        self._not_removed = ""  # why

    def check_reachable(self) -> None:
        """Raise where nobody listens, within seconds: the SDK would try for five minutes.

        A server that does not know the question, or is slow, is asked another.

        Raises:
            ServiceError: where it cannot be reached, is not ready, or does not answer.
            ConfigError: where its URL is none, or that of something else.
        """
        import httpx

        try:
            status = httpx.get(self._url + _HEALTH, timeout=_PROBE_SECONDS).status_code
            if status in _UNKNOWN:
                status = httpx.get(self._url + _CAPABILITIES, timeout=_PROBE_SECONDS).status_code
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ConfigError(f"base_url={self.address}: not a URL ({error}): give http(s)://HOST[:PORT]") from None
        except (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout):
            self.models()
            return
        except httpx.TransportError as error:
            raise ServiceError(
                f"{self.address}: cannot be reached ({failures.said(error)}): start the server, or mend base_url"
            ) from error
        if status in _UNKNOWN:
            raise ConfigError(f"base_url={self.address}: what answers there is no Tinker server ({status}): mend it")
        if status >= 500:
            raise ServiceError(f"{self.address}: not ready ({status}): try again later")

    def models(self) -> dict[str, int | None] | None:
        """The context length, in tokens, by the name of each model that it has; None where it does not say."""
        try:
            answer = self._ask("its models", lambda rest: rest.get_server_capabilities())
        except ServiceError as error:
            if error.__cause__ and failures.is_unsupported(error.__cause__):
                return None
            raise
        return {model.model_name: model.max_context_length for model in answer.supported_models if model.model_name}

    def renderer_of(self, path: str) -> str | None:
        """The renderer that a saved state was trained with; None where the server does not say."""
        try:
            run = self._ask("a checkpoint's metadata", lambda rest: rest.get_training_run_by_tinker_path(path))
        except ServiceError as error:
            logger.info("the renderer of %s is not known: %s", path, error)
            return None
        return (run.user_metadata or {}).get("renderer_name")

    def rank_of(self, path: str) -> int | None:
        """The rank of the LoRA in a saved state; None where the server does not say."""
        try:
            return self._ask("a checkpoint's rank", lambda rest: rest.get_weights_info_by_tinker_path(path)).lora_rank
        except ServiceError as error:
            logger.info("the rank of %s is not known: %s", path, error)
            return None

    def remove(self, path: str) -> concurrent.futures.Future[bool]:
        """Ask to delete a saved state, without waiting. Where that cannot be done, the next one to be removed or
        :meth:`settle` says so, once: the worker itself says nothing, since it may outlive the run and its log.

        Returns:
            Whether it is gone.
        """
        self._tell_of_removals()
        saved_here = path in self.saved

        def delete() -> bool:
            try:
                self._rest.delete_checkpoint_from_tinker_path(path).result()
            except Exception as error:
                if not failures.is_unsupported(error):
                    self._not_removed = f"checkpoints are not deleted ({failures.said(error)})"
                elif not self._holds(path):
                    return True
                elif saved_here:
                    self._not_removed = "it deletes no checkpoints on request"
                return False
            return True

        removal = self.worker.submit(delete)
        self._removals.append(removal)
        return removal

    def delete(self, path: str) -> str | None:
        """Delete what is saved at ``path``, and wait for it: why it is still there, or None where it is gone.

        Raises:
            ServiceError: where the server cannot be asked.
        """
        import tinker

        try:
            self._ask(f"deleting {path}", lambda rest: rest.delete_checkpoint_from_tinker_path(path))
        except ServiceError as error:
            answer = error.__cause__
            if answer is None or isinstance(answer, (tinker.APIConnectionError, TimeoutError)):
                raise
            if failures.is_unsupported(answer):
                holds = self.worker.submit(lambda: self._holds(path))
                if waiting.wait(holds, "its checkpoints", self.address):
                    return "it deletes no checkpoints on request"
            elif not failures.is_gone(answer):
                return failures.said(answer)
        return None

    def file_urls(self, path: str) -> dict[str, str]:
        """Where each file of a copy that :meth:`ServiceTrainingClient.save_weights_external` made can be fetched, by
        its name. The addresses are secrets: who has one needs no key.

        Raises:
            ServiceError: where it does not say.
        """
        return self._ask("where its files are", lambda rest: rest.get_external_weights_urls(path)).urls

    async def settle(self, lasting: Iterable[str]) -> None:
        """Let the states at these paths never expire, and wait until that and what was asked before is done."""

        def keep(path: str) -> str | None:
            try:
                self._rest.set_checkpoint_ttl_from_tinker_path(path, None).result()
            except Exception as error:
                unsupported = failures.is_unsupported(error)
                reason = (
                    "it changes no expiry times" if unsupported else f"no expiry time removed: {failures.said(error)}"
                )
                return f"{reason}: the best and the final checkpoint may expire (ttl_seconds=0: none does)"

        kept = [self.worker.submit(functools.partial(keep, path)) for path in lasting]
        try:
            for removal in self._removals:  # the worker takes one after another
                await waiting.answer(removal, self._limit)
            for expiry in kept:
                self.tell_once("expiry", await waiting.answer(expiry, self._limit))
        except TimeoutError:
            words = "no answer: checkpoints that are not kept may stay there, and those that are may expire"
            self.tell_once("settling", words)
        self._removals.clear()
        self._tell_of_removals()

    @functools.cached_property
    def _rest(self) -> tinker.RestClient:
        import tinker

        client = tinker.RestClient(base_url=self._url)
        waiting.end_at_exit(client.holder.get_loop())
        return client

    def _holds(self, path: str) -> bool:
        """Whether it lists a checkpoint, as a 404 may also be of what is gone; one that lists none is taken to hold it.
        Asked where calls may block."""
        run_id = path.partition("://")[2].partition("/")[0]
        try:
            answer = self._rest.list_checkpoints(run_id).result()
        except Exception as error:
            logger.info("whether %s is there is not known: %s", path, failures.said(error))
            return True
        return any(checkpoint.tinker_path == path for checkpoint in answer.checkpoints)

    def _ask(self, doing: str, request: Callable[[Any], Any]) -> Any:
        future = self.worker.submit(lambda: request(self._rest).result())
        with failures.in_plain_words(doing, self.address):
            try:
                return waiting.wait(future, doing, self.address, self._limit or _MOST_SECONDS)
            except TimeoutError as error:
                if self._limit:
                    raise
                raise ServiceError(
                    f"{self.address}: {doing}: no answer within {_MOST_SECONDS:.0f} s: try again later, or give "
                    "backend.timeout_seconds to wait longer"
                ) from error

    def _tell_of_removals(self) -> None:
        if self._not_removed:
            self.tell_once("removal", f"{self._not_removed}: those that are not kept stay there")

    def tell_once(self, topic: str, words: str | None) -> None:
        """Warn of ``words``, unless something was said on ``topic`` before."""
        if words and topic not in self._told:
            self._told.add(topic)
            logger.warning("%s: %s", self.address, words)
