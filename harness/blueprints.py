"""Blueprints opened and built again: what a recipe applied, by path.

chz has no public way to read the layers of a blueprint or what is in its fields; its private parts are used here alone.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import chz
from chz.blueprint import Castable, Reference

from harness.exceptions import ConfigError

COMMAND_LINE = "command line"  # the layer of the overrides

Overrides = dict[str, Castable | Reference]
Layers = list[tuple[str, dict[str, Any]]]  # where the values come from, and the values by dotted path


@dataclasses.dataclass(frozen=True)
class Applied:
    """A value that was applied, by whom; as text where chz has yet to cast it."""

    value: Any
    layer_name: str


def layers_of(blueprint: chz.Blueprint[Any]) -> Layers:
    return [(layer.layer_name or "recipe", layer.qualified | layer.wildcard) for layer in blueprint._arg_map._layers]


def applied(blueprint: chz.Blueprint[Any], path: str) -> Applied | None:
    """What counts of all that was applied to ``path``, by its name or by a wildcard."""
    blueprint._arg_map.consolidate()
    found = blueprint._arg_map.get_kv(path)
    if found is None:
        return None
    value = found.value.value if isinstance(found.value, Castable) else found.value
    return Applied(value, found.layer_name or "recipe")


def layer_of(blueprint: chz.Blueprint[Any], path: str) -> str | None:
    found = applied(blueprint, path)
    return found and found.layer_name


def fields_of(blueprint: chz.Blueprint[Any]) -> Any:
    """What chz makes of the blueprint without calling anything: ``all_params`` and ``missing_params`` by path."""
    return blueprint._make_lazy()


def build(target: Any, layers: Layers, overrides: dict[str, Any] | None = None) -> chz.Blueprint[Any]:
    blueprint = chz.Blueprint(target)
    for name, values in layers:
        blueprint.apply(values, layer_name=name)
    return blueprint.apply(overrides or {}, layer_name=COMMAND_LINE)


def without(layers: Layers, drop: Callable[[str], bool]) -> Layers:
    return [(name, {path: value for path, value in values.items() if not drop(path)}) for name, values in layers]


def open_instances(layers: Layers, overrides: Overrides) -> Layers:
    """The layers with every chz instance opened into its type and its fields, which dotted keys can override; a list
    or mapping too, where an override reaches into it."""
    opened: Layers = []
    for name, values in layers:
        for path, value in values.items():
            if _is_instance(value):  # it replaces all that an earlier layer set there
                opened = without(opened, lambda old, path=path: old.startswith(f"{path}."))
        fields = {
            field: item
            for path, value in values.items()
            for field, item in _open(path, value, overrides)
            if field == path or field not in values  # what the layer says itself of a field goes first
        }
        opened.append((name, fields))
    return opened


def _open(path: str, value: Any, overrides: Overrides) -> Iterator[tuple[str, Any]]:
    if _is_instance(value):
        yield path, type(value)
        for field, item in chz.beta_to_blueprint_values(value).items():
            yield from _open(f"{path}.{field}", item, overrides)
        return
    items: dict[Any, Any] = {}
    if isinstance(value, dict):
        items = value
    elif isinstance(value, (list, tuple)):
        items = dict(enumerate(value))
    reached = isinstance(value, (dict, list, tuple)) and any(key.startswith(f"{path}.") for key in overrides)
    if reached or any(map(_is_instance, items.values())):
        for key, item in items.items():
            if "." in str(key):  # chz would take it for two
                raise ConfigError(f"{path}: its key {key!r} holds a dot, so it can only be given whole: {path}={{...}}")
            yield from _open(f"{path}.{key}", item, overrides)
    else:
        yield path, value


def _is_instance(value: Any) -> bool:
    return chz.is_chz(value) and not isinstance(value, type)
