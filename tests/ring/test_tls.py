"""Mutual TLS from the cluster secret, on real sockets."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from ring.identity import ClusterIdentity, new_cluster_secret
from ring.tls import MEMBER_SERVER_NAME, client_context, peer_node_id, server_context

SECRET = bytes(range(32))
CLUSTER = "4be5d1f8-7b0e-4c57-9c53-4d8e5a6a1a01"
SERVER = "6a1f6a52-0d5f-4b9a-8a43-0a3d5e1b7c02"
CLIENT = "93b0c3de-5a6e-4f63-b3a9-1b7a44f8d103"


def _identity(
    node_id: str, *, secret: bytes = SECRET, cluster_id: str = CLUSTER
) -> ClusterIdentity:
    return ClusterIdentity(cluster_id=cluster_id, node_id=node_id, secret=secret)


async def _meet(client: ssl.SSLContext | None, *, server_name: str) -> str | None:
    """Connect to a server of the cluster; return whom it saw."""
    seen: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            assert await reader.readexactly(1) == b"?"
            writer.write(b"!")
            await writer.drain()
            seen.set_result(peer_node_id(writer.get_extra_info("peercert")))
        finally:
            writer.close()

    server = await asyncio.start_server(
        serve, "127.0.0.1", 0, ssl=server_context(_identity(SERVER))
    )
    async with server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client, server_hostname=server_name if client else None
        )
        try:
            writer.write(b"?")
            # In TLS 1.3 a server's refusal of the certificate comes with the first read.
            if await reader.read(1) != b"!":
                raise ConnectionResetError("refused")
            return await asyncio.wait_for(seen, 5)
        finally:
            writer.close()


async def test_nodes_of_one_cluster_meet_and_know_each_other() -> None:
    """Each side sees the other's node id, proven by a certificate of the common authority."""
    assert await _meet(client_context(_identity(CLIENT)), server_name=SERVER) == CLIENT


async def test_the_common_name_serves_protocols_that_prove_the_id_themselves() -> None:
    """Every node also answers to the name that all members share."""
    met = await _meet(client_context(_identity(CLIENT)), server_name=MEMBER_SERVER_NAME)
    assert met == CLIENT


async def test_a_server_is_not_taken_for_another_node() -> None:
    """A node that answers at another node's address is refused by the client."""
    with pytest.raises(ssl.SSLCertVerificationError):
        await _meet(client_context(_identity(CLIENT)), server_name=CLIENT)


@pytest.mark.parametrize(
    "stranger",
    [
        _identity(CLIENT, secret=new_cluster_secret()),
        _identity(CLIENT, cluster_id="5b3f2b86-0f05-4c4f-a5a2-d1ce2a35b004"),
    ],
    ids=["wrong secret", "another cluster"],
)
async def test_a_client_of_another_authority_is_refused_by_the_server(
    stranger: ClusterIdentity,
) -> None:
    """A certificate made from another secret, or for another cluster, opens no connection."""
    context = client_context(stranger)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await _meet(context, server_name=SERVER)


async def test_a_client_without_a_certificate_is_refused() -> None:
    """TLS is mutual: encryption alone is not enough."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await _meet(context, server_name=SERVER)


async def test_a_client_refuses_a_server_of_another_cluster() -> None:
    """The client checks the authority as well."""
    stranger = client_context(_identity(CLIENT, secret=new_cluster_secret()))
    with pytest.raises(ssl.SSLCertVerificationError):
        await _meet(stranger, server_name=SERVER)
