"""Fakes shared by the tests: a backend whose model is real but tiny, data and a tokenizer of bytes.

``FakeBackend`` trains the logits of a unigram model with Adam, in NumPy. Its client keeps a queue and works it off when
an answer is asked for, in the order of submission: what the loop submits where is what it gets.
"""

import asyncio
import json
import shutil
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import chz
import numpy as np

from harness.backends.base import Backend
from harness.exceptions import CheckpointDamagedError
from harness.supervised.data import SupervisedDatasetFromRows
from harness.supervised.types import SupervisedDatasetBuilder

VOCABULARY = 256
END = 3  # the one special token: ends every example


class Died(BaseException):
    """Stands for SIGKILL: nothing in the package may catch it and go on."""


class FakeTokenizer:
    name_or_path = "bytes"
    all_special_ids: ClassVar[list[int]] = [END]

    def decode(self, tokens: list[int]) -> str:
        return bytes(tokens).decode("latin-1")


class FakeFuture:
    def __init__(self, client: Any):
        self._client = client
        self.value: Any = None
        self.done = False

    def result(self, timeout: float | None = None) -> Any:
        while not self.done:
            self._client.work()
        return self.value

    async def result_async(self, timeout: float | None = None) -> Any:
        await asyncio.sleep(0)
        return self.result()

    def __await__(self) -> Any:
        return self.result_async().__await__()


class _Saved:
    def __init__(self, path: str):
        self.path = path


class FakeClient:
    """A unigram model: logits of shape (256,), their gradient, Adam's moments."""

    def __init__(self, folder: Path, seed: int, die_after: int | None, noise: float = 0.0):
        self.logits = np.random.default_rng(seed).normal(0, 0.01, VOCABULARY)
        self.gradient = np.zeros(VOCABULARY)
        self.moments = np.zeros((2, VOCABULARY))
        self.num_updates = 0
        self.worked: list[str] = []  # the requests in the order in which they were worked off
        self._folder = folder
        self._queue: deque[tuple[FakeFuture, str, Callable[[], Any]]] = deque()
        self._die_after = die_after
        self._noise = lambda size: noise * np.random.default_rng().normal(size=size) if noise else 0.0

    def work(self) -> None:
        if self._die_after is not None and len(self.worked) >= self._die_after:
            raise Died
        future, name, request = self._queue.popleft()
        with np.errstate(all="ignore"):  # what is not finite shows in the answer
            future.value = request()
        future.done = True
        self.worked.append(name)

    def forward(self, data: list[Any], loss_fn: Any) -> FakeFuture:
        return self._submit("forward", lambda: self._score(data))

    def forward_backward(self, data: list[Any], loss_fn: Any) -> FakeFuture:
        def request() -> Any:
            output = self._score(data)
            probabilities = np.exp(self.logits - np.logaddexp.reduce(self.logits))
            for datum in data:
                targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
                weights = datum.loss_fn_inputs["weights"].to_numpy().astype(np.float64)
                np.add.at(self.gradient, targets, -weights)
                self.gradient += weights.sum() * probabilities
            return output

        return self._submit("forward_backward", request)

    def optim_step(self, adam_params: Any) -> FakeFuture:
        def request() -> None:
            self.num_updates += 1
            for i, (beta, power) in enumerate(((adam_params.beta1, 1), (adam_params.beta2, 2))):
                self.moments[i] = beta * self.moments[i] + (1 - beta) * self.gradient**power
            mean = self.moments[0] / (1 - adam_params.beta1**self.num_updates)
            square = self.moments[1] / (1 - adam_params.beta2**self.num_updates)
            self.logits = self.logits - adam_params.learning_rate * mean / (np.sqrt(square) + adam_params.eps)
            self.gradient = np.zeros(VOCABULARY)

        return self._submit("optim_step", request)

    def save_state(self, name: str) -> FakeFuture:
        def request() -> _Saved:
            folder = self._folder / "checkpoints" / name
            folder.mkdir(parents=True, exist_ok=True)
            state = {"logits": self.logits.tolist(), "moments": self.moments.tolist(), "updates": self.num_updates}
            (folder / "state.json").write_text(json.dumps(state))
            return _Saved(f"checkpoints/{name}")

        return self._submit(f"save_state {name}", request)

    def save_weights_for_sampler(self, name: str) -> FakeFuture:
        return self._submit("save_weights_for_sampler", lambda: _Saved(f"checkpoints/{name}"))

    def save_weights_and_get_sampling_client(self) -> FakeFuture:
        return self._submit("save_weights_and_get_sampling_client", lambda: FakeSamplingClient(self.logits.copy()))

    async def forward_async(self, data: list[Any], loss_fn: Any) -> FakeFuture:
        return self.forward(data, loss_fn)

    def load(self, folder: Path, *, with_optimizer: bool) -> None:
        try:
            state = json.loads((folder / "state.json").read_text())
        except (OSError, ValueError) as error:
            raise CheckpointDamagedError(f"{folder}: damaged ({error})") from None
        self.logits = np.array(state["logits"])
        if with_optimizer:
            self.moments, self.num_updates = np.array(state["moments"]), state["updates"]

    def _submit(self, name: str, request: Callable[[], Any]) -> FakeFuture:
        future = FakeFuture(self)
        self._queue.append((future, name, request))
        return future

    def _score(self, data: list[Any]) -> Any:
        import tinker

        logprobs = self.logits - np.logaddexp.reduce(self.logits)
        targets = [datum.loss_fn_inputs["target_tokens"].to_numpy() for datum in data]
        outputs = [
            {"logprobs": tinker.TensorData.from_numpy(logprobs[tokens] + self._noise(len(tokens)))}
            for tokens in targets
        ]
        return tinker.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord", loss_fn_outputs=outputs)


class FakeSamplingClient:
    """Gives the likeliest tokens, one after the other; its answers are there at once."""

    def __init__(self, logits: np.ndarray):
        self.logits = logits

    def sample(self, prompt: Any, num_samples: int, sampling_params: Any) -> FakeFuture:
        import tinker

        tokens = np.argsort(-self.logits)[: sampling_params.max_tokens].astype(np.int32)
        sequence = tinker.SampledSequence(stop_reason="length", sequence_id="", tokens_np=tokens)
        return answered(tinker.SampleResponse(sequences=[sequence] * num_samples))

    async def sample_async(self, prompt: Any, num_samples: int, sampling_params: Any) -> Any:
        return await self.sample(prompt, num_samples, sampling_params)


def answered(value: Any) -> FakeFuture:
    """The answer to a request, which is there."""
    answer = FakeFuture(None)
    answer.value, answer.done = value, True
    return answer


@chz.chz
class FakeBackend(Backend):
    """``die_after``: the process dies (see Died) once the client has worked off so many requests. ``noise``: the
    deviation of its log-probabilities, which nobody told the trainer. ``cut`` changes rounding alone, as one says."""

    name: ClassVar[str] = "fake"
    samples_from_a_copy: ClassVar[bool] = True
    clients: ClassVar[list[FakeClient]] = []  # every client made, the newest last

    die_after: int | None = chz.field(default=None, metadata={"place": True})
    noise: float = chz.field(default=0.0, metadata={"place": True})
    forget_optimizer: bool = chz.field(default=False, metadata={"place": True})
    cut: int = chz.field(default=4, metadata={"tunable": True})

    def check(self, model_name: str) -> None:
        pass

    def numerics(self) -> dict[str, Any]:
        return {"dtype": "float64", "cut": self.cut}

    def tolerance(self, numerics: dict[str, Any]) -> float | None:
        return None if self.noise else 0.0

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
    ) -> FakeClient:
        client = FakeClient(run_path, seed, self.die_after, self.noise)
        if state_path:
            client.load(run_path / state_path, with_optimizer=not self.forget_optimizer)
        elif weights_path:
            client.load(Path(weights_path), with_optimizer=False)
        self.clients.append(client)
        return client

    def close(self, client: Any) -> None:
        pass

    def checkpoint_path(self, run_path: Path, state_path: str) -> str:
        return str(run_path / state_path)

    def copy_checkpoint(self, from_run: Path, to_run: Path, state_path: str) -> None:
        shutil.copytree(from_run / state_path, to_run / state_path)

    def remove_checkpoint(self, run_path: Path, state_path: str) -> None:
        shutil.rmtree(run_path / state_path, ignore_errors=True)


def byte_datum(text: str, *, loss: bool = True, num_truncated: int = 0, end_cut_off: bool = False) -> Any:
    """``text`` and END as a datum: all but the first byte are targets."""
    import tinker

    from harness.supervised.datum import ConversationDatum

    tokens = [*text.encode("latin-1"), END]
    return ConversationDatum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData.from_numpy(np.array(tokens[1:], dtype=np.int64)),
            "weights": tinker.TensorData.from_numpy(np.full(len(tokens) - 1, float(loss), dtype=np.float32)),
        },
        num_truncated=num_truncated,
        end_cut_off=end_cut_off,
    )


WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu")


@chz.chz
class WordsBuilder(SupervisedDatasetBuilder):
    """``num_train`` and ``num_test`` examples made of Greek letters' names."""

    num_train: int = 23
    num_test: int = 5
    batch_size: int = 4
    named_test_sets: bool = False
    without_loss: tuple[int, ...] = ()

    @property
    def tokenizer(self) -> FakeTokenizer:
        return FakeTokenizer()

    def __call__(self) -> tuple[Any, Any]:
        rows = [{"text": f"{WORDS[i % 13]} {WORDS[i * 5 % 13]}", "loss": i not in self.without_loss} for i in range(60)]

        def map_fn(row: dict[str, Any]) -> Any:
            return byte_datum(row["text"], loss=row["loss"])

        def dataset(first: int, last: int) -> SupervisedDatasetFromRows:
            return SupervisedDatasetFromRows(rows[first:last], self.batch_size, map_fn)

        train = dataset(0, self.num_train)
        if not self.num_test:
            return train, None
        test = dataset(60 - self.num_test, 60)
        return train, {"first": test, "second": dataset(55, 60)} if self.named_test_sets else test
