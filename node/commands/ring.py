"""`holdfast ring`: who holds how much; `holdfast ring preview`: what a change would move."""

from __future__ import annotations

import click

from gateway.documents import RingDocument, RingPreviewDocument
from node.commands import connection, output
from node.commands.node_names import find_member
from node.commands.quantities import duration, parse_bytes

_GIGABYTE = 10**9


@click.group("ring", invoke_without_command=True)
@connection.options
@click.pass_context
def command(
    context: click.Context, *, url: str | None, key_file: str | None, as_json: bool
) -> None:
    """Show the current epoch of the ring and each node's share of it."""
    if context.invoked_subcommand is not None:
        return
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


@command.group("preview")
def preview() -> None:
    """Say what a change of the ring would move, before it is made."""


@preview.command("join")
@click.option("--capacity", required=True, metavar="SIZE", help="Of the new node, as 100GB or 4TB.")
@click.option("--zone", default="", metavar="NAME", help="The zone of the new node.")
@connection.options
def preview_join(
    *, capacity: str, zone: str, url: str | None, key_file: str | None, as_json: bool
) -> None:
    """What would move if a node of this capacity joined."""
    weight = weight_of(parse_bytes(capacity))
    connected = connection.connect(url, key_file)

    async def work() -> RingPreviewDocument:
        async with connected.client() as client:
            return await client.preview_join(weight=weight, zone=zone)

    _print(connection.run(work), as_json=as_json)


def weight_of(capacity_bytes: int) -> int:
    """A capacity in gigabytes, as a node's weight is by convention; at least one."""
    if capacity_bytes == 0:
        raise click.BadParameter("a node without capacity takes no share of the ring")
    return max(1, round(capacity_bytes / _GIGABYTE))


@preview.command("leave", short_help="What would move if NODE left.")
@click.argument("node")
@connection.options
def preview_leave(*, node: str, url: str | None, key_file: str | None, as_json: bool) -> None:
    """What would move if NODE (an id, the beginning of one, or a URL) left."""
    connected = connection.connect(url, key_file)

    async def work() -> RingPreviewDocument:
        async with connected.client() as client:
            member = find_member((await client.cluster()).members, node)
            return await client.preview_leave(member.node_id)

    _print(connection.run(work), as_json=as_json)


def _print(preview: RingPreviewDocument, *, as_json: bool) -> None:
    if as_json:
        output.print_json(preview)
        return
    for line in describe(preview):
        click.echo(line)
    output.print_table(
        ("node", "zone", "weight", "partitions", "fetches", "holds", "share", "feasible"),
        [
            (
                member.node_id,
                member.zone or "-",
                str(member.weight),
                f"{member.partitions_before} → {member.partitions_after}",
                output.size(member.bytes_gained),
                f"{output.size(member.bytes_before)} → {output.size(member.bytes_after)}",
                f"{member.share_before:.1%} → {member.share_after:.1%}",
                f"{member.feasible_after:.1%}",
            )
            for member in preview.members
        ],
    )


def describe(preview: RingPreviewDocument) -> list[str]:
    """The sentences above the table."""
    deed = "a new node joins" if preview.change == "join" else f"node {preview.node_id} leaves"
    time = (
        "without a limit of the rate"
        if preview.seconds is None
        else f"about {duration(preview.seconds)} at the rate of the settings"
    )
    moved = (
        f"If {deed}: {preview.partitions_moved} copies of partitions move "
        f"(the least possible is {preview.partitions_ideal:.0f}), "
        f"about {output.size(preview.bytes_moved)}, {time}."
    )
    lines = [moved]
    if preview.copies_after != preview.copies_before:
        lines.append(
            f"Each chunk will have {preview.copies_after} copies instead of "
            f"{preview.copies_before}."
        )
    return [*lines, ""]
