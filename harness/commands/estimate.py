"""``python -m harness estimate``: what a recipe would use."""

import click


@click.command(context_settings={"ignore_unknown_options": True})  # they are the recipe's
@click.argument("recipe", metavar="RECIPE")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1, type=click.UNPROCESSED)
@click.option("--prices", metavar="FILE", help="Prices of a million tokens by model (TOML or JSON), for price_table.")
def command(recipe: str, overrides: tuple[str, ...], prices: str | None) -> None:
    """Say how many tokens, updates and checkpoints RECIPE would use, and at what price; run nothing.

    RECIPE is a module as after python -m, KEY=VALUE what would follow it, in any form. Of a log_path in which a run was
    begun it is what is left. No key is needed and no server is asked.
    """
    import chz
    from rich.console import Console

    from harness.estimate import estimate
    from harness.preview import load_config

    config = load_config(recipe, overrides)
    if prices is not None:
        config = chz.replace(config, price_table=prices)
    estimate(config, Console(highlight=False, soft_wrap=True, markup=False))
