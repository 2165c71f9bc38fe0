"""`holdfast remove`: a dead node goes for good, without its help."""

from __future__ import annotations

import click

from node.commands import connection, output
from node.commands.node_names import find_member


@click.command("remove")
@click.argument("node")
@click.option("--force", is_flag=True, help="Also a node that answers.")
@connection.options
def command(
    *, node: str, force: bool, url: str | None, key_file: str | None, as_json: bool
) -> None:
    """Remove NODE (an id, the beginning of one, or a URL), which is dead, for good.

    The others make the copies anew that it held; until they have, another failure may make chunks
    unreachable. If it comes back it is refused, and has to join as a new node with an empty
    directory. A living node leaves with `holdfast leave` instead, which keeps all copies.
    """
    connected = connection.connect(url, key_file)

    async def work() -> str:
        async with connected.client() as client:
            member = find_member((await client.cluster()).members, node)
            await client.remove(member.node_id, force=force)
            return member.node_id

    node_id = connection.run(work)
    if as_json:
        output.print_json({"node_id": node_id, "removed": True})
    else:
        click.echo(
            f"Node {node_id} is removed. The others make its copies anew: `holdfast status` says "
            "settled when they have."
        )
