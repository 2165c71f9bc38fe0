"""Copies leave where the ring does not want them, each after its owners have confirmed it."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable, Iterable, Sequence

import pytest
from blake3 import blake3

from ring.codec import encode
from ring.interfaces import ChunkRow
from ring.members import Member, NodeId
from ring.moves import Mover
from ring.peer_wire import Purpose, PutTarget
from tests.fakes.ring_nodes import RingCluster, RingNode, eventually, ring_cluster


def _random(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def _write_referenced(cluster: RingCluster, count: int, *, size: int = 500) -> list[bytes]:
    """Write chunks through the first node, on all their owners, and refer to them."""
    chunk_ids: list[bytes] = []
    for seed in range(count):
        written = await cluster.nodes[0].write(_random(size, seed))
        chunk_id = written.chunk_id
        await eventually(lambda c=chunk_id: _owners(cluster, c) == _holders(cluster, c))  # type: ignore[misc]
        chunk_ids.append(chunk_id)
    cluster.live.chunks.update(chunk_ids)
    return chunk_ids


def _owners(cluster: RingCluster, chunk_id: bytes) -> set[int]:
    owners = cluster.ring().owners(chunk_id)
    return {number for number, node in enumerate(cluster.nodes) if node.node_id in owners}


def _holders(cluster: RingCluster, chunk_id: bytes) -> set[int]:
    return set(cluster.holders(chunk_id))


def _all_in_place(cluster: RingCluster, chunk_ids: Iterable[bytes]) -> bool:
    """Each chunk is exactly on its owners."""
    return all(_holders(cluster, each) == _owners(cluster, each) for each in chunk_ids)


async def _repair(cluster: RingCluster, numbers: Iterable[int], *, units: int = 12) -> None:
    for number in numbers:
        for _ in range(units):
            await cluster.nodes[number].repairer.work()


async def _move(cluster: RingCluster, numbers: Iterable[int], *, units: int = 60) -> None:
    for number in numbers:
        for _ in range(units):
            await cluster.nodes[number].mover.work()


async def _moved_one(cluster: RingCluster) -> tuple[bytes, RingNode]:
    """A chunk of the first three of four nodes, which the fourth has too, confirmed by nobody."""
    content = cluster.content_owned_by(0, 1, 2)
    chunk_id = blake3(content).digest()
    for node in cluster.nodes:
        await node.store.put(chunk_id, encode(memoryview(content)), touch=3)
    cluster.live.chunks.add(chunk_id)
    return chunk_id, cluster.nodes[3]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ring.moves.AGAIN_SECONDS_MIN", 0.0)
    monkeypatch.setattr("ring.moves.REST_FACTOR", 0)


async def test_each_chunk_ends_on_exactly_its_owners_when_a_node_joins() -> None:
    """From three nodes to four: the newcomer fetches its part, then the others drop just that; all
    nodes say that they are settled, and none of them before."""
    async with ring_cluster(4, in_ring=3) as cluster:
        chunk_ids = await _write_referenced(cluster, 40)
        cluster.change_ring(range(4))
        moving = [each for each in chunk_ids if 3 in _owners(cluster, each)]
        assert 0 < len(moving) < 40
        await _move(cluster, range(3))
        # The newcomer has nothing yet, so nobody may drop anything.
        assert all(_holders(cluster, each) == {0, 1, 2} for each in chunk_ids)
        assert sum(node.mover.status().misplaced for node in cluster.nodes) == len(moving)
        assert not all(node.mover.status().settled for node in cluster.nodes[:3])
        await _repair(cluster, [3])
        await _move(cluster, range(4))
        assert _all_in_place(cluster, chunk_ids)
        assert all(node.mover.status().settled for node in cluster.nodes)
        assert sum(node.mover.status().dropped for node in cluster.nodes) == len(moving)
        assert sum(node.mover.status().misplaced for node in cluster.nodes) == 0


async def test_a_drained_node_ends_empty() -> None:
    """A node out of the ring fetches nothing, and drops everything once the others have it."""
    async with ring_cluster(5) as cluster:
        chunk_ids = await _write_referenced(cluster, 40)
        cluster.change_ring([0, 1, 2, 3])
        await _move(cluster, [4])
        assert cluster.nodes[4].store.statistics().chunks > 0
        await _repair(cluster, range(5))
        assert cluster.nodes[4].repairer.status().copies_made == 0
        await _move(cluster, range(5))
        assert cluster.nodes[4].store.statistics().chunks == 0
        assert _all_in_place(cluster, chunk_ids)


async def test_a_handoff_goes_home() -> None:
    """What a node holds for an owner that was down is dropped there once the owner has it."""
    async with ring_cluster(4) as cluster:
        content = cluster.content_owned_by(0, 1, 2)
        chunk_id = blake3(content).digest()
        await _move(cluster, [3])
        assert cluster.nodes[3].mover.status().settled
        await cluster.nodes[2].go_down()
        await cluster.nodes[0].write(content)
        await eventually(lambda: cluster.holders(chunk_id) == [0, 1, 3])
        cluster.live.chunks.add(chunk_id)
        await _move(cluster, [3], units=4)
        assert cluster.holders(chunk_id) == [0, 1, 3]
        assert not cluster.nodes[3].mover.status().settled
        await cluster.nodes[2].come_back()
        await _repair(cluster, [2])
        await _move(cluster, [3], units=4)
        assert cluster.holders(chunk_id) == [0, 1, 2]
        assert cluster.nodes[3].mover.status().settled


@pytest.mark.parametrize("lacking", [0, 1, 2])
async def test_all_owners_must_confirm(lacking: int) -> None:
    """Two of three owners are not enough: the misplaced copy may be the third (D5)."""
    async with ring_cluster(4) as cluster:
        chunk_id, node = await _moved_one(cluster)
        assert await cluster.nodes[lacking].store.delete(chunk_id, unless=lambda row: False)
        await _move(cluster, [3], units=6)
        assert 3 in cluster.holders(chunk_id)
        assert not node.mover.status().settled
        await _repair(cluster, [lacking])
        await _move(cluster, [3], units=6)
        assert cluster.holders(chunk_id) == [0, 1, 2]


async def test_a_bad_copy_of_an_owner_confirms_nothing() -> None:
    """The copy that is found bad counts as missing; the misplaced good one stays for healing it."""
    async with ring_cluster(4) as cluster:
        chunk_id, node = await _moved_one(cluster)
        cluster.nodes[1].store.damage(chunk_id)
        cluster.nodes[1].store._quarantine(chunk_id)
        await _move(cluster, [3], units=6)
        assert cluster.holders(chunk_id) == [0, 2, 3]
        assert node.mover.status().dropped == 0


async def test_a_bad_copy_that_is_misplaced_goes_too() -> None:
    """Damaged bytes are kept until healthy copies exist; once the owners have them, they go."""
    async with ring_cluster(4) as cluster:
        chunk_id, node = await _moved_one(cluster)
        node.store.damage(chunk_id)
        node.store._quarantine(chunk_id)
        assert await cluster.nodes[0].store.delete(chunk_id, unless=lambda row: False)
        await _move(cluster, [3], units=6)
        assert node.store.statistics().quarantined == 1
        await _repair(cluster, [0])
        await _move(cluster, [3], units=6)
        assert node.store.statistics().quarantined == 0
        assert cluster.holders(chunk_id) == [0, 1, 2]


async def test_a_confirmation_at_another_epoch_never_counts() -> None:
    """While one owner is at an older or a newer epoch than the holder, nothing is dropped (D1, D5);
    a holder that is behind learns of the newer one."""
    async with ring_cluster(4) as cluster:
        chunk_id, node = await _moved_one(cluster)
        cluster.change_ring(range(4), told=[0, 1, 3])
        await _move(cluster, [3], units=6)
        assert 3 in cluster.holders(chunk_id)
        cluster.change_ring(range(4), told=[0, 1, 2])
        node.mover._pass = None
        assert node.view.refreshes == 0
        await _move(cluster, [3], units=1)
        assert 3 in cluster.holders(chunk_id)
        assert node.view.refreshes > 0
        await _move(cluster, [3], units=6)
        assert cluster.holders(chunk_id) == [0, 1, 2]


async def test_a_node_that_is_an_owner_again_keeps_its_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All owners have confirmed, and then the ring changes: the drop does not take place, although
    the touch is the same; at the next epoch the node owns the chunk, and others drop theirs."""
    async with ring_cluster(4, in_ring=3) as cluster:
        chunk_id, node = await _moved_one(cluster)
        delete = node.store.delete

        async def change_then_delete(
            chunk_id: bytes, *, unless: Callable[[ChunkRow], bool]
        ) -> bool:
            cluster.change_ring([0, 1, 3])
            return await delete(chunk_id, unless=unless)

        monkeypatch.setattr(node.store, "delete", change_then_delete)
        await node.mover.work()
        assert cluster.ring().epoch == 2
        assert 3 in cluster.holders(chunk_id)
        monkeypatch.undo()
        cluster.change_ring([1, 2, 3])
        await _move(cluster, range(4), units=8)
        assert cluster.holders(chunk_id) == [1, 2, 3]


async def test_a_new_owner_may_rely_on_a_copy_whose_drop_is_being_judged() -> None:
    """The race that loses the last copy: all is checked and found unchanged, then the ring changes,
    and a former owner has this copy confirmed, with the touch it has already, to drop its own."""
    async with ring_cluster(4, in_ring=3) as cluster:
        chunk_id, node = await _moved_one(cluster)
        stays, loop = node.mover._stays, asyncio.get_running_loop()
        confirmed: list[list[bool]] = []

        async def ask_anew() -> None:
            cluster.change_ring([0, 1, 3])
            client = cluster.nodes[2].client
            confirmed.append(await client.confirm(node.member, [(chunk_id, 3)], epoch=2))

        def stays_then_changes(epoch: int, touch: int, row: ChunkRow) -> bool:
            decision = stays(epoch, touch, row)
            asyncio.run_coroutine_threadsafe(ask_anew(), loop).result(60)
            return decision

        node.mover._stays = stays_then_changes  # type: ignore[method-assign]
        for _ in range(2):
            await node.mover.work()
        assert confirmed == [[True]]
        assert 3 in cluster.holders(chunk_id)


async def test_a_touch_since_the_question_keeps_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The owners have confirmed for an older touch than the copy has now, so it stays this time,
    and they are asked again with the newer one."""
    async with ring_cluster(4) as cluster:
        chunk_id, node = await _moved_one(cluster)
        confirm = node.client.confirm

        async def confirm_then_touch(
            member: Member, touches: Sequence[tuple[bytes, int]], *, epoch: int
        ) -> list[bool]:
            flags = await confirm(member, touches, epoch=epoch)
            await node.store.touch([chunk_id], touch=8)
            return flags

        monkeypatch.setattr(node.client, "confirm", confirm_then_touch)
        for _ in range(2):
            await node.mover.work()
        assert 3 in cluster.holders(chunk_id)
        await _move(cluster, [3], units=6)
        assert cluster.holders(chunk_id) == [0, 1, 2]
        for owner in cluster.nodes[:3]:
            (stat,) = await owner.store.stat([chunk_id])
            assert stat is not None
            assert stat.touch == 8


async def test_nothing_is_dropped_before_touches_are_known() -> None:
    """After a start a copy's touch may be too low to hand on, so it waits for the floor (D4)."""
    async with ring_cluster(4) as cluster:
        chunk_id, node = await _moved_one(cluster)
        node.store._floor = None
        await _move(cluster, [3], units=6)
        assert 3 in cluster.holders(chunk_id)
        node.store.set_touch_floor(5)
        await _move(cluster, [3], units=6)
        assert cluster.holders(chunk_id) == [0, 1, 2]
        (stat,) = await cluster.nodes[0].store.stat([chunk_id])
        assert stat is not None
        assert stat.touch == 5


async def test_what_no_file_refers_to_stays_and_unsettles_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A chunk staged at the old epoch stays with its old owners until something refers to it; then
    its new owners fetch it, and it moves."""
    async with ring_cluster(4, in_ring=3) as cluster:
        cluster.change_ring(range(4))
        content = cluster.content_owned_by(1, 2, 3)
        chunk_id = blake3(content).digest()
        for number in (0, 1, 2):
            encoded = encode(memoryview(content))
            await cluster.nodes[number].store.put(chunk_id, encoded, touch=1)
        await _repair(cluster, [3])

        async def nobody(*asked: object, **how: object) -> list[bool]:
            raise AssertionError("owners are asked about what they will not fetch")

        with monkeypatch.context() as patch:
            patch.setattr(cluster.nodes[0].client, "confirm", nobody)
            await _move(cluster, [0], units=6)
        assert cluster.holders(chunk_id) == [0, 1, 2]
        assert cluster.nodes[0].mover.status().settled
        cluster.live.chunks.add(chunk_id)
        cluster.nodes[3].repairer.sweep_soon()
        await _repair(cluster, [3])
        await _move(cluster, [0], units=6)
        assert cluster.holders(chunk_id) == [1, 2, 3]


async def test_a_start_in_the_middle_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new process with the same store drops what the former one had not come to; pages and
    groups smaller than a partition make no difference."""
    monkeypatch.setattr("ring.moves.PAGE_SIZE", 3)
    monkeypatch.setattr("ring.moves.DROPS_AT_ONCE", 2)
    async with ring_cluster(4, in_ring=3) as cluster:
        chunk_ids = await _write_referenced(cluster, 40)
        cluster.change_ring(range(4))
        await _repair(cluster, [3])
        await _move(cluster, range(4), units=2)
        assert not _all_in_place(cluster, chunk_ids)
        for node in cluster.nodes:
            node.mover = Mover(
                node.node_id,
                store=node.store,
                view=node.view,
                live=cluster.live,
                rings=node.rings,
                client=node.client,
                workers=node.workers,
            )
        await _move(cluster, range(4))
        assert _all_in_place(cluster, chunk_ids)


async def test_partitions_with_more_than_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """All chunks of a crowded partition are gone through, not only its first page."""
    monkeypatch.setattr("ring.moves.PAGE_SIZE", 3)
    async with ring_cluster(4) as cluster:
        chunk_id, node = await _moved_one(cluster)
        crowd = [chunk_id[:2] + bytes([number]) * 30 for number in range(10)]
        cluster.live.chunks.update(crowd)
        for each in crowd:
            for holder in cluster.nodes:
                holder.store._chunks[each] = holder.store._chunks[chunk_id]
        await _move(cluster, [3], units=5)
        assert node.store.ids(b"", 100) == []


async def test_a_node_in_place_looks_at_no_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle costs nothing that grows with the number of chunks: only counts are looked at."""
    async with ring_cluster(4) as cluster:
        await _write_referenced(cluster, 10)

        def never(after: bytes, limit: int) -> list[bytes]:
            raise AssertionError("a settled node goes through its chunks")

        for node in cluster.nodes:
            monkeypatch.setattr(node.store, "ids", never)
            assert await node.mover.work() >= 1.0
            assert node.mover.status().settled


async def test_an_attempt_in_vain_costs_little_and_none_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While an owner lacks everything, a pass asks about a few pages only, and that owner first;
    the next pass goes on from there. What could go anywhere goes all the same."""
    monkeypatch.setattr("ring.moves.PAGE_SIZE", 1)
    monkeypatch.setattr("ring.moves.PAGES_IN_VAIN", 3)
    async with ring_cluster(4, in_ring=3) as cluster:
        chunk_ids = await _write_referenced(cluster, 60)
        cluster.change_ring(range(4))
        node, newcomer = cluster.nodes[0], cluster.nodes[3]
        misplaced = sorted(each for each in chunk_ids if 0 not in _owners(cluster, each))
        assert len(misplaced) > 8
        asked: list[tuple[NodeId, bytes]] = []
        confirm = node.client.confirm

        async def counted(
            member: Member, touches: Sequence[tuple[bytes, int]], *, epoch: int
        ) -> list[bool]:
            asked.extend((member.node_id, chunk_id) for chunk_id, _ in touches)
            return await confirm(member, touches, epoch=epoch)

        monkeypatch.setattr(node.client, "confirm", counted)
        node.mover._again_pause = 60.0
        for _ in range(6):
            await node.mover.work()
        assert [each for who, each in asked if who == newcomer.node_id] == misplaced[:3]
        assert len(asked) <= 5
        node.mover._again_pause = node.mover._again_at = 0.0
        # The very last is where it should be, and gets its turn.
        content = await cluster.nodes[1].store.get_encoded(misplaced[-1])
        await newcomer.store.put(misplaced[-1], content, touch=1)
        await _move(cluster, [0], units=3 * len(misplaced))
        assert 0 not in cluster.holders(misplaced[-1])
        assert all(0 in cluster.holders(each) for each in misplaced[:-1])
        assert not node.mover.status().settled


async def test_a_silent_owner_is_asked_once_in_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is down is not waited for with every page."""
    monkeypatch.setattr("ring.moves.PAGE_SIZE", 1)
    async with ring_cluster(4, in_ring=3) as cluster:
        await _write_referenced(cluster, 30)
        cluster.change_ring(range(4))
        node = cluster.nodes[0]
        asked: list[NodeId] = []
        confirm = node.client.confirm

        async def counted(
            member: Member, touches: Sequence[tuple[bytes, int]], *, epoch: int
        ) -> list[bool]:
            asked.append(member.node_id)
            return await confirm(member, touches, epoch=epoch)

        monkeypatch.setattr(node.client, "confirm", counted)
        monkeypatch.setattr("ring.moves.AGAIN_SECONDS_MIN", 60.0)
        node.mover._again_pause = 60.0
        await cluster.nodes[3].go_down()
        await _move(cluster, [0])
        assert asked.count(cluster.nodes[3].node_id) == 1


async def test_a_former_owner_takes_no_chunk() -> None:
    """Rule D6: from the epoch that leaves it out on, a node takes no write as an owner, so that
    nothing comes after its last pass."""
    async with ring_cluster(4) as cluster:
        cluster.change_ring([0, 1, 2])
        content = _random(300, 1)
        chunk_id = blake3(content).digest()
        for purpose in (Purpose.OWNER, Purpose.HANDOFF, Purpose.REPAIR):
            encoded = encode(memoryview(content))
            target = PutTarget(chunk_id, 2, purpose, 1, encoded.codec, encoded.plain_length)
            with pytest.raises(Exception, match="this node is not"):
                await cluster.nodes[0].client.put(
                    cluster.nodes[3].member, target, memoryview(encoded.payload)
                )
        assert cluster.holders(chunk_id) == []


async def test_an_unforeseen_error_ends_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that was not looked through settles nothing; the next pass looks at it again."""
    async with ring_cluster(4) as cluster:
        chunk_id, node = await _moved_one(cluster)

        async def fail(chunk_ids: Sequence[bytes]) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        with monkeypatch.context() as broken:
            broken.setattr(node.store, "stat", fail)
            with pytest.raises(sqlite3.OperationalError):
                await node.mover.work()
        assert not node.mover.status().settled
        await node.mover.work()
        assert cluster.holders(chunk_id) == [0, 1, 2]


async def test_a_damaged_misplaced_copy_is_found_behind_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Damaged copies that belong here, and can't be healed, hide none that does not: it would take
    up space for ever, and the node would call itself settled."""
    monkeypatch.setattr("ring.moves.PAGE_SIZE", 2)
    async with ring_cluster(4) as cluster:
        chunk_id, node = await _moved_one(cluster)
        node.store._quarantine(chunk_id)
        before = 0
        for seed in range(1000):
            content = _random(300, seed)
            other = blake3(content).digest()
            if other < chunk_id and 3 in _owners(cluster, other):
                await node.store.put(other, encode(memoryview(content)), touch=3)
                node.store._quarantine(other)
                before += 1
            if before == 5:
                break
        assert before == 5
        await _move(cluster, [3], units=1)
        assert node.mover.status().misplaced == 1
        await _move(cluster, [3], units=4)
        assert node.store.statistics().quarantined == 5
