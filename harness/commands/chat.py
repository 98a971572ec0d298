"""``python -m harness chat``: talk with what was trained."""

import sys
from collections.abc import Iterator

import click


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--at", default="last", show_default=True, metavar="last|best|STEP", help="Which checkpoint answers.")
@click.option(
    "--temperature",
    default=0.7,
    show_default=True,
    type=click.FloatRange(min=0),
    help="0 takes the likeliest token each time.",
)
@click.option(
    "--max-tokens", default=256, show_default=True, type=click.IntRange(min=1), help="Most tokens of an answer."
)
@click.option("--seed", default=0, show_default=True, help="Another one gives other answers.")
def command(run: str, at: str, temperature: float, max_tokens: int, seed: int) -> None:
    """Talk with a checkpoint of RUN.

    A line is what you say; Ctrl-D ends the conversation. Lines may come from a pipe: the answers alone go to stdout.
    best is the checkpoint with the lowest test NLL in training. Locally the same lines get the same answers.
    """
    from harness.chat import conversation
    from harness.run_dir import RunDir

    run_dir = RunDir(run)
    with conversation(run_dir, at, temperature=temperature, max_tokens=max_tokens, seed=seed) as talk:
        click.echo(f"{run_dir}, checkpoint {talk.checkpoint}; Ctrl-D ends", err=True)
        for line in _lines():
            answer, is_whole = talk.say(line)
            click.echo(answer)
            if not is_whole:
                click.echo(f"(cut at {max_tokens} tokens: --max-tokens)", err=True)


def _lines() -> Iterator[str]:
    """What the user says, blank lines aside."""
    if not sys.stdin.isatty():
        yield from filter(None, map(str.strip, sys.stdin))
        return
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            click.echo(err=True)
            return
        if line:
            yield line
