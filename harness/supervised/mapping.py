"""Rows to datums: the functions that users give for it, and what is said of a row that they refuse."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from harness.exceptions import ConfigError, DataError, RendererError

if TYPE_CHECKING:
    import tinker

Row = dict[str, Any]
MapFn = Callable[[Row], "tinker.Datum"]
FlatmapFn = Callable[[Row], "Iterable[tinker.Datum]"]


class Mapper:
    """What a row becomes: one datum by ``map_fn``, or any number of them, none too, by ``flatmap_fn``.

    Raises:
        ConfigError: unless exactly one of the two is given.
    """

    def __init__(self, map_fn: MapFn | None, flatmap_fn: FlatmapFn | None):
        if (map_fn is None) == (flatmap_fn is None):
            raise ConfigError(
                f"{'neither' if map_fn is None else 'both'} of map_fn (a row to a datum) and flatmap_fn "
                "(a row to any number of datums): give one of them"
            )
        self._map_fn = map_fn
        self._flatmap_fn = flatmap_fn

    def __call__(self, row: Row, where: str) -> list[tinker.Datum]:
        """The datums of ``row``, which stands at ``where``.

        Raises:
            DataError: with ``where``, for a conversation that cannot be rendered, or where no datum came back.
        """
        import tinker

        try:
            if self._flatmap_fn is not None:
                name, datums = "flatmap_fn", list(self._flatmap_fn(row))
            else:
                assert self._map_fn is not None
                name, datums = "map_fn", [self._map_fn(row)]
        except RendererError as error:
            raise DataError(f"{where}: {error}") from error
        for datum in datums:
            if not isinstance(datum, tinker.Datum):
                raise DataError(f"{where}: {name} gave a {type(datum).__name__}: it must give a tinker.Datum")
        return datums


def fingerprint(rows: Iterable[Any]) -> str:
    """16 hexadecimal digits over rows of JSON's types, and of dates, bytes and arrays."""
    hasher = hashlib.sha256()
    for row in rows:
        hasher.update(canonical(row))
    return hasher.hexdigest()[:16]


def canonical(row: Any) -> bytes:
    """The same bytes for equal rows, in every process."""
    return json.dumps(row, sort_keys=True, default=_plain, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _plain(value: Any) -> Any:
    """What JSON does not know. Of an image or the like its type alone: its repr names a place in memory."""
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value) if isinstance(value, (datetime.date, datetime.time, datetime.timedelta)) else type(value).__name__
