"""``python -m harness tag``: set and remove tags of runs."""

import os

import click


@click.command()
@click.argument("arguments", metavar="RUN... [KEY=VALUE | KEY=]...", nargs=-1, required=True)
def command(arguments: tuple[str, ...]) -> None:
    """Set tags of runs, or remove them by KEY= alone; without any, show them.

    RUN is a run directory or a folder of them, also of runs that are being trained. Their MLflow runs get the tags too.
    Exit code 2 where a run could not be tagged: the others are.
    """
    from harness.exceptions import HarnessError, RunDirError
    from harness.run_folders import find_runs
    from harness.run_tags import change_tags, tags
    from harness.supervised.provenance import now_ms
    from harness.tracking.mlflow_mirror import update

    paths, changes = _parsed(arguments)
    tagged = []
    failures: list[str] = []
    for run in find_runs(paths):
        try:
            if changes:
                change_tags(run, changes, now_ms())
                tagged.append(run)
            click.echo(f"{run}: {', '.join(f'{key}={value}' for key, value in tags(run).items()) or 'no tags'}")
        except HarnessError as error:  # the others may well succeed
            failures.append(str(error))
    for trouble in update(tagged):
        click.echo(f"warning: {trouble}: python -m harness sync {' '.join(paths)} sends the tags", err=True)
    if failures:
        raise RunDirError("; ".join(failures))


def _parsed(arguments: tuple[str, ...]) -> tuple[list[str], dict[str, str | None]]:
    """The paths, and the tags with None for one to remove. A path may have a ``=`` in it, as those of recipes do."""
    from harness.exceptions import ConfigError
    from harness.tracking.mlflow_tags import is_a_users

    paths: list[str] = []
    changes: dict[str, str | None] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or "/" in key or os.path.exists(argument):
            paths.append(argument)
        elif not key.strip():
            raise ConfigError(f"{argument}: no name before the =: write KEY=VALUE")
        elif not key.isprintable():
            raise ConfigError(f"{argument!r}: a name is one line, without control characters: write KEY=VALUE")
        elif not is_a_users(key):
            raise ConfigError(f"{argument}: names that begin with harness. or mlflow. are not a user's: choose another")
        else:
            changes[key] = value or None
    if not paths:
        raise ConfigError(f"{' '.join(arguments)}: no run among these: python -m harness tag RUN KEY=VALUE")
    return paths, changes
