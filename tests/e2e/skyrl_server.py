"""A real Tinker server on this machine: SkyRL's (PyPI ``skyrl`` 0.3.0, JAX on the processor), for today's SDK.

    python skyrl_server.py --base-model FOLDER --port N --checkpoints-base FOLDER --database-url sqlite:///FILE
        --backend jax --backend-config JSON

Run it with the Python that has skyrl; nothing of this project is needed. Training, losses, optimiser and checkpoints
are SkyRL's own. What is done here: its engine is started without ``uv``; a TypedDict that pydantic refuses on Python
3.11 is that of typing_extensions; and the wire is translated. SkyRL 0.3.0 speaks JSON where the SDK speaks protobuf,
and makes a model before it loads a checkpoint into it, where the SDK asks for both at once. It gives out weights for
sampling as an archive, where the SDK asks for the address of each file of a copy.

It always loads the optimiser with the weights, knows neither expiry nor deletion of checkpoints, and compiles anew for
every padded length.
"""

import typing

import typing_extensions

typing.TypedDict = typing_extensions.TypedDict  # pyright: ignore  # before skyrl is imported

import argparse  # noqa: E402
import asyncio  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import re  # noqa: E402
import sys  # noqa: E402
import tarfile  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import skyrl.tinker.api as api  # noqa: E402  # pyright: ignore
import uvicorn  # noqa: E402
from skyrl.tinker.config import config_to_argv  # noqa: E402  # pyright: ignore
from tinker.proto import tinker_public_pb2 as pb  # noqa: E402

ROOT = "/api/v1/"
COPY = re.compile(
    rf"({ROOT}training_runs/[^/]+/checkpoints)/external_weights/([^/]+)/(external_weights_urls|files/(.+))"
)
PROTOBUF = b"application/x-protobuf"
NUMPY_TYPES = {pb.DTYPE_FLOAT32: np.float32, pb.DTYPE_INT64: np.int64}
STOP_REASONS = {"stop": pb.STOP_REASON_STOP, "length": pb.STOP_REASON_LENGTH}
START_ENGINE = (
    "import typing, typing_extensions, runpy; typing.TypedDict = typing_extensions.TypedDict; "
    "runpy.run_module('skyrl.tinker.engine', run_name='__main__')"
)

# ---- protobuf to JSON and back


def request_to_json(body: bytes) -> tuple[bool, dict[str, Any]]:
    """A request for ``forward_backward`` as SkyRL reads it, and whether it is for a forward pass alone."""
    request = pb.ForwardBackwardRequest()
    request.ParseFromString(body)
    data = []
    for datum in request.data:
        tokens = [np.frombuffer(chunk.encoded_text.tokens, np.int32).tolist() for chunk in datum.model_input]
        chunks = [{"type": "encoded_text", "tokens": chunk} for chunk in tokens]
        inputs = {key: {"data": dense(tensor)} for key, tensor in datum.loss_fn_inputs.items()}
        data.append({"model_input": {"chunks": chunks}, "loss_fn_inputs": inputs})
    asked = {"data": data, "loss_fn": request.loss_fn, "loss_fn_config": dict(request.loss_fn_config) or None}
    key = "forward_input" if request.forward_only else "forward_backward_input"
    return request.forward_only, {"model_id": request.model_id, key: asked}


def dense(tensor: Any) -> list[Any]:
    if tensor.WhichOneof("encoding") != "dense":
        raise ValueError("sparse loss_fn_inputs are not supported")
    return np.frombuffer(tensor.dense, NUMPY_TYPES[tensor.dtype]).tolist()


def result_to_protobuf(result: dict[str, Any]) -> bytes | None:
    """The answer to ``forward_backward`` or ``asample`` as the SDK reads it; None for any other."""
    if "loss_fn_outputs" in result:
        return losses_to_protobuf(result)
    return samples_to_protobuf(result) if "sequences" in result else None


def losses_to_protobuf(result: dict[str, Any]) -> bytes:
    kind, outputs = result["loss_fn_output_type"], result["loss_fn_outputs"]
    message = pb.ForwardBackwardOutput(loss_fn_output_type=kind, metrics=result.get("metrics") or {})
    if outputs:
        record = message.loss_fn_outputs.add()
        record.type_tag, record.num_datums = kind, len(outputs)
        for key, first in outputs[0].items():
            is_float = first["dtype"] == "float32"
            arrays = [np.asarray(output[key]["data"], np.float32 if is_float else np.int64) for output in outputs]
            field = record.fields[key]
            field.dtype = pb.DTYPE_FLOAT32 if is_float else pb.DTYPE_INT64
            field.data = np.concatenate(arrays).tobytes()
            field.offsets = np.cumsum([0, *(array.nbytes for array in arrays)]).astype(np.int64).tobytes()
    return message.SerializeToString()


def samples_to_protobuf(result: dict[str, Any]) -> bytes:
    message = pb.SampleResponse()
    for sampled in result["sequences"]:
        sequence = message.sequences.add()
        sequence.stop_reason = STOP_REASONS[sampled["stop_reason"]]
        sequence.tokens = np.asarray(sampled["tokens"], np.int32).tobytes()
        if sampled.get("logprobs") is not None:
            sequence.logprobs = np.asarray(sampled["logprobs"], np.float32).tobytes()
    if result.get("prompt_logprobs") is not None:
        logprobs = [np.nan if value is None else value for value in result["prompt_logprobs"]]
        message.prompt_logprobs = np.asarray(logprobs, np.float32).tobytes()
    return message.SerializeToString()


# ---- the translation, around SkyRL's application


class Translated:
    """SkyRL's application as the SDK speaks to it.

    The SDK names a model that it loads from a checkpoint by itself; SkyRL names it otherwise. ``names`` is kept in a
    file, so that a server that is started again knows them.
    """

    def __init__(self, app: Any, names: Path):
        self._app = app
        self._file = names
        self._names: dict[str, str] = json.loads(names.read_text()) if names.exists() else {}
        self._copies: set[str] = set()  # the requests for them

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "GET" and (asked := COPY.fullmatch(scope["path"])):
            await respond(send, *await self._of_copy(scope, *asked.groups()))
            return
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith(ROOT):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        status, answer = await self._answer(scope, headers, body)
        kind = b"application/json"
        if status == 200 and scope["path"].endswith("retrieve_future") and PROTOBUF in headers.get(b"accept", b""):
            encoded = result_to_protobuf(json.loads(answer))
            if encoded is not None:
                answer, kind = encoded, PROTOBUF
        await respond(send, status, answer, kind)

    async def _answer(self, scope: Any, headers: dict[bytes, bytes], body: bytes) -> tuple[int, bytes]:
        route = scope["path"].removeprefix(ROOT)
        try:
            if headers.get(b"content-type", b"").startswith(PROTOBUF):
                forward_only, asked = request_to_json(body)
                route = "forward" if forward_only else route
            else:
                asked = json.loads(body)
        except ValueError as error:
            return 422, json.dumps({"detail": f"bad request body: {error}"}).encode()
        if asked.get("model_id") in self._names:
            asked["model_id"] = self._names[asked["model_id"]]
        if route == "load_weights" and asked.get("session_id"):
            return await self._load(scope, asked)
        if route == "save_weights_external":
            like = {"model_id": asked["model_id"], "path": asked["path"], "type": "save_weights_for_sampler"}
            status, answer = await self._call(scope, "save_weights_for_sampler", like)
            self._copies.add(json.loads(answer)["request_id"])
            return status, answer
        status, answer = await self._call(scope, route, asked)
        if route == "retrieve_future" and asked["request_id"] in self._copies and b'"path"' in answer:
            model, _, name = json.loads(answer)["path"].rpartition("/")
            answer = json.dumps({"path": f"{model}/external_weights/{name}", "type": "save_weights_external"}).encode()
        if status == 200 and route == "asample":
            taken = json.loads(answer)
            ids = [f"{taken['request_id']}-{i}" for i in range(asked.get("num_samples", 1))]
            answer = json.dumps({**taken, "sample_sequence_ids": ids}).encode()
        return status, answer

    async def _load(self, scope: Any, asked: dict[str, Any]) -> tuple[int, bytes]:
        """Make a model like the checkpoint's, and load it."""
        status, answer = await self._call(scope, "weights_info", {"tinker_path": asked["path"]})
        if status != 200:
            return status, answer
        info = json.loads(answer)
        like = {"base_model": info["base_model"], "lora_config": {"rank": info["lora_rank"]}}
        status, answer = await self._call(scope, "create_model", {"session_id": asked["session_id"], **like})
        if status != 200:
            return status, answer
        model_id = json.loads(answer)["model_id"]
        self._names[f"{asked['session_id']}:train:{asked['model_seq_id']}"] = model_id
        self._file.write_text(json.dumps(self._names))
        load = {"model_id": model_id, "path": asked["path"], "type": "load_weights"}
        return await self._call(scope, "load_weights", load)

    async def _of_copy(self, scope: Any, folder: str, name: str, what: str, file: str | None) -> tuple[int, bytes]:
        """Where the files of a copy are, or one of them."""
        status, archive = await self._call(scope, f"{folder.removeprefix(ROOT)}/{name}/download", None)
        if status != 200:
            return status, archive
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            if file:
                return 200, tar.extractfile(file).read()  # pyright: ignore[reportOptionalMemberAccess]
            names = [member.name for member in tar if member.isfile()]
        here = f"http://{dict(scope['headers'])[b'host'].decode()}{folder}/external_weights/{name}/files/"
        document = {"urls": {name: here + name for name in names}, "expires": "2099-01-01T00:00:00Z"}
        return 200, json.dumps(document).encode()

    async def _call(self, scope: Any, route: str, asked: dict[str, Any] | None) -> tuple[int, bytes]:
        """SkyRL's answer to a POST of ``asked``, or to a GET."""
        body = b"" if asked is None else json.dumps(asked).encode()
        dropped = (b"content-length", b"content-type", b"content-encoding", b"accept")
        headers = [(key, value) for key, value in scope["headers"] if key not in dropped]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        status, answer, messages = 0, b"", [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if not messages and asked is None:  # what is streamed ends where the one who asked is gone
                await asyncio.Event().wait()
            return messages.pop() if messages else {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            nonlocal status, answer
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                answer += message.get("body", b"")

        path = ROOT + route
        method = "GET" if asked is None else "POST"
        there = {"path": path, "raw_path": path.encode(), "headers": headers, "method": method}
        await self._app({**scope, **there}, receive, send)
        return status, answer


async def respond(send: Any, status: int, answer: bytes, kind: bytes = b"application/json") -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


def main() -> None:
    parser = argparse.ArgumentParser()
    api.add_model(parser, api.EngineConfig)
    parser.add_argument("--port", type=int, required=True)
    arguments = vars(parser.parse_args())
    fields = {key: value for key, value in arguments.items() if key in api.EngineConfig.model_fields}
    api._build_uv_run_cmd_engine = lambda _, config: [sys.executable, "-c", START_ENGINE, *config_to_argv(config)]
    api.app.state.engine_config = api.EngineConfig.model_validate(fields)
    names = Path(arguments["checkpoints_base"], "names.json")
    names.parent.mkdir(parents=True, exist_ok=True)
    api.app.add_middleware(Translated, names=names)
    uvicorn.run(api.app, host="127.0.0.1", port=arguments["port"], log_config=api.get_uvicorn_log_config())


if __name__ == "__main__":
    main()
