"""`holdfast nodes`: who is in the cluster."""

from __future__ import annotations

import click

from gateway.documents import ClusterDocument
from node.commands import connection, output

COLUMNS = ("node", "url", "stage", "wanted", "ring", "up", "zone", "weight")

_REACHABLE = {True: "yes", False: "NO", None: "?"}


@click.command("nodes")
@connection.options
def command(url: str | None, key_file: str | None, as_json: bool) -> None:
    """List the nodes of the cluster."""
    connected = connection.connect(url, key_file)

    async def work() -> ClusterDocument:
        async with connected.client() as client:
            return await client.cluster()

    cluster = connection.run(work)
    if as_json:
        output.print_json(cluster.members)
    else:
        output.print_table(COLUMNS, member_rows(cluster))


def member_rows(cluster: ClusterDocument) -> list[tuple[str, ...]]:
    """A row per node: id (the leader marked), URL, stage, what is wanted of it, in the ring,
    reachable, zone, weight."""
    return [
        (
            member.node_id + (" *" if member.node_id == cluster.raft.leader else ""),
            member.client_url,
            member.stage,
            member.intent,
            "yes" if member.in_ring else "no",
            "yes" if member.node_id == cluster.node_id else _REACHABLE[member.reachable],
            member.zone or "-",
            str(member.weight),
        )
        for member in cluster.members
    ]
