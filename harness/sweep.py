"""Many runs of one recipe, one for each combination of some values: what they are, and what they show.

Every config is made and checked before anything starts; :mod:`harness.sweep_jobs` trains them.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from harness import cli
from harness.config_io import redact_argv, to_json
from harness.exceptions import ConfigError, HarnessError
from harness.metric_keys import test_key
from harness.plot import is_drawn_here
from harness.preview import load_config
from harness.run_dir import RunDir
from harness.supervised import provenance
from harness.supervised.train import Config, with_backend, with_own_builder
from harness.sweep_grid import directory_name, is_named_by, parse_grid, short_names
from harness.sweep_record import SWEEP, read_record, write_record

LOGS = "logs"  # in the sweep's folder: what each run printed
FIGURE = "responses.png"


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        settings: The values that tell it from the others, as text, by parameter.
        command: What trains it.
    """

    run: RunDir
    config: Config
    settings: dict[str, str]
    command: list[str]

    @property
    def name(self) -> str:
        return self.run.path.name

    def is_complete(self) -> bool:
        """Whether there is nothing left to train.

        Raises:
            RunDirError: where its files cannot be read.
        """
        return self.run.is_finished() and provenance.is_as_last_asked(self.run, self.config)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What :func:`plan` found to be trainable.

    Attributes:
        environment: That the runs' processes are given.
        runs: The first parameter's values vary slowest.
    """

    root: Path
    environment: dict[str, str]
    runs: list[SweepRun]


# ---- what to train


def plan(recipe: str, overrides: Sequence[str], root: Path) -> Sweep:
    """The runs of a sweep, each with a config that was made and checked; notes in ``root`` what was asked for.

    Args:
        recipe: A module as after ``python -m``, or the path of a script.
        overrides: See :func:`harness.sweep_grid.parse_grid`.

    Raises:
        ConfigError: for an override that cannot be used, in any of the combinations; two of one config; a directory
            that holds a run of another config; a ``root`` that holds something else.
    """
    shared, grid = parse_grid(overrides)
    module, environment = _find(recipe)
    root = root.expanduser()
    there = _look_into(root, recipe)
    names = short_names(grid)
    runs: list[SweepRun] = []
    by_config: dict[str, str] = {}
    for values in itertools.product(*grid.values()):
        settings = dict(zip(names.values(), values, strict=True))
        named = directory_name(settings)
        found = [name for name in there if is_named_by(name, settings)]
        path = root / (named if named in there or not found else found[0])
        arguments = [*shared, *map("{}={}".format, grid, values), f"log_path={path}"]
        config = _config(module, arguments, path)
        key = json.dumps(to_json(config) | {"log_path": None})
        if (other := by_config.setdefault(key, named)) != named:
            raise ConfigError(f"{named} is the same config as {other}: leave one of the values out")
        runs.append(SweepRun(RunDir(path), config, settings, [sys.executable, "-m", module, *arguments]))
    _note(root, recipe, {names[key]: values for key, values in grid.items()}, runs)
    return Sweep(root, environment, runs)


def _find(recipe: str) -> tuple[str, dict[str, str]]:
    """The module of a recipe, and an environment in which ``python -m`` finds it. A script is the module of its name,
    so that what it defines is called the same here, in its runs, and when they are made again."""
    cli.import_from_here()
    if not recipe.endswith(".py"):
        return recipe, dict(os.environ)
    script = Path(recipe)
    if not script.is_file():
        raise ConfigError(f"{recipe}: no such script")
    folder = str(script.parent.absolute())
    if folder not in sys.path:
        sys.path.insert(1, folder)  # after the current directory, as below
    spec = None if "." in script.stem else importlib.util.find_spec(script.stem)
    if spec is None or spec.origin is None or not os.path.samefile(spec.origin, script):
        raise ConfigError(f"{recipe}: python -m {script.stem} is something else: rename the script")
    return script.stem, os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    }


def _look_into(root: Path, recipe: str) -> list[str]:
    """The names of what is in ``root``, where a sweep of ``recipe`` may go into it."""
    figure = root / FIGURE
    try:
        there = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
        is_ours = FIGURE not in there or is_drawn_here(figure.read_bytes(), figure.suffix)
    except FileNotFoundError:
        return []
    except OSError as error:
        place = error.filename or root
        raise ConfigError(f"{place}: cannot be read ({error.strerror}): choose another --root") from error
    record = read_record(root)
    if there and record is None:
        raise ConfigError(f"{root}: there is something in it, and no sweep's {SWEEP}: choose another --root")
    if record and os.path.abspath(record.recipe) != os.path.abspath(recipe):  # ./toy.py is toy.py
        raise ConfigError(f"{root} holds a sweep of {record.recipe}: choose another --root")
    if not is_ours:
        raise ConfigError(f"{figure}: there already, and no sweep drew it: move it, or choose another --root")
    return there


def _config(module: str, arguments: list[str], path: Path) -> Config:
    """The config of one run, checked as far as it can be without its data."""
    try:
        config = with_own_builder(load_config(module, arguments))
        config = with_backend(config, RunDir(path), Console(quiet=True))
        config.backend.check(config.model_name)
    except HarnessError as error:
        raise ConfigError(f"{path.name}: {error}") from error
    if RunDir(config.log_path).path != RunDir(path).path:
        raise ConfigError(
            f"{module} trains into {config.log_path}, not the log_path that it is given: a sweep needs it to"
        )
    try:
        provenance.check_same_config(RunDir(path), config)
    except ConfigError as error:
        raise ConfigError(f"{error}; or sweep under another --root") from error
    except OSError as error:  # a file in the place of a directory, or the other way round
        raise ConfigError(f"{error.filename}: cannot be read ({error.strerror}): choose another --root") from error
    return config


def _note(root: Path, recipe: str, grid: dict[str, list[str]], runs: list[SweepRun]) -> None:
    names = [run.name for run in runs]
    try:
        root.mkdir(parents=True, exist_ok=True)
        write_record(
            root, started=provenance.now_ms(), recipe=recipe, argv=redact_argv(sys.argv), grid=grid, runs=names
        )
        (root / LOGS).mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{root}: cannot be written ({error.strerror}): choose another --root") from error


# ---- what came of it


def mirror(sweep: Sweep, say: Callable[[str], None]) -> None:
    """Bring the sweep's MLflow run up to date, unless its runs are not mirrored; one line where that fails."""
    from harness.tracking.mlflow_sweep import sync_sweep

    config = sweep.runs[0].config
    try:
        if config.mirror:
            sync_sweep(sweep.root, config.tracking_uri)
    except HarnessError as error:
        say(f"warning: {error}: python -m harness sync {sweep.root} completes the MLflow runs")


def report(sweep: Sweep, console: Console) -> None:
    """Print the comparison of all runs in the sweep's folder, and the response to each parameter, which is drawn."""
    from harness.compare import load_runs, make_report, print_report
    from harness.compare.read_run import REPLANNED
    from harness.compare.responses import FOOTNOTE, draw, responses, responses_section, results

    if not any(run.run.exists() for run in sweep.runs):
        return
    runs = load_runs([sweep.root])
    tested = [name for name in runs.test_sets["set"] if test_key(name, "nll") in runs.metrics]
    on = next(iter(tested), "")  # of several the first, as where the best checkpoint is chosen
    shown = make_report(runs, on)
    names = {directory.path: name for name, directory in runs.directories.items()}
    settings = {names[run.run.path]: run.settings for run in sweep.runs if run.run.path in names and _is_complete(run)}
    if REPLANNED in runs.configs:  # extended on the way: not what the others with these values are
        planned = runs.configs[REPLANNED].to_dict()
        settings = {run: values | {REPLANNED: planned[run] or "at once"} for run, values in settings.items()}
    measured = results(runs, settings, on)
    found = responses(measured)
    if len(found):
        shown.sections.append(responses_section(found))
        shown.footnotes.append(FOOTNOTE)
    print_report(shown, console)
    if len(found):
        draw(measured, found, sweep.root / FIGURE)
        console.print(f"\nwrote {sweep.root / FIGURE}", markup=False, highlight=False, soft_wrap=True)


def _is_complete(run: SweepRun) -> bool:
    try:
        return run.is_complete()
    except HarnessError:  # what is damaged in it stands in the report
        return False
