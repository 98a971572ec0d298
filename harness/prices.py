"""What tokens cost, from a table that the user keeps: no price is known here.

The table is a TOML or JSON file. Under each model's name stand the prices of a million tokens, in any one currency:
``train`` (forward and backward), ``prefill`` (forward alone, as evaluations and prompts) and, where it is known,
``sample``.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path
from typing import Any

from harness.exceptions import ConfigError
from harness.model_info import near_matches

_MILLION = 1_000_000
_HIGHEST = 1e300  # whose product with a number of tokens is still a number


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

    def of(self, *, trained: int, prefilled: int, sampled: int = 0) -> float | None:
        """Of so many tokens; None where some were sampled, and the table does not say what that costs."""
        if sampled and self.sample is None:
            return None
        return (trained * self.train + prefilled * self.prefill + sampled * (self.sample or 0.0)) / _MILLION


def read_prices(file: str, model_name: str) -> Prices:
    """The prices of a model.

    Raises:
        ConfigError: for a table that cannot be read, or that does not price the model.
    """
    table = _table(file, model_name)
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
        if isinstance(price, bool) or not isinstance(price, (int, float)) or not 0 <= price <= _HIGHEST:
            raise ConfigError(f"{where}: {name}={price!r:.40}: give a number from 0 to {_HIGHEST:.0e}")
    for name in ("train", "prefill"):
        if name not in prices:
            raise ConfigError(f"{where}: no {name}; found {sorted(prices)}: give the price of a million tokens")
    return Prices(file, **{name: float(price) for name, price in prices.items()})


def _table(file: str, model_name: str) -> dict[str, Any]:
    kind = "JSON" if Path(file).suffix.lower() == ".json" else "TOML"
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8-sig")  # some editors begin a file with a BOM
        if kind == "TOML" and _is_unquoted(model_name, text):
            raise ConfigError(f'{file}: [{model_name}]: put the name in quotes: ["{model_name}"]')
        table = json.loads(text, object_pairs_hook=_without_twins) if kind == "JSON" else tomllib.loads(text)
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"price_table={file}: cannot be read ({error.strerror}): give a table of prices") from None
    except ValueError as error:
        raise ConfigError(f"{file}: not {kind} ({error}): mend it") from None
    if not isinstance(table, dict):
        raise ConfigError(f"{file}: not a table: give the prices of each model under its name")
    return table


def _is_unquoted(model_name: str, text: str) -> bool:
    """Whether the head of its table says something else than the name, or nothing, to TOML."""
    if re.fullmatch(r"[A-Za-z0-9_-]+", model_name):
        return False
    return bool(re.search(rf"^\s*\[\s*{re.escape(model_name)}\s*\]", text, re.MULTILINE))


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """As TOML has it; of two values of one name JSON would take the last."""
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f"{name!r} stands in it twice")
        table[name] = value
    return table
