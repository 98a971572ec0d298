"""``python -m harness sync``: run directories -> MLflow."""

import click


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("--to", metavar="URI", help="MLflow tracking URI; by default where the run was mirrored before.")
@click.option(
    "--rebuild",
    is_flag=True,
    help="Compare all; make a new MLflow run where the old one holds what the files do not, or was deleted.",
)
def command(runs: tuple[str, ...], to: str | None, rebuild: bool) -> None:
    """Bring the MLflow runs of RUN... up to date. RUN is a run directory or a folder of them."""
    from harness.exceptions import HarnessError, TrackingError
    from harness.run_folders import find_runs
    from harness.sweep_record import sweep_folders
    from harness.tracking import mlflow_rebuild
    from harness.tracking.mlflow_mirror import sync
    from harness.tracking.mlflow_sweep import sync_sweep

    failures: dict[str, None] = {}  # in order, each once: a dead server fails every run alike
    run_dirs = find_runs(runs)
    for run_dir in run_dirs:
        try:
            result, replaced = mlflow_rebuild.rebuild(run_dir, to) if rebuild else (sync(run_dir, to), None)
        except HarnessError as error:  # the others may well succeed
            failures[str(error)] = None
            continue
        did = f"{result.num_points} points sent to run {result.run_id} at {result.tracking_uri}"
        if replaced:
            did += f", in the place of run {replaced}"
        elif rebuild:
            did += "; there was nothing to rebuild"
        click.echo(f"{run_dir}: {did}")
    for folder in sweep_folders(run_dirs):
        try:
            if run_id := sync_sweep(folder, to):
                click.echo(f"{folder}: its runs are nested under run {run_id}")
        except HarnessError as error:
            failures[str(error)] = None
    if failures:
        raise TrackingError("; ".join(failures))
