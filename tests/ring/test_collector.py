"""Space comes back two generations after the last touch, and never from what is referred to."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from blake3 import blake3

from ring import collector
from ring.codec import encode
from ring.collector import Collector
from ring.errors import ChunkDamagedError
from tests.fakes.chunk_store import MemoryChunkStore
from tests.fakes.ring_nodes import FixedView, LiveSet


class World:
    def __init__(self, live: LiveSet | None = None) -> None:
        self.store = MemoryChunkStore()
        self.view = FixedView()
        self.live = live or LiveSet()
        self.workers = ThreadPoolExecutor(1)
        self.collector = Collector(
            store=self.store, view=self.view, live=self.live, workers=self.workers
        )

    async def put(self, data: bytes, *, touch: int) -> bytes:
        chunk_id = blake3(data).digest()
        await self.store.put(chunk_id, encode(memoryview(data)), touch=touch)
        return chunk_id

    async def whole_pass(self, generation: int) -> list[bytes]:
        """What is left after everything was looked at in this generation."""
        self.view.number = generation
        while await self.collector.work() != collector.IDLE_SECONDS:
            pass
        return self.store.ids(b"", 10_000)


@pytest.fixture
def world() -> World:
    made = World()
    made.store.set_touch_floor(0)
    return made


async def test_an_unreferenced_chunk_goes_two_generations_after_its_touch(world: World) -> None:
    """Not one earlier: a reference may come until one generation after the touch."""
    chunk_id = await world.put(b"a", touch=5)
    assert await world.whole_pass(6) == [chunk_id]
    assert await world.whole_pass(7) == []
    assert world.collector.chunks_collected == 1


async def test_a_referenced_chunk_stays_whatever_its_age(world: World) -> None:
    """And goes once nothing refers to it, with the next generation."""
    chunk_id = await world.put(b"a", touch=1)
    world.live.chunks.add(chunk_id)
    assert await world.whole_pass(50) == [chunk_id]
    world.live.chunks.clear()
    assert await world.whole_pass(51) == []


async def test_a_touch_keeps_a_chunk_for_two_more_generations(world: World) -> None:
    """An upload that finds the chunk there may still refer to it."""
    chunk_id = await world.put(b"a", touch=1)
    await world.store.touch([chunk_id], touch=9)
    assert await world.whole_pass(10) == [chunk_id]
    assert await world.whole_pass(11) == []


async def test_nothing_is_deleted_before_the_touch_floor_is_known() -> None:
    """After a start touches are forgotten; what was touched last may be in somebody's upload."""
    world = World()
    chunk_id = await world.put(b"a", touch=0)
    assert await world.whole_pass(50) == [chunk_id]
    world.store.set_touch_floor(50)
    assert await world.whole_pass(51) == [chunk_id]
    assert await world.whole_pass(52) == []


async def test_a_reference_that_comes_during_the_pass_is_seen_last() -> None:
    """Between the look at a page and the deletion a file may have been committed."""

    class LateReference(LiveSet):
        asked = 0

        def referenced(self, chunk_ids: Sequence[bytes]) -> set[bytes]:
            self.asked += 1
            return set() if self.asked == 1 else set(chunk_ids)

    world = World(LateReference())
    world.store.set_touch_floor(0)
    chunk_id = await world.put(b"a", touch=1)
    assert await world.whole_pass(9) == [chunk_id]


async def test_many_chunks_are_gone_through_in_pages(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every page is looked at, also where the one before it was deleted entirely."""
    monkeypatch.setattr(collector, "PAGE_SIZE", 7)
    ids = [await world.put(bytes([number]), touch=1) for number in range(50)]
    kept = set(ids[::3])
    world.live.chunks.update(kept)
    assert set(await world.whole_pass(3)) == kept


async def test_a_damaged_chunk_goes_by_the_same_rule(world: World) -> None:
    """Quarantined bytes are kept while a file may need them, and take no space after that."""
    chunk_ids = [await world.put(bytes([number]), touch=1) for number in range(5)]
    world.live.chunks.add(chunk_ids[0])
    for chunk_id in chunk_ids[:3]:
        world.store.damage(chunk_id)
        with pytest.raises(ChunkDamagedError):
            await world.store.get(chunk_id)
    assert await world.whole_pass(2) == sorted(chunk_ids[3:])
    assert await world.whole_pass(3) == []
    assert world.store.quarantined(10) == [chunk_ids[0]]
    assert world.store.statistics().allocated_bytes == 1


async def test_nothing_is_deleted_while_collection_is_held(world: World) -> None:
    """Rule D10: files of after the backup are unknown to a restored state, their chunks look like
    garbage. Once an operator lets collection go on it needs no new generation to begin."""
    chunk_id = await world.put(b"a", touch=1)
    world.view.held = True
    assert await world.whole_pass(9) == [chunk_id]
    world.view.held = False
    assert await world.whole_pass(9) == []


async def test_a_state_that_holds_collection_stops_a_pass_under_way(world: World) -> None:
    """A restored state may arrive between the look at a page and its deletions."""

    class Restored(LiveSet):
        def referenced(self, chunk_ids: Sequence[bytes]) -> set[bytes]:
            world.view.held = True
            return set()

    world.collector._live = Restored()
    chunk_id = await world.put(b"a", touch=1)
    assert await world.whole_pass(9) == [chunk_id]
