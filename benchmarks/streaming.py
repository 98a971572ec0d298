"""What a resume of a stream costs, as a ratio to its start, and what it holds in memory.

    python -m benchmarks.streaming                 # 1,050,000 rows in a JSONL file of 300 MB, and in parquet
    python -m benchmarks.streaming 200000          # fewer rows

A resume is timed from a dataset that has just been made to its first batch, tokenising aside.
"""

import json
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.data_path import medians

BATCH_SIZE = 8
ROUNDS = 7


def main(num_rows: int = 1_050_000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        _write(file, num_rows)
        memory(file, num_rows)
        resume(file, num_rows)


def resume(file: Path, num_rows: int) -> None:
    """The first batch from row 0 on, and from row 20/21 of the file on."""
    import datasets
    import pyarrow.json
    import pyarrow.parquet

    parquet = file.with_suffix(".parquet")
    pyarrow.parquet.write_table(pyarrow.json.read_json(file), parquet, row_group_size=50_000)
    far = num_rows * 20 // 21 // BATCH_SIZE
    print(f"first batch of {BATCH_SIZE}: from row 0, and from row {far * BATCH_SIZE:,}")
    for path in (file, parquet):
        kind = "json" if path is file else "parquet"
        stream = datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True)
        seconds = medians(
            {
                "start": _first_batch(stream, num_rows, 0),
                "resume": _first_batch(stream, num_rows, far),
                "datasets' own skip": lambda stream=stream: next(iter(stream.skip(far * BATCH_SIZE))),
            },
            ROUNDS,
        )
        for name, median in seconds.items():
            print(f"  {median:7.3f} s  {median / seconds['start']:5.1f}x  {kind}: {name}")


def memory(file: Path, num_rows: int) -> None:
    """The process's peak after a tenth of an epoch, and after all of it."""
    import datasets

    stream = datasets.load_dataset("json", data_files=str(file), split="train", streaming=True)
    data = _dataset(stream, num_rows)
    peaks = []
    for index in range(len(data)):
        data.get_batch(index)
        if index in (len(data) // 10, len(data) - 1):
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(f"memory: {peaks[0]:,.0f} MB at most after a tenth of an epoch, {peaks[1]:,.0f} MB after all of it")


def _first_batch(stream: Any, num_rows: int, index: int) -> Callable[[], Any]:
    return lambda: _dataset(stream, num_rows).get_batch(index)


def _dataset(stream: Any, num_rows: int) -> Any:
    import tinker

    from harness.supervised.data import StreamingSupervisedDatasetFromHFDataset

    datum = tinker.Datum(model_input=tinker.ModelInput.from_ints([1]))
    dataset = StreamingSupervisedDatasetFromHFDataset(stream, BATCH_SIZE, num_rows, lambda row: datum)
    dataset.set_epoch(0)
    return dataset


def _write(file: Path, num_rows: int) -> None:
    question, answer = "what is to be done about it, asked for the time of number", "not much, was the answer to that"
    with file.open("w") as lines:
        for i in range(num_rows):
            messages = [
                {"role": "user", "content": f"{question} {i}"},
                {"role": "assistant", "content": f"{answer} {i} {'and so on ' * (i % 17)}"},
            ]
            lines.write(json.dumps({"messages": messages}) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
