"""The verbs of ``python -m harness``, a file each, and the option that several share."""

import click

base_url = click.option(
    "--base-url", metavar="URL", help="Where the Tinker server is now; by default where the run was started."
)
