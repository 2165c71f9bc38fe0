"""The stories that the model tells of broken rules (`tests/model/`), played with the product.

Each is the shortest order of steps that loses a chunk, or leaks one, where a single protection is
missing; so each turns red where that one is broken. One copy of each chunk is kept, if nothing else
is said: then whatever a rule lets slip is lost.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from blake3 import blake3

from ring.codec import encode
from ring.replicator import ChunkWritten
from tests.fakes.ring_nodes import eventually
from tests.ring.race_world import Node, RaceWorld, Upload, remembered_ring

CONTENT = random.Random(5).randbytes(700)


@asynccontextmanager
async def _world(
    place: Path, *, count: int = 2, ring: list[int] | None = None, replicas: int = 1
) -> AsyncIterator[RaceWorld]:
    world = RaceWorld(place)
    await world.start(count, replicas=replicas)
    if ring is not None:
        await _new_ring(world, ring)
    try:
        yield world
    finally:
        await world.stop()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ring.replicator.LAGGING_PAUSES_SECONDS", ())
    monkeypatch.setattr("ring.ring_cache.build_ring", remembered_ring)


async def _new_ring(world: RaceWorld, numbers: list[int], *, told: list[int] | None = None) -> None:
    await world.change_ring(numbers)
    for node in world.alive:
        if told is None or node.number in told:
            await node.view.refresh()


async def _generations(world: RaceWorld, count: int, *, told: list[int] | None = None) -> None:
    for _ in range(count):
        await world.advance_generation()
    for node in world.alive:
        if told is None or node.number in told:
            await node.view.refresh()


def _begin(node: Node, content: bytes = CONTENT) -> Upload:
    return Upload(node, content, node.view.generation())


async def _written(world: RaceWorld, node: Node) -> Upload:
    upload = _begin(node)
    assert await world.write(upload)
    return upload


async def _committed(world: RaceWorld, node: Node) -> None:
    assert await world.commit(await _written(world, node), "a")


async def _stage(node: Node, *, touch: int, content: bytes = CONTENT) -> None:
    """A copy from an upload that nobody remembers."""
    await node.store.put(blake3(content).digest(), encode(memoryview(content)), touch=touch)


async def _referred(world: RaceWorld, node: Node, content: bytes) -> None:
    """Another file refers to a staged chunk: misplaced copies move only then."""
    written = ChunkWritten(blake3(content).digest(), len(content), world.ring.epoch)
    assert await world.commit(Upload(node, content, node.view.generation(), written), "another")
    for each in world.alive:
        await each.view.refresh()


async def _not_referred(world: RaceWorld) -> None:
    await world.delete("another")
    await world.reclaim()
    for each in world.alive:
        await each.view.refresh()


async def _has(node: Node, content: bytes = CONTENT) -> bool:
    (stat,) = await node.store.stat([blake3(content).digest()])
    return stat is not None


def _content_of(world: RaceWorld, owner: int) -> bytes:
    """Contents that the present ring gives to one node."""
    ring = remembered_ring(world.ring)
    for seed in range(1000):
        content = random.Random(seed).randbytes(500)
        if ring.owners(blake3(content).digest()) == (world.nodes[owner].node_id,):
            return content
    raise AssertionError(f"node {owner} owns nothing")


# --- generations (rule D4) ----------------------------------------------------------------------


async def test_what_was_collected_is_not_referenced_by_a_gateway_that_paused(
    tmp_path: Path,
) -> None:
    """Its chunk is two generations old and gone: the commit is refused, not believed."""
    async with _world(tmp_path, count=1) as world:
        (node,) = world.nodes
        upload = await _written(world, node)
        await _generations(world, 2)
        await node.collect()
        assert not await _has(node)
        assert not await world.commit(upload, "a")
        await world.assert_nothing_lost()


async def test_a_gateway_that_paused_confirms_what_is_still_there(tmp_path: Path) -> None:
    """Ten generations later, and nobody has collected: the upload succeeds without its client, and
    the chunk is as good as new."""
    async with _world(tmp_path, count=1) as world:
        (node,) = world.nodes
        upload = await _written(world, node)
        await _generations(world, 10)
        assert await world.commit(upload, "a")
        await node.collect()
        await world.assert_nothing_lost()
        await world.delete("a")
        await world.reclaim()
        await _generations(world, 1)
        await node.collect()
        assert await _has(node), "others may have found it there in the same generation"
        await _generations(world, 1)
        await node.collect()
        assert not await _has(node)


async def test_a_store_that_lags_touches_with_the_gateways_generation(tmp_path: Path) -> None:
    """It has not heard of the generations that the writer has read; the writer's count."""
    async with _world(tmp_path, ring=[0]) as world:
        node, gateway = world.nodes
        await _generations(world, 2, told=[1])
        upload = await _written(world, gateway)
        await node.view.refresh()
        await node.collect()
        assert await world.commit(upload, "a")
        await world.assert_nothing_lost()


@pytest.mark.parametrize("overtakes", [False, True])
async def test_an_upload_that_finds_its_chunk_keeps_it(tmp_path: Path, overtakes: bool) -> None:
    """Deduplication: the chunk is old and unreferenced, and the moment it is found there it has two
    more generations; also where its deletion has just been decided."""
    async with _world(tmp_path, count=1) as world:
        (node,) = world.nodes
        await _stage(node, touch=0)
        await _generations(world, 2)
        upload = _begin(node)

        async def found(_: bytes) -> None:
            assert await world.write(upload)

        if overtakes:
            assert await world.while_judging(node, node.collect, found)
        else:
            await world.write(upload)
            await node.collect()
        assert await world.commit(upload, "a")
        await world.assert_nothing_lost()


async def test_touches_forgotten_in_a_restart_are_assumed(tmp_path: Path) -> None:
    """The row says generation 0; that the chunk was found there in 2 was in memory only."""
    async with _world(tmp_path, count=1) as world:
        (node,) = world.nodes
        await _stage(node, touch=0)
        await _generations(world, 2)
        upload = await _written(world, node)
        await node.stop()
        await node.start()
        await node.collect()
        await node.know_floor()
        await node.collect()
        assert await world.commit(upload, "a")
        await world.assert_nothing_lost()


async def test_a_reference_that_comes_while_a_deletion_is_decided_counts(tmp_path: Path) -> None:
    """The page was looked at before the commit, the deletion is decided after it."""
    async with _world(tmp_path, count=1) as world:
        (node,) = world.nodes
        await _generations(world, 1)
        upload = await _written(world, node)
        await _generations(world, 1)
        look = node.view.referenced

        def before(chunk_ids: list[bytes]) -> set[bytes]:
            node.view.referenced = look  # type: ignore[method-assign]
            return set()

        assert await world.commit(upload, "a")
        await _generations(world, 1)
        node.view.referenced = before  # type: ignore[method-assign, assignment]
        await node.collect()
        await world.assert_nothing_lost()


# --- moves (rules D1, D5) -----------------------------------------------------------------------


async def test_a_chunk_that_moves_away_and_back_is_dropped_by_one_node_only(
    tmp_path: Path,
) -> None:
    """Confirmations of an epoch that has passed are worth nothing: the one who gave them may have
    dropped its own copy since, confirmed by the asker."""
    async with _world(tmp_path, ring=[0]) as world:
        first, second = world.nodes
        await _committed(world, first)
        await _new_ring(world, [1])
        await world.repair(second)

        async def back() -> None:
            await _new_ring(world, [0])
            await second.drop()
            assert not await _has(second)

        await world.after_confirming(first, first.drop, back)
        await world.assert_nothing_lost()


async def test_what_is_confirmed_is_not_dropped_by_a_decision_of_before(tmp_path: Path) -> None:
    """The same, where the first node's writer thread had decided already; its touch is as high as
    the asker's, so only the confirmation itself can stop it."""
    async with _world(tmp_path, ring=[0]) as world:
        first, second = world.nodes
        await _committed(world, first)
        await _new_ring(world, [1])
        await world.repair(second)

        async def back(_: bytes) -> None:
            await _new_ring(world, [0])
            await second.drop()

        assert await world.while_judging(first, first.drop, back)
        await world.assert_nothing_lost()


async def test_a_node_confirms_only_at_the_askers_epoch(tmp_path: Path) -> None:
    """Two nodes at different epochs, each of which is told to drop: one may."""
    async with _world(tmp_path, ring=[0]) as world:
        first, second = world.nodes
        await _committed(world, first)
        await _new_ring(world, [1])
        await world.repair(second)
        await _new_ring(world, [0], told=[1])

        await world.after_confirming(first, first.drop, second.drop)
        await world.assert_nothing_lost()


async def test_an_owner_keeps_what_it_confirmed_as_long_as_the_asker_would(tmp_path: Path) -> None:
    """The owner's old copy would be collected now, the stand-in's new one was acknowledged to an
    upload: with the confirmation the owner takes over its touch."""
    async with _world(tmp_path) as world:
        owner, other = world.nodes
        content = _content_of(world, 0)
        await _stage(owner, touch=0, content=content)
        await _referred(world, owner, content)
        await _generations(world, 2)
        await _stage(other, touch=2, content=content)
        acknowledged = ChunkWritten(blake3(content).digest(), len(content), world.ring.epoch)
        upload = Upload(other, content, 2, acknowledged)
        await other.drop()
        assert not await _has(other, content)
        await _not_referred(world)
        await owner.collect()
        assert await world.commit(upload, "a")
        await world.assert_nothing_lost()


async def test_a_copy_touched_since_it_was_confirmed_stays(tmp_path: Path) -> None:
    """What the owner confirmed was the touch of before; an upload has relied on this copy since."""
    async with _world(tmp_path) as world:
        owner, other = world.nodes
        content = _content_of(world, 0)
        await _stage(owner, touch=0, content=content)
        await _stage(other, touch=0, content=content)
        await _referred(world, owner, content)
        await _generations(world, 2)
        upload = Upload(other, content, 2, ChunkWritten(blake3(content).digest(), len(content), 1))

        async def stands_in() -> None:
            await _stage(other, touch=2, content=content)

        await world.after_confirming(other, other.drop, stands_in)
        await _not_referred(world)
        await owner.collect()
        assert await world.commit(upload, "a")
        await world.assert_nothing_lost()


async def test_a_copy_goes_when_all_owners_have_it(tmp_path: Path) -> None:
    """Two copies are kept: one of the new owners has none yet, so the old one's stays."""
    async with _world(tmp_path, count=3, ring=[0, 1], replicas=2) as world:
        first, _, third = world.nodes
        await _committed(world, first)
        await _new_ring(world, [1, 2])
        await first.drop()
        assert await _has(first)
        await world.repair(third)
        await first.drop()
        assert [await _has(node) for node in world.nodes] == [False, True, True]


async def test_unreferenced_copies_go_wherever_they_lie(tmp_path: Path) -> None:
    """A staged chunk whose partition has moved is nobody's to fetch, and is collected where it is;
    the damaged copy of one as well."""
    async with _world(tmp_path, ring=[0]) as world:
        first, second = world.nodes
        await _written(world, first)
        await _new_ring(world, [1])
        await world.repair(second)
        await first.drop()
        assert [await _has(node) for node in world.nodes] == [True, False]
        await _generations(world, 2)
        await first.collect()
        await world.assert_in_place()


# --- departures (rule D6) -----------------------------------------------------------------------


async def test_what_a_node_that_left_acknowledged_is_not_referenced(tmp_path: Path) -> None:
    """The only copy went with it, and nobody knew of it."""
    async with _world(tmp_path, ring=[0]) as world:
        first, second = world.nodes
        upload = await _written(world, first)
        upload.node = second
        await _new_ring(world, [1])
        await world.repair(second)
        assert world.may_leave(first)
        await world.leave(first)
        assert not await world.commit(upload, "a")
        await world.assert_nothing_lost()


async def test_an_upload_outlives_the_node_that_took_it(tmp_path: Path) -> None:
    """As long as the others have not settled without it, the gateway finds the chunk on the leaving
    node and brings it to the owners of now."""
    async with _world(tmp_path, ring=[0]) as world:
        first, second = world.nodes
        upload = await _written(world, first)
        upload.node = second
        await _new_ring(world, [1])
        assert await world.commit(upload, "a")
        await world.repair(second)
        await world.leave(first)
        await world.download("a", second)


async def test_an_upload_that_finds_a_copy_stops_its_drop(tmp_path: Path) -> None:
    """The drop was decided with the confirmation of a node that is leaving. At the new epoch this
    node owns the chunk and acknowledges it, with a touch that is as high already; it has nothing to
    fetch yet, so the other one goes."""
    async with _world(tmp_path) as world:
        staying, leaving = world.nodes
        content = _content_of(world, 1)
        await _stage(staying, touch=0, content=content)
        await _stage(leaving, touch=0, content=content)
        await _referred(world, leaving, content)
        upload = Upload(staying, content, 0)

        async def found(_: bytes) -> None:
            await _new_ring(world, [0])
            await _not_referred(world)
            assert await world.write(upload)

        assert await world.while_judging(staying, staying.drop, found)
        await world.repair(staying)
        assert world.may_leave(leaving)
        await world.leave(leaving)
        assert await world.commit(upload, "a")
        await world.assert_nothing_lost()


async def test_settled_means_that_no_decision_of_before_is_under_way(tmp_path: Path) -> None:
    """A node whose drop was decided at the last epoch owns the chunk again: it is settled when that
    is over and the copy is back, and not on sight of what is about to go."""
    async with _world(tmp_path, ring=[0]) as world:
        first, second = world.nodes
        await _committed(world, first)
        await _new_ring(world, [1])
        await world.repair(second)
        sweeps: list[asyncio.Task[None]] = []

        async def back(_: bytes) -> None:
            await _new_ring(world, [0])
            sweep = asyncio.create_task(world.repair(first))
            sweeps.append(sweep)
            # It ends, or waits behind the writer thread, which waits for this.
            await eventually(
                lambda: sweep.done() or first.store.statistics().queue_depth > 0, seconds=120
            )

        assert await world.while_judging(first, first.drop, back)
        await sweeps[0]
        assert world.may_leave(second)
        await world.leave(second)
        await world.assert_nothing_lost()
