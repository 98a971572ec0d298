"""What the tests of the local backend share: data for the tiny model and clients of it."""

from pathlib import Path
from typing import Any

import numpy as np
import tinker

from harness.backends.local.backend import LocalBackend
from harness.backends.local.client import LocalTrainingClient

VOCAB_SIZE = 384
ADAM = tinker.AdamParams(learning_rate=3e-3, beta1=0.9, beta2=0.95, eps=1e-8)


def datum(tokens: list[int], weights: list[float]) -> tinker.Datum:
    """``len(tokens)`` is one more than ``len(weights)``: the last token is only predicted."""
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": weights},  # pyright: ignore[reportArgumentType]
    )


def random_data(lengths: list[int], seed: int = 0) -> list[tinker.Datum]:
    """Data of the given lengths, with weights of 0, 1 and between."""
    rng = np.random.default_rng(seed)
    return [
        datum(
            rng.integers(VOCAB_SIZE, size=n + 1).tolist(),
            rng.choice([0.0, 0.25, 1.0], size=n, p=[0.4, 0.2, 0.4]).tolist(),
        )
        for n in lengths
    ]


def make_client(model: Path, run_path: Path, **changes: Any) -> LocalTrainingClient:
    """A client in float32 with rank 4; ``changes`` go to the backend's options or to ``create_training_client``."""
    names = ("num_threads", "micro_batch_tokens", "lora_alpha", "dtype", "train_attn", "train_mlp", "train_unembed")
    options = {key: changes.pop(key) for key in names if key in changes}
    options = {
        "dtype": "float32",
        "num_threads": 1,
        "micro_batch_tokens": 128,
        "eval_micro_batch_tokens": 128,
    } | options
    backend = LocalBackend(**options)
    arguments = {"lora_rank": 4, "seed": 0, "numerics": backend.numerics(), **changes}
    return backend.create_training_client(model_name=str(model), run_path=run_path, **arguments)


def train(client: LocalTrainingClient, steps: range) -> None:
    """One update for each step, with that step's data; nothing is awaited."""
    for step in steps:
        client.forward_backward(random_data([20, 9, 31], seed=step), "cross_entropy")
        client.optim_step(ADAM)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}
