"""Owners of the same partitions find out what they lack, at the cost of what differs."""

from __future__ import annotations

import asyncio
import bisect
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import msgspec
import pytest

from ring.anti_entropy import SOON_SECONDS
from ring.errors import PeerRefusedError, StaleEpochError
from ring.interfaces import PartitionDigest
from ring.members import PARTITION_COUNT, Membership
from tests.fakes.chunk_store import MemoryChunkStore
from tests.fakes.ring_nodes import RingCluster, RingNode, eventually, ring_cluster

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks lacking counts at once, except where a test says otherwise; and a busy machine
    makes no node fail, and nothing happen for its time alone."""
    monkeypatch.setattr("ring.anti_entropy.GRACE_SECONDS", 0.0)
    monkeypatch.setattr("ring.anti_entropy.RECOUNT_SECONDS", 36000.0)
    monkeypatch.setattr("ring.anti_entropy.INTERVAL_SECONDS", 36000.0)
    monkeypatch.setattr("ring.peer_client.READ_SECONDS", 120.0)


def _random(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def _work(node: RingNode, units: int = 12) -> None:
    for _ in range(units):
        await node.anti_entropy.work()


async def _written(cluster: RingCluster, count: int, *, generation: int = 1) -> list[bytes]:
    """Chunks that all nodes hold and nobody refers to."""
    written = [
        await cluster.nodes[0].write(_random(300, seed), generation=generation)
        for seed in range(count)
    ]
    everywhere = list(range(len(cluster.nodes)))
    await eventually(
        lambda: all(cluster.holders(each.chunk_id) == everywhere for each in written), seconds=60
    )
    return [each.chunk_id for each in written]


async def _lose(node: RingNode, *chunk_ids: bytes) -> None:
    for chunk_id in chunk_ids:
        assert await node.store.delete(chunk_id, unless=lambda row: False)


async def test_a_node_finds_what_it_lacks_and_repair_fetches_it() -> None:
    """Exactly the chunks that another owner holds and this one does not; the other finds none."""
    async with ring_cluster(3) as cluster:
        chunk_ids = await _written(cluster, 20)
        cluster.live.chunks.update(chunk_ids)
        await _lose(cluster.nodes[1], *chunk_ids[:3])
        for node in cluster.nodes:
            await _work(node)
        own_id = cluster.nodes[1].node_id
        assert sorted(set(cluster.nodes[1].lacking)) == sorted((e, own_id) for e in chunk_ids[:3])
        assert cluster.nodes[0].lacking == cluster.nodes[2].lacking == []
        await cluster.nodes[1].repairer.work()
        assert all(cluster.holders(each) == [0, 1, 2] for each in chunk_ids)
        status = cluster.nodes[1].anti_entropy.status()
        assert status.partitions_differing == len({each[:2] for each in chunk_ids[:3]}) * 2
        # Without a time of grace each of the two others counts.
        assert status.chunks_lacking == 3 * 2


async def test_only_partitions_that_both_own_are_compared() -> None:
    """A chunk that a node has and need not have is no difference."""
    async with ring_cluster(5) as cluster:
        content = cluster.content_owned_by(0, 1, 2)
        written = await cluster.nodes[0].write(content)
        await eventually(lambda: cluster.holders(written.chunk_id) == [0, 1, 2], seconds=60)
        cluster.live.chunks.add(written.chunk_id)
        encoded = await cluster.nodes[0].store.get_encoded(written.chunk_id)
        await cluster.nodes[4].store.put(written.chunk_id, encoded, touch=1)
        for node in cluster.nodes:
            await _work(node)
            assert node.anti_entropy.status().partitions_differing == 0
            assert node.lacking == []


async def test_a_bad_copy_counts_as_lacking() -> None:
    """A quarantined chunk makes the partition differ, and is fetched anew."""
    async with ring_cluster(2) as cluster:
        (chunk_id,) = await _written(cluster, 1)
        cluster.live.chunks.add(chunk_id)
        node = cluster.nodes[0]
        node.store.damage(chunk_id)
        await node.replicator.read(chunk_id, length=300)
        node.lacking.clear()
        await _work(node)
        assert node.lacking == [(chunk_id, node.node_id)]


async def test_rubbish_is_not_brought_back() -> None:
    """Rule D10: what nobody refers to and may be collected by the touch the other has is left
    alone; what is too young for that is fetched, with that touch."""
    async with ring_cluster(2) as cluster:
        (old,) = await _written(cluster, 1, generation=3)
        (young,) = [
            (await cluster.nodes[0].write(_random(300, 77), generation=4)).chunk_id,
        ]
        await eventually(lambda: cluster.holders(young) == [0, 1], seconds=60)
        node = cluster.nodes[1]
        await _lose(node, old, young)
        for each in cluster.nodes:
            each.view.number = 5
        await _work(node)
        assert node.lacking == [(young, node.node_id)]
        await node.repairer.work()
        (stat,) = await node.store.stat([young])
        assert stat is not None
        assert stat.touch == 4


async def test_a_chunk_on_its_way_is_not_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrives within the time of grace is not fetched a second time."""
    async with ring_cluster(3) as cluster:
        held, other = cluster.nodes[2], cluster.nodes[0]
        held.store.hold_writes()
        written = await other.write(_random(300, 1))
        cluster.live.chunks.add(written.chunk_id)
        monkeypatch.setattr("ring.anti_entropy.GRACE_SECONDS", 3600.0)
        await _work(held)
        assert held.anti_entropy._candidates.keys() == {written.chunk_id}
        held.store.release_writes()
        await eventually(lambda: cluster.holders(written.chunk_id) == [0, 1, 2], seconds=60)
        monkeypatch.setattr("ring.anti_entropy.GRACE_SECONDS", 0.0)
        await _work(held)
        assert not held.anti_entropy._candidates
        assert held.lacking == []


async def test_nodes_at_different_epochs_compare_nothing() -> None:
    """Digests and ids are told at the epoch asked about only, and only by an owner."""
    async with ring_cluster(4) as cluster:
        node, other = cluster.nodes[0], cluster.nodes[1]
        ring = cluster.ring()
        shared = ring.shared(node.node_id, other.node_id)
        foreign = next(
            number
            for number in range(PARTITION_COUNT)
            if other.node_id not in ring.partition_owners(number)
        )
        assert len(await node.client.digests(other.member, 1, len(shared))) == 16 * len(shared)
        with pytest.raises(PeerRefusedError, match="not an owner"):
            await node.client.partition_ids(other.member, 1, foreign, None, b"")
        with pytest.raises(PeerRefusedError, match="not an owner"):
            await node.client.slice_digests(other.member, 1, foreign)
        for ask in (
            lambda: node.client.digests(other.member, 2, len(shared)),
            lambda: node.client.slice_digests(other.member, 2, shared[0]),
            lambda: node.client.partition_ids(other.member, 2, shared[0], None, b""),
        ):
            with pytest.raises(StaleEpochError):
                await ask()


async def test_what_was_found_at_a_former_epoch_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A new ring makes other owners: nothing is fetched by the word of the old one."""
    monkeypatch.setattr("ring.anti_entropy.GRACE_SECONDS", 3600.0)
    async with ring_cluster(2) as cluster:
        chunk_ids = await _written(cluster, 5)
        cluster.live.chunks.update(chunk_ids)
        node = cluster.nodes[1]
        await _lose(node, *chunk_ids)
        await _work(node)
        assert len(node.anti_entropy._candidates) == 5
        node.swept = False
        cluster.change_ring([0, 1])
        await _work(node)
        assert not node.anti_entropy._candidates


async def test_reasons_to_compare() -> None:
    """A new epoch once repair is done with it, a node that is back, and a bad copy, soon."""
    async with ring_cluster(2) as cluster:
        node, other = cluster.nodes
        node.swept = False
        compared = 0

        async def compares(units: int = 3) -> bool:
            nonlocal compared
            await _work(node, units)
            before, compared = compared, node.anti_entropy.status().bytes_exchanged
            return compared > before

        assert not await compares()
        node.swept = True
        assert await compares()
        assert not await compares()
        for reachable, expected in ((True, False), (False, False), (True, True), (True, False)):
            node.reachable[other.node_id] = reachable
            assert await compares() == expected
        peer = node.anti_entropy._peers[other.node_id]
        node.anti_entropy.run_soon()
        assert not await compares()
        assert peer.due_at - peer.compared_at == pytest.approx(SOON_SECONDS)
        peer.compared_at -= SOON_SECONDS
        node.anti_entropy.run_soon()
        assert await compares()


async def test_a_node_that_is_down_is_compared_with_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison with the others goes on meanwhile, and it is made up for."""
    monkeypatch.setattr("ring.anti_entropy.AGAIN_SECONDS", 0.0)
    async with ring_cluster(3) as cluster:
        (chunk_id,) = await _written(cluster, 1)
        cluster.live.chunks.add(chunk_id)
        node = cluster.nodes[0]
        await _lose(node, chunk_id)
        await _lose(cluster.nodes[2], chunk_id)
        await cluster.nodes[1].go_down()
        await _work(node)
        assert node.lacking == []
        await cluster.nodes[1].come_back()
        await _work(node)
        assert node.lacking == [(chunk_id, node.node_id)]


async def test_a_wrong_digest_is_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where partitions seem to differ and their ids do not, and now and then anyway."""
    counted: list[int] = []

    async def recount(store: MemoryChunkStore, partition: int) -> bool:
        counted.append(partition)
        return partition == 7

    monkeypatch.setattr(MemoryChunkStore, "recount", recount)
    async with ring_cluster(2) as cluster:
        node = cluster.nodes[0]
        real = MemoryChunkStore.partition_digests

        def wrong(store: MemoryChunkStore) -> list[PartitionDigest]:
            digests = real(store)
            if store is node.store:
                digests[7] = PartitionDigest(1, b"\1" * 32)
            return digests

        monkeypatch.setattr(MemoryChunkStore, "partition_digests", wrong)
        await _work(node)
        assert counted == [7, 0]
        assert node.anti_entropy.status().digests_repaired == 1
        monkeypatch.setattr("ring.anti_entropy.RECOUNT_SECONDS", 0.0)
        node.anti_entropy._next_recount_at = 0.0
        await _work(node, units=PARTITION_COUNT + 1)
        assert counted == [7, 0, *range(1, PARTITION_COUNT), 0, 1]


async def test_candidates_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much differs, only so many ids are kept; the rest follows when they are done with."""
    monkeypatch.setattr("ring.anti_entropy.CANDIDATE_LIMIT", 4)
    monkeypatch.setattr("ring.anti_entropy.GRACE_SECONDS", 3600.0)
    async with ring_cluster(2) as cluster:
        chunk_ids = await _written(cluster, 30)
        cluster.live.chunks.update(chunk_ids)
        node = cluster.nodes[1]
        await _lose(node, *chunk_ids)
        await _work(node, units=20)
        assert 4 <= len(node.anti_entropy._candidates) <= 6
        monkeypatch.setattr("ring.anti_entropy.GRACE_SECONDS", 0.0)
        await _work(node, units=60)
        assert {chunk_id for chunk_id, _ in node.lacking} == set(chunk_ids)


# --- what it costs -------------------------------------------------------------------------------


class _ManyIds(MemoryChunkStore):
    """Pretends to hold chunks of which only the ids exist."""

    def __init__(self, chunk_ids: Iterable[bytes]) -> None:
        super().__init__()
        self.sorted_ids = sorted(chunk_ids)
        counts, digests = [0] * PARTITION_COUNT, [0] * PARTITION_COUNT
        for chunk_id in self.sorted_ids:
            number = int.from_bytes(chunk_id, "big")
            counts[number >> 244] += 1
            digests[number >> 244] ^= number
        self.digests = [
            PartitionDigest(count, digest.to_bytes(32, "big"))
            for count, digest in zip(counts, digests, strict=True)
        ]

    def partition_digests(self) -> list[PartitionDigest]:
        return self.digests

    def ids(self, after: bytes, limit: int, *, below: bytes | None = None) -> list[bytes]:
        start = bisect.bisect_right(self.sorted_ids, after)
        end = len(self.sorted_ids) if below is None else bisect.bisect_left(self.sorted_ids, below)
        return self.sorted_ids[start : min(end, start + limit)]


@asynccontextmanager
async def _counted(cluster: RingCluster) -> AsyncIterator[list[int]]:
    """Let the first node reach the second through a relay; yields bytes either way, all in all."""
    asking, serving = cluster.nodes
    total = [0]
    host, port = serving.member.peer_address.split(":")
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection(host, int(port))

        async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(MIB):
                total[0] += len(data)
                target.write(data)
                await target.drain()

        writers.extend((writer, other_writer))
        for each in ((reader, other_writer), (other_reader, writer)):
            tasks.add(asyncio.ensure_future(pass_on(*each)))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    address = "127.0.0.1:" + str(server.sockets[0].getsockname()[1])
    members = tuple(
        msgspec.structs.replace(member, peer_address=address)
        if member.node_id == serving.node_id
        else member
        for member in asking.view.present.members
    )
    asking.view.present = Membership(epoch=asking.view.present.epoch, members=members)
    try:
        yield total
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.close()
            await writer.wait_closed()


async def _use(cluster: RingCluster, *stores: _ManyIds) -> None:
    for node, store in zip(cluster.nodes, stores, strict=True):
        await node.go_down()
        store.set_touch_floor(1)
        node.store = node.anti_entropy._store = node.anti_entropy._digests._store = store
        await node.come_back()


async def test_identical_nodes_cost_less_than_a_megabyte() -> None:
    """Whatever they hold: 16 bytes for each shared partition, and one request."""
    chance = random.Random(1)
    ids = [chance.randbytes(32) for _ in range(50_000)]
    async with ring_cluster(2) as cluster:
        await _use(cluster, _ManyIds(ids), _ManyIds(ids))
        async with _counted(cluster) as total:
            await _work(cluster.nodes[0])
            status = cluster.nodes[0].anti_entropy.status()
            assert status.partitions_differing == 0
            assert status.bytes_exchanged == PARTITION_COUNT * 16
            assert PARTITION_COUNT * 16 < total[0] < 100_000


async def test_differences_cost_what_they_are_and_not_what_is_held() -> None:
    """In a partition of 40,000 chunks each difference costs some 10 KB, not the 1.3 MB of its ids;
    none is overlooked, and what the other lacks is none of this node's business."""
    chance = random.Random(2)
    ids = [b"\xab\xc0" + chance.randbytes(30) for _ in range(40_000)]
    ids = [each[:1] + bytes([0xC0 | chance.randrange(16)]) + each[2:] for each in ids]
    lacking, superfluous = ids[:5], ids[5:8]
    async with ring_cluster(2) as cluster:
        node = cluster.nodes[0]
        await _use(cluster, _ManyIds(ids[5:]), _ManyIds([*ids[:5], *ids[8:]]))
        cluster.live.chunks.update(ids)
        async with _counted(cluster) as total:
            await _work(node, units=4)
            base = PARTITION_COUNT * 16
            parts = len(lacking) + len(superfluous)
            assert sorted(chunk_id for chunk_id, _ in node.lacking) == sorted(lacking)
            assert total[0] - base < 4096 + parts * (40_000 // 256 * 32 * 2 + 2000)


async def test_long_lists_come_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that has nothing of a partition learns all of it, a page at a time."""
    monkeypatch.setattr("ring.anti_entropy.IDS_LIMIT", 50)
    monkeypatch.setattr("ring.peer_client.IDS_LIMIT", 50)
    monkeypatch.setattr("ring.peer_server.IDS_LIMIT", 50)
    chance = random.Random(3)
    ids = [
        b"\xab" + bytes([0xC0 | chance.randrange(16)]) + chance.randbytes(30) for _ in range(333)
    ]
    async with ring_cluster(2) as cluster:
        node = cluster.nodes[0]
        await _use(cluster, _ManyIds([]), _ManyIds(ids))
        cluster.live.chunks.update(ids)
        await _work(node, units=5)
        assert sorted(chunk_id for chunk_id, _ in node.lacking) == sorted(ids)
