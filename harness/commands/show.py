"""``python -m harness show``: one run."""

import click


@click.command()
@click.argument("run", metavar="RUN")
def command(run: str) -> None:
    """Say all that is known of RUN, and how to go on with it."""
    from harness.run_details import details
    from harness.run_dir import RunDir

    click.echo(details(RunDir(run)))
