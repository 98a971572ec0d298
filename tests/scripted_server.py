"""A Tinker server on 127.0.0.1 that speaks just enough of the wire to train, and fails as a test tells it to.

Its model is a number: the log-probability of every token is a function of the updates made. So a resume that lost one
shows, and nothing has to be learned.
"""

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

PROTOBUF = "application/x-protobuf"
TRY_AGAIN = (200, {"type": "try_again", "request_id": "?", "queue_state": "active"})
HTML = (200, "<html>a hotel's login page</html>")

Answer = tuple[int, Any]  # status; JSON, or text as it is, or the bytes of a protobuf


@dataclass
class _Scripted:
    answer: Answer
    left: int
    when: Callable[[Any], bool]
    then: Callable[[], None]


@dataclass
class _Model:
    num_updates: int = 0
    pending: int = 0  # gradients since the last update


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # connections of a burst that are left out are tried again after a minute


class ScriptedServer:
    """The server's side of a test.

    Attributes:
        url: Its base_url.
        requests: What was asked, in order: the part of the path after ``/api/v1/``, ids left out, and the JSON.
        states: Saved states: the updates in each, by path.
        models: The names of those that it has.
        headers: Those of every request.
        files: What it gives out of a state, by name; where there is none it does not know such a request.
        outputs: The name of the log-probabilities in an answer, and how many there are for examples of such lengths.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.states: dict[str, int] = {}
        self.models = ["unigram", "unigram-large"]
        self.files: dict[str, bytes] = {}
        self.metadata: dict[str, str] = {}  # of the newest training run
        self.outputs: Callable[[list[int]], tuple[str, list[int]]] = lambda lengths: ("logprobs", lengths)
        self._script: dict[str, _Scripted] = {}
        self._models: dict[str, _Model] = {}
        self._samplers: dict[str, int] = {}  # the updates in the weights of each sampling session
        self._futures: dict[str, tuple[str, Answer]] = {}
        self._lock = threading.Lock()
        self._server = _Listener(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def fail(
        self,
        route: str,
        answer: Answer,
        *,
        after: int = 0,
        when: Callable[[Any], bool] = lambda asked: True,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Give ``answer`` to the requests of ``route`` that follow the first ``after``.

        Args:
            route: As in ``requests``; the future of a request is ``"future of <route>"``.
            when: Which requests, by their JSON or protobuf.
            then: Called before each such answer.
        """
        self._script[route] = _Scripted(answer, after, when, then)

    def mend(self, route: str) -> None:
        """Answer as it should again."""
        del self._script[route]

    def asked(self, route: str) -> list[Any]:
        """The JSON of every request of ``route``."""
        return [body for asked, body in self.requests if asked == route]

    # ---- the wire

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # an answer in one packet: in two, each waits for the other's acknowledgement

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                scripted.headers.append({key.lower(): value for key, value in self.headers.items()})
                status, answer = scripted._answer(self.command, self.path.partition("?")[0], body)
                kind = PROTOBUF if isinstance(answer, bytes) else "application/json"
                if isinstance(answer, str):
                    kind = "text/html"
                data = answer if isinstance(answer, bytes) else str(answer).encode()
                if kind == "application/json":
                    data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(data)))
                if self.path.endswith("client/config"):  # the SDK forgets to close it; its loop would then be deaf to
                    self.send_header("connection", "close")  # a later socket of the same number
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = handle_one

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler

    def _answer(self, method: str, path: str, body: bytes) -> Answer:
        path = path.removeprefix("/api/v1").removeprefix("/")
        route = re.sub(r"(sessions|samplers|training_runs)/[^/]+", r"\1", path)
        if method in ("PUT", "DELETE"):
            route = f"{method} {route}"
        is_json = body[:1] == b"{"
        asked: Any = json.loads(body) if is_json else body
        promised = None
        if route == "retrieve_future":
            of, promised = self._futures[asked["request_id"]]
            route = f"future of {of}"
        with self._lock:
            self.requests.append((route, asked if is_json else path))
            return self._scripted(route, asked) or promised or self._served(route, asked)

    def _scripted(self, route: str, asked: Any) -> Answer | None:
        scripted = self._script.get(route)
        if scripted is None or not scripted.when(asked):
            return None
        scripted.left -= 1
        if scripted.left >= 0:
            return None
        scripted.then()
        if scripted.answer is TRY_AGAIN:
            time.sleep(0.05)  # as a server holds such a request for a while
        return scripted.answer

    def _served(self, route: str, asked: Any) -> Answer:
        match route:
            case "healthz":
                return 200, {"status": "ok"}
            case "client/config":
                return 200, {}
            case "create_session":
                return 200, {"session_id": f"session-{len(self.asked(route))}", "type": "create_session"}
            case "session_heartbeat" | "sessions/finish":
                return 200, {"type": "session_heartbeat"}
            case "get_server_capabilities":
                return 200, {"supported_models": [{"model_name": name} for name in self.models]}
            case "get_info":
                data = {"model_name": "unigram", "arch": "unigram", "tokenizer_id": "bytes"}
                return 200, {"model_data": data, "model_id": asked["model_id"], "is_lora": True, "lora_rank": 32}
            case "training_runs":
                return 200, {
                    "training_run_id": "a", "base_model": "unigram", "model_owner": "me", "is_lora": True,
                    "last_request_time": "2026-01-01T00:00:00Z", "user_metadata": self.metadata,
                }  # fmt: skip
            case "create_model" | "load_weights":
                return self._make_model(route, asked)
            case "forward_backward":
                return self._promise(route, (200, self._forward_backward(asked)))
            case "optim_step":
                model = self._models[asked["model_id"]]
                model.num_updates += bool(model.pending)
                model.pending = 0
                return self._promise(route, (200, {"metrics": {}}))
            case "save_weights_external" if self.files:
                path = f"tinker://{asked['model_id']}/external_weights/{asked['path']}"
                return self._promise(route, (200, {"path": path, "type": route}))
            case "training_runs/checkpoints/external_weights/export/external_weights_urls":
                urls = {name: f"{self.url}/files/{name}" for name in self.files}
                return 200, {"urls": urls, "expires": "2099-01-01T00:00:00Z"}
            case "save_weights_for_sampler" if asked.get("path") is None:
                session = self._sampler(self._models[asked["model_id"]].num_updates)
                return self._promise(route, (200, {"sampling_session_id": session, "type": route}))
            case "create_sampling_session":
                path = asked.get("model_path")
                if path is not None and path not in self.states:
                    return 404, {"detail": "no checkpoint at that path"}
                num_updates = 0 if path is None else self.states[path]
                return 200, {"sampling_session_id": self._sampler(num_updates), "type": route}
            case "samplers":
                return 200, {"sampler_id": "sampler", "base_model": "unigram", "model_path": None}
            case "asample":
                status, promised = self._promise(route, (200, self._sample(asked)))
                return status, promised | {"sample_sequence_ids": [str(i) for i in range(asked["num_samples"])]}
            case "save_weights" | "save_weights_for_sampler":
                kind = "weights" if route == "save_weights" else "sampler_weights"
                path = f"tinker://{asked['model_id']}/{kind}/{asked['path']}"
                self.states[path] = self._models[asked["model_id"]].num_updates
                return self._promise(route, (200, {"path": path, "type": route}))
        if route.startswith("files/"):
            return 200, self.files[route.removeprefix("files/")]
        return 404, {"detail": "Not Found"}

    def _make_model(self, route: str, asked: Any) -> Answer:
        model_id = f"{asked['session_id']}:train:{asked['model_seq_id']}"
        if route == "create_model" and asked["base_model"] not in self.models:
            return 400, {"detail": f"unknown base model {asked['base_model']}"}
        if route == "load_weights" and asked["path"] not in self.states:
            return 404, {"detail": "no checkpoint at that path"}
        self._models[model_id] = _Model(self.states[asked["path"]] if route == "load_weights" else 0)
        self.metadata = asked.get("user_metadata") or {}
        return self._promise(route, (200, {"model_id": model_id, "type": route, "path": asked.get("path")}))

    def _sampler(self, num_updates: int) -> str:
        session = f"sampler-{len(self._samplers)}"
        self._samplers[session] = num_updates
        return session

    def _sample(self, asked: Any) -> bytes:
        """The number of updates that the weights have seen, as each token."""
        from tinker.proto import tinker_public_pb2 as pb

        response = pb.SampleResponse()
        tokens = [self._samplers[asked["sampling_session_id"]]] * asked["sampling_params"]["max_tokens"]
        for _ in range(asked["num_samples"]):
            sequence = response.sequences.add()
            sequence.stop_reason = pb.STOP_REASON_LENGTH
            sequence.tokens = np.asarray(tokens, np.int32).tobytes()
        return response.SerializeToString()

    def _promise(self, route: str, answer: Answer) -> Answer:
        request_id = str(len(self._futures))
        self._futures[request_id] = route, answer
        return 200, {"request_id": request_id, "model_id": None}

    def _forward_backward(self, asked: bytes) -> bytes:
        from tinker.proto import tinker_public_pb2 as pb

        request = pb.ForwardBackwardRequest()
        request.ParseFromString(asked)
        model = self._models[request.model_id]
        model.pending += not request.forward_only
        logprob = -math.log(256) / (1 + model.num_updates / 10)
        asked_for = [len(datum.loss_fn_inputs["target_tokens"].dense) // 8 for datum in request.data]
        name, lengths = self.outputs(asked_for)
        output = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
        record = output.loss_fn_outputs.add()
        record.type_tag, record.num_datums = "ArrayRecord", len(lengths)
        field = record.fields[name]
        field.dtype = pb.DTYPE_FLOAT32
        field.data = np.full(sum(lengths), logprob, np.float32).tobytes()
        field.offsets = np.cumsum([0, *(4 * length for length in lengths)]).astype(np.int64).tobytes()
        return output.SerializeToString()


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    thread = threading.Thread(target=server._server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server._server.shutdown()
        server._server.server_close()
