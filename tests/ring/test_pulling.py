"""Copies are fetched in bulk: few questions, few requests, spread over who has them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest
from blake3 import blake3

from ring.buffers import BufferPool, Lease
from ring.codec import encode
from ring.interfaces import Encoded
from ring.members import Member, NodeId
from ring.peer_client import FetchedContent, PeerClient
from ring.peer_wire import (
    GET_BATCH_BODY_LIMIT,
    GET_BATCH_LIMIT,
    GET_BATCH_SIZE_LIMIT,
    SMALL_PUT_LIMIT,
    ChunkState,
)
from ring.pulling import FETCHES_AT_ONCE, Source, _jobs
from tests.fakes.ring_nodes import RingCluster, RingNode, ring_cluster


def _random(size: int, seed: int) -> bytes:
    return random.Random(seed * 1_000_003 + size).randbytes(size)


async def _stored(nodes: Sequence[RingNode], content: bytes, *, touch: int = 1) -> bytes:
    chunk_id = blake3(content).digest()
    for node in nodes:
        await node.store.put(chunk_id, encode(memoryview(content)), touch=touch)
    return chunk_id


class Requests:
    """Counts what a node asks others for."""

    def __init__(self, client: PeerClient, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stats: list[tuple[NodeId, int]] = []
        self.several: list[tuple[NodeId, int]] = []
        self.single: list[tuple[NodeId, int]] = []
        stat, get_several, get = client.stat, client.get_several, client.get

        async def counted_stat(
            member: Member, chunk_ids: Sequence[bytes]
        ) -> list[ChunkState | None]:
            self.stats.append((member.node_id, len(chunk_ids)))
            return await stat(member, chunk_ids)

        async def counted_several(
            member: Member, chunk_ids: Sequence[bytes], *, pool: BufferPool
        ) -> tuple[Lease, list[Encoded | None]]:
            self.several.append((member.node_id, len(chunk_ids)))
            return await get_several(member, chunk_ids, pool=pool)

        async def counted_get(
            member: Member, chunk_id: bytes, *, length_limit: int, pool: BufferPool | None = None
        ) -> FetchedContent:
            self.single.append((member.node_id, length_limit))
            return await get(member, chunk_id, length_limit=length_limit, pool=pool)

        monkeypatch.setattr(client, "stat", counted_stat)
        monkeypatch.setattr(client, "get_several", counted_several)
        monkeypatch.setattr(client, "get", counted_get)


async def _sweep(cluster: RingCluster, number: int) -> None:
    repairer = cluster.nodes[number].repairer
    repairer.sweep_soon()
    for _ in range(20):
        await repairer.work()


async def test_small_chunks_share_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """150 small chunks come with one question to each owner and three requests, not 300."""
    async with ring_cluster(3, in_ring=2) as cluster:
        chunk_ids = [
            await _stored(cluster.nodes[:2], _random(700 + seed, seed)) for seed in range(150)
        ]
        cluster.live.chunks.update(chunk_ids)
        cluster.change_ring(range(3))
        requests = Requests(cluster.nodes[2].client, monkeypatch)
        await _sweep(cluster, 2)
        assert all(cluster.holders(each) == [0, 1, 2] for each in chunk_ids)
        assert sorted(count for _, count in requests.stats) == [150, 150]
        assert requests.single == []
        assert len(requests.several) <= 4
        assert {node for node, _ in requests.several} == {
            node.node_id for node in cluster.nodes[:2]
        }
        assert cluster.nodes[2].pool.leased_bytes == 0


async def test_large_chunks_are_spread_and_take_no_more_room_than_they_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is fetched by itself, from the owner that has been asked for less so far."""
    async with ring_cluster(3, in_ring=2) as cluster:
        chunk_ids = [await _stored(cluster.nodes[:2], _random(100_000, seed)) for seed in range(8)]
        cluster.live.chunks.update(chunk_ids)
        cluster.change_ring(range(3))
        requests = Requests(cluster.nodes[2].client, monkeypatch)
        await _sweep(cluster, 2)
        assert all(cluster.holders(each) == [0, 1, 2] for each in chunk_ids)
        for node in cluster.nodes[:2]:
            assert requests.single.count((node.node_id, 100_000)) == 4


async def test_former_owners_are_asked_where_the_new_ones_have_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All owners were replaced: the copies come from the former ones, with their touches, without
    asking everybody about each."""
    async with ring_cluster(2, in_ring=1) as cluster:
        chunk_ids = [
            await _stored(cluster.nodes[:1], _random(500, seed), touch=7) for seed in range(20)
        ]
        cluster.live.chunks.update(chunk_ids)
        cluster.change_ring([1])
        requests = Requests(cluster.nodes[1].client, monkeypatch)
        await _sweep(cluster, 1)
        assert requests.several == [(cluster.nodes[0].node_id, 20)]
        for stat in await cluster.nodes[1].store.stat(chunk_ids):
            assert stat is not None
            assert stat.touch == 7


@pytest.mark.parametrize("touches", [(4, 9), (9, 4)])
async def test_a_copy_gets_the_highest_touch_that_was_told(touches: tuple[int, int]) -> None:
    """Rule D10: neither the lower one of another source, nor this node's own generation."""
    async with ring_cluster(3, in_ring=2) as cluster:
        content = _random(900, 1)
        for number, touch in enumerate(touches):
            chunk_id = await _stored([cluster.nodes[number]], content, touch=touch)
        cluster.live.chunks.add(chunk_id)
        cluster.change_ring(range(3))
        for node in cluster.nodes:
            node.view.number = 50
        await _sweep(cluster, 2)
        (stat,) = await cluster.nodes[2].store.stat([chunk_id])
        assert stat is not None
        assert stat.touch == 9


async def test_a_source_whose_copy_is_known_to_be_bad_is_not_asked_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A quarantined copy is no copy: only the other owner gets a request."""
    async with ring_cluster(3, in_ring=2) as cluster:
        chunk_ids = [await _stored(cluster.nodes[:2], _random(500, seed)) for seed in range(6)]
        cluster.live.chunks.update(chunk_ids)
        for chunk_id in chunk_ids:
            cluster.nodes[0].store.damage(chunk_id)
            cluster.nodes[0].store._quarantine(chunk_id)
        cluster.change_ring(range(3))
        requests = Requests(cluster.nodes[2].client, monkeypatch)
        await _sweep(cluster, 2)
        assert requests.several == [(cluster.nodes[1].node_id, 6)]
        assert requests.single == []


@pytest.mark.parametrize("size", [800, 100_000])
async def test_a_bad_copy_at_the_source_is_got_round(size: int) -> None:
    """What comes bad, or not at all, is looked for elsewhere; the rest of the batch is taken."""
    async with ring_cluster(3, in_ring=2) as cluster:
        chunk_ids = [await _stored(cluster.nodes[:2], _random(size, seed)) for seed in range(12)]
        cluster.live.chunks.update(chunk_ids)
        for chunk_id in chunk_ids[:6]:
            cluster.nodes[0].store.damage(chunk_id)
        for chunk_id in chunk_ids[6:]:
            cluster.nodes[1].store.damage(chunk_id)
        cluster.change_ring(range(3))
        await _sweep(cluster, 2)
        assert all(2 in cluster.holders(each) for each in chunk_ids)
        assert cluster.nodes[2].repairer.status().settled


async def test_a_forged_copy_in_a_batch_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that answers with other contents is found out: they are verified against the id."""
    async with ring_cluster(3, in_ring=2) as cluster:
        chunk_ids = [await _stored(cluster.nodes[:2], _random(600, seed)) for seed in range(4)]
        cluster.live.chunks.update(chunk_ids)
        cluster.change_ring(range(3))
        liar = cluster.nodes[0].store
        forged = await liar.get_encoded(chunk_ids[1])
        get_encoded = liar.get_encoded

        async def lie(chunk_id: bytes, *, pool: BufferPool | None = None) -> Encoded:
            return forged if chunk_id == chunk_ids[0] else await get_encoded(chunk_id, pool=pool)

        monkeypatch.setattr(liar, "get_encoded", lie)
        await _sweep(cluster, 2)
        for chunk_id in chunk_ids:
            found = await cluster.nodes[2].store.get(chunk_id)
            assert blake3(found.data).digest() == chunk_id


async def test_an_epoch_that_ends_stops_what_is_fetched_for_it() -> None:
    """What has not been asked for yet when the ring changes is left to the sweep of the new one."""
    async with ring_cluster(3, in_ring=2) as cluster:
        chunk_ids = [await _stored(cluster.nodes[:2], _random(90_000, seed)) for seed in range(12)]
        cluster.live.chunks.update(chunk_ids)
        cluster.change_ring(range(3))
        node = cluster.nodes[2]
        wait = node.throttle.wait

        async def wait_and_change(size: int) -> None:
            await wait(size)
            if len(node.store.ids(b"", 100)) == 4 and cluster.ring().epoch == 2:
                cluster.change_ring([0, 1])

        node.throttle.wait = wait_and_change  # type: ignore[method-assign]
        await _sweep(cluster, 2)
        assert 4 <= len(node.store.ids(b"", 100)) < 12
        assert node.repairer.settled_epoch() == 3


async def test_an_epoch_that_ended_takes_nothing_of_the_rate() -> None:
    """What is not fetched any more is not waited for either: a unit of large chunks at a low rate
    would keep the sweep of the new epoch waiting for minutes."""
    async with ring_cluster(3, in_ring=2) as cluster:
        chunk_ids = [await _stored(cluster.nodes[:2], _random(90_000, seed)) for seed in range(40)]
        cluster.live.chunks.update(chunk_ids)
        cluster.change_ring(range(3))
        node = cluster.nodes[2]
        waited: list[int] = []

        async def wait_and_change(size: int) -> None:
            waited.append(size)
            if len(waited) == 1:
                cluster.change_ring([0, 1])

        node.throttle.wait = wait_and_change  # type: ignore[method-assign]
        await _sweep(cluster, 2)
        assert len(waited) <= FETCHES_AT_ONCE
        assert node.store.ids(b"", 100) == []


async def test_small_chunks_fit_into_their_answer() -> None:
    """A peer answers with what is small and fits, in the order of asking; the asker's buffer holds
    the fullest answer."""
    async with ring_cluster(2) as cluster:
        asker, peer = cluster.nodes
        contents = [_random(SMALL_PUT_LIMIT, seed) for seed in range(10)]
        chunk_ids = [await _stored([peer], content) for content in contents]
        large = await _stored([peer], _random(SMALL_PUT_LIMIT + 1, 99))
        absent = blake3(b"absent").digest()
        asked = [large, absent, *chunk_ids]
        lease, found = await asker.client.get_several(peer.member, asked, pool=asker.pool)
        assert found[:2] == [None, None]
        fitting = GET_BATCH_SIZE_LIMIT // SMALL_PUT_LIMIT
        for number, got in enumerate(found[2:]):
            if number < fitting:
                assert got is not None
                assert bytes(got.payload) == contents[number]
            else:
                assert got is None
        assert asker.pool.leased_bytes == GET_BATCH_BODY_LIMIT
        lease.release()
        tiny = [await _stored([peer], _random(40, seed)) for seed in range(GET_BATCH_LIMIT)]
        lease, found = await asker.client.get_several(peer.member, tiny, pool=asker.pool)
        assert None not in found
        lease.release()
        assert peer.peer_pool.leased_bytes == 0


def _member(number: int) -> Member:
    return Member(
        node_id=f"node-{number}", peer_address="a:1", raft_address="a:2", client_url="http://a"
    )


def test_requests_are_bounded_and_balanced() -> None:
    """No batch is larger than a peer takes; sources get about equal shares; what nobody told of is
    looked for alone."""
    members = [_member(0), _member(1)]
    rng = random.Random(3)
    sources: Mapping[bytes, Source] = {
        rng.randbytes(32): Source(list(members), length, 1)
        for length in [*([100] * 500), *([60_000] * 50), *([5_000_000] * 9)]
    } | {b"unknown": Source()}
    jobs = _jobs(sources)
    assert sorted(each for job in jobs for each in job.chunk_ids) == sorted(sources)
    load = dict.fromkeys((member.node_id for member in members), 0)
    for job in jobs:
        assert len(job.chunk_ids) <= GET_BATCH_LIMIT
        if job.member is None:
            assert job.chunk_ids == [b"unknown"]
            continue
        load[job.member.node_id] += job.size
        assert job.size == sum(sources[each].length for each in job.chunk_ids)
        assert len(job.chunk_ids) == 1 or job.size <= GET_BATCH_SIZE_LIMIT
    assert abs(load["node-0"] - load["node-1"]) <= 5_000_000
    assert len(jobs) < 500 / GET_BATCH_LIMIT + 50 / 8 + 9 + 6


async def test_an_owner_that_has_just_failed_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that hangs would hold each unit up for as long as a request may be silent. What only it
    has is found there all the same, if it answers after all."""
    async with ring_cluster(3, in_ring=2) as cluster:
        chunk_ids = [await _stored(cluster.nodes[:2], _random(500, seed)) for seed in range(5)]
        alone = await _stored(cluster.nodes[:1], _random(600, 99))
        cluster.live.chunks.update(chunk_ids, [alone])
        cluster.change_ring(range(3))
        requests = Requests(cluster.nodes[2].client, monkeypatch)
        health = cluster.nodes[2].client.health(cluster.nodes[0].node_id)
        monkeypatch.setattr("ring.peer_health._PATIENCE_SECONDS", 3600.0)
        health.failed(cluster.nodes[2].client.now())
        await _sweep(cluster, 2)
        assert {node for node, _ in requests.stats} == {cluster.nodes[1].node_id}
        assert 2 in cluster.holders(alone)
        assert all(cluster.holders(each) == [0, 1, 2] for each in chunk_ids)
