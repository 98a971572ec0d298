"""A run directory with real checkpoints of the tiny model, made by the engine without the trainer."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from harness.backends.local.backend import LocalBackend
from harness.config_io import from_json
from harness.run_dir import CheckpointRecord, RunDir
from harness.supervised.train import with_own_builder
from tests.backends.local.support import make_client, random_data, train
from tests.tracking.conftest import end_attempt, row, start_run

TEST_DATA = random_data([17, 40, 25], seed=7)
NUMERICS = {"dtype": "float32", "num_threads": 1, "micro_batch_tokens": 128}
DATA = {"train": "beef", "test": {"": "feed"}, "num_examples": {"train": 12, "test": {"": 3}}}


def exportable(path: Path, model: Path, **document: Any) -> RunDir:
    """A finished run of 4 updates that evaluated and saved at 2 and 4: test NLL as its engine computes it.

    Args:
        document: What else its config.json says.
    """
    run = start_run(
        path,
        document={"numerics": LocalBackend().numerics() | NUMERICS, "data": DATA, "versions": {"harness": "0.0.9"}}
        | document,
        model_name=str(model),
    )
    client = make_client(model, path)
    for step in range(5):
        tested = {}
        if step in (2, 4):
            client.save_state(f"{step:06d}").result()
            tested = {"test/nll": nll_of(client)}
        run.append_metrics((row(step, 5.0 - step) if step < 4 else {"step": 4, "ts": 1}) | tested)
        if tested:
            run.append_checkpoint(
                CheckpointRecord(f"{step:06d}", step, 0, step, f"checkpoints/{step:06d}", final=step == 4)
            )
        train(client, range(step, step + 1))
    client.close()
    end_attempt(run, 1)
    return run


def nll_of(client: Any) -> float:
    """The mean over the weighted targets of TEST_DATA, in nats."""
    answers = client.forward(TEST_DATA, "cross_entropy").result().loss_fn_outputs
    return weighted_nll([answer["logprobs"].to_numpy() for answer in answers])


def weighted_nll(logprobs: list[np.ndarray]) -> float:
    weights = [datum.loss_fn_inputs["weights"].to_numpy() for datum in TEST_DATA]
    total = sum(float(row.astype(np.float64) @ weight) for row, weight in zip(logprobs, weights, strict=True))
    return -total / sum(float(weight.sum()) for weight in weights)


# What a user would write who has transformers and PEFT alone: the mean NLL on the data that it is given.
_PLAIN = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, data = sys.argv[1], json.load(sys.stdin)
if sys.argv[2] == "peft":
    from peft import AutoPeftModelForCausalLM as AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(folder)
assert AutoTokenizer.from_pretrained(folder).apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
assert not [name for name in sys.modules if name.startswith("harness")]
total = count = 0.0
for tokens, targets, weights in data:
    with torch.no_grad():
        logprobs = model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)
    chosen = logprobs[torch.arange(len(targets)), torch.tensor(targets)]
    total -= float((chosen.double() * torch.tensor(weights).double()).sum())
    count += sum(weights)
print(total / count)
"""


def score_in_a_plain_script(
    folder: str, data: list[Any], *, peft: bool, cwd: Path | None = None, env: dict[str, str] | None = None
) -> float:
    """The mean NLL that a process without the harness computes with what was exported."""
    keys = ("target_tokens", "weights")
    plain = [
        [datum.model_input.to_ints(), *(datum.loss_fn_inputs[k].to_numpy().tolist() for k in keys)] for datum in data
    ]
    command = [sys.executable, "-c", _PLAIN, folder, "peft" if peft else "transformers"]
    done = subprocess.run(command, input=json.dumps(plain), capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def examples_of_test_set(run: RunDir) -> list[Any]:
    """The examples of a run's test set, made again from its config, as they were scored."""
    test: Any = with_own_builder(from_json(run.config()["config"])).dataset_builder()[1]
    return [datum for batch in test.all_batches() for datum in batch]
