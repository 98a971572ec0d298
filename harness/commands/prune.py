"""``python -m harness prune``: remove checkpoints of past runs."""

import contextlib

import click

from harness import commands


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--keep",
    "text",
    required=True,
    metavar="WORDS",
    help="What stays, with commas between: best (lowest test NLL), last (the newest), final (after the last update), "
    "or a number (as many of the newest).",
)
@click.option("--yes", is_flag=True, help="Remove what is listed.")
@commands.base_url
def command(runs: tuple[str, ...], text: str, yes: bool, base_url: str | None) -> None:
    """List the checkpoints of RUN... that would go; with --yes, remove them, here or with the service, and in MLflow.

    RUN is a run directory or a folder of them. A run that is being trained is left alone, and one that is not finished
    keeps the state that it is resumed from. Metrics and all other files stay.
    """
    from harness.disk_usage import in_words
    from harness.exceptions import HarnessError, RunDirError
    from harness.pruning import Keep, carry_out, plan
    from harness.run_folders import find_runs
    from harness.tracking.mlflow_mirror import update

    keep = Keep.of(text)
    failures: list[str] = []
    plans = []
    num_kept = 0  # by a service
    found_runs = find_runs(runs)
    for run in found_runs:
        try:
            run.config()  # before anything is written there: it may be another program's directory
            if run.is_locked():
                click.echo(f"{run}: being trained: left as it is")
                continue
            with run.lock() if yes else contextlib.nullcontext():
                found = plan(run, keep, forks=found_runs, base_url=base_url)
                click.echo("\n".join(found.lines()))
                kept_there = carry_out(found) if yes else {}
                num_kept += len(kept_there)
                for reason in sorted({*kept_there.values()}):
                    names = ", ".join(name for name, why in kept_there.items() if why == reason)
                    failures.append(f"{run}: not deleted with the service: {names} ({reason})")
        except HarnessError as error:  # the others may well succeed
            failures.append(str(error))
            continue
        if found.removals:
            plans.append(found)
    num = sum(len(found.removals) for found in plans) - num_kept
    size = in_words(sum(found.size for found in plans))
    if yes:
        click.echo(f"removed {num}, {size}")
        for trouble in update(found.run for found in plans):
            click.echo(f"warning: {trouble}: python -m harness sync {' '.join(runs)} tells MLflow", err=True)
    else:
        click.echo(f"{num} to remove, {size}{': add --yes to do it' if num else ''}")
    if failures:
        raise RunDirError("; ".join(failures))
