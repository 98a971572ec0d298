"""``python -m harness compare``: past runs side by side."""

from pathlib import Path

import click


@click.command()
@click.argument("sources", metavar="RUN...", nargs=-1, required=True)
@click.option("--on", default="", metavar="NAME", help="The test set to compare on, where a run has named ones.")
@click.option("--baseline", metavar="RUN", help="The run that the others are held against; the first by default.")
@click.option(
    "--at",
    default="last",
    show_default=True,
    metavar="POINT",
    help="Which evaluations are held against each other: last, best, common (the last x that every run reached), or "
    "an x: the last at or before it.",
)
@click.option(
    "--x",
    default="step",
    show_default=True,
    metavar="AXIS",
    help="What x counts: step, tokens, loss-tokens, epoch, fraction (of training), time (seconds).",
)
@click.option("--explain", "explained", is_flag=True, help="Say where they parted: in training, by slice, by example.")
@click.option("--fail-if", type=click.Choice(["worse"]), help="Exit code 1 where a run is worse than the baseline.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Draw the curves: .png, .svg or .pdf.")
@click.pass_context
def command(
    ctx: click.Context,
    sources: tuple[str, ...],
    on: str,
    baseline: str | None,
    at: str,
    x: str,
    explained: bool,
    fail_if: str | None,
    out: Path | None,
) -> None:
    """Compare train and test NLL of runs.

    RUN is a run directory, or a folder that holds some. Nothing in them is changed, and runs that are still training
    can be compared too.
    """
    from rich.console import Console

    from harness.compare import explain, judge, load_runs, plot, print_explanation, print_report

    runs = load_runs(sources)
    judgement = judge(runs, baseline, at, x, on)
    explanation = explain(runs, judgement, on) if explained else None
    if out is not None:
        plot(runs, out, on)
    console = Console()
    print_report(runs, console, on, judgement)
    if explanation is not None:
        print_explanation(explanation, console)
    if out is not None:
        click.echo(f"\nwrote {out}")
    if fail_if and judgement.worse():
        ctx.exit(1)
