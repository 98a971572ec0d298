"""The conversations that an evaluation was made on, found again in their file, without a tokenizer."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.compare.load import Evaluation, Runs
from harness.compare.read_run import TEST_CONTENTS, data_path
from harness.exceptions import DataError
from harness.files import read_jsonl
from harness.run_dir import QUARANTINE, Row

if TYPE_CHECKING:
    from harness.renderers.messages import Message

_BUILDER = "dataset_builder"


def find_conversations(runs: Runs, run: str, evaluation: Evaluation, on: str = "") -> "dict[str, Sequence[Message]]":
    """The conversations behind the examples of ``evaluation``, by id; of several that share an id the first.

    They are looked up as ``FromConversationFileBuilder`` makes its test set, in the file that the run's config names,
    as the current directory sees it, and held against what config.json says of their contents. An example without an
    id of its own has its digest after rendering for one, so that such conversations are found by their place.

    Raises:
        HarnessError: where they are not at hand: the file is gone or was changed, another builder made the test set, or
            only rendering could tell which conversation is which.
    """
    from harness.supervised.mapping import fingerprint

    config = runs.configs.loc[run].to_dict()
    path = config.get(f"{_BUILDER}.test_file_path") or config.get(f"{_BUILDER}.file_path")
    if on:
        raise DataError(f'they are looked up for the unnamed test set, and not for "{on}"')
    if not path:
        made_by = config.get(_BUILDER)
        raise DataError(f"{made_by} reads no file of conversations" if made_by else "no config.json names their file")
    tested_on = config.get(data_path(TEST_CONTENTS, on))
    if tested_on is None:
        raise DataError("config.json does not say what the test conversations were")
    rows = _test_rows(path, config, _set_aside(runs, run, path))
    if fingerprint(row["messages"] for row in rows) != tested_on:
        raise DataError(
            f"{path} does not hold the conversations that were tested on: it was changed since, or "
            f"{config[_BUILDER]} makes another test set of it"
        )
    return _by_id(rows, config, evaluation, path)


def _set_aside(runs: Runs, run: str, path: str) -> set[int]:
    """The numbers of the lines that the run put into quarantine."""
    directory = runs.files.get(run)
    rows = read_jsonl(directory / QUARANTINE) if directory and (directory / QUARANTINE).exists() else []
    return {row["line"] for row in rows if row.get("file") == path}


def _test_rows(path: str, config: Mapping[str, Any], set_aside: set[int]) -> list[Row]:
    from harness.supervised import jsonl
    from harness.supervised.conversation_files import are_held_out

    rows = [jsonl.parse(line, f"{path}:{n}") for n, line in jsonl.lines(path) if n not in set_aside]
    if not all("messages" in row for row in rows):
        return []
    if config.get(f"{_BUILDER}.test_file_path"):
        return rows
    test_size, seed = (config.get(f"{_BUILDER}.{name}") or 0 for name in ("test_size", "shuffle_seed"))
    if not 0 < test_size < len(rows):
        return []
    return [row for row, is_held_out in zip(rows, are_held_out(rows, test_size, seed), strict=True) if is_held_out]


def _by_id(
    rows: list[Row], config: Mapping[str, Any], evaluation: Evaluation, path: str
) -> "dict[str, Sequence[Message]]":
    from harness.renderers.messages import TrainOnWhat, trained_messages

    what = config.get(f"{_BUILDER}.common_config.train_on_what") or TrainOnWhat.ALL_ASSISTANT_MESSAGES
    scored = [row for row in rows if trained_messages(row["messages"], what)]  # the others carry no loss
    if len(scored) == len(evaluation.ids):
        named = zip(evaluation.ids, scored, strict=True)
    elif any(row.get("id") is not None for row in scored):
        named = ((str(row["id"]), row) for row in scored if row.get("id") is not None)
    else:
        raise DataError(
            f"max_length left nothing to score of {len(scored) - len(evaluation.ids):,} of the {len(scored):,} test "
            f'conversations in {path}, and only rendering tells which: give each an "id"'
        )
    found: dict[str, Sequence[Message]] = {}
    for example_id, row in named:
        found.setdefault(example_id, row["messages"])
    return found
