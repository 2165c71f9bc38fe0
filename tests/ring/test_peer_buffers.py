"""Whose buffers hold a chunk on its way between nodes: no node may have to wait for the other's."""

from __future__ import annotations

import asyncio
import gc
import random
import socket

import pytest
from aiohttp import web
from blake3 import blake3

from ring.buffers import BufferPool
from ring.errors import OverloadedError, PeerUnreachableError
from ring.identity import ClusterIdentity, new_cluster_secret
from ring.interfaces import CHUNK_SIZE_LIMIT, Codec, Encoded, PutOutcome, StoredContent
from ring.members import Member
from ring.peer_client import PeerClient
from ring.peer_server import make_peer_application, peer_runner
from ring.peer_wire import Purpose, PutTarget, chunk_path
from tests.fakes.chunk_store import MemoryChunkStore
from tests.fakes.ring_nodes import RingNode, eventually, ring_cluster

CONTENT = random.Random(1).randbytes(200_000)
BODY_SIZE = 1024 * 1024


class _RecordingStore(MemoryChunkStore):
    """Notes into whose buffers it was asked to read."""

    def __init__(self) -> None:
        super().__init__()
        self.pools: list[BufferPool | None] = []

    async def get(
        self,
        chunk_id: bytes,
        *,
        start: int = 0,
        end: int | None = None,
        pool: BufferPool | None = None,
    ) -> StoredContent:
        self.pools.append(pool)
        return await super().get(chunk_id, start=start, end=end, pool=pool)

    async def get_encoded(self, chunk_id: bytes, *, pool: BufferPool | None = None) -> Encoded:
        self.pools.append(pool)
        return await super().get_encoded(chunk_id, pool=pool)


async def _record(node: RingNode) -> _RecordingStore:
    """Restart a node on a store that takes notes and holds `CONTENT`."""
    chunk_id = (await node.write(CONTENT)).chunk_id
    store = _RecordingStore()
    store.set_touch_floor(0)
    await store.put(chunk_id, await node.store.get_encoded(chunk_id), touch=1)
    await node.go_down()
    node.store = store
    await node.come_back()
    return store


async def test_a_peer_is_served_from_buffers_that_no_client_holds() -> None:
    """What a peer asks for, whole or in part, is read into the pool kept for peers.

    Read into the clients' pool, two nodes whose downloads wait for one another's chunks would
    wait until both time out.
    """
    async with ring_cluster(3) as cluster:
        asking, serving = cluster.nodes[:2]
        store = await _record(serving)
        (chunk_id,) = store.ids(b"", 10)
        fetched = await asking.client.get(serving.member, chunk_id)
        fetched.lease.release()
        part = await asking.client.get_range(serving.member, chunk_id, 10, 20)
        assert bytes(part) == CONTENT[10:20]
        assert store.pools == [serving.peer_pool, serving.peer_pool]


async def test_a_peer_is_asked_only_once_there_is_room_for_its_answer() -> None:
    """A node without a free buffer does not let a peer read what it then can't take."""
    async with ring_cluster(3) as cluster:
        asking, serving = cluster.nodes[:2]
        store = await _record(serving)
        (chunk_id,) = store.ids(b"", 10)
        pool = BufferPool(CHUNK_SIZE_LIMIT, wait_seconds=0.05)
        held = await pool.lease()
        client = PeerClient(asking.identity, pool=pool, tls=None)
        await client.start()
        try:
            with pytest.raises(OverloadedError):
                await client.get(serving.member, chunk_id)
            with pytest.raises(OverloadedError):
                await client.get_range(serving.member, chunk_id, 0, 10)
            assert store.pools == []
        finally:
            held.release()
            await client.close()


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


async def test_one_sender_holds_half_of_the_buffers_at_most() -> None:
    """A node that is stopped in the middle of all its uploads leaves the other half to the rest."""
    async with ring_cluster(3) as cluster:
        sender, other, receiver = cluster.nodes
        receiver.store.hold_writes()

        async def put(node: RingNode, seed: int) -> PutOutcome:
            content = random.Random(seed).randbytes(BODY_SIZE)
            target = PutTarget(
                chunk_id=blake3(content).digest(),
                epoch=1,
                purpose=Purpose.OWNER,
                touch=1,
                codec=Codec.RAW,
                plain_length=BODY_SIZE,
            )
            return await node.client.put(receiver.member, target, memoryview(content))

        puts = [asyncio.ensure_future(put(sender, seed)) for seed in range(6)]
        half = receiver.peer_pool.budget_bytes // 2
        assert half == 4 * CHUNK_SIZE_LIMIT
        await eventually(lambda: receiver.peer_pool.leased_bytes == half, seconds=60)
        puts.append(asyncio.ensure_future(put(other, 7)))
        await eventually(
            lambda: receiver.peer_pool.leased_bytes == half + CHUNK_SIZE_LIMIT, seconds=60
        )
        receiver.store.release_writes()
        assert set(await asyncio.gather(*puts)) == {PutOutcome.WRITTEN}
        assert receiver.peer_pool.leased_bytes == 0


class _LendingStore(MemoryChunkStore):
    """Reads into pooled buffers, as the store on disk does."""

    lent = 0

    async def get_encoded(self, chunk_id: bytes, *, pool: BufferPool | None = None) -> Encoded:
        assert pool is not None
        lease = await pool.lease(CHUNK_SIZE_LIMIT)
        self.lent += 1
        return Encoded(lease.lend(0, CHUNK_SIZE_LIMIT), Codec.RAW, CHUNK_SIZE_LIMIT)


async def test_a_reader_that_stands_still_does_not_keep_the_buffer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A peer that asks for a chunk and reads no further loses the connection, and the buffer of the
    answer is free again."""
    monkeypatch.setattr("ring.peer_answers.BODY_SILENCE_SECONDS", 0.2)
    monkeypatch.setattr("ring.peer_server._PeerServer._admit", lambda *_: None)
    async with ring_cluster(1, tls=True) as cluster:
        serving = cluster.nodes[0]
        await serving.go_down()
        store = serving.store = _LendingStore()
        # Without TLS and signatures, and whoever asks is let in: the test speaks by itself.
        application = make_peer_application(
            store,
            serving.view,
            serving.identity,
            rings=serving.rings,
            pool=serving.peer_pool,
            workers=serving.workers,
            signed=False,
        )
        runner = peer_runner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        with socket.create_connection(runner.addresses[0]) as reader:
            reader.sendall(f"GET {chunk_path(bytes(32))} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await eventually(lambda: store.lent > 0, seconds=60)
            # Sooner than by the limit on the whole body.
            await eventually(lambda: serving.peer_pool.leased_bytes == 0, seconds=30)
        await runner.cleanup()
        await serving.come_back()
