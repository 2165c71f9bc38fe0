"""`holdfast ring`: who holds how much."""

from __future__ import annotations

import click

from gateway.documents import RingDocument
from node.commands import connection, output


@click.command("ring")
@connection.options
def command(url: str | None, key_file: str | None, as_json: bool) -> None:
    """Show the current epoch of the ring and each node's share of it."""
    connected = connection.connect(url, key_file)

    async def work() -> RingDocument:
        async with connected.client() as client:
            return await client.ring()

    ring = connection.run(work)
    if as_json:
        output.print_json(ring)
        return
    click.echo(
        f"epoch {ring.epoch}, {ring.replicas} replicas wanted, {ring.partitions} partitions\n"
    )
    output.print_table(
        ("node", "zone", "weight", "partitions", "share"),
        [
            (
                member.node_id,
                member.zone or "-",
                str(member.weight),
                str(member.partitions),
                f"{member.share:.1%}",
            )
            for member in ring.members
        ],
    )
