"""`holdfast status`: the cluster on one screen."""

from __future__ import annotations

import click

from gateway.documents import ClusterDocument
from node.commands import connection, output
from node.commands.nodes import member_rows

_SETTLED = {
    True: "yes: every copy is where it belongs",
    False: "no: copies are on their way, or a node is down",
    None: "not known on this node",
}


@click.command("status")
@connection.options
def command(url: str | None, key_file: str | None, as_json: bool) -> None:
    """Show the state of the cluster: quorum, leader, nodes, and whether it is settled."""
    connected = connection.connect(url, key_file)

    async def work() -> ClusterDocument:
        async with connected.client() as client:
            return await client.cluster()

    cluster = connection.run(work)
    if as_json:
        output.print_json(cluster)
        return
    for line in describe(cluster):
        click.echo(line)
    output.print_table(("node", "url", "stage", "ring", "up", "zone"), member_rows(cluster))


def describe(cluster: ClusterDocument) -> list[str]:
    """The sentences above the table of nodes."""
    raft = cluster.raft
    leader = raft.leader or "none"
    behind = raft.commit_index - raft.applied_index
    in_ring = sum(member.in_ring for member in cluster.members)
    lines = [
        f"cluster    {cluster.cluster_id} (Holdfast {cluster.software_version})",
        f"quorum     {'yes' if cluster.quorum else 'NO: writes wait for a majority of the voters'}",
        f"settled    {_SETTLED[cluster.settled]}",
        f"leader     {leader}, term {raft.term}",
        f"log        {raft.applied_index} applied" + (f", {behind} behind" if behind > 0 else ""),
        f"ring       epoch {cluster.epoch}, {in_ring} nodes, {cluster.replicas} copies wanted",
    ]
    lines += [
        f"{'load' if number == 0 else '':<10} {_figure(name, value)}"
        for number, (name, value) in enumerate(sorted(cluster.load.items()))
    ]
    return [*lines, ""]


def _figure(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return f"{name.removesuffix('_bytes').replace('_', ' ')} {output.size(int(value))}"
    return f"{name.replace('_', ' ')} {value:g}"
