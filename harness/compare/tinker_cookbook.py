"""The run directories of tinker-cookbook's supervised loops, read as ours.

Its metrics.jsonl has our keys, and its evaluations at step k too are of the weights before update k. What differs:

- A resume trains the batches since its checkpoint again and appends their rows: the last row of a step counts, and rows
  from beyond the checkpoint that were not trained again are of no weights that went on.
- ``num_loss_tokens`` is the sum of the loss weights, and NLLs are weighted by them. Since April 2026 the weights of a
  conversation sum to 1 by default: each weighs the same in an NLL however long it is, and tokens are not counted.
- ``progress`` counts the update that the row describes (in its first months it did not), ours the updates before it.
- ``time/step`` is the wait for an update's result, which overlaps with those of others: no sum of it is a duration.
- After the last update nothing is evaluated; test sets have no fingerprint; a process that died leaves no word of it.
"""

import json
from typing import TYPE_CHECKING

from harness import config_io
from harness.files import Row, read_jsonl
from harness.metric_keys import NUM_LOSS_TOKENS, NUM_SEQUENCES, PROGRESS, STEP, TIME_STEP
from harness.run_dir import CHECKPOINTS, CONFIG, RunDir

if TYPE_CHECKING:
    import pyarrow as pa

_FINAL = "final"  # the name of the checkpoint after the last update


def config(run: RunDir) -> Row | None:
    """config.json, which is the config and nothing else, without secrets; None where it is another's, or damaged."""
    try:
        document = json.loads((run / CONFIG).read_text())
    except (OSError, ValueError):
        return None
    is_theirs = isinstance(document, dict) and "run_id" not in document and "log_path" in document
    return config_io.to_json(document) if is_theirs else None


def state(run: RunDir) -> str:
    """FINISHED, or UNKNOWN: nothing tells a run that died from one that is still training."""
    checkpoints = read_jsonl(run / CHECKPOINTS)
    return "FINISHED" if checkpoints and checkpoints[-1].get("name") == _FINAL else "UNKNOWN"


def as_ours(table: "pa.Table") -> "tuple[pa.Table, list[str]]":
    """Rows with the meaning of ours, and what has to be known of them.

    Args:
        table: The rows in the order of the file.
    """
    table, num_left = _last_attempt(table)
    notes = [f"resumed: {num_left} rows that it trained again, or went back behind, left out"] if num_left else []
    if PROGRESS in table.column_names:
        table = _progress_before(table)
    if {NUM_LOSS_TOKENS, NUM_SEQUENCES} <= set(table.column_names):
        table, is_by_conversation = _loss_tokens(table)
        if is_by_conversation:
            notes.append("its NLLs are means over conversations, not over tokens")
    return table.drop_columns([TIME_STEP] if TIME_STEP in table.column_names else []), notes


def _last_attempt(table: "pa.Table") -> "tuple[pa.Table, int]":
    """The rows of which no later one is of the same step or an earlier one, and how many others there are."""
    import numpy as np

    steps = table[STEP].to_numpy()
    lowest_since = np.minimum.accumulate(steps[::-1])[::-1]
    is_kept = np.append(steps[:-1] < lowest_since[1:], np.ones(len(steps[-1:]), bool))
    return table.filter(is_kept), int((~is_kept).sum())


def _progress_before(table: "pa.Table") -> "pa.Table":
    import numpy as np
    import pyarrow as pa

    steps, progress = (table[name].to_numpy().astype(float) for name in (STEP, PROGRESS))
    counts_its_own = progress[steps == 0] > 0
    if counts_its_own.any():
        progress = progress * (steps / (steps + 1))
    return table.set_column(table.column_names.index(PROGRESS), PROGRESS, pa.array(progress, mask=np.isnan(progress)))


def _loss_tokens(table: "pa.Table") -> "tuple[pa.Table, bool]":
    """Loss tokens as a count; without them where each conversation's weights sum to 1, and whether that is so."""
    import numpy as np
    import pyarrow as pa

    weights, sequences = (table[name].to_numpy().astype(float) for name in (NUM_LOSS_TOKENS, NUM_SEQUENCES))
    known = ~np.isnan(weights)
    if known.any() and np.allclose(weights[known], sequences[known], rtol=1e-3):
        return table.drop_columns([NUM_LOSS_TOKENS]), True
    counts = pa.array(np.round(weights), mask=~known).cast(pa.int64())
    return table.set_column(table.column_names.index(NUM_LOSS_TOKENS), NUM_LOSS_TOKENS, counts), False
