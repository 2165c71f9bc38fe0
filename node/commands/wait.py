"""`holdfast wait`: return when something holds, for scripts and for the recipes of the guide."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import click

from gateway.client import (
    GatewayClient,
    PreconditionError,
    TryAgainError,
    UnreachableError,
)
from gateway.documents import MemberDocument
from node.cluster_warnings import short
from node.commands import connection, output
from node.commands.text import printable
from node.errors import EXIT_TRY_AGAIN, NodeError

POLL_SECONDS = 1.0
"""Between two looks; what nodes say of each other is renewed every two seconds."""


class NotYetError(NodeError):
    """It did not hold within the time given."""

    exit_code = EXIT_TRY_AGAIN


@click.command("wait")
@click.argument("condition", type=click.Choice(["ready", "settled", "maintenance"]))
@click.option("--timeout", "timeout_seconds", type=float, help="Seconds to wait [no limit].")
@connection.options
def command(
    *,
    condition: str,
    timeout_seconds: float | None,
    url: str | None,
    key_file: str | None,
    as_json: bool,
) -> None:
    """Return when the node serves clients (ready), when every copy in the cluster is where it
    belongs (settled), or when the node could be stopped without cost (maintenance).

    What stands against it is said on standard error whenever it changes, also while the node does
    not answer yet. With --timeout it fails with exit code 5 after that time.
    """
    connected = connection.connect(url, key_file)

    async def work() -> None:
        async with connected.client() as client:
            await waiting(CONDITIONS[condition], client, timeout_seconds=timeout_seconds)

    connection.run(work)
    if as_json:
        output.print_json({"condition": condition, "holds": True})


async def waiting(
    obstacle: Callable[[GatewayClient], Awaitable[str | None]],
    client: GatewayClient,
    *,
    timeout_seconds: float | None,
) -> None:
    """Ask until there is no obstacle. Raises NotYetError with the last one after the limit."""
    said: str | None = None
    try:
        async with asyncio.timeout(timeout_seconds):
            while (found := await _found(obstacle, client)) is not None:
                if found != said:
                    said = found
                    click.echo(printable(found), err=True)
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise NotYetError(
            f"Not within {timeout_seconds:g} s: {said or 'the node does not answer.'}"
        ) from None


async def _found(
    obstacle: Callable[[GatewayClient], Awaitable[str | None]], client: GatewayClient
) -> str | None:
    try:
        return await obstacle(client)
    except (TryAgainError, PreconditionError) as error:
        return error.detail
    except UnreachableError as error:
        return f"The node can't be reached: {error}"


async def _not_ready(client: GatewayClient) -> str | None:
    await client.health("ready")
    return None


async def _no_maintenance(client: GatewayClient) -> str | None:
    await client.health("ready?maintenance=true")
    return None


async def _not_settled(client: GatewayClient) -> str | None:
    cluster = await client.cluster()
    changing = [short(each.node_id) for each in cluster.members if _changes_place(each)]
    if changing:
        return f"Not settled: the ring is to change for {', '.join(changing)}."
    if cluster.settled:
        return None
    chunks = cluster.chunks
    silent = [short(each.node_id) for each in cluster.members if each.reachable is False]
    if silent:
        return f"Not settled: no answer from {', '.join(silent)}."
    if not chunks.lacking_copies and not chunks.misplaced_copies:
        return (
            f"Not settled: not every node has looked through its copies at epoch {cluster.epoch}."
        )
    return (
        f"Not settled: {chunks.lacking_copies} copies are lacking, {chunks.misplaced_copies} are "
        "to be dropped."
    )


def _changes_place(member: MemberDocument) -> bool:
    """Whether the next epoch takes an answering node in or out: what was settled until then says
    nothing about the copies that move after it."""
    return member.reachable is not False and member.in_ring != (member.intent == "stay")


CONDITIONS: dict[str, Callable[[GatewayClient], Awaitable[str | None]]] = {
    "ready": _not_ready,
    "settled": _not_settled,
    "maintenance": _no_maintenance,
}
"""Each asks once: None where it holds, else what stands against it."""
