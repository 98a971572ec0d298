"""Recipe overrides in every form people type, ``--help``, and errors without tracebacks.

A recipe ends with::

    if __name__ == "__main__":
        cli.entrypoint(build_config_blueprint(), train.main)

chz reads ``key=value``, ``...key=value`` and ``key@=reference``. Added here: ``--key=value``, ``--key value`` and
``--key-with-hyphens``; ``1e3`` for integers and ``[a,b]`` for lists; dotted keys that reach into a builder which the
recipe applied as an instance; a ``model_name`` that carries on to tokenizer and renderer; a default ``log_path``.
"""

import contextlib
import dataclasses
import datetime
import decimal
import difflib
import enum
import inspect
import re
import shlex
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import chz
import chz.tiepin
import chz.util
from chz.blueprint import Castable, Reference

from harness import config_io
from harness.exceptions import ConfigError, HarnessError
from harness.model_info import get_recommended_renderer_name
from harness.supervised.provenance import recipe_name

_CHZ_ERRORS = (
    chz.blueprint.ConstructionException,
    chz.blueprint.ExtraneousBlueprintArg,
    chz.blueprint.InvalidBlueprintArg,
    chz.blueprint.MissingBlueprintArg,
    TypeError,  # a value of the wrong type, and what a validator raises
    ValueError,
    RecursionError,  # references that go round in a circle
)
_COMMAND_LINE = "command line"
_SEE_HELP = "(--help lists all)"
_WHOLE_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?[eE]\+?\d{1,2}")

Overrides = dict[str, Castable | Reference]
Layers = list[tuple[str, dict[str, Any]]]  # where the values come from, and the values by dotted path


def entrypoint(target: Any, main: Callable[[Any], Any] | None = None, *, argv: list[str] | None = None) -> Any:
    """Make what ``target`` describes, with the overrides of the command line, and run ``main`` with it.

    A mistake of the user's (any HarnessError, from making or from ``main``) is one line on stderr and exit code 2;
    an interrupt exits with 130; any other exception of ``main`` is a bug and keeps its traceback.

    Args:
        target: A ``chz.Blueprint``, which is left as it is; a chz class; or a function whose first argument is
            annotated with a chz class, which then is ``main``.
        main: Called with the object that was made; where it is a coroutine function, it is run to its end.
        argv: The arguments; those of this process by default.

    Returns:
        What ``main`` returned, or the object where there is no ``main``.
    """
    if not isinstance(target, chz.Blueprint):
        if not chz.is_chz(target):
            assert main is None, "a function target is main itself"
            target, main = chz.get_nested_target(target), target
        target = chz.Blueprint(target)
    try:
        made = make_from_argv(target, sys.argv[1:] if argv is None else argv)
    except HarnessError as error:
        _exit(f"error: {_one_line(error)}", 2)
    return made if main is None else _run(main, made)


def make_from_argv(blueprint: chz.Blueprint[Any], argv: list[str]) -> Any:
    """Like chz's method of this name, with all that this module adds. ``--help`` prints and raises SystemExit(0).

    Raises:
        ConfigError: for an override that cannot be used, a value that is missing, or what a validator refuses.
    """
    overrides, wants_help = parse_argv(argv)
    with _as_config_errors():
        recipe = _open_instances(_layers(blueprint), overrides)
        model_name = _applied(_build(blueprint.target, recipe), "model_name")
        blueprint = _apply_overrides(blueprint.target, recipe, overrides)
        if model_name is not None:
            _carry_model_name(blueprint, model_name.value)
        if "log_path" in _read(blueprint).missing_params:
            log_path = default_log_path(overrides, datetime.datetime.now())
            blueprint.apply({"log_path": log_path}, layer_name="default")
        if wants_help:
            print(_help(blueprint))
            raise SystemExit(0)
        return _make(blueprint)


# ---- reading the command line


def parse_argv(argv: list[str]) -> tuple[Overrides, bool]:
    """The overrides by key, of one key given twice the last, and whether help is asked for.

    ``--key`` takes the next argument whatever it is (``-1``, ``a=b``), except another ``--option``. Hyphens become
    underscores in ``--key`` only: ``tags.my-tag=x`` keeps its hyphen.

    Raises:
        ConfigError: for an argument of no known form, or a key without a value.
    """
    overrides: Overrides = {}
    wants_help = False
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if argument in ("--help", "-h"):
            wants_help = True
            continue
        key, equals, value = argument.partition("=")
        if key.startswith("--"):
            key = key.removeprefix("--").replace("-", "_")
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise ConfigError(
                        f"{argument}: no value given; write {argument} <value> (a switch: {argument} true)"
                    )
                value = rest.pop(0)
        elif not equals or key.startswith("-"):
            raise ConfigError(f"{argument}: not an override; write key=value, --key=value or --key value {_SEE_HELP}")
        if not key.removesuffix("@"):
            raise ConfigError(f"{argument}: no key before the value; write key=value {_SEE_HELP}")
        try:
            overrides[key.removesuffix("@")] = Reference(value) if key.endswith("@") else Castable(value)
        except ValueError as error:
            raise ConfigError(f"{argument}: {error}") from None
    return overrides, wants_help


def _apply_overrides(target: Any, recipe: Layers, overrides: Overrides) -> chz.Blueprint[Any]:
    """The recipe with the overrides on top, each in the first of its readings that chz accepts.

    They are tried one by one, so that an error names the one it comes from; a builder's type before its fields,
    wildcards last.
    """
    accepted: dict[str, Any] = {}
    for key in sorted(overrides, key=lambda key: ("..." in key, key.count("."))):
        failure = None
        for layers, value in _readings(recipe, key, overrides[key]):
            try:
                _read(_build(target, layers, accepted | {key: value}))
            except _CHZ_ERRORS as error:
                failure = failure or error
            else:
                recipe, accepted[key] = layers, value
                break
        else:
            assert failure is not None
            raise _unusable(key, overrides[key], failure, _read(_build(target, recipe, accepted)).all_params)
    blueprint = _build(target, recipe, accepted)
    known = _read(blueprint).all_params
    # Of a builder that was replaced by another one: what the other has no field for.
    replaced = tuple(f"{path}." for path in known if _layer_of(blueprint, path) == _COMMAND_LINE)
    recipe = _without(recipe, lambda path: path.startswith(replaced) and path not in known)
    return _build(target, recipe, accepted)


def _readings(recipe: Layers, key: str, value: Castable | Reference) -> Iterator[tuple[Layers, Castable | Reference]]:
    """What an override may mean: first what chz takes it for."""
    yield recipe, value
    if isinstance(value, Reference):
        return
    text = value.value
    if _WHOLE_NUMBER.fullmatch(text) and (number := decimal.Decimal(text)) % 1 == 0:
        yield recipe, Castable(str(int(number)))  # 1e3 for an integer
    if text[:1] + text[-1:] in ("[]", "()"):
        items = [item.strip().strip("'\"") for item in text[1:-1].split(",")]
        yield recipe, Castable(",".join(items))  # [a,b] without quotes, or for a tuple
    # What the recipe set inside of the old value does not fit into the new one: None, a builder of another kind.
    yield _without(recipe, lambda path: path.startswith(f"{key}.")), value


def _without(layers: Layers, drop: Callable[[str], bool]) -> Layers:
    return [(name, {path: value for path, value in values.items() if not drop(path)}) for name, values in layers]


# ---- what a recipe applied


def _open_instances(layers: Layers, overrides: Overrides) -> Layers:
    """The layers with every chz instance opened into its type and its fields, which dotted keys can override; a list
    or mapping too, where an override reaches into it."""
    opened: Layers = []
    for name, values in layers:
        for path, value in values.items():
            if _is_instance(value):  # it replaces all that an earlier layer set there
                opened = _without(opened, lambda old, path=path: old.startswith(f"{path}."))
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


def _carry_model_name(blueprint: chz.Blueprint[Any], before: Any) -> None:
    """Let tokenizer and renderer follow a ``model_name`` from the command line, where the recipe had what went with
    its own model. Anything else that the recipe chose stays, with a warning."""
    found = _applied(blueprint, "model_name")
    after = found.value if found else before
    if after == before or not (isinstance(before, str) and isinstance(after, str)):
        return
    renderers = get_recommended_renderer_name(before), get_recommended_renderer_name(after)
    follow: dict[str, Any] = {}
    stay: dict[str, tuple[str, str]] = {}  # path: what stays, what would go with the new model
    for path in _read(blueprint).all_params:
        found = _applied(blueprint, path)
        if found is None or found.layer_name == _COMMAND_LINE or not isinstance(found.value, str):
            continue
        field = path.rpartition(".")[2]
        if field == "model_name_for_tokenizer":
            if found.value == before:
                follow[path] = Reference("model_name")
            elif found.value != after:
                stay[path] = found.value, after
        elif field == "renderer_name":
            if found.value == renderers[0]:
                follow[path] = renderers[1]
            elif found.value != renderers[1]:
                stay[path] = found.value, renderers[1]
    blueprint.apply(follow, layer_name="model_name")
    if stay:
        kept = ", ".join(f"{path}={value}" for path, (value, _) in stay.items())
        change = " ".join(f"{path}={value}" for path, (_, value) in stay.items())
        print(
            f"warning: model_name is now {after}, but {kept} stays: the recipe chose it apart from its model; "
            f"to change it: {change}",
            file=sys.stderr,
        )


def default_log_path(overrides: Overrides, now: datetime.datetime) -> str:
    """``runs/<recipe>-<time>-<what the command line changed>``, with ``-2``, ``-3`` ... where that is there already."""
    changes = []
    for key, value in overrides.items():
        name = key.rpartition(".")[2]
        text = value.ref if isinstance(value, Reference) else config_io.redact(value.value, name)
        changes.append(re.sub(r"[^\w.=+-]+", "_", f"{name}={text}", flags=re.ASCII))
    parts = [recipe_name() or "run", f"{now:%Y%m%d-%H%M%S}", ",".join(changes)[:80].rstrip(",")]
    path = first = Path("runs", "-".join(filter(None, parts)))
    number = 1
    while path.exists():
        number += 1
        path = first.with_name(f"{first.name}-{number}")
    return str(path)


# ---- making and running


def _make(blueprint: chz.Blueprint[Any]) -> Any:
    read = _read(blueprint)
    try:
        return blueprint.make()
    except chz.blueprint.ExtraneousBlueprintArg as error:
        match = re.match(r"Extraneous argument '(.+?)'", str(error))
        assert match, error
        raise _no_such_option(match[1], read.all_params) from None
    except chz.blueprint.MissingBlueprintArg:
        missing = read.missing_params
        give = " ".join(f"{path}=<{_type_text(read.all_params[path].type)}>" for path in missing)
        verb = "is" if len(missing) == 1 else "are"
        raise ConfigError(f"{', '.join(missing)} {verb} required: give {give} {_SEE_HELP}") from None


def _run(main: Callable[[Any], Any], made: Any) -> Any:
    try:
        result = main(made)
        if inspect.iscoroutine(result):
            import asyncio

            result = asyncio.run(result)
        return result
    except HarnessError as error:
        _exit(f"error: {_one_line(error)}", 2)
    except KeyboardInterrupt:
        log_path = getattr(made, "log_path", None)
        again = f"; the same command with log_path={shlex.quote(str(log_path))} resumes the run" if log_path else ""
        _exit(f"interrupted{again}", 130)


def _exit(line: str, code: int) -> NoReturn:
    print(line, file=sys.stderr)
    raise SystemExit(code)


# ---- errors


@contextlib.contextmanager
def _as_config_errors() -> Iterator[None]:
    try:
        yield
    except HarnessError:
        raise
    except _CHZ_ERRORS as error:
        raise ConfigError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())


def _unusable(key: str, value: Castable | Reference, failure: Exception, params: dict[str, Any]) -> ConfigError:
    """The error for an override that chz cannot read in any way."""
    name = key.rpartition("...")[2]
    matching = [p for path, p in params.items() if path == key or ("..." in key and f".{path}".endswith(f".{name}"))]
    if not matching:
        return _no_such_option(key, params)
    param = matching[0]
    if not (
        isinstance(failure, chz.blueprint.InvalidBlueprintArg)
        and isinstance(value, Castable)
        and isinstance(param.meta_factory, chz.factories.standard)
    ):  # a cast or factory of the field's own says it best, and does so in its last line
        return ConfigError(f"{key}={_spell(value)}: {str(failure).splitlines()[-1]}")
    members = _union_members(param.type)
    choices = [choice for member in members for choice in _choices(member)]
    if all(map(_choices, members)):
        wanted = f"one of {', '.join(choices)}"
    else:
        text = " or ".join(_type_text(member) for member in members)
        wanted = f"an {text}" if text[0] in "aeiou" else f"a {text}"
    return ConfigError(f"{key}={_spell(value)}: not {wanted} {_SEE_HELP}")


def _no_such_option(key: str, params: dict[str, Any]) -> ConfigError:
    """The error for a key of no field, with the nearest ones: the right name elsewhere, else a similar name."""
    paths = [path for path in params if path]
    by_name: dict[str, list[str]] = {}
    for path in paths:
        by_name.setdefault(path.rpartition(".")[2], []).append(path)
    name = key.rpartition(".")[2]
    similar = difflib.get_close_matches(name, by_name, n=1)
    if "..." in key:
        near = [f"...{name}" for name in similar]
    else:
        near = (
            by_name.get(name) or difflib.get_close_matches(key, paths, n=1) or [p for n in similar for p in by_name[n]]
        )
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return ConfigError(f"{key}: no such option{hint} {_SEE_HELP}")


# ---- help


def _help(blueprint: chz.Blueprint[Any]) -> str:
    """Every field as it would be typed, its type, where its value comes from, and below that what it is for."""
    read = _read(blueprint)
    rows = []
    for path, param in read.all_params.items():
        if not path:  # the config itself
            continue
        found = _applied(blueprint, path)
        if found is not None:
            equals = "@=" if isinstance(found.value, Reference) else "="
            text, source = f"{path}{equals}{_spell(found.value)}", found.layer_name
        elif path in read.meta_factory_value:
            text, source = f"{path}={_spell(read.meta_factory_value[path])}", "default"
        elif param.default is not None:
            text, source = f"{path}={_spell_default(param.default)}", "default"
        else:
            text, source = f"{path}=", "required" if path in read.missing_params else "unset"
        enums = [member for member in _union_members(param.type) if isinstance(member, enum.EnumMeta)]
        about = " ".join([*param.doc.split(), *(f"{e.__name__}: {', '.join(_choices(e))}." for e in enums)])
        rows.append((text, f"{_type_text(param.type)} ({source})", about))
    width = min(shutil.get_terminal_size((110, 24)).columns, 120)
    column = min(max((len(text) for text, _, _ in rows), default=0), width - 40)
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    command = f"python -m {spec.name.removesuffix('.__main__')}" if spec else f"python {sys.argv[0]}"
    lines = [f"Usage: {command} [key=value | --key=value | --key value] ...", ""]
    lines += [*inspect.cleandoc(getattr(blueprint.target, "__doc__", None) or "").splitlines(), ""]
    lines += ["A key of any depth may be shortened: ...batch_size=64. Lists: a,b. References: key@=other.key", ""]
    for text, kind, about in rows:
        lines.append(f"  {text:<{column}}  {kind}")
        lines += textwrap.wrap(about, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _spell(value: Any) -> str:
    """A value as one would type it on the command line."""
    if isinstance(value, Reference):
        return value.ref
    if isinstance(value, Castable):
        value = value.value
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, (list, tuple)) and value:
        return ",".join(map(_spell, value))
    return _type_text(value) if callable(value) else str(value)


def _spell_default(default: Any) -> str:
    if default.factory in (dict, list):
        return str(default.factory())
    if isinstance(default.factory, type):
        return _type_text(default.factory)
    return _spell(default.value) if default.factory is chz.util.MISSING else default.to_help_str()


def _type_text(typ: Any) -> str:
    """A type as one would speak of it: without modules, a Literal by its values."""
    members = _union_members(typ)
    if len(members) > 1:
        return " | ".join(map(_type_text, members))
    if typing.get_origin(typ) is typing.Literal:
        return " | ".join(_choices(typ))
    if typ in (None, types.NoneType):
        return "None"
    return re.sub(r"(\w+\.)*\w+[.:](?=\w)", "", chz.tiepin.type_repr(typ))


def _union_members(typ: Any) -> tuple[Any, ...]:
    return typing.get_args(typ) if typing.get_origin(typ) in (typing.Union, types.UnionType) else (typ,)


def _choices(typ: Any) -> list[str]:
    """All that can be given for a type, where that is a short list of words; else nothing."""
    if typing.get_origin(typ) is typing.Literal:
        return [str(value) for value in typing.get_args(typ)]
    if isinstance(typ, type) and issubclass(typ, enum.Enum):
        return [str(member.value) for member in typ]
    if typ is bool:
        return ["true", "false"]
    if typ in (None, types.NoneType):
        return ["None"]
    if chz.is_chz(typ):
        kinds = [typ, *typ.__subclasses__()]
        for kind in kinds:
            kinds += [kind for kind in kind.__subclasses__() if kind not in kinds]
        return [*dict.fromkeys(kind.__name__ for kind in kinds), "module:Class"]
    return []


# ---- chz's private parts: it has no public way to read the layers of a blueprint or what is in its fields


@dataclasses.dataclass(frozen=True)
class _Applied:
    """A value that was applied, by whom; as text where chz has yet to cast it."""

    value: Any
    layer_name: str


def _layers(blueprint: chz.Blueprint[Any]) -> Layers:
    return [(layer.layer_name or "recipe", layer.qualified | layer.wildcard) for layer in blueprint._arg_map._layers]


def _applied(blueprint: chz.Blueprint[Any], path: str) -> _Applied | None:
    """What counts of all that was applied to ``path``, by its name or by a wildcard."""
    blueprint._arg_map.consolidate()
    found = blueprint._arg_map.get_kv(path)
    if found is None:
        return None
    value = found.value.value if isinstance(found.value, Castable) else found.value
    return _Applied(value, found.layer_name or "recipe")


def _layer_of(blueprint: chz.Blueprint[Any], path: str) -> str | None:
    found = _applied(blueprint, path)
    return found and found.layer_name


def _read(blueprint: chz.Blueprint[Any]) -> Any:
    """What chz makes of the blueprint without calling anything: ``all_params`` and ``missing_params`` by path."""
    return blueprint._make_lazy()


def _build(target: Any, layers: Layers, overrides: dict[str, Any] | None = None) -> chz.Blueprint[Any]:
    blueprint = chz.Blueprint(target)
    for name, values in layers:
        blueprint.apply(values, layer_name=name)
    return blueprint.apply(overrides or {}, layer_name=_COMMAND_LINE)
