"""``python -m harness fork``: go on from a run's checkpoint, in a run of its own."""

import click


@click.command()
@click.argument("run", metavar="RUN")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--at", required=True, metavar="STEP|best|last", help="The checkpoint to start from.")
@click.option("--weights-only", is_flag=True, help="Start with a fresh optimiser.")
def command(run: str, overrides: tuple[str, ...], at: str, weights_only: bool) -> None:
    """Train on from a checkpoint of RUN in a new run, with other hyperparameters.

    Its rows before the checkpoint are copied, so that the new run has its whole history; it goes on with the examples
    that follow. log_path=NEW says where; the same command resumes it.
    """
    import asyncio

    from harness.derive import discard_unbegun, make_fork
    from harness.exceptions import HarnessError
    from harness.run_dir import RunDir
    from harness.supervised.train import train

    parent = RunDir(run)
    config = make_fork(parent, at, overrides, weights_only=weights_only)
    try:
        asyncio.run(train(config, recipe=parent.config()["recipe"]))
    except HarnessError:
        discard_unbegun(RunDir(config.log_path))
        raise
