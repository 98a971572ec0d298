"""Run directories as training leaves them, made through RunDir: with made-up numbers, or with realistic curves."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.metric_keys import NUM_LOSS_TOKENS, NUM_TOKENS, STEP, TRAIN_NLL, test_key
from harness.run_dir import Row, RunDir

CONFIG: Row = {
    "type": "harness.supervised.train:Config",
    "model_name": "HuggingFaceTB/SmolLM2-135M",
    "log_path": "runs/base",
    "dataset_builder": {
        "type": "harness.supervised.data:FromConversationFileBuilder",
        "common_config": {
            "type": "harness.supervised.types:ChatDatasetBuilderCommonConfig",
            "renderer_name": "role_colon",
            "batch_size": 8,
        },
        "file_path": "data/train.jsonl",
    },
    "learning_rate": 2e-4,
    "lora_rank": 32,
    "run_name": None,
    "tags": {},
    "note": "",
    "tracking_uri": None,
}


def train_row(step: int, train: float, test: dict[str, float] | float | None = None, tokens: int = 100) -> Row:
    """A row of metrics.jsonl: 100 tokens, 40 with loss. ``test`` is by set name, or of the unnamed set."""
    row = {STEP: step, "ts": 1_790_000_000_000 + step, NUM_TOKENS: tokens, NUM_LOSS_TOKENS: tokens * 2 // 5}
    return row | {TRAIN_NLL: train} | _test(test)


def last_row(step: int, test: dict[str, float] | float) -> Row:
    """The evaluation after the last update."""
    return {STEP: step, "ts": 1_790_000_000_000 + step} | _test(test)


def _test(test: dict[str, float] | float | None) -> Row:
    by_set = test if isinstance(test, dict) else {} if test is None else {"": test}
    return {test_key(name, "nll"): nll for name, nll in by_set.items()}


def make_run(
    path: Path,
    rows: list[Row],
    *,
    state: str | None = "FINISHED",
    test: dict[str, str] | None = None,
    evaluated: bool = True,
    examples: Row | None = None,
    document: Row | None = None,
    **config: Any,
) -> RunDir:
    """Write a run directory.

    Args:
        state: How its one attempt ended; None for one that was killed.
        test: Fingerprint by test set.
        evaluated: Whether eval_examples.jsonl names the fingerprints too, or only config.json.
        examples: What :func:`scored` gives, for every evaluation; else one example.
        document: Keys of config.json to set beside the config.
        config: Fields of the config to change; ``dataset_builder__file_path`` is one of a nested object.
    """
    test = {"": "feed"} if test is None else test
    run = RunDir(path)
    with run.lock():
        run.write_config(
            {
                "run_id": path.name,
                "argv": [],
                "config": _changed(CONFIG, config | {"log_path": str(path)}),
                "versions": {"torch": "2.13.0"},
                "numerics": {"dtype": "float32"},
                "git_commit": "c0ffee",
                "data": {"train": "beef", "test": test},
            }
            | (document or {})
        )
        run.append_attempt({"attempt": 1, "event": "start", "ts": 1, "argv": [], "resumed_from": None, "next_step": 0})
        for row in rows:
            due = [name for name in test if test_key(name, "nll") in row]
            if evaluated:
                run.append_eval_examples([_evaluation(row[STEP], name, test[name], examples) for name in due])
            run.append_metrics(row)
        if state is not None:
            run.append_attempt({"attempt": 1, "event": "end", "ts": 2, "state": state, "error": None})
    return run


def scored(nll: Sequence[float], num_loss_tokens: Sequence[int], ids: Sequence[str] | None = None) -> Row:
    """Examples of an evaluation: summed NLLs in nats, and ids of their own."""
    ids = [f"e{i}" for i in range(len(nll))] if ids is None else ids
    columns = {"ids": ids, "slices": [None] * len(ids), "nll": nll, "num_loss_tokens": num_loss_tokens}
    return {name: list(values) for name, values in columns.items()}


def _evaluation(step: int, name: str, fingerprint: str, examples: Row | None) -> Row:
    return {"step": step, "set": name, "fingerprint": fingerprint} | (examples or scored([2.0], [1]))


def _changed(document: Row, changes: Row) -> Row:
    changed = dict(document)
    for key, value in changes.items():
        first, _, rest = key.partition("__")
        changed[first] = _changed(changed[first], {rest: value}) if rest else value
    return changed


def realistic_rows(steps: int, eval_every: int, floor: float, speed: float, overfit: float, seed: int) -> list[Row]:
    """Curves as fine-tuning gives them: a noisy fall of train NLL to ``floor``, and a test NLL that turns up."""
    noise = random.Random(seed)

    def nll(step: int) -> float:
        return floor + 1.9 * math.exp(-speed * step / 20)

    def test(step: int) -> float:
        return nll(step) + 0.05 + overfit * (step / steps) ** 2

    def train(step: int) -> float:
        return nll(step) - 0.3 * overfit * step / steps + noise.gauss(0, 0.07)

    rows = [train_row(k, train(k), None if k % eval_every else test(k)) for k in range(steps)]
    return [*rows, last_row(steps, test(steps))]
