"""`holdfast leave`: a node gives its chunks to the others, then leaves the cluster for good."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import click
import msgspec

from gateway.client import GatewayClient, UnreachableError
from gateway.documents import ClusterDocument, LeaveRequest, MemberDocument
from node import control
from node.commands import connection, output
from node.commands.departure import Departure, departure, watch
from node.commands.node_names import find_member
from node.data_directory import has_left


class Leaving(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    node_id: str
    left: bool
    """False where it was not waited for."""


@click.command("leave")
@click.argument("node", required=False)
@click.option("--data", metavar="DIR", help="The node that runs on this data directory; no key.")
@click.option("--reduce-copies", is_flag=True, help="Also where fewer nodes than copies are left.")
@click.option("--no-wait", is_flag=True, help="Don't wait until it has left.")
@click.option("--timeout", "timeout_seconds", type=float, help="Seconds to wait [no limit].")
@connection.options
def command(
    *,
    node: str | None,
    data: str | None,
    reduce_copies: bool,
    no_wait: bool,
    timeout_seconds: float | None,
    url: str | None,
    key_file: str | None,
    as_json: bool,
) -> None:
    """Take a living node out of the cluster for good: NODE, or the one on --data DIR.

    NODE is an id, the beginning of one, or a URL. The node serves until the others hold all that
    it held; then it ends by itself. The same command goes on watching after an interruption; until
    its last step `holdfast undrain` takes it back.
    """
    if (node is None) == (data is None):
        raise click.UsageError("name the node, or its data directory with --data: one of them")
    if data is not None:
        ask, look = _by_socket(data, reduce_copies=reduce_copies)
    else:
        assert node is not None
        ask, look = _by_url(connection.connect(url, key_file), node, reduce_copies=reduce_copies)

    async def work() -> Leaving:
        node_id = await ask()
        if not no_wait:
            await watch(look, timeout_seconds=timeout_seconds)
        return Leaving(node_id, left=not no_wait)

    leaving = connection.run(work)
    if as_json:
        output.print_json(leaving)
    elif no_wait:
        click.echo(f"Node {leaving.node_id} leaves; `holdfast status` shows how far it is.")


_Asking = tuple[Callable[[], Awaitable[str]], Callable[[], Awaitable[Departure]]]


def _by_socket(data: str, *, reduce_copies: bool) -> _Asking:
    """Through the control socket of the node itself; once it has ended, its directory says why."""
    asked: list[str] = []

    async def ask() -> str:
        if has_left(data):
            asked.append("")
            return ""
        request = LeaveRequest(reduce_copies=reduce_copies)
        member = await asyncio.to_thread(control.call, data, "/leave", MemberDocument, request)
        asked.append(member.node_id)
        return member.node_id

    async def look() -> Departure:
        if has_left(data):
            return Departure("done", "The node has left the cluster.")
        try:
            cluster = await asyncio.to_thread(control.call, data, "/status", ClusterDocument)
        except control.ControlError as error:
            raise UnreachableError(str(error)) from error
        return departure(cluster, asked[0])

    return ask, look


def _by_url(connected: connection.Connection, node: str, *, reduce_copies: bool) -> _Asking:
    """Through any node; when that is the one that leaves, the others go on answering."""
    asked: list[str] = []
    urls: list[str] = []

    async def ask() -> str:
        async with connected.client() as client:
            cluster = await client.cluster()
            member = find_member(cluster.members, node)
            await client.leave(member.node_id, reduce_copies=reduce_copies)
        asked.append(member.node_id)
        urls.append(connected.url)
        urls.extend(each.client_url for each in cluster.members if each.node_id != member.node_id)
        return member.node_id

    async def look() -> Departure:
        failure: UnreachableError | None = None
        for url in urls:
            async with GatewayClient(url, connected.key.value if connected.key else None) as client:
                try:
                    return departure(await client.cluster(), asked[0])
                except UnreachableError as error:
                    failure = error
        assert failure is not None
        raise failure

    return ask, look
