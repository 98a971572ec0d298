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
@click.option(
    "--out",
    "outputs",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the report: .html (a page with curves), .md, .json, .csv; or draw the curves: .png, .svg, .pdf. May be "
    "given several times; a report that is there is replaced.",
)
@click.option("--log", "experiment", metavar="EXPERIMENT", help="Log the page to MLflow, as a run of this experiment.")
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
    outputs: tuple[Path, ...],
    experiment: str | None,
) -> None:
    """Compare train and test NLL of runs.

    RUN is a run directory, a folder that holds some, a pattern ('runs/lr-*'), mlflow:EXPERIMENT, or the id of an MLflow
    run. Nothing in them is changed, and runs that are still training can be compared too.
    """
    from rich.console import Console

    from harness.compare import explain, explain_sections, judge, load_runs, make_report, print_report
    from harness.compare.export import check_outputs, write_report

    check_outputs(outputs)
    runs = load_runs(sources)
    judgement = judge(runs, baseline, at, x, on)
    report = make_report(runs, on, judgement)
    if explained:
        report.sections.extend(explain_sections(explain(runs, judgement, on)))
    for path in outputs:
        write_report(report, path)
    print_report(report, Console())
    if outputs:
        click.echo(f"\nwrote {', '.join(map(str, outputs))}")
    if experiment is not None:
        from harness.compare.page import render_page
        from harness.tracking.mlflow_report import log_report

        click.echo(log_report(render_page(report), list(runs.states), experiment))
    if fail_if and judgement.worse():
        ctx.exit(1)
