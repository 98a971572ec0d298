"""``python -m harness check``: whether MLflow holds what the files hold."""

import click


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("--to", metavar="URI", help="MLflow tracking URI; by default where the run was mirrored before.")
@click.pass_context
def command(ctx: click.Context, runs: tuple[str, ...], to: str | None) -> None:
    """Compare RUN... with their MLflow runs, point by point. RUN is a run directory or a folder of them.

    Nothing is changed. Exit code 1 where something differs.
    """
    from harness.exceptions import HarnessError, TrackingError
    from harness.run_folders import find_runs
    from harness.tracking.mlflow_check import check

    is_equal = True
    failures: dict[str, None] = {}  # in order, each once: a dead server fails every run alike
    for run_dir in find_runs(runs):
        try:
            result = check(run_dir, to)
        except HarnessError as error:  # the others may well be there
            failures[str(error)] = None
            continue
        is_equal &= result.is_equal
        click.echo(f"{run_dir}: {result}")
        for difference in result.differences:
            click.echo(f"  {difference}")
        if not result.is_equal:
            where = f" --to {result.tracking_uri}" if to else ""  # without its user info
            click.echo(f"  to mend it: python -m harness {result.mended_by} {run_dir}{where}")
    if failures:
        raise TrackingError("; ".join(failures))
    ctx.exit(0 if is_equal else 1)
