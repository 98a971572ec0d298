"""``python -m harness compare``: past runs side by side."""

from pathlib import Path

import click


@click.command()
@click.argument("sources", metavar="RUN...", nargs=-1, required=True)
@click.option("--on", default="", metavar="NAME", help="The test set to compare on, where a run has named ones.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Draw the curves: .png, .svg or .pdf.")
def command(sources: tuple[str, ...], on: str, out: Path | None) -> None:
    """Compare train and test NLL of runs.

    RUN is a run directory, or a folder that holds some. Nothing in them is changed, and runs that are still training
    can be compared too.
    """
    from rich.console import Console

    from harness.compare import load_runs, plot, print_report

    runs = load_runs(sources)
    if out is not None:
        plot(runs, out, on)
    print_report(runs, Console(), on)
    if out is not None:
        click.echo(f"\nwrote {out}")
