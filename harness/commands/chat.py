"""``python -m harness chat``: talk with what was trained."""

import sys
from collections.abc import Iterator

import click

from harness import commands


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
@commands.base_url
def command(run: str, at: str, temperature: float, max_tokens: int, seed: int, base_url: str | None) -> None:
    """Talk with a checkpoint of RUN.

    A line is what you say; Ctrl-D ends the conversation. Lines may come from a pipe: the answers alone go to stdout.
    best is the checkpoint with the lowest test NLL in training. Locally the same lines get the same answers.
    """
    from harness.chat import conversation
    from harness.exceptions import HarnessError
    from harness.run_dir import RunDir

    run_dir = RunDir(run)
    with conversation(
        run_dir, at, temperature=temperature, max_tokens=max_tokens, seed=seed, base_url=base_url
    ) as talk:
        click.echo(f"{run_dir}, checkpoint {talk.checkpoint}; Ctrl-D ends", err=True)
        for line in _lines():
            try:
                answer, cut = talk.say(line)
            except HarnessError as error:
                if not sys.stdin.isatty():
                    raise
                click.echo(f"error: {error} (what you said is taken back)", err=True)
                continue
            click.echo(answer)
            if cut:
                click.echo(f"(cut {cut})", err=True)


def _lines() -> Iterator[str]:
    """What the user says, blank lines aside."""
    from harness.exceptions import DataError

    if not sys.stdin.isatty():
        for number, line in enumerate(sys.stdin.buffer, start=1):
            try:
                text = line.decode().strip()
            except UnicodeDecodeError:
                raise DataError(f"line {number} of what you say is not UTF-8: convert it") from None
            if text:
                yield text
        return
    while True:
        try:
            text = input("> ").encode().decode().strip()  # half of a character is found here
        except EOFError:
            click.echo(err=True)
            return
        except UnicodeError:
            click.echo("error: that was not UTF-8: say it again", err=True)
            continue
        if text:
            yield text
