"""A LoRA that a server holds, as PEFT's files on this machine."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.backends.tinker_service import failures
from harness.exceptions import ServiceError

if TYPE_CHECKING:
    from harness.backends.tinker_service.client import ServiceTrainingClient
    from harness.backends.tinker_service.server import Server

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TIMEOUT_SECONDS = 60.0  # without a byte
_A, _B = ".lora_A.weight", ".lora_B.weight"  # (rank, in) and (out, rank)
_PREFIX = "base_model.model."  # PEFT's, of every tensor's name


def adapter(server: Server, client: ServiceTrainingClient, to: Path) -> None:
    """Fetch the weights of ``client`` to the folder ``to``: two files, whatever else there is.

    Raises:
        ServiceError: where the server gives out none, or none of a PEFT adapter.
        OSError: where they cannot be written.
    """
    try:
        copy = client.save_weights_external("export").result().path
    except ServiceError as error:
        if error.__cause__ and failures.is_unsupported(error.__cause__):
            raise ServiceError(
                f"{server.address}: it gives out no weights ({failures.said(error.__cause__)}): use them there"
            ) from error
        raise
    try:
        urls = server.file_urls(copy)
        missing = [name for name in (_CONFIG, _WEIGHTS) if name not in urls]
        if missing:
            there = ", ".join(sorted(urls)) or "nothing"
            raise ServiceError(
                f"{server.address}: what it gives out is no PEFT adapter: there is {there}, and no {missing[0]}"
            )
        for name in (_CONFIG, _WEIGHTS):
            _fetch(urls[name], to / name, server.address)
    finally:
        with contextlib.suppress(ServiceError):  # it expires by itself
            server.delete(copy)
    _complete(to, server.address)


def _fetch(url: str, to: Path, address: str) -> None:
    import httpx

    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=_TIMEOUT_SECONDS) as answer, to.open("wb") as file:
            answer.raise_for_status()
            for chunk in answer.iter_bytes():
                file.write(chunk)
    except httpx.HTTPStatusError as error:  # its own words hold the address, which is a secret
        raise ServiceError(
            f"{address}: {to.name} cannot be fetched ({error.response.status_code}): try again"
        ) from None
    except httpx.HTTPError as error:
        raise ServiceError(f"{address}: {to.name} cannot be fetched ({type(error).__name__}): try again") from None


def _complete(folder: Path, address: str) -> None:
    """Let adapter_config.json name the layers that the adapter has: without them PEFT loads those that it thinks usual,
    and leaves the others out. Nor does it take a LoRA on embeddings under the names of a linear layer's."""
    import safetensors

    try:
        config: dict[str, Any] = json.loads((folder / _CONFIG).read_bytes())
        with safetensors.safe_open(folder / _WEIGHTS, "np") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  # no mapping
    except (ValueError, safetensors.SafetensorError) as error:
        raise ServiceError(f"{address}: what it gives out is no PEFT adapter ({error})") from None
    for name, shape in shapes.items():
        if name.endswith(_A) and shapes.get(name.replace(_A, _B), (0, 0))[1] != shape[0]:
            raise ServiceError(
                f"{address}: {name} is not as PEFT has it: a run with backend.train_unembed=false has no LoRA there"
            )
    layers = {name.partition(".lora_")[0].removeprefix(_PREFIX) for name in shapes}
    config |= {"task_type": "CAUSAL_LM", "target_modules": config.get("target_modules") or sorted(layers)}
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
