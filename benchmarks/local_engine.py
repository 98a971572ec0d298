"""The local engine against TRL's SFTTrainer and against what the machine can do: tokens a second, peak memory, loss.

    python -m benchmarks.local_engine --trl .trl            # SmolLM2, chitchat conversations, batches of 8
    python -m benchmarks.local_engine --dtype float32 --rounds 1

Every peer trains the same batches, masks and LoRA in turn, each in a process of its own, round after round. It goes
through the batches twice, and the second time counts: in the first, memory is taken from the system. TRL at its best:
the weights' dtype is ours, no gradient checkpointing, conversations grouped by length. TRL as it comes: its defaults,
conversations in random order. The floor: the matrix products alone that the engine's updates need, computed from the
rate that one of them has here and now. TRL is no dependency of the harness:

    pip install --no-deps --target .trl trl==1.16.0
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tinker

BATCH_SIZE, MAX_LENGTH, LORA_RANK, LEARNING_RATE = 8, 256, 32, 1e-4
NUM_CONVERSATIONS, NUM_BATCHES = 400, 5  # batches are formed of these, and this many of them are trained on
MODEL = "SmolLM2-135M-Instruct.Q4_1"
PEERS = {
    "engine": "grouped",
    "trl_best": "grouped",
    "engine_random": "random",
    "trl_default": "random",
    "floor": "grouped",
}
Batch = list[dict[str, list[Any]]]  # of each conversation: tokens, and for each whether it carries loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", help="of the frozen weights: bfloat16 or float32; by default the engine's choice")
    parser.add_argument("--trl", help="the folder that TRL was installed to, where it is not in this environment")
    parser.add_argument("--peers", default=",".join(PEERS), help="those to run, separated by commas")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    from harness.backends.local.backend import LocalBackend

    backend = LocalBackend(dtype=arguments.dtype)
    if (arguments.worker or "").startswith("engine"):
        backend.check(MODEL)  # says how threads wait, before torch is loaded
    numerics = backend.numerics()
    if arguments.worker:
        measured = WORKERS[arguments.worker](numerics["dtype"], batches(PEERS.get(arguments.worker, "grouped")))
        measured["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(measured))
        return
    compare(arguments, numerics["dtype"])


def compare(arguments: argparse.Namespace, dtype: str) -> None:
    peers = arguments.peers.split(",")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    if arguments.trl:
        environment["PYTHONPATH"] = os.pathsep.join([os.getcwd(), str(Path(arguments.trl).resolve())])
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in peers}
    for _ in range(arguments.rounds):
        for name in peers:
            command = [sys.executable, "-m", "benchmarks.local_engine", "--worker", name, "--dtype", dtype]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{name}: {(done.stderr.strip().splitlines() or ['nothing said'])[-1]}")
            results[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
    print(f"{MODEL}, {dtype}, rank {LORA_RANK}, batches of {BATCH_SIZE}, max_length {MAX_LENGTH}")
    for name in (name for name in peers if name != "floor"):
        runs = results[name]
        keys = "rate", "processor_rate", "peak_mb", "first_step"
        rate, of_processor, peak, start = (statistics.median(run[key] for run in runs) for key in keys)
        losses = " ".join(f"{loss:.4f}" for loss in runs[0]["losses"])
        print(
            f"  {rate:6.0f} tokens/s  {of_processor:6.0f} tokens a processor second  {peak:6.0f} MB  "
            f"first update after {start:5.1f} s  {name:14} NLL {losses}"
        )
    for ours, theirs in (("engine", "trl_best"), ("engine_random", "trl_default")):
        if ours in peers and theirs in peers:
            pairs = list(zip(results[ours], results[theirs], strict=True))
            faster, leaner, smaller = (
                statistics.median(a[key] / b[key] for a, b in pairs) for key in ("rate", "processor_rate", "peak_mb")
            )
            print(
                f"  {ours} / {theirs}: {faster:.2f} x the tokens a second, {leaner:.2f} x those of a processor second, "
                f"{smaller:.2f} x the memory"
            )
    if {"engine", "floor"} <= set(peers):
        of_limit = statistics.median(
            a["processor_rate"] / b["rate"] for a, b in zip(results["engine"], results["floor"], strict=True)
        )
        gflops, rate = (statistics.median(run[key] for run in results["floor"]) for key in ("gflops", "rate"))
        print(
            f"  matrix products alone, at the {gflops:,.0f} GFLOP a processor second measured here, would allow "
            f"{rate:,.0f} tokens a processor second; the engine is at {of_limit:.0%}"
        )


# ---- data


def conversations(number: int) -> Batch:
    """The first of the chitchat conversations."""
    from harness.model_info import get_recommended_renderer_name
    from harness.renderers import get_renderer
    from harness.tokenizer_utils import get_tokenizer
    from recipes import chitchat

    tokenizer = get_tokenizer(MODEL)
    renderer = get_renderer(get_recommended_renderer_name(MODEL), tokenizer)
    rows: Batch = []
    with open(chitchat.ensure(chitchat.FILE), encoding="utf-8") as file:
        for line in file:
            example = renderer.build_supervised_example(json.loads(line)["messages"]).truncated(MAX_LENGTH)
            if any(example.weights):
                rows.append({"tokens": list(example.tokens), "mask": [0, *(int(w) for w in example.weights)]})
            if len(rows) == number:
                break
    return rows


def batches(order: str) -> list[Batch]:
    """A sample of the batches that the conversations form: grouped by length, as a sampler does, or at random."""
    rows = conversations(NUM_CONVERSATIONS)
    if order == "grouped":
        rows.sort(key=lambda row: -len(row["tokens"]))
    else:
        random.Random(0).shuffle(rows)
    formed = [rows[i : i + BATCH_SIZE] for i in range(0, len(rows), BATCH_SIZE)]
    return formed[len(formed) // NUM_BATCHES // 2 :: len(formed) // NUM_BATCHES]


def to_datum(row: dict[str, list[Any]]) -> tinker.Datum:
    import tinker

    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(row["tokens"][:-1]),
        loss_fn_inputs={"target_tokens": row["tokens"][1:], "weights": list(map(float, row["mask"][1:]))},  # pyright: ignore[reportArgumentType]
    )


def num_inputs(batch: Batch) -> int:
    """Input tokens, padding aside."""
    return sum(len(row["tokens"]) - 1 for row in batch)


def now() -> tuple[float, float]:
    """Seconds: on the clock, and of processors in this process. The latter count what a busy machine does not."""
    return time.perf_counter(), time.process_time()


def summary(
    data: list[Batch], ends: list[tuple[float, float]], losses: list[float], started: tuple[float, float]
) -> dict[str, Any]:
    """``ends`` and ``losses``: of each update, in both passes through ``data``."""
    num_tokens = sum(map(num_inputs, data))
    seconds, processor_seconds = (last - first for first, last in zip(ends[len(data) - 1], ends[-1], strict=True))
    return {
        "rate": num_tokens / seconds,
        "processor_rate": num_tokens / processor_seconds,
        "losses": losses[: len(data)],
        "first_step": ends[0][0] - started[0],
    }


# ---- peers


def engine(dtype: str, data: list[Batch]) -> dict[str, Any]:
    import tinker

    started = now()
    from harness.backends.local.backend import LocalBackend

    backend = LocalBackend(dtype=dtype)
    client = backend.create_training_client(
        model_name=MODEL, lora_rank=LORA_RANK, seed=0, numerics=backend.numerics(), run_path=Path(tempfile.gettempdir())
    )
    ends, losses = [], []
    for batch in data * 2:
        answer = client.forward_backward([to_datum(row) for row in batch], "cross_entropy")
        client.optim_step(tinker.AdamParams(learning_rate=LEARNING_RATE)).result()
        ends.append(now())
        losses.append(answer.result().metrics["loss:sum"] / sum(sum(row["mask"]) for row in batch))
    client.close()
    return summary(data, ends, losses, started)


def trl_best(dtype: str, data: list[Batch]) -> dict[str, Any]:
    return _trl(dtype, data, gradient_checkpointing=False, bf16=dtype == "bfloat16")


def trl_default(dtype: str, data: list[Batch]) -> dict[str, Any]:
    return _trl(None, data)


def _trl(dtype: str | None, data: list[Batch], **settings: Any) -> dict[str, Any]:
    started = now()
    try:
        import trl  # pyright: ignore[reportMissingImports]
    except ImportError:
        sys.exit("TRL is not there: pip install --no-deps --target .trl trl==1.16.0, then --trl .trl")
    import datasets
    import peft
    import torch
    import transformers

    from harness.backends.local.model import local_model_path
    from harness.tokenizer_utils import get_tokenizer

    path = local_model_path(MODEL)
    model: Any = path
    if dtype is not None:
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    ends, losses = [], []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(now())

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **__: Any) -> None:
            if "loss" in logs:
                losses.append(logs["loss"])

    rows = [{"input_ids": row["tokens"], "assistant_masks": row["mask"]} for batch in data * 2 for row in batch]
    with tempfile.TemporaryDirectory() as folder:
        config = trl.SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=BATCH_SIZE,
            max_length=MAX_LENGTH,
            max_steps=len(data) * 2,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            train_sampling_strategy="sequential",  # the batches as they were formed
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            **settings,
        )
        trainer = trl.SFTTrainer(
            model=model,
            args=config,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=get_tokenizer(MODEL),
            peft_config=peft.LoraConfig(task_type="CAUSAL_LM", r=LORA_RANK, lora_alpha=32, target_modules="all-linear"),
            callbacks=[Clock()],
        )
        trainer.train()
    return summary(data, ends, losses, started)


# ---- the machine's limit


def floor(dtype: str, data: list[Batch]) -> dict[str, float]:
    """Tokens a processor second if the matrix products that an update cannot do without ran at the rate of the largest
    of them, on threads side by side with each layer's weights in turn, and nothing else took any time. Behind the last
    loss token of a conversation it needs none."""
    import torch
    from transformers import AutoConfig

    from harness.backends.local.model import local_model_path

    config: Any = AutoConfig.from_pretrained(local_model_path(MODEL))
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    key_value = config.num_key_value_heads * hidden // heads
    shapes = [(hidden, hidden)] * 2 + [(hidden, key_value)] * 2 + [(hidden, inner)] * 2 + [(inner, hidden)]
    masks = [row["mask"] for batch in data for row in batch]
    tokens = [max(i for i, weight in enumerate(mask) if weight) for mask in masks]
    num_loss_tokens = sum(map(sum, masks))
    linear = 4 * sum(n * k for n, k in shapes)  # forward, and the gradient of the input
    lora = 6 * LORA_RANK * sum(n + k for n, k in shapes)  # and of the weights
    attention = sum(2 * n * n * hidden * 3 for n in tokens)  # two causal products forward, four backward
    flops = config.num_hidden_layers * (sum(tokens) * (linear + lora) + attention)
    flops += 4 * num_loss_tokens * hidden * config.vocab_size
    width = 2048
    num_threads = torch.get_num_threads()
    weights = torch.randn(config.num_hidden_layers, inner, hidden).to(getattr(torch, dtype))

    def seconds() -> float:
        torch.set_num_threads(1)
        x = torch.randn(width, hidden).to(weights.dtype)
        measured = []
        for _ in range(10):
            start = time.thread_time()
            for weight in weights:
                torch.nn.functional.linear(x, weight)
            measured.append(time.thread_time() - start)
        return statistics.median(measured) / len(weights)

    with concurrent.futures.ThreadPoolExecutor(num_threads) as executor:
        each = [executor.submit(seconds) for _ in range(num_threads)]
    rate = 2 * width * hidden * inner / statistics.mean(one.result() for one in each)
    return {"gflops": rate / 1e9, "rate": sum(map(num_inputs, data)) / (flops / rate)}


WORKERS = {
    "engine": engine,
    "engine_random": engine,
    "trl_best": trl_best,
    "trl_default": trl_default,
    "floor": floor,
}


if __name__ == "__main__":
    main()
