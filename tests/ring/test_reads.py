"""Rule D3: reads while nodes hang, while copies move, and what "missing" takes to be said."""

from __future__ import annotations

import asyncio
import random

import pytest
from blake3 import blake3

from ring.errors import ChunkMissingError, ChunkUnavailableError, StoreOverloadedError
from ring.interfaces import StoredContent
from ring.members import Member
from ring.peer_client import FetchedContent
from tests.fakes.chunk_store import MemoryChunkStore
from tests.fakes.ring_nodes import RingCluster, RingNode, eventually, ring_cluster

MIB = 1024 * 1024
HASTY_SECONDS = 0.01


def _random(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes are raced at once, and nobody's silence ends a question: racing alone must help."""
    monkeypatch.setattr("ring.peer_health.RACE_SECONDS_UNKNOWN", HASTY_SECONDS)
    monkeypatch.setattr("ring.peer_client.READ_SECONDS", 600.0)


async def _write_from(
    cluster: RingCluster, gateway: RingNode, *, size: int, count: int = 1
) -> list[bytes]:
    """Chunks on nodes 0 to 2, which node 3 does not own."""
    contents = [cluster.content_owned_by(0, 1, 2, size=size, seed=seed) for seed in range(count)]
    for content in contents:
        written = await gateway.write(content)
        await eventually(lambda w=written: cluster.holders(w.chunk_id) == [0, 1, 2], seconds=60)  # type: ignore[misc]
    return contents


@pytest.mark.usefixtures("_hasty")
@pytest.mark.parametrize("size", [1000, 100_000, 2 * MIB])
async def test_a_hanging_owner_is_overtaken(size: int) -> None:
    """A reader gets the bytes from the next owner; the hanging one is asked after others from then
    on, and no buffer stays behind."""
    async with ring_cluster(4) as cluster:
        reader = cluster.nodes[3]
        (content,) = await _write_from(cluster, cluster.nodes[0], size=size)
        chunk_id = blake3(content).digest()
        first = cluster.by_id(cluster.ring().owners(chunk_id)[0])
        first.store.hold_reads()
        async with asyncio.timeout(60):
            for start, end in ((0, size), (0, size), (5, 500)):
                part = await reader.replicator.read(chunk_id, length=size, start=start, end=end)
                assert bytes(part) == content[start:end]
                del part
        assert first.store.reads_begun >= 1
        assert reader.fetcher.overtaken >= 1
        await eventually(lambda: reader.pool.leased_bytes == 0, seconds=60)
        # It never answered anything: this is what it was seen to take, and what it is ranked by.
        assert reader.client.health(first.node_id).latency_seconds >= HASTY_SECONDS


@pytest.mark.usefixtures("_hasty")
async def test_two_hanging_owners_cost_two_delays() -> None:
    """As long as one good copy answers."""
    async with ring_cluster(4) as cluster:
        reader = cluster.nodes[3]
        (content,) = await _write_from(cluster, cluster.nodes[0], size=1000)
        chunk_id = blake3(content).digest()
        for node_id in cluster.ring().owners(chunk_id)[:2]:
            cluster.by_id(node_id).store.hold_reads()
        async with asyncio.timeout(60):
            assert bytes(await reader.replicator.read(chunk_id, length=1000)) == content


@pytest.mark.usefixtures("_hasty")
async def test_a_hanging_owner_does_not_keep_a_reader_from_former_ones() -> None:
    """While copies move, the new owner that hangs is not waited for before the old one is asked."""
    async with ring_cluster(4, in_ring=1) as cluster:
        content = _random(1000)
        written = await cluster.nodes[0].write(content)
        await eventually(lambda: cluster.holders(written.chunk_id) == [0], seconds=60)
        cluster.change_ring([1, 2])
        cluster.nodes[1].store.hold_reads()
        async with asyncio.timeout(60):
            data = await cluster.nodes[3].replicator.read(written.chunk_id, length=1000)
        assert bytes(data) == content


@pytest.mark.usefixtures("_hasty")
async def test_readers_of_a_hanging_node_do_not_use_up_the_buffers() -> None:
    """However many ask it, most of the buffers stay free, so that all are served by others."""
    async with ring_cluster(4) as cluster:
        reader, hanging = cluster.nodes[3], cluster.nodes[0]
        size = 600_000
        contents = await _write_from(cluster, cluster.nodes[1], size=size, count=12)
        assert reader.pool.budget_bytes == 64 * MIB
        for node in cluster.nodes[1:3]:
            reader.client.health(node.node_id).answered(1.0)
        hanging.store.hold_reads()

        async def read(content: bytes) -> bool:
            data = await reader.replicator.read(blake3(content).digest(), length=size)
            return bytes(data) == content

        async with asyncio.timeout(120):
            reads = [asyncio.ensure_future(read(each)) for each in contents]
            await eventually(lambda: hanging.store.reads_begun > 0, seconds=60)
            gate = reader.client._reads[hanging.node_id]
            assert gate.inside_bytes <= 16 * MIB
            assert all(await asyncio.gather(*reads))
            await eventually(
                lambda: gate.inside_bytes == reader.fetcher._gate.inside_bytes == 0, seconds=60
            )


@pytest.mark.usefixtures("_hasty")
async def test_one_peer_gets_a_quarter_of_the_buffers() -> None:
    """Those that would wait for more of its answers wait without a buffer."""
    async with ring_cluster(4) as cluster:
        reader, serving = cluster.nodes[3], cluster.nodes[0]
        (content,) = await _write_from(cluster, cluster.nodes[1], size=3 * MIB)
        chunk_id = blake3(content).digest()
        serving.store.hold_reads()
        fetches = [
            asyncio.ensure_future(reader.client.get(serving.member, chunk_id)) for _ in range(6)
        ]
        await eventually(lambda: serving.store.reads_begun == 2, seconds=60)
        assert reader.pool.leased_bytes == 2 * 8 * MIB
        assert reader.client._reads[serving.node_id].waiting == 4
        serving.store.release_reads()
        for fetched in await asyncio.gather(*fetches):
            fetched.lease.release()
        assert reader.pool.leased_bytes == 0


# --- missing, or only not to be had --------------------------------------------------------------


@pytest.mark.parametrize("how", ["damaged", "unreadable"])
async def test_an_own_copy_that_cannot_be_read_is_not_missing(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Whatever the others say: this node has not answered that it has none."""
    async with ring_cluster(3, in_ring=1) as cluster:
        node = cluster.nodes[0]
        written = await node.write(_random(1000))
        cluster.change_ring(range(3))
        if how == "damaged":
            node.store.damage(written.chunk_id)
        else:

            async def fail(*_: object, **__: object) -> StoredContent:
                raise StoreOverloadedError("too many operations wait")

            monkeypatch.setattr(node.store, "get", fail)
        with pytest.raises(ChunkUnavailableError) as unavailable:
            await node.replicator.read(written.chunk_id, length=1000)
        assert unavailable.value.causes.keys() == {each.node_id for each in cluster.nodes}


async def _move(content: bytes, source: MemoryChunkStore, target: MemoryChunkStore) -> None:
    chunk_id = blake3(content).digest()
    await target.put(chunk_id, await source.get_encoded(chunk_id), touch=1)
    assert await source.delete(chunk_id, unless=lambda row: False)


async def test_a_chunk_that_moves_while_it_is_looked_for_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The owner had not got it yet when it was asked, the former owner had dropped it when *it* was
    asked: "missing" would be wrong."""
    async with ring_cluster(3, in_ring=1) as cluster:
        content = _random(1000)
        written = await cluster.nodes[0].write(content)
        cluster.change_ring([1])
        reader = cluster.nodes[2]
        get = reader.client.get

        async def get_while_moving(
            member: Member, chunk_id: bytes, *, length_limit: int
        ) -> FetchedContent:
            if member.node_id == cluster.nodes[0].node_id and cluster.holders(chunk_id) == [0]:
                await _move(content, cluster.nodes[0].store, cluster.nodes[1].store)
            return await get(member, chunk_id, length_limit=length_limit)

        monkeypatch.setattr(reader.client, "get", get_while_moving)
        assert bytes(await reader.replicator.read(written.chunk_id, length=1000)) == content


async def test_a_chunk_that_moves_to_the_reader_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where this node is the owner that had none yet."""
    async with ring_cluster(2, in_ring=1) as cluster:
        content = _random(1000)
        written = await cluster.nodes[0].write(content)
        cluster.change_ring([1])
        reader = cluster.nodes[1]
        get = reader.client.get

        async def get_while_moving(
            member: Member, chunk_id: bytes, *, length_limit: int
        ) -> FetchedContent:
            if cluster.holders(chunk_id) == [0]:
                await _move(content, cluster.nodes[0].store, reader.store)
            return await get(member, chunk_id, length_limit=length_limit)

        monkeypatch.setattr(reader.client, "get", get_while_moving)
        assert bytes(await reader.replicator.read(written.chunk_id, length=1000)) == content


async def test_missing_is_not_said_across_a_change_of_the_ring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under another ring the copy may have gone where nobody was asked: try again."""
    async with ring_cluster(4, in_ring=3) as cluster:
        reader = cluster.nodes[0]
        nowhere = blake3(b"nowhere").digest()
        refresh = reader.view.refresh

        async def refresh_with_news() -> None:
            await refresh()
            if reader.view.refreshes == 2:
                cluster.change_ring([1, 2, 3])

        monkeypatch.setattr(reader.view, "refresh", refresh_with_news)
        with pytest.raises(ChunkUnavailableError, match="changed"):
            await reader.replicator.read(nowhere, length=7)
        with pytest.raises(ChunkMissingError):
            await reader.replicator.read(nowhere, length=7)
