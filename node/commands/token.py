"""`holdfast token`: a token with which one node joins, once."""

from __future__ import annotations

import sys

import click

from gateway.documents import NewToken, TokenCreation
from node import control
from node.commands import connection, output


@click.command("token")
@click.option("--data", metavar="DIR", help="Ask the node on this data directory; needs no key.")
@click.option(
    "--lifetime",
    "lifetime_seconds",
    type=click.IntRange(1, 7 * 24 * 3600),
    default=3600,
    show_default=True,
    help="Seconds until it expires.",
)
@connection.options
def command(
    *,
    data: str | None,
    lifetime_seconds: int,
    url: str | None,
    key_file: str | None,
    as_json: bool,
) -> None:
    """Make a token that admits one node to the cluster."""
    if data is not None:
        creation = TokenCreation(lifetime_seconds=lifetime_seconds)
        token = control.call(data, "/token", NewToken, creation)
    else:
        connected = connection.connect(url, key_file)

        async def work() -> NewToken:
            async with connected.client() as client:
                return await client.create_token(lifetime_seconds=lifetime_seconds)

        token = connection.run(work)
    if as_json:
        output.print_json(token)
        return
    click.echo(token.token)
    if sys.stdout.isatty():
        click.echo(
            "\nPut it into a file that only you can read, and on the new machine run:\n"
            "  HOLDFAST_JOIN_TOKEN_FILE=that-file holdfast serve --data DIR --join",
            err=True,
        )
