"""A peer that is down costs no buffers."""

from __future__ import annotations

import gc
import socket

import pytest

from ring.buffers import BufferPool
from ring.errors import PeerUnreachableError
from ring.identity import ClusterIdentity, new_cluster_secret
from ring.interfaces import Codec
from ring.members import Member
from ring.peer_client import PeerClient
from ring.peer_wire import Purpose, PutTarget

BODY_SIZE = 1024 * 1024


async def test_a_buffer_for_a_peer_that_is_down_goes_back_at_once() -> None:
    """No cycle of errors keeps it until some garbage collection."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        member = Member(node_id="b", peer_address=address, raft_address="", client_url="")
        identity = ClusterIdentity(cluster_id="c", node_id="a", secret=new_cluster_secret())
        pool = BufferPool()
        client = PeerClient(identity, pool=pool, tls=None)
        await client.start()
        target = PutTarget(
            chunk_id=bytes(32),
            epoch=1,
            purpose=Purpose.OWNER,
            touch=0,
            codec=Codec.RAW,
            plain_length=BODY_SIZE,
        )
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                lease = await pool.lease(BODY_SIZE)
                with pytest.raises(PeerUnreachableError):
                    await client.put(member, target, lease.lend(0, BODY_SIZE))
                del lease
            assert pool.leased_bytes == 0
        finally:
            gc.enable()
            await client.close()
