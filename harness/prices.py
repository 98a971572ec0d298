"""What tokens cost, from a table that the user keeps: no price is known here.

The table is a TOML or JSON file. Under each model's name stand the prices of a million tokens, in any one currency:
``train`` (forward and backward), ``prefill`` (forward alone, as evaluations) and, where it is known, ``sample``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from pathlib import Path
from typing import Any

from harness.exceptions import ConfigError
from harness.model_info import near_matches

_MILLION = 1_000_000


@dataclasses.dataclass(frozen=True)
class Prices:
    """Of a million tokens of one model.

    Attributes:
        file: The table, for people.
    """

    file: str
    train: float
    prefill: float
    sample: float | None = None

    def of(self, *, trained: int, prefilled: int) -> float:
        """Of so many tokens."""
        return (trained * self.train + prefilled * self.prefill) / _MILLION


def read_prices(file: str, model_name: str) -> Prices:
    """The prices of a model.

    Raises:
        ConfigError: for a table that cannot be read, or that does not price the model.
    """
    table = _table(file)
    if model_name not in table:
        raise ConfigError(
            f"{file}: no prices of {model_name}{near_matches(model_name, table)}: add them; there is "
            f"{', '.join(table) or 'nothing'}"
        )
    prices, where = table[model_name], f"{file}: {model_name}"
    names = [field.name for field in dataclasses.fields(Prices) if field.name != "file"]
    if not isinstance(prices, dict):
        raise ConfigError(f"{where}: {prices!r} is no table: give train and prefill, the prices of a million tokens")
    for name, price in prices.items():
        if name not in names:
            raise ConfigError(f"{where}: {name!r} is none of its prices: give {', '.join(names)}")
        if isinstance(price, bool) or not isinstance(price, (int, float)) or not 0 <= price < math.inf:
            raise ConfigError(f"{where}: {name}={price!r}: give a number, 0 or more")
    for name in ("train", "prefill"):
        if name not in prices:
            raise ConfigError(f"{where}: no {name}; found {sorted(prices)}: give the price of a million tokens")
    return Prices(file, **prices)


def _table(file: str) -> dict[str, Any]:
    kind = "JSON" if Path(file).suffix.lower() == ".json" else "TOML"
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
        table = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"price_table={file}: cannot be read ({error.strerror}): give a table of prices") from None
    except ValueError as error:
        raise ConfigError(f"{file}: not {kind} ({error}): mend it") from None
    if not isinstance(table, dict):
        raise ConfigError(f"{file}: not a table: give the prices of each model under its name")
    return table
