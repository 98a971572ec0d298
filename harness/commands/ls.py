"""``python -m harness ls``: runs in a list."""

import click


@click.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@click.option(
    "--filter",
    "conditions",
    metavar="CONDITION",
    multiple=True,
    help="KEY=VALUE, or with !=, <, <=, >, >=. KEY is a column, a field of the config, or tags.NAME. Given several "
    "times, all must hold.",
)
@click.option("--sort", metavar="[-]KEY", help="By a column or a field of the config; with -, from the highest down.")
def command(runs: tuple[str, ...], conditions: tuple[str, ...], sort: str | None) -> None:
    """List runs: what became of each, test NLL, where it is and how big.

    RUN is a run directory or a folder of them, runs/ by default. In a pipe the columns are separated by tabs and hold
    plain numbers: bytes, tokens.
    """
    from rich.console import Console

    from harness.listing import filtered, list_run, ordered, tab_separated, table
    from harness.run_folders import find_runs

    listed = [list_run(run) for run in find_runs(runs or ["runs"])]
    if sort:
        listed = ordered(listed, sort)
    listed = filtered(listed, conditions)
    console = Console(highlight=False, markup=False)
    if console.is_terminal:
        console.print(table(listed, console.width))
    else:
        click.echo(tab_separated(listed), nl=False)
    for run in listed:
        if run.problem:
            click.echo(f"damaged: {run.problem}", err=True)
