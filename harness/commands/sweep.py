"""``python -m harness sweep``: a recipe trained with every combination of some values."""

from pathlib import Path

import click


@click.command()
@click.argument("recipe", metavar="RECIPE")
@click.argument("overrides", metavar="KEY=[VALUE,...]... [KEY=VALUE]...", nargs=-1)
@click.option("--root", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Where the runs go.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="Runs trained at a time.")
@click.pass_context
def command(ctx: click.Context, recipe: str, overrides: tuple[str, ...], root: Path, jobs: int) -> None:
    """Train RECIPE with every combination of the values in brackets, and compare the runs.

    RECIPE is a module as after python -m, or the path of a script. The same command goes on with what is not complete.
    Exit code 1 where a run failed.
    """
    from rich.console import Console

    from harness.sweep import LOGS, mirror, plan, report
    from harness.sweep_jobs import train

    sweep = plan(recipe, overrides, root)
    num = len(sweep.runs)
    click.echo(f"{sweep.root}: {num} run{'s' * (num > 1)}, {jobs} at a time; what they print is in {sweep.root / LOGS}")
    outcome = train(sweep, jobs, click.echo)
    mirror(sweep, click.echo)
    if outcome.stop.signal:
        click.echo("the same command goes on with the sweep")
        outcome.stop.raise_if_made()
    try:
        report(sweep, Console())
    finally:
        for name, why in outcome.failed.items():
            click.echo(f"failed: {name}: {why}")
        if outcome.elsewhere:
            click.echo(f"left to another process: {', '.join(outcome.elsewhere)}")
    ctx.exit(1 if outcome.failed else 0)
