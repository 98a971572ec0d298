"""``python -m harness eval``: old checkpoints on new data."""

import click

from harness import commands


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("--at", default="last", show_default=True, metavar="last|best|STEP", help="Which checkpoint of each run.")
@click.option("--data", required=True, metavar="FILE", help="JSONL file of conversations.")
@click.option("--name", required=True, help="What the test set is called: compare takes it as --on NAME.")
@commands.base_url
@click.pass_context
def command(ctx: click.Context, runs: tuple[str, ...], at: str, data: str, name: str, base_url: str | None) -> None:
    """Score checkpoints of RUN... on a new test set.

    RUN is a run directory or a folder of them. Results are kept in each run directory and its MLflow run; what is there
    already is not computed again. best is the checkpoint with the lowest test NLL in training. Exit code 2 where a run
    could not be scored: the others are.
    """
    from rich.console import Console

    from harness.evaluate import NewTestSet, evaluate
    from harness.exceptions import HarnessError
    from harness.metric_keys import STEP, test_key
    from harness.run_folders import find_runs

    test_set = NewTestSet(name, data)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    failures: dict[str, list[str]] = {}  # the runs by what was wrong: a bad file fails every run alike
    for run in find_runs(runs):
        try:
            found = evaluate(run, at, test_set, console, base_url=base_url)
        except HarnessError as error:  # the others may well succeed
            failures.setdefault(str(error).removeprefix(f"{run}: "), []).append(str(run))
            continue
        key = test_key(name, "nll")
        scored = f"{key} {found.row['metrics'][key]:.4f} on {found.row['num_examples']:,} examples"
        before = "" if found.is_new else ", as evaluated before"
        console.print(f"{run}: step {found.row[STEP]}: {scored}{before}")
    for error, failed in failures.items():
        click.echo(f"error: {', '.join(failed)}: {error}", err=True)
    ctx.exit(2 if failures else 0)
