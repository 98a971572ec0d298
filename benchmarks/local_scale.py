"""What must not grow with the data: the local engine's cost of a token, and its memory; peaks of whole processes.

    python -m benchmarks.local_scale

- A token's cost in one epoch of 10 to 10,000 conversations, by the recipe: processor seconds of whole processes,
  start-up taken out by difference. A tiny model is trained, so that all that is not the model shows.
- The peak memory of an evaluation of 100 and of 1,000 chitchat conversations with SmolLM2.
- The peak memory of an update on one conversation of 2,048 tokens with SmolLM2, its layers' results kept and computed
  again.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tinker

from benchmarks.local_engine import LORA_RANK, MODEL, conversations, to_datum
from harness.backends.local.backend import LocalBackend
from harness.backends.local.client import LocalTrainingClient
from harness.metric_keys import NUM_TOKENS
from harness.run_dir import RunDir
from tests.offline import write_conversations
from tests.tiny_model import make_tiny_model

CONVERSATIONS = (10, 100, 1_000, 10_000)
TESTED = (100, 1_000)
LONG = 2_048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        name, number = arguments.worker
        WORKERS[name](int(number))
        print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny_model(Path(folder) / "tiny")
        _train(model, CONVERSATIONS[0])  # the first process fills the machine's caches
        measured = [_train(model, number) for number in CONVERSATIONS]
    costs = [(more[1] - less[1]) / (more[0] - less[0]) for less, more in itertools.pairwise(measured)]
    for number, cost in zip(CONVERSATIONS[1:], costs, strict=True):
        print(
            f"  {cost * 1e6:6.0f} us of a processor a token  {cost / costs[-1]:5.2f}x  up to {number:,} conversations"
        )
    for number in TESTED:
        print(f"  {_peak('evaluate', number):6.0f} MB  an evaluation of {number} conversations")
    for tokens in (LONG, LONG // 2):
        print(f"  {_peak('update', tokens):6.0f} MB  one of {LONG:,} tokens, backend.micro_batch_tokens={tokens}")


def _train(model: Path, number: int) -> tuple[int, float]:
    """Tokens trained on, and processor seconds of the process."""
    with tempfile.TemporaryDirectory() as folder:
        file = write_conversations(Path(folder) / "made.jsonl", number + 4)
        before = _processor_seconds()
        command = [sys.executable, "-m", "recipes.sl_basic", f"model_name={model}", f"log_path={folder}/run"]
        command += [f"dataset_builder.file_path={file}", "dataset_builder.test_size=4", "...batch_size=8"]
        command += ["...max_length=128", "lora_rank=4", "eval_every=0", "save_every=0", "mirror=false"]
        subprocess.run([*command, "backend=local", "num_epochs=1"], check=True, capture_output=True)
        rows = RunDir(Path(folder) / "run").metrics()
        return sum(row.get(NUM_TOKENS, 0) for row in rows), _processor_seconds() - before


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _peak(worker: str, number: int) -> float:
    command = [sys.executable, "-m", "benchmarks.local_scale", "--worker", worker, str(number)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def _evaluate(number: int) -> None:
    client = _client()
    client.forward([to_datum(one) for one in conversations(number)], "cross_entropy").result()
    client.close()


def _update(micro_batch_tokens: int) -> None:
    tokens = np.random.default_rng(0).integers(1000, size=LONG + 1).tolist()
    client = _client(micro_batch_tokens=micro_batch_tokens)
    for _ in range(2):
        client.forward_backward([to_datum({"tokens": tokens, "mask": [1] * len(tokens)})], "cross_entropy")
        client.optim_step(tinker.AdamParams(learning_rate=1e-4)).result()
    client.close()


def _client(**options: int) -> LocalTrainingClient:
    backend = LocalBackend(**options)  # pyright: ignore[reportArgumentType]
    return backend.create_training_client(
        model_name=MODEL, lora_rank=LORA_RANK, seed=0, numerics=backend.numerics(), run_path=Path(tempfile.gettempdir())
    )


WORKERS = {"evaluate": _evaluate, "update": _update}


if __name__ == "__main__":
    main()
