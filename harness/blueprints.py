"""Blueprints opened and built again: what a recipe applied, by path.

chz has no public way to read the layers of a blueprint or what is in its fields; its private parts are used here alone.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import chz
from chz.blueprint import Castable, Reference
from chz.util import MISSING_TYPE

from harness.exceptions import ConfigError

COMMAND_LINE = "command line"  # the layer of the overrides
DEFAULT = "default"  # the layer of what nobody gave

Overrides = dict[str, Castable | Reference]
Layers = list[tuple[str, dict[str, Any]]]  # where the values come from, and the values by dotted path


@dataclasses.dataclass(frozen=True)
class Applied:
    """A value that was applied, by whom; as text where chz has yet to cast it."""

    value: Any
    layer_name: str


def layers_of(blueprint: chz.Blueprint[Any]) -> Layers:
    return [(layer.layer_name or "recipe", dict(layer._args)) for layer in blueprint._arg_map._layers]


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
    """What chz makes of the blueprint without calling anything: ``all_params`` and ``missing_params`` by path.

    The items of a mapping are put in the order in which they were applied. chz keeps their keys in a set, whose order
    is another one in every process.
    """
    fields: Any = blueprint._make_lazy()
    given = dict.fromkeys(path for _, values in layers_of(blueprint) for key in values for path in _with_parents(key))
    when = {path: i for i, path in enumerate(given)}
    place = {path: i for i, path in enumerate(fields.all_params)}
    for path, factory in fields.meta_factory_value.items():
        if getattr(factory, "__origin__", factory) in (dict, Mapping) and path in fields.value_mapping:
            items = fields.value_mapping[path].kwargs
            names = sorted(items, key=lambda name: (when.get(f"{path}.{name}", len(when)), name))
            _reorder(items, names)
            place |= {f"{path}.{name}": i for i, name in enumerate(names)}
    _reorder(fields.all_params, sorted(fields.all_params, key=lambda path: [place[p] for p in _with_parents(path)]))
    return fields


def make(blueprint: chz.Blueprint[Any], fields: Any) -> Any:
    """The object, from what :func:`fields_of` says of the blueprint."""
    return blueprint._make_from_make_result(fields)


def build(target: Any, layers: Layers, overrides: dict[str, Any] | None = None) -> chz.Blueprint[Any]:
    blueprint = chz.Blueprint(target)
    for name, values in layers:
        blueprint.apply(values, layer_name=name)
    return blueprint.apply(overrides or {}, layer_name=COMMAND_LINE)


def without(layers: Layers, drop: Callable[[str], bool]) -> Layers:
    return [(name, {path: value for path, value in values.items() if not drop(path)}) for name, values in layers]


def open_instances(layers: Layers, overrides: Overrides) -> Layers:
    """The layers with every chz instance opened into its type and its fields, which dotted keys can override; a list
    or mapping too, where an override reaches into it. Fields that have their default are a layer of that name: an
    instance does not tell whether it was given."""
    opened: Layers = []
    for name, values in layers:
        for path, value in values.items():
            if _is_instance(value) or isinstance(
                value, (list, tuple)
            ):  # it replaces all that an earlier layer set there
                opened = without(opened, lambda old, path=path: old.startswith(f"{path}."))
        given: dict[str, Any] = {}
        defaults: dict[str, Any] = {}
        for path, value in values.items():
            for field, item, is_default in _open(path, value, overrides):
                if [p for p in _with_parents(field) if p in values][-1] == path:  # nothing says it from nearer
                    (defaults if is_default else given)[field] = item
        opened += [(name, given), (DEFAULT, defaults)]
    return opened


def _open(path: str, value: Any, overrides: Overrides, is_default: bool = False) -> Iterator[tuple[str, Any, bool]]:
    if _is_instance(value) and chz.chz_fields(value):  # without fields, a class that is callable would be the value
        yield path, type(value), is_default
        for name, field in chz.chz_fields(value).items():
            item = getattr(value, field.x_name)
            yield from _open(f"{path}.{name}", item, overrides, is_default or _is_default(field, item))
        return
    items = _items(value)
    reached = any(key.startswith(f"{path}.") for key in overrides)
    if items is None or not (reached or any(map(_is_instance, items.values()))):
        yield path, value, is_default
        return
    for key, item in items.items():
        if "." in str(key):  # chz would take it for two
            raise ConfigError(
                f"{path}: its key {key!r} holds a dot, at which keys are split: rename it, or give all of it: "
                f"{path}={{...}}"
            )
        yield from _open(f"{path}.{key}", item, overrides, is_default)


def _items(value: Any) -> dict[Any, Any] | None:
    """What chz can build a list or mapping of, by key."""
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    return value if isinstance(value, dict) and all(isinstance(key, (str, int)) for key in value) else None


def _is_instance(value: Any) -> bool:
    return chz.is_chz(value) and not isinstance(value, type)


def _is_default(field: Any, value: Any) -> bool:
    factory = field._default_factory
    default = factory() if factory in (dict, list) else field._default
    return type(value) is type(default) and value == default  # of one type: an array has no single answer


def defaults_of(cls: type) -> dict[str, Any]:
    """The fields of a chz class that need not be given, with what they are then."""
    found: dict[str, Any] = {}
    for name, field in chz.chz_fields(cls).items():
        if not isinstance(field._default_factory, MISSING_TYPE):
            found[name] = field._default_factory()
        elif not isinstance(field._default, MISSING_TYPE):
            found[name] = field._default
    return found


def _with_parents(path: str) -> Iterator[str]:
    """``a``, ``a.b`` and ``a.b.c`` of ``a.b.c``."""
    return itertools.accumulate(path.split("."), "{}.{}".format)


def _reorder(items: dict[str, Any], keys: list[str]) -> None:
    for key in keys:
        items[key] = items.pop(key)
