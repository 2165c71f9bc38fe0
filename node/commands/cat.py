"""`holdfast cat`: write files to standard output."""

from __future__ import annotations

import click

from node.commands import connection, names
from node.commands.get import stream


@click.command("cat")
@click.argument("sources", nargs=-1, required=True)
@click.option("--key-file", metavar="FILE", help="A file that holds the API key.")
@click.option("--url", metavar="URL", help="A node, as http://host:7070.")
def command(sources: tuple[str, ...], url: str | None, key_file: str | None) -> None:
    """Write the contents of SOURCES (BUCKET/PATH), one behind the other."""
    wanted = [names.parse_file(source) for source in sources]
    connected = connection.connect(url, key_file)

    async def work() -> None:
        async with connected.client() as client:
            for name in wanted:
                await stream(client, name)

    connection.run(work)
