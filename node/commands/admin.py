"""`holdfast admin`: what whoever owns a node's data directory may do without a key."""

from __future__ import annotations

import click

from gateway.documents import NewKey
from node import control
from node.commands import output


@click.group("admin")
def command() -> None:
    """Recover access on a node itself."""


@command.command("reset-key")
@click.option("--data", metavar="DIR", required=True, help="The data directory of a running node.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def reset_key(*, data: str, as_json: bool) -> None:
    """Print a new admin key and revoke all earlier ones."""
    key = control.call(data, "/reset-key", NewKey)
    if as_json:
        output.print_json(key)
    else:
        click.echo(key.key)
