"""Files of conversations: read, checked line by line, bad lines set aside where that is asked for, and split."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from harness.exceptions import DataError, RendererError
from harness.renderers.base import check_messages
from harness.supervised import jsonl
from harness.supervised.mapping import Row, canonical

logger = logging.getLogger(__name__)


def read_conversations(
    path: str, quarantined: list[Row] | None = None, check: Callable[[Row], Any] | None = None
) -> list[Row]:
    """The conversations of a JSONL file, gzipped or not; blank lines are none.

    Args:
        path: A line ``{"messages": [...]}`` for each, with ``id`` and ``slice`` where it has them.
        quarantined: Takes a row ``{"file", "line", "reason", "text"}`` for each line that is bad; None: the first
            such line is an error.
        check: Called with each row; a RendererError out of it makes its line a bad one.

    Returns:
        ``{"messages": [...], "id": text, "slice": text or None, "where": "file:line"}`` for each; id "" where there
        is none.

    Raises:
        DataFileNotFoundError: where there is no such file.
        DataError: for a file without conversations, and for the first line that is none, with what was found there.
    """
    rows: list[Row] = []
    num_bad = num_weighted = num_with_tools = 0
    for number, line in jsonl.lines(path):
        where = f"{path}:{number}"
        try:
            parsed = jsonl.parse(line, where)
            row = _conversation(parsed, where)
            if check:
                _checked(check, row)
            rows.append(row)
            num_weighted += any(message.get("weight") == 0 for message in row["messages"])
            num_with_tools += bool(parsed.get("tools"))
        except DataError as error:
            if quarantined is None:
                raise
            num_bad += 1
            reason = str(error).removeprefix(f"{where}: ")
            text = line.decode("utf-8", "backslashreplace").rstrip("\r\n")
            quarantined.append({"file": path, "line": number, "reason": reason, "text": text})
    if not rows and quarantined and num_bad:
        first = quarantined[-num_bad]
        raise DataError(f"{path}: all of its {num_bad} lines are bad; line {first['line']}: {first['reason']}")
    if not rows:
        raise DataError(f'{path}: no conversations in it: it needs a line {{"messages": [...]}} for each')
    if num_weighted:
        logger.warning(
            '%s: "weight": 0 in %s conversations is not looked at: to train on some messages only, give every message '
            '"trainable" and set train_on_what=customized',
            path,
            f"{num_weighted:,}",
        )
    if num_with_tools:
        logger.warning(
            '%s: the "tools" of %s conversations are not rendered: what the model is to know of them goes into a '
            "system message",
            path,
            f"{num_with_tools:,}",
        )
    return rows


def split_by_content(rows: list[Row], test_size: int, seed: int) -> tuple[list[Row], list[Row]]:
    """(train, test): test are the ``test_size`` conversations of the smallest seeded hash, and all copies of them."""
    held_out = are_held_out(rows, test_size, seed)
    train = [row for row, is_held_out in zip(rows, held_out, strict=True) if not is_held_out]
    test = [row for row, is_held_out in zip(rows, held_out, strict=True) if is_held_out]
    if len(test) > test_size:
        logger.warning("%d copies of test conversations went to the test set too", len(test) - test_size)
    if not train:
        raise DataError(
            f"test_size={test_size}: the others are copies of the conversations held out: add some to train on"
        )
    return train, test


def are_held_out(rows: Sequence[Row], test_size: int, seed: int) -> list[bool]:
    """Of each conversation, whether it goes to the test set: see :func:`split_by_content`."""
    hashes = [hashlib.sha256(b"%d:" % seed + canonical(row["messages"])).digest() for row in rows]
    bound = sorted(hashes)[test_size - 1]
    return [hashed <= bound for hashed in hashes]


def _conversation(row: Row, where: str) -> Row:
    if "messages" not in row:
        raise DataError(
            f'{where}: no "messages" key; found {sorted(row)}: write {{"messages": [{{"role": …, "content": …}}, …]}}'
        )
    if isinstance(row["messages"], str):
        raise DataError(
            f"{where}: messages must be a list of roles and contents, found a string: write the list itself, not its "
            "JSON as text"
        )
    try:
        check_messages(row["messages"])
    except RendererError as error:
        raise DataError(f"{where}: {error}") from None
    for key, kinds in (("id", (str, int)), ("slice", str)):
        value = row.get(key)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise DataError(f"{where}: {key} must be text, found {type(value).__name__}: write it in quotes")
    given_id = row.get("id")
    return {
        "messages": row["messages"],
        "id": "" if given_id is None else str(given_id),
        "slice": row.get("slice"),
        "where": where,
    }


def _checked(check: Callable[[Row], Any], row: Row) -> None:
    try:
        check(row)
    except RendererError as error:
        raise DataError(f"{row['where']}: {error}") from error
