"""``python -m harness export``: what was trained, as files that load without the harness."""

from pathlib import Path

import click

from harness import commands


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--at", default="last", show_default=True, metavar="last|best|STEP", help="Which checkpoint.")
@click.option("--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="A folder that is made.")
@click.option("--merge", is_flag=True, help="Full weights, the LoRA merged in; else the LoRA alone, for PEFT.")
@commands.base_url
def command(run: str, at: str, out: Path, merge: bool, base_url: str | None) -> None:
    """Write a checkpoint of RUN as a folder for transformers or PEFT.

    It holds the weights, the tokenizer with its chat template, and a model card. best is the checkpoint with the lowest
    test NLL. A checkpoint that lies with a service is fetched, where the service gives it out.
    """
    from harness.disk_usage import in_words
    from harness.export import export
    from harness.run_dir import RunDir

    source = RunDir(run)
    found = export(source, at, out, merged=merge, base_url=base_url)
    what = f"full weights in {found.dtype}" if merge else f"an adapter for {click.format_filename(found.base)}"
    made, trained = click.format_filename(out), click.format_filename(str(source))
    click.echo(f"{made}: {trained} at step {found.step} as {what}, {in_words(found.size)}")
    for note in found.notes:
        click.echo(f"{made}: {note}")
