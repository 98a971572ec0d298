"""``python -m harness doctor``: what became of runs, and what is to mend."""

from pathlib import Path

import click


@click.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@click.pass_context
def command(ctx: click.Context, runs: tuple[str, ...]) -> None:
    """Say what became of the runs RUN..., and close MLflow runs that say RUNNING though nobody trains them.

    RUN is a run directory or a folder of them, runs/ by default. What a living process writes is left alone. Exit
    code 1 where something remains to mend.
    """
    from harness.doctor import examine
    from harness.exceptions import HarnessError
    from harness.run_folders import find_runs
    from harness.sweep_record import sweep_folders
    from harness.tracking.mlflow_stale import close_orphans, stores_of
    from harness.tracking.mlflow_sweep import close_stale_sweep

    folders = runs or [folder for folder in (Path("runs"),) if folder.is_dir() and any(folder.iterdir())]
    run_dirs = find_runs(folders)
    is_well = True
    for run_dir in run_dirs:
        diagnosis = examine(run_dir)
        is_well &= not diagnosis.problems
        click.echo(f"{run_dir}: {diagnosis}")
    for folder in sweep_folders(run_dirs):
        try:
            if close_stale_sweep(folder):
                click.echo(f"{folder}: its MLflow run said RUNNING: brought up to date")
        except HarnessError as error:
            is_well = False
            click.echo(str(error))
    for uri in stores_of(run_dirs):
        try:
            for closed in close_orphans(uri):
                click.echo(closed)
        except HarnessError as error:
            is_well = False
            click.echo(str(error))
    ctx.exit(0 if is_well else 1)
