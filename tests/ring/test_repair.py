"""Repair brings copies to where the ring wants them."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable, Iterable, Sequence

import pytest
from blake3 import blake3

from ring.buffers import BufferPool, Lease
from ring.codec import encode
from ring.errors import ChunkDamagedError, StoreFullError
from ring.interfaces import Encoded, PutOutcome
from ring.members import Member, NodeId
from ring.peer_wire import ChunkState, PutTarget
from ring.placement import Ring
from ring.pushing import PUSHES_AT_ONCE
from ring.replicator import ChunkWritten
from tests.fakes.ring_nodes import RingCluster, eventually, ring_cluster


def _random(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def _write_referenced(cluster: RingCluster, count: int, *, size: int = 500) -> list[bytes]:
    """Write chunks through the first node, on all their owners, and refer to them."""
    chunk_ids: list[bytes] = []
    for seed in range(count):
        written = await cluster.nodes[0].write(_random(size, seed))
        await eventually(lambda w=written: _complete(cluster, w))  # type: ignore[misc]
        chunk_ids.append(written.chunk_id)
    cluster.live.chunks.update(chunk_ids)
    return chunk_ids


def _complete(cluster: RingCluster, written: ChunkWritten) -> bool:
    return len(cluster.holders(written.chunk_id)) == cluster.nodes[0].view.present.copies()


async def _work(cluster: RingCluster, numbers: Iterable[int], *, units: int = 12) -> None:
    for number in numbers:
        for _ in range(units):
            await cluster.nodes[number].repairer.work()


def _owners(cluster: RingCluster, chunk_id: bytes) -> set[int]:
    owners = cluster.ring().owners(chunk_id)
    return {number for number, node in enumerate(cluster.nodes) if node.node_id in owners}


async def test_copies_follow_when_nodes_join() -> None:
    """From one node to two to three: each node ends with a copy of every chunk, and says so."""
    async with ring_cluster(3, in_ring=1) as cluster:
        chunk_ids = await _write_referenced(cluster, 30)
        for count in (2, 3):
            cluster.change_ring(range(count))
            newcomer = cluster.nodes[count - 1].repairer
            assert not newcomer.status().settled
            await _work(cluster, range(count))
            assert all(cluster.holders(each) == list(range(count)) for each in chunk_ids)
            assert all(cluster.nodes[number].repairer.status().settled for number in range(count))
            assert newcomer.status().copies_made == 30
        assert cluster.nodes[0].repairer.status().copies_made == 0


async def test_each_owner_gets_what_it_lacks_and_no_more() -> None:
    """After nodes were replaced every chunk is on its new owners, fetched from the former ones."""
    async with ring_cluster(6, in_ring=4) as cluster:
        chunk_ids = await _write_referenced(cluster, 40)
        cluster.change_ring([2, 3, 4, 5])
        await _work(cluster, range(6))
        for chunk_id in chunk_ids:
            assert _owners(cluster, chunk_id) <= set(cluster.holders(chunk_id))
        for number in (4, 5):
            owned = [each for each in chunk_ids if number in _owners(cluster, each)]
            assert len(cluster.nodes[number].store.ids(b"", 1000)) == len(owned)


async def test_a_node_that_was_down_catches_up_after_its_start() -> None:
    """What was written meanwhile is fetched by the first sweep of the new process."""
    async with ring_cluster(3) as cluster:
        await cluster.nodes[2].go_down()
        contents = [_random(700, seed) for seed in range(10)]
        written = [await cluster.nodes[0].write(content) for content in contents]
        cluster.live.chunks.update(chunk.chunk_id for chunk in written)
        await eventually(lambda: len(cluster.nodes[0].lacking) == 10)
        await cluster.nodes[2].come_back()
        await _work(cluster, [2])
        assert all(cluster.holders(chunk.chunk_id) == [0, 1, 2] for chunk in written)


async def test_the_writer_pushes_what_a_node_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that failed is queued where it was written, kept while the node is down, and made once
    it is back; nobody needs to refer to the chunk yet."""
    monkeypatch.setattr("ring.repair.AGAIN_SECONDS", 0.0)
    async with ring_cluster(3) as cluster:
        await cluster.nodes[2].go_down()
        written = await cluster.nodes[0].write(_random(900, 1), generation=1)
        await eventually(lambda: len(cluster.nodes[0].lacking) == 1)
        await _work(cluster, [0], units=2)
        assert cluster.nodes[0].repairer.status().remaining == 1
        assert not cluster.nodes[0].repairer.status().settled
        await cluster.nodes[2].come_back()
        await _work(cluster, [0], units=3)
        assert cluster.holders(written.chunk_id) == [0, 1, 2]
        assert cluster.nodes[0].repairer.status().settled


async def test_repair_carries_the_touch_and_never_renews_it() -> None:
    """Rule D10: a copy made by repair is as old as the one it was made from."""
    async with ring_cluster(4) as cluster:
        content = cluster.content_owned_by(0, 1, 2)
        written = await cluster.nodes[0].write(content, generation=3)
        chunk_id = written.chunk_id
        await eventually(lambda: cluster.holders(chunk_id) == [0, 1, 2])
        cluster.live.chunks.add(chunk_id)
        for node in cluster.nodes:
            node.view.number = 50
        for lacking, maker in ((1, 0), (2, 2)):
            assert await cluster.nodes[lacking].store.delete(chunk_id, unless=lambda row: False)
            cluster.nodes[maker].repairer.note_lacking(chunk_id, cluster.nodes[lacking].node_id)
            await _work(cluster, [maker], units=1)
            (stat,) = await cluster.nodes[lacking].store.stat([chunk_id])
            assert stat is not None
            assert stat.touch == 3


async def test_unreferenced_chunks_are_not_repaired() -> None:
    """Nothing that may be collected is brought back: not from the queue, not by the sweep."""
    async with ring_cluster(3) as cluster:
        written = await cluster.nodes[0].write(_random(900, 1))
        await eventually(lambda: cluster.holders(written.chunk_id) == [0, 1, 2])
        assert await cluster.nodes[1].store.delete(written.chunk_id, unless=lambda row: False)
        cluster.nodes[0].repairer.note_lacking(written.chunk_id, cluster.nodes[1].node_id)
        for node in cluster.nodes:
            node.view.number += 2
        await _work(cluster, range(3), units=3)
        assert cluster.holders(written.chunk_id) == [0, 2]
        assert cluster.nodes[0].repairer.status().remaining == 0


async def test_a_bad_copy_is_replaced() -> None:
    """A reader that finds a bad copy has it healed, on its own node and on others."""
    async with ring_cluster(3) as cluster:
        (chunk_id,) = await _write_referenced(cluster, 1, size=3000)
        cluster.nodes[0].store.damage(chunk_id)
        await cluster.nodes[0].replicator.read(chunk_id, length=3000)
        assert cluster.holders(chunk_id) == [1, 2]
        await _work(cluster, [0], units=1)
        assert cluster.holders(chunk_id) == [0, 1, 2]
        data = await cluster.nodes[0].store.get(chunk_id)
        assert blake3(data.data).digest() == chunk_id
        cluster.nodes[1].store.damage(chunk_id)
        cluster.nodes[0].store._chunks.pop(chunk_id)
        cluster.nodes[0].client.health(cluster.nodes[2].node_id).answered(1000.0)
        await cluster.nodes[0].replicator.read(chunk_id, length=3000)
        await _work(cluster, [0], units=2)
        assert cluster.holders(chunk_id) == [0, 1, 2]


async def test_a_chunk_that_nobody_has_is_counted_and_does_not_stop_the_rest() -> None:
    """One lost chunk is reported as unrecoverable; all others are repaired."""
    async with ring_cluster(3, in_ring=2) as cluster:
        chunk_ids = await _write_referenced(cluster, 5)
        cluster.live.chunks.add(blake3(b"nowhere").digest())
        cluster.change_ring(range(3))
        await _work(cluster, [2], units=4)
        assert all(cluster.holders(each) == [0, 1, 2] for each in chunk_ids)
        status = cluster.nodes[2].repairer.status()
        assert (status.unrecoverable, status.settled, status.remaining) == (1, False, 1)


async def test_a_sweep_that_failed_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the sources are down nothing is settled; once they are back the sweep succeeds."""
    monkeypatch.setattr("ring.repair.AGAIN_SECONDS", 0.0)
    async with ring_cluster(3, in_ring=2) as cluster:
        (chunk_id,) = await _write_referenced(cluster, 1)
        cluster.change_ring(range(3))
        await cluster.nodes[0].go_down()
        await cluster.nodes[1].go_down()
        await _work(cluster, [2], units=4)
        status = cluster.nodes[2].repairer.status()
        assert (status.settled, status.remaining) == (False, 1)
        await cluster.nodes[1].come_back()
        await _work(cluster, [2], units=6)
        assert cluster.holders(chunk_id) == [0, 1, 2]
        assert cluster.nodes[2].repairer.status().settled


async def test_late_references_are_found_by_the_next_sweep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A chunk staged at the old epoch and referenced behind the sweep is fetched all the same."""
    monkeypatch.setattr("ring.repair.SWEEP_SECONDS_MIN", 0.0)
    async with ring_cluster(3, in_ring=2) as cluster:
        late = await cluster.nodes[0].write(_random(500, 77))
        await eventually(lambda: cluster.holders(late.chunk_id) == [0, 1])
        cluster.change_ring(range(3))
        cluster.nodes[2].repairer._sweep_pause = 0.0
        await _work(cluster, [2], units=3)
        assert cluster.nodes[2].repairer.status().settled
        cluster.live.chunks.add(late.chunk_id)
        await _work(cluster, [2], units=6)
        assert cluster.holders(late.chunk_id) == [0, 1, 2]


async def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit the queue is left to the sweep, not to memory."""
    monkeypatch.setattr("ring.repair.QUEUE_LIMIT", 10)
    async with ring_cluster(3) as cluster:
        repairer = cluster.nodes[0].repairer
        for number in range(50):
            repairer.note_lacking(blake3(bytes([number])).digest(), cluster.nodes[1].node_id)
        assert repairer.status().remaining == 10


async def test_pages_of_a_sweep_are_all_visited(monkeypatch: pytest.MonkeyPatch) -> None:
    """More chunks than one page and one unit of copies hold are all brought over."""
    monkeypatch.setattr("ring.repair.PAGE_SIZE", 7)
    monkeypatch.setattr("ring.repair.COPIES_PER_UNIT", 3)
    async with ring_cluster(2, in_ring=1) as cluster:
        chunk_ids = await _write_referenced(cluster, 25)
        cluster.change_ring(range(2))
        await _work(cluster, [1], units=40)
        assert all(cluster.holders(each) == [0, 1] for each in chunk_ids)
        assert cluster.nodes[1].repairer.status().settled


async def test_a_full_node_is_left_alone_until_it_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fetches nothing that it can't keep, and all that it lacks within one unit of there being
    room: not after a pause, and not only after the next epoch."""
    async with ring_cluster(2, in_ring=1) as cluster:
        chunk_ids = await _write_referenced(cluster, 12)
        newcomer = cluster.nodes[1]
        newcomer.store.quota_bytes = 0
        fetched: list[bytes] = []
        get_several = newcomer.client.get_several

        async def counted(
            member: Member, chunk_ids: Sequence[bytes], *, pool: BufferPool
        ) -> tuple[Lease, list[Encoded | None]]:
            fetched.extend(chunk_ids)
            return await get_several(member, chunk_ids, pool=pool)

        monkeypatch.setattr(newcomer.client, "get_several", counted)
        cluster.change_ring(range(2))
        await _work(cluster, [1], units=40)
        assert fetched == []
        assert newcomer.repairer.status().remaining == 12
        assert not newcomer.repairer.status().settled
        newcomer.store.quota_bytes = None
        await _work(cluster, [1], units=12)
        assert sorted(fetched) == sorted(chunk_ids)
        assert newcomer.repairer.status().settled


async def test_a_full_node_is_offered_one_copy_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever noted what it lacks tries once in a while, and goes on with other nodes meanwhile."""
    async with ring_cluster(3) as cluster:
        full, other = cluster.nodes[1], cluster.nodes[2]
        full.store.quota_bytes = 0
        contents = [_random(500, seed) for seed in range(40)]
        written = [await cluster.nodes[0].write(content) for content in contents]
        cluster.live.chunks.update(each.chunk_id for each in written)
        writer = cluster.nodes[0].repairer
        await eventually(lambda: writer.status().remaining == 40)
        offered: list[NodeId] = []
        put = cluster.nodes[0].client.put

        async def counted(member: Member, target: PutTarget, payload: memoryview) -> PutOutcome:
            offered.append(member.node_id)
            return await put(member, target, payload)

        monkeypatch.setattr(cluster.nodes[0].client, "put", counted)
        await _work(cluster, [0], units=30)
        # The first batch may have begun as many as are under way at once before the first answer.
        assert offered.count(full.node_id) <= PUSHES_AT_ONCE
        await other.store.delete(written[0].chunk_id, unless=lambda _: False)
        writer.note_lacking(written[0].chunk_id, other.node_id)
        monkeypatch.setattr(writer, "_retry_at", 0.0)
        await _work(cluster, [0], units=1)
        assert other.node_id in offered
        assert offered.count(full.node_id) <= PUSHES_AT_ONCE


async def test_a_full_node_takes_copies_again_when_its_time_has_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first copy that fits ends the pause for all others."""
    async with ring_cluster(3) as cluster:
        full = cluster.nodes[1]
        full.store.quota_bytes = 0
        written = [await cluster.nodes[0].write(_random(500, seed)) for seed in range(8)]
        cluster.live.chunks.update(each.chunk_id for each in written)
        writer = cluster.nodes[0].repairer
        await eventually(lambda: writer.status().remaining == 8)
        await _work(cluster, [0], units=3)
        full.store.quota_bytes = None
        for _ in range(4):
            monkeypatch.setattr(writer._full, "until", dict.fromkeys(writer._full.until, 0.0))
            monkeypatch.setattr(writer, "_retry_at", 0.0)
            await _work(cluster, [0], units=1)
        assert all(1 in cluster.holders(each.chunk_id) for each in written)


async def test_a_sweep_begins_with_what_the_cluster_knows_now() -> None:
    """What was referenced before a sweep began is seen by it, although this node had not applied
    that yet; and without a majority to ask there is no sweep that could call itself complete."""
    async with ring_cluster(3, in_ring=2) as cluster:
        (chunk_id,) = await _write_referenced(cluster, 1)
        cluster.live.chunks.clear()
        cluster.change_ring(range(3))
        node = cluster.nodes[2]
        refresh = node.view.refresh

        async def refresh_late() -> None:
            await refresh()
            cluster.live.chunks.add(chunk_id)

        node.view.refresh_error = ConnectionError("no majority")
        await _work(cluster, [2])
        assert node.repairer.settled_epoch() is None
        assert not node.repairer.status().settled
        # What is queued does not wait for that.
        node.repairer.note_lacking(chunk_id, node.node_id)
        await _work(cluster, [2], units=1)
        assert cluster.holders(chunk_id) == [0, 1, 2]
        assert await node.store.delete(chunk_id, unless=lambda row: False)
        node.repairer._begin_at = 0.0
        node.view.refresh_error = None
        node.view.refresh = refresh_late  # type: ignore[method-assign]
        await _work(cluster, [2])
        assert node.repairer.settled_epoch() == 2
        assert cluster.holders(chunk_id) == [0, 1, 2]


async def test_a_sweep_begins_behind_the_deletions_of_older_epochs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy that is here when the sweep begins, and whose drop was decided on before, counts as
    lacking: the sweep waits until such deletions have taken place (D5)."""
    async with ring_cluster(3) as cluster:
        (chunk_id,) = await _write_referenced(cluster, 1)
        node = cluster.nodes[2]

        async def deletions_take_place() -> None:
            await node.store.delete(chunk_id, unless=lambda row: False)

        monkeypatch.setattr(node.store, "wait_indexed", deletions_take_place)
        await _work(cluster, [2], units=1)
        monkeypatch.undo()
        assert cluster.holders(chunk_id) == [0, 1]
        await _work(cluster, [2])
        assert cluster.holders(chunk_id) == [0, 1, 2]
        assert node.repairer.settled_epoch() == 1


async def test_what_is_left_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a sweep the bytes left are about those that will have been copied, and the
    time left follows from the speed; at the end both are nought."""
    monkeypatch.setattr("ring.repair.PAGE_SIZE", 40)
    async with ring_cluster(2, in_ring=1) as cluster:
        await _write_referenced(cluster, 120, size=1000)
        cluster.change_ring(range(2))
        repairer = cluster.nodes[1].repairer
        while repairer.status().copies_made < 80:
            await repairer.work()
        status = repairer.status()
        left = (120 - status.copies_made) * 1000
        assert status.bytes_left == pytest.approx(left, rel=0.5)
        assert status.bytes_per_second > 0
        assert status.eta_seconds == pytest.approx(status.bytes_left / status.bytes_per_second)
        await _work(cluster, [1])
        status = repairer.status()
        assert (status.bytes_left, status.eta_seconds) == (0, 0.0)


async def test_no_speed_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing can be fetched, no time is promised, and what is left is not nought."""
    async with ring_cluster(2, in_ring=1) as cluster:
        await _write_referenced(cluster, 5)
        await cluster.nodes[1].store.put(
            blake3(b"some").digest(), encode(memoryview(b"some")), touch=1
        )
        cluster.change_ring(range(2))
        await cluster.nodes[0].go_down()
        await _work(cluster, [1])
        status = cluster.nodes[1].repairer.status()
        assert status.remaining == 5
        assert status.bytes_left > 0
        assert status.eta_seconds is None


async def test_a_new_epoch_is_swept_at_once_whatever_failed_before() -> None:
    """Pauses after a sweep that could not bring everything end with a new ring."""
    async with ring_cluster(3, in_ring=2) as cluster:
        cluster.live.chunks.add(blake3(b"nowhere").digest())
        await _work(cluster, [0])
        assert cluster.nodes[0].repairer.status().unrecoverable == 1
        chunk_id = (await cluster.nodes[0].write(_random(500, 5))).chunk_id
        await eventually(lambda: cluster.holders(chunk_id) == [0, 1])
        cluster.live.chunks = {chunk_id}
        cluster.change_ring(range(3))
        await _work(cluster, [0])
        assert cluster.nodes[0].repairer.settled_epoch() == 2


async def test_what_others_lack_does_not_unsettle_a_node() -> None:
    """A node says for which epoch all its own copies are here, also while it can't reach one that
    it owes a copy: that one reports for itself."""
    async with ring_cluster(3) as cluster:
        await cluster.nodes[2].go_down()
        written = await cluster.nodes[0].write(_random(900, 1))
        await eventually(lambda: len(cluster.nodes[0].lacking) == 1)
        cluster.live.chunks.add(written.chunk_id)
        await _work(cluster, [0])
        assert not cluster.nodes[0].repairer.status().settled
        assert cluster.nodes[0].repairer.settled_epoch() == 1


async def test_copies_under_way_count_as_lacking() -> None:
    """What is off the queue is not here yet: who waits for repair must see it until it is."""
    async with ring_cluster(3) as cluster:
        (chunk_id,) = await _write_referenced(cluster, 1)
        owner = cluster.nodes[0]
        owner.store.damage(chunk_id)
        with pytest.raises(ChunkDamagedError):
            await owner.store.get(chunk_id)
        owner.repairer.note_lacking(chunk_id, owner.node_id)
        owner.store.hold_writes()
        working = asyncio.ensure_future(owner.repairer.work())
        await eventually(lambda: bool(owner.store._in_flight))
        assert owner.repairer.status().remaining == 1
        owner.store.release_writes()
        await working
        assert owner.repairer.status().remaining == 0


async def test_an_unforeseen_error_settles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of a unit that failed in a way nobody foresaw are lacking still: the sweep goes on
    without them, says so, and another one brings them (D3)."""
    monkeypatch.setattr("ring.repair.AGAIN_SECONDS", 0.0)
    async with ring_cluster(2, in_ring=1) as cluster:
        chunk_ids = await _write_referenced(cluster, 3)
        cluster.change_ring(range(2))
        node = cluster.nodes[1]

        async def fail(chunk_ids: Sequence[bytes]) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        with monkeypatch.context() as broken:
            broken.setattr(node.store, "stat", fail)
            await _work(cluster, [1], units=2)
            with pytest.raises(sqlite3.OperationalError):
                await node.repairer.work()
        assert node.repairer.status().remaining == 3
        # The rest of this sweep: its end.
        while node.repairer._sweep is not None:
            await node.repairer.work()
        assert node.repairer.settled_epoch() is None
        await _work(cluster, [1])
        assert all(cluster.holders(each) == [0, 1] for each in chunk_ids)
        assert node.repairer.settled_epoch() == 2


@pytest.mark.parametrize("moment", ["behind the cursor", "while the page is looked at"])
async def test_what_is_lost_behind_a_sweep_settles_nothing(
    monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A copy that a sweep has seen here and that is found bad before the sweep ends is lacking: the
    epoch is not settled until it has been replaced (D3)."""
    monkeypatch.setattr("ring.repair.PAGE_SIZE", 2)
    monkeypatch.setattr("ring.repair.SWEEP_SECONDS_MIN", 0.0)
    async with ring_cluster(3) as cluster:
        first, *_ = sorted(await _write_referenced(cluster, 4))
        node = cluster.nodes[0]
        repairer, look = node.repairer, node.repairer._look
        loop = asyncio.get_running_loop()

        def damage() -> None:
            node.store._chunks.pop(first, None)
            repairer.note_lacking(first, node.node_id)
            repairer._queue.clear()

        def look_and_lose(ring: Ring, after: bytes) -> tuple[bytes, list[bytes]] | None:
            page = look(ring, after)
            if not after:
                asyncio.run_coroutine_threadsafe(_called(damage), loop).result()
            return page

        if moment == "while the page is looked at":
            monkeypatch.setattr(repairer, "_look", look_and_lose)
        await _work(cluster, [0], units=2)
        if moment == "behind the cursor":
            damage()
        monkeypatch.undo()
        monkeypatch.setattr("ring.repair.SWEEP_SECONDS_MIN", 0.0)
        while repairer._sweep is not None:
            await repairer.work()
        assert repairer.settled_epoch() is None
        await _work(cluster, [0])
        assert cluster.holders(first) == [0, 1, 2]
        assert repairer.settled_epoch() == 1


async def _called(function: Callable[[], None]) -> None:
    function()


async def test_a_long_queue_holds_up_no_sweep() -> None:
    """Queue and sweep take turns: what a new epoch wants here comes although the queue never ends,
    and the queue goes on meanwhile."""
    async with ring_cluster(3, in_ring=2) as cluster:
        chunk_ids = await _write_referenced(cluster, 3)
        cluster.change_ring(range(3))
        node = cluster.nodes[2]
        batches = 0

        async def never_done(ring: Ring) -> None:
            nonlocal batches
            batches += 1

        node.repairer.note_lacking(blake3(b"other").digest(), cluster.nodes[0].node_id)
        node.repairer._work_queue = never_done  # type: ignore[method-assign]
        await _work(cluster, [2], units=16)
        assert all(cluster.holders(each) == [0, 1, 2] for each in chunk_ids)
        assert node.repairer.settled_epoch() == 2
        assert batches >= 8


async def test_a_store_that_does_not_know_that_it_is_full_is_swept_in_peace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where writes fail for lack of room that no figure shows, as under a quota of the disk's, one
    sweep does not follow at the heels of the other."""
    async with ring_cluster(2, in_ring=1) as cluster:
        await _write_referenced(cluster, 3)
        node = cluster.nodes[1]

        async def refuse(chunk_id: bytes, content: Encoded, *, touch: int) -> PutOutcome:
            raise StoreFullError("quota exceeded")

        monkeypatch.setattr(node.store, "put", refuse)
        cluster.change_ring(range(2))
        await _work(cluster, [1], units=40)
        assert node.view.refreshes <= 4
        assert not node.repairer.status().settled


async def test_what_a_node_has_got_by_now_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that was down fetches what it lacks by itself: a writer that had noted it asks first,
    and sends nothing twice. Where its copy would go sooner than the writer's, it is sent."""
    async with ring_cluster(3) as cluster:
        writer, late = cluster.nodes[0], cluster.nodes[2]
        await late.go_down()
        contents = [_random(900, seed) for seed in range(3)]
        for content in contents:
            await writer.write(content, generation=5)
        await eventually(lambda: len(writer.lacking) == 3)
        await late.come_back()
        chunk_ids = [blake3(content).digest() for content in contents]
        for chunk_id, content, touch in zip(chunk_ids, contents, (5, 4, 6), strict=True):
            await late.store.put(chunk_id, encode(memoryview(content)), touch=touch)
        sent: list[bytes] = []
        put = writer.client.put

        async def counted(member: Member, target: PutTarget, payload: memoryview) -> PutOutcome:
            sent.append(target.chunk_id)
            return await put(member, target, payload)

        monkeypatch.setattr(writer.client, "put", counted)
        await _work(cluster, [0], units=1)
        assert sent == [chunk_ids[1]]
        assert writer.repairer.status().remaining == 0
        (stat,) = await late.store.stat([chunk_ids[1]])
        assert stat is not None
        assert stat.touch == 5


async def test_a_silent_node_is_asked_once_for_all_its_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that hangs holds repair up by one question, not by one for each copy that it is owed, and
    what others lack goes on at once."""
    async with ring_cluster(4) as cluster:
        writer, silent, other = cluster.nodes[0], cluster.nodes[2], cluster.nodes[1]
        owed = []
        for seed in range(20):
            content = cluster.content_owned_by(0, 1, 2, seed=seed)
            owed.append((await writer.write(content)).chunk_id)
        await eventually(lambda: all(cluster.holders(each) == [0, 1, 2] for each in owed))
        cluster.live.chunks.update(owed)
        assert await other.store.delete(owed[0], unless=lambda row: False)
        await silent.go_down()
        asked: list[NodeId] = []
        put, stat = writer.client.put, writer.client.stat

        async def counted(member: Member, target: PutTarget, payload: memoryview) -> PutOutcome:
            asked.append(member.node_id)
            return await put(member, target, payload)

        async def counted_stat(
            member: Member, chunk_ids: Sequence[bytes]
        ) -> list[ChunkState | None]:
            asked.append(member.node_id)
            return await stat(member, chunk_ids)

        monkeypatch.setattr(writer.client, "put", counted)
        monkeypatch.setattr(writer.client, "stat", counted_stat)
        for chunk_id in owed:
            writer.repairer.note_lacking(chunk_id, silent.node_id)
        writer.repairer.note_lacking(owed[0], other.node_id)
        await _work(cluster, [0], units=1)
        assert asked.count(silent.node_id) == 1
        assert 1 in cluster.holders(owed[0])
        assert writer.repairer.status().remaining == 20


async def test_copies_under_way_to_others_are_not_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is just sending the last copy it owes does not say that all is done."""
    async with ring_cluster(3) as cluster:
        (chunk_id,) = await _write_referenced(cluster, 1)
        writer, other = cluster.nodes[0], cluster.nodes[1]
        await _work(cluster, [0])
        assert writer.repairer.status().settled
        assert await other.store.delete(chunk_id, unless=lambda row: False)
        said: list[bool] = []
        put = writer.client.put

        async def noted(member: Member, target: PutTarget, payload: memoryview) -> PutOutcome:
            said.append(writer.repairer.status().settled)
            return await put(member, target, payload)

        monkeypatch.setattr(writer.client, "put", noted)
        writer.repairer.note_lacking(chunk_id, other.node_id)
        await _work(cluster, [0], units=2)
        assert said == [False]
        assert writer.repairer.status().settled
