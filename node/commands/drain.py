"""`holdfast drain` and `holdfast undrain`: take a node out of the ring, and put it back."""

from __future__ import annotations

import click

from gateway.documents import MemberDocument
from node.commands import connection, output
from node.commands.departure import Departure, departure, watch
from node.commands.node_names import find_member


@click.command("drain")
@click.argument("node")
@click.option("--reduce-copies", is_flag=True, help="Also where fewer nodes than copies are left.")
@click.option("--no-wait", is_flag=True, help="Don't wait for the copies.")
@click.option("--timeout", "timeout_seconds", type=float, help="Seconds to wait [no limit].")
@connection.options
def command(
    *,
    node: str,
    reduce_copies: bool,
    no_wait: bool,
    timeout_seconds: float | None,
    url: str | None,
    key_file: str | None,
    as_json: bool,
) -> None:
    """Move the chunks of NODE (an id, the beginning of one, or a URL) to the other nodes.

    It stays a member: it votes, and serves clients. Waits until no copy is needed from it any
    more; the same command goes on watching. `holdfast undrain` puts it back to use.
    """
    connected = connection.connect(url, key_file)

    async def work() -> MemberDocument:
        async with connected.client() as client:
            member = find_member((await client.cluster()).members, node)
            member = await client.drain(member.node_id, reduce_copies=reduce_copies)
            if no_wait:
                return member

            async def look() -> Departure:
                return departure(await client.cluster(), member.node_id)

            await watch(look, timeout_seconds=timeout_seconds)
            return find_member((await client.cluster()).members, member.node_id)

    member = connection.run(work)
    if as_json:
        output.print_json(member)
    elif no_wait:
        click.echo(f"Node {member.node_id} drains; `holdfast status` shows how far it is.")


@click.command("undrain")
@click.argument("node")
@connection.options
def undrain(*, node: str, url: str | None, key_file: str | None, as_json: bool) -> None:
    """Put NODE, which drains, is drained or is about to leave, back to use."""
    connected = connection.connect(url, key_file)

    async def work() -> MemberDocument:
        async with connected.client() as client:
            member = find_member((await client.cluster()).members, node)
            return await client.undrain(member.node_id)

    member = connection.run(work)
    if as_json:
        output.print_json(member)
    else:
        click.echo(f"Node {member.node_id} is back to use; its share of the chunks comes to it.")
