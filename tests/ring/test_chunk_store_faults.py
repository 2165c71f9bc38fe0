"""The store on disk when things go wrong: failing disks, lost indexes, damage, restarts."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ring.buffers import BufferPool
from ring.chunk_index import ChunkIndex, Extent, IndexChange, IndexRow, remove_index
from ring.chunk_store import HEADERS_AT_ONCE, INLINE_STAT_LIMIT, DiskChunkStore
from ring.codec import encode
from ring.errors import (
    ChunkDamagedError,
    ChunkNotFoundError,
    StoreFailedError,
    StoreFullError,
    StoreOverloadedError,
)
from ring.interfaces import ChunkRow, Encoded, PutOutcome
from ring.members import PARTITION_COUNT, partition_of
from ring.record import FIRST_RECORD_OFFSET, RECORD_SIZE_MAX
from ring.store_changes import UNINDEXED_LIMIT, StoreLimits
from ring.store_writer import QUEUE_LIMIT
from tests.fakes.filesystem import FakeFileSystem, Operation
from tests.ring.chunk_store_conformance import chunk_id_of, content, never, noise, put, raw, text

FIRST_VOLUME = "/store/0000000001.volume"


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as workers:
        yield workers


class Bench:
    """A disk and an index, and stores on them one after the other."""

    def __init__(self, workers: ThreadPoolExecutor, place: Path) -> None:
        self.disk = FakeFileSystem()
        self.index_path = str(place / "index.sqlite")
        self.workers = workers
        self.failures: list[StoreFailedError] = []
        self.damage: list[bytes] = []

    @asynccontextmanager
    async def run(self, limits: StoreLimits | None = None) -> AsyncIterator[DiskChunkStore]:
        store = DiskChunkStore(
            filesystem=self.disk,
            directory="/store",
            index_path=self.index_path,
            workers=self.workers,
            pool=BufferPool(64 * 1024 * 1024),
            limits=limits if limits is not None else StoreLimits(reserve=0),
            on_failure=self.failures.append,
            on_damage=self.damage.append,
        )
        await store.start()
        store.set_touch_floor(0)
        try:
            yield store
        finally:
            await store.close()

    def overwrite_index(self, data: bytes) -> None:
        Path(self.index_path).write_bytes(data)

    def flip(self, row: IndexRow, *, at: int) -> None:
        """Flip a bit of a record, `at` bytes from its start."""
        path = f"/store/{row.volume:010d}.volume"
        self.disk.flip_bit(path, (row.offset + at) * 8 + 3)


@pytest.fixture
def bench(workers: ThreadPoolExecutor, tmp_path: Path) -> Bench:
    return Bench(workers, tmp_path)


def row_of(store: DiskChunkStore, chunk_id: bytes) -> IndexRow:
    row = store._catalog.find(chunk_id)
    assert row is not None
    return row


# --- restarts --------------------------------------------------------------------------------


@pytest.mark.parametrize("is_index_lost", [False, True])
async def test_restart(bench: Bench, is_index_lost: bool) -> None:
    """All chunks are there after a restart, also when the index has to be built anew."""
    limits = StoreLimits(volume_size=1_000_000, reserve=0)
    data = [noise(size) for size in (1, 5000, 300_000, 70_000, 900_000, 9)]
    data += [text(400_000)]
    async with bench.run(limits) as store:
        for each in data:
            await store.put(chunk_id_of(each), encode(memoryview(each)), touch=1)
        gone = await put(store, noise(500))
        await store.delete(gone, unless=never)
        await store.wait_indexed()
        before = store.statistics()
        digests = store.partition_digests()
    if is_index_lost:
        remove_index(bench.index_path)
    async with bench.run(limits) as store:
        for each in data:
            assert await content(store, chunk_id_of(each)) == each
        with pytest.raises(ChunkNotFoundError):
            await store.get(gone)
        after = store.statistics()
        assert (after.chunks, after.allocated_bytes) == (before.chunks, before.allocated_bytes)
        assert after.volumes == before.volumes > 1
        assert after.damage_found == 0
        assert store.partition_digests() == digests
        await put(store, noise(77))


@pytest.mark.parametrize("where", ["file", "memory"])
async def test_a_wrong_digest_is_put_right(bench: Bench, where: str) -> None:
    """A count that does not fit the rows is found, corrected for good, and told of once."""
    async with bench.run() as store:
        chunk_id = await put(store, noise(100))
        await store.wait_indexed()
        right = store.partition_digests()
    partition = partition_of(chunk_id)
    if where == "file":
        with contextlib.closing(sqlite3.connect(bench.index_path)) as connection, connection:
            connection.execute("UPDATE partitions SET digest = zeroblob(32), chunks = 3")
    async with bench.run() as store:
        if where == "memory":
            store._index._partitions[partition] = (7, 7)
        assert store.partition_digests() != right
        assert not await store.recount((partition + 1) % PARTITION_COUNT)
        assert await store.recount(partition)
        assert not await store.recount(partition)
        assert store.partition_digests() == right
        await put(store, noise(200))
    async with bench.run() as store:
        assert store.partition_digests()[partition] == right[partition]


async def test_damaged_index(bench: Bench) -> None:
    """An index that SQLite refuses is built anew."""
    async with bench.run() as store:
        chunk_id = await put(store, noise(5000))
    bench.overwrite_index(b"no index" * 1000)
    async with bench.run() as store:
        assert await content(store, chunk_id) == noise(5000)


async def test_touches_do_not_survive(bench: Bench) -> None:
    """After a restart a touch is at least the floor that is given then, and none before (D4)."""
    async with bench.run() as store:
        chunk_id = await put(store, noise(10), touch=4)
        await store.touch([chunk_id], touch=9)
    store = DiskChunkStore(
        filesystem=bench.disk,
        directory="/store",
        index_path=bench.index_path,
        workers=bench.workers,
        pool=BufferPool(),
    )
    await store.start()
    (stat,) = await store.stat([chunk_id])
    assert stat is not None
    assert stat.touch is None
    assert not await store.delete(chunk_id, unless=never)
    store.set_touch_floor(11)
    (stat,) = await store.stat([chunk_id])
    assert stat is not None
    assert stat.touch == 11
    await store.close()


async def test_no_holes(bench: Bench) -> None:
    """A file system that can't punch holes is refused at the start, in one sentence."""
    bench.disk.fail("punch_hole", errno.EOPNOTSUPP)
    with pytest.raises(StoreFailedError, match="can't punch holes"):
        async with bench.run():
            pass


async def test_unusable_directory(bench: Bench) -> None:
    """A directory that can't be made is told with its name."""
    bench.disk.fail("make_directory", errno.EROFS)
    with pytest.raises(StoreFailedError, match="/store"):
        async with bench.run():
            pass


# --- failing disks ----------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["write", "datasync"])
@pytest.mark.parametrize("size", [5000, 500_000])
async def test_disk_error(bench: Bench, operation: Operation, size: int) -> None:
    """After a failed write or sync nothing is acknowledged, the owner is told, reads go on, and a
    restart finds what was acknowledged before, in a volume that is appended to no more (D9)."""
    async with bench.run() as store:
        before = await put(store, noise(size, seed=1))
        await store.wait_indexed()
        bench.disk.fail(operation, errno.EIO)
        with pytest.raises(StoreFailedError):
            await put(store, noise(size, seed=2))
        with pytest.raises(StoreFailedError):
            await put(store, noise(size, seed=3))
        with pytest.raises(StoreFailedError):
            await store.delete(before, unless=never)
        assert await content(store, before) == noise(size, seed=1)
        assert not store.statistics().writable
        await asyncio.sleep(0)
        assert len(bench.failures) == 1
    async with bench.run() as store:
        assert await content(store, before) == noise(size, seed=1)
        after = await put(store, noise(size, seed=2))
        if store.statistics().records_written:
            assert row_of(store, after).volume == 2


async def test_whole_group_fails(bench: Bench) -> None:
    """Of a group whose sync fails no write is acknowledged."""
    async with bench.run() as store:
        await put(store, noise(1))
        bench.disk.fail("datasync", errno.EIO)
        outcomes = await asyncio.gather(
            *(put(store, noise(5000, seed)) for seed in range(20)), return_exceptions=True
        )
        assert all(isinstance(each, StoreFailedError) for each in outcomes)


async def test_full_disk(bench: Bench) -> None:
    """A full disk refuses chunks; reads, deletions and, with space, writes go on."""
    async with bench.run() as store:
        first = await put(store, noise(50_000))
        bench.disk.capacity_bytes = bench.disk.allocated_bytes() + 30_000
        with pytest.raises(StoreFullError):
            await put(store, noise(50_000, seed=1))
        # The statistics of free space may lie: then it is the write that says so.
        bench.disk.fail("write", errno.ENOSPC)
        with pytest.raises(StoreFullError):
            await put(store, noise(5_000))
        assert store.statistics().writable
        assert await content(store, first) == noise(50_000)
        small = await put(store, noise(8_000))
        assert await store.delete(first, unless=never)
        second = await put(store, noise(50_000, seed=1))
    async with bench.run() as store:
        assert await content(store, small) == noise(8_000)
        assert await content(store, second) == noise(50_000, seed=1)


def limit_index(store: DiskChunkStore, pages: int) -> None:
    """Let SQLite find no room beyond so many pages, as on a full disk."""
    store._index._writer.execute(f"PRAGMA max_page_count = {pages}")


async def test_full_index(bench: Bench) -> None:
    """Without room for the index chunks are taken until their rows are too many to wait, then
    refused; reads go on, a deletion is refused and not half done, and with room all goes on."""
    async with bench.run() as store:
        first = await put(store, noise(1000))
        await store.wait_indexed()
        limit_index(store, 1)
        stored: list[int] = []
        for seed in range(1, 2 * UNINDEXED_LIMIT):
            try:
                await put(store, noise(100, seed))
            except StoreFullError:
                break
            stored.append(seed)
        assert len(stored) < 2 * UNINDEXED_LIMIT - 1
        assert await content(store, first) == noise(1000)
        for seed in stored:
            assert await content(store, chunk_id_of(noise(100, seed))) == noise(100, seed)
        with pytest.raises(StoreFullError):
            await store.delete(first, unless=never)
        assert store.statistics().writable
        limit_index(store, 2**30)
        assert await store.delete(first, unless=never)
        await put(store, noise(1000, 5000))
    assert bench.failures == []
    async with bench.run() as store:
        assert await store.stat([first]) == [None]
        for seed in stored:
            assert await content(store, chunk_id_of(noise(100, seed))) == noise(100, seed)


async def test_a_start_without_space(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recovery has to write a little; where it can't, the store says so in one sentence, and is as
    it was when there is space."""
    async with bench.run() as store:
        chunk_id = await put(store, noise(1000))
    remove_index(bench.index_path)

    def full(*_: object, **__: object) -> None:
        raise StoreFullError("no space left for the chunk index")

    with monkeypatch.context() as patch:
        patch.setattr(ChunkIndex, "apply", full)
        with pytest.raises(StoreFailedError, match="no space left"):
            async with bench.run():
                pass
    async with bench.run() as store:
        assert await content(store, chunk_id) == noise(1000)


async def test_what_is_full(bench: Bench) -> None:
    """A store is full when a chunk of full length has no room, by quota or by disk; at once, and
    not any more as soon as there is room."""
    bench.disk.capacity_bytes = 2 * RECORD_SIZE_MAX
    async with bench.run(StoreLimits(reserve=RECORD_SIZE_MAX // 2)) as store:
        assert not store.statistics().full
        chunk_id = await put(store, noise(RECORD_SIZE_MAX // 2))
        assert store.statistics().full
        await put(store, noise(1000))
        await store.delete(chunk_id, unless=never)
        assert not store.statistics().full
    async with bench.run(StoreLimits(reserve=0, quota=RECORD_SIZE_MAX + 4096)) as store:
        await store.delete(chunk_id_of(noise(1000)), unless=never)
        await store.wait_indexed()
        assert not store.statistics().full
        await put(store, noise(5000))
        assert store.statistics().full


async def test_reserve(bench: Bench) -> None:
    """The reserve is left free."""
    bench.disk.capacity_bytes = 1_000_000
    async with bench.run(StoreLimits(reserve=800_000)) as store:
        await put(store, noise(100_000))
        with pytest.raises(StoreFullError):
            await put(store, noise(100_000, seed=1))


async def test_queue_is_bounded(bench: Bench) -> None:
    """More operations than the queue holds are refused at once, and only those."""
    async with bench.run() as store:
        bench.disk._lock.acquire()  # The writer thread waits for the disk.
        tasks = [
            asyncio.create_task(put(store, noise(100, seed))) for seed in range(QUEUE_LIMIT + 600)
        ]
        for _ in range(2000):
            await asyncio.sleep(0.001)
            if any(task.done() for task in tasks):
                break
        for _ in range(10):
            await asyncio.sleep(0)
        bench.disk._lock.release()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [each for each in outcomes if isinstance(each, StoreOverloadedError)]
        assert refused
        stored = [each for each in outcomes if isinstance(each, bytes)]
        assert len(stored) + len(refused) == len(tasks)
        assert len(stored) >= QUEUE_LIMIT


async def test_cancelled_put_waits_for_the_disk(bench: Bench) -> None:
    """However often it is cancelled, a put does not return while its payload is being written."""
    data = bytearray(noise(5000))
    async with bench.run() as store:
        await put(store, noise(1))
        bench.disk._lock.acquire()  # The writer thread waits for the disk.
        task = asyncio.create_task(store.put(chunk_id_of(bytes(data)), raw(data), touch=1))
        for _ in range(50):
            await asyncio.sleep(0)
            task.cancel()
        is_done = task.done()
        bench.disk._lock.release()
        assert not is_done
        with pytest.raises(asyncio.CancelledError):
            await task
        data[:] = bytes(len(data))
        assert await content(store, chunk_id_of(noise(5000))) == noise(5000)


async def test_group_commit(bench: Bench) -> None:
    """What waits goes out together: far fewer syncs than writes."""
    async with bench.run() as store:
        await asyncio.gather(*(put(store, noise(5000, seed)) for seed in range(200)))
        assert store.statistics().records_written == 200
        assert store.statistics().groups < 100


# --- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
async def test_flipped_bits(bench: Bench, seed: int) -> None:
    """Wherever bits of a volume flip: what is served is right, the rest is quarantined or gone,
    and after a restart with a lost index it is the same."""
    chance = random.Random(seed)
    contents: dict[bytes, bytes] = {}
    async with bench.run() as store:
        for size in (10, 4000, 70_000, 300_000, 5000):
            data = noise(size, seed) if chance.random() < 0.7 else text(size, seed)
            encoded = encode(memoryview(data))
            await store.put(chunk_id_of(data), encoded, touch=1)
            contents[chunk_id_of(data)] = data
        size = bench.disk.open(FIRST_VOLUME).size()
        for _ in range(chance.choice([1, 1, 3, 20])):
            bench.disk.flip_bit(FIRST_VOLUME, chance.randrange(FIRST_RECORD_OFFSET, size) * 8)
        damaged = set()
        for chunk_id, data in contents.items():
            try:
                assert await content(store, chunk_id) == data
                start = chance.randrange(len(data))
                found = await store.get(chunk_id, start=start, end=start + 10)
                assert bytes(found.data) == data[start : start + 10]
            except ChunkDamagedError:
                damaged.add(chunk_id)
        assert set(bench.damage) == damaged == set(store.quarantined(100))
    remove_index(bench.index_path)
    async with bench.run() as store:
        for chunk_id, data in contents.items():
            try:
                assert await content(store, chunk_id) == data
                assert chunk_id not in damaged
            except (ChunkDamagedError, ChunkNotFoundError):
                pass
        for data in contents.values():
            await store.put(chunk_id_of(data), encode(memoryview(data)), touch=1)
        for chunk_id, data in contents.items():
            assert await content(store, chunk_id) == data


async def test_bad_header_is_no_copy(bench: Bench) -> None:
    """A copy whose record header is bad does not count as existing: a put writes it anew, a touch
    says it is not here (D2)."""
    async with bench.run() as store:
        first, second = await put(store, noise(5000)), await put(store, noise(6000))
        bench.flip(row_of(store, first), at=60)
        bench.flip(row_of(store, second), at=60)
        outcome = await store.put(first, raw(noise(5000)), touch=1)
        assert outcome is PutOutcome.WRITTEN
        assert await store.touch([first, second], touch=1) == [True, False]
        assert store.quarantined(10) == [second]
        assert bench.damage == [first, second]


async def test_partial_reads_are_verified(bench: Bench) -> None:
    """A range of a large chunk is served while its own blocks are sound, and never from others."""
    data = noise(1_000_000)
    async with bench.run() as store:
        chunk_id = await put(store, data)
        row = row_of(store, chunk_id)
        bench.flip(row, at=row.payload_start + 500_000)
        sound = await store.get(chunk_id, start=100, end=200)
        assert bytes(sound.data) == data[100:200]
        with pytest.raises(ChunkDamagedError):
            await store.get(chunk_id, start=499_999, end=500_001)
        with pytest.raises(ChunkDamagedError):
            await store.get(chunk_id, start=100, end=200)


async def test_damage_of_the_page_cache(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is bad in memory only is read again from the disk, and served (D3)."""
    async with bench.run() as store:
        chunk_id = await put(store, noise(5000))
        volume = store._volumes[1]
        good = type(volume).read

        def bad(self: object, offset: int, length: int) -> bytes:
            return bytes(length)

        monkeypatch.setattr(type(volume), "read", bad)
        assert await content(store, chunk_id) == noise(5000)
        assert bench.damage == []
        monkeypatch.setattr(type(volume), "read", good)


@pytest.mark.parametrize("cut", [4096, 10_000, 400_000])
async def test_truncated_volume(bench: Bench, cut: int) -> None:
    """Chunks whose volume lost its end are quarantined at the start, so that they are healed."""
    async with bench.run() as store:
        chunk_ids = [await put(store, noise(100_000, seed)) for seed in range(4)]
        await store.wait_indexed()
    file = bench.disk.open(FIRST_VOLUME)
    size = file.size() - cut
    file.truncate(size)
    async with bench.run() as store:
        lost = store.quarantined(10)
        assert lost
        for seed, chunk_id in enumerate(chunk_ids):
            if chunk_id in lost:
                with pytest.raises(ChunkDamagedError):
                    await store.get(chunk_id)
            assert await put(store, noise(100_000, seed)) == chunk_id
            assert await content(store, chunk_id) == noise(100_000, seed)
        await store.wait_indexed()
        assert store.quarantined(10) == []


async def test_missing_volume(bench: Bench) -> None:
    """The chunks of a volume that is gone are quarantined at the start."""
    async with bench.run() as store:
        chunk_id = await put(store, noise(100))
    bench.disk.unlink(FIRST_VOLUME)
    async with bench.run() as store:
        assert store.quarantined(10) == [chunk_id]
        await put(store, noise(100))
        assert row_of(store, chunk_id).volume == 2


async def test_outdated_index_punches_no_other_record(bench: Bench) -> None:
    """An extent to be punched that holds another chunk by now is left alone."""
    async with bench.run() as store:
        chunk_id = await put(store, noise(5000))
        await store.wait_indexed()
        row = row_of(store, chunk_id)
        outdated = Extent(row.volume, row.offset, row.record_length, chunk_id_of(b"another"))
        store._index.apply(IndexChange(to_punch=[outdated]))
    async with bench.run() as store:
        assert await content(store, chunk_id) == noise(5000)
        assert store._index.to_punch() == []


# --- races --------------------------------------------------------------------------------------


async def test_deletion_frees_space(bench: Bench) -> None:
    """A deleted chunk's blocks go back to the disk."""
    async with bench.run() as store:
        before = bench.disk.allocated_bytes()
        chunk_id = await put(store, noise(1_000_000))
        await store.delete(chunk_id, unless=never)
        assert bench.disk.allocated_bytes() == before + FIRST_RECORD_OFFSET


async def test_touch_while_being_asked(bench: Bench) -> None:
    """A touch between the callback's answer and the deletion keeps the chunk (D4, D5)."""
    async with bench.run() as store:
        chunk_id = await put(store, noise(5000), touch=1)

        def touched_meanwhile(row: ChunkRow) -> bool:
            assert store._catalog.confirm(row_of(store, chunk_id), 2)
            return False

        assert not await store.delete(chunk_id, unless=touched_meanwhile)
        assert await content(store, chunk_id) == noise(5000)


async def test_floor_raised_while_being_asked(bench: Bench) -> None:
    """A touch that rises with the floor keeps a chunk as one raised by itself does (D4)."""
    async with bench.run() as store:
        chunk_id = await put(store, noise(5000), touch=1)

        def floor_rises(row: ChunkRow) -> bool:
            store.set_touch_floor(row.touch + 1)
            return False

        assert not await store.delete(chunk_id, unless=floor_rises)
        assert await content(store, chunk_id) == noise(5000)


async def test_confirmations_of_what_is_known_take_no_memory(bench: Bench) -> None:
    """A move confirms each chunk with the touch it was written with; that is remembered already, so
    a million such confirmations raise no floor and delay no collection (D4)."""
    async with bench.run() as store:
        chunk_ids = [await put(store, noise(100, seed), touch=3) for seed in range(HEADERS_AT_ONCE)]
        chunk_ids.append(await put(store, noise(200), touch=3))
        assert all(await store.confirm([(chunk_id, 3) for chunk_id in chunk_ids]))
        assert len(store._catalog._touches._raised) == 0
        assert all(await store.confirm([(chunk_id, 4) for chunk_id in chunk_ids]))
        stats = await store.stat(chunk_ids)
        assert {stat.touch for stat in stats if stat is not None} == {4}


async def test_many_look_ups_leave_the_event_loop_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of the index may have to come from the disk, for each of a thousand chunks."""
    async with bench.run() as store:
        chunk_id = await put(store, noise(100), touch=3)
        threads: set[int] = set()
        find_all = store._catalog.find_all

        def noted(chunk_ids: Sequence[bytes]) -> dict[bytes, IndexRow]:
            threads.add(threading.get_ident())
            return find_all(chunk_ids)

        monkeypatch.setattr(store._catalog, "find_all", noted)
        absent = [chunk_id_of(bytes([number])) for number in range(INLINE_STAT_LIMIT)]
        first, *rest = await store.stat([chunk_id, *absent])
        assert first is not None
        assert first.touch == 3
        assert rest == [None] * INLINE_STAT_LIMIT
        assert threads
        assert threading.get_ident() not in threads


async def test_outdated_suspicion(bench: Bench) -> None:
    """A reader that was overtaken by a deletion and a new put does not quarantine the new copy."""
    async with bench.run() as store:
        chunk_id = await put(store, noise(5000))
        outdated = row_of(store, chunk_id)
        await store.delete(chunk_id, unless=never)
        assert not await store._writer.quarantine(outdated)
        await put(store, noise(5000))
        assert not await store._writer.quarantine(outdated)
        assert store.quarantined(10) == []
        assert await content(store, chunk_id) == noise(5000)


async def test_condemned_is_not_confirmed(bench: Bench) -> None:
    """From the decision on a chunk that is being deleted is not here: a put writes it anew."""
    async with bench.run() as store:
        chunk_id = await put(store, noise(5000), touch=1)
        await store.wait_indexed()
        row = row_of(store, chunk_id)
        assert store._catalog.judge(row) == 1
        assert store._catalog.condemn(row, touch=1)
        assert not store._catalog.confirm(row, 5)
        assert await store.touch([chunk_id], touch=5) == [False]
        store._catalog.reprieve(chunk_id)
        assert await store.touch([chunk_id], touch=5) == [True]


async def test_damage_overtakes_a_confirmation(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that is quarantined after its header was checked, or at that moment, is not confirmed:
    neither before its row says so, nor by somebody who has read the row as it was."""
    async with bench.run() as store:
        catalog, index = store._catalog, store._index
        chunk_id = await put(store, noise(5000))
        await store.wait_indexed()
        row = row_of(store, chunk_id)
        told: list[bool] = []
        apply, find = index.apply, catalog.find

        def apply_and_ask(change: IndexChange, *, durable: bool = False) -> None:
            told.append(catalog.confirm(row, 2))
            apply(change, durable=durable)

        def find_and_fail(chunk_id: bytes) -> IndexRow | None:
            found = find(chunk_id)
            monkeypatch.setattr(catalog, "find", find)
            assert store._changes.quarantine(row)
            return found

        monkeypatch.setattr(index, "apply", apply_and_ask)
        monkeypatch.setattr(catalog, "find", find_and_fail)
        assert not catalog.confirm(row, 2)
        assert told == [False]
        assert store.quarantined(10) == [chunk_id]


async def test_puts_reads_and_deletions_at_once(bench: Bench) -> None:
    """However they interleave: a reader gets the right bytes or 'not found', and what was put
    after its last deletion is there."""
    chance = random.Random(5)
    datas = [noise(size) for size in (1000, 30_000, 300_000)]

    async def use(store: DiskChunkStore, data: bytes) -> None:
        chunk_id = chunk_id_of(data)
        for _ in range(25):
            match chance.choice(["put", "get", "range", "delete"]):
                case "put":
                    await store.put(chunk_id, raw(data), touch=1)
                case "delete":
                    await store.delete(chunk_id, unless=never)
                case action:
                    start, end = (0, None) if action == "get" else (10, 500)
                    try:
                        found = await store.get(chunk_id, start=start, end=end)
                    except ChunkNotFoundError:
                        continue
                    assert bytes(found.data) == data[start:end]

    async with bench.run() as store:
        await asyncio.gather(*(use(store, data) for data in datas for _ in range(4)))
        for data in datas:
            await put(store, data)
            assert await content(store, chunk_id_of(data)) == data
        assert bench.damage == []
        await store.wait_indexed()
        assert store.statistics().chunks == len(datas)


async def test_failed_write_in_flight_fails_its_duplicates(bench: Bench) -> None:
    """Who joined a write is not told that it is durable when it is not (D2)."""
    async with bench.run() as store:
        await put(store, noise(1))
        bench.disk.fail("datasync", errno.EIO)
        data = noise(5000)
        outcomes = await asyncio.gather(
            *(store.put(chunk_id_of(data), raw(data), touch=1) for _ in range(5)),
            return_exceptions=True,
        )
        assert all(isinstance(each, StoreFailedError) for each in outcomes)


async def test_unaligned_payload_takes_the_direct_way(bench: Bench) -> None:
    """A large payload from memory that is not aligned is stored like any other."""
    data = memoryview(bytearray(noise(1_000_001)))[1:]
    async with bench.run() as store:
        encoded = encode(data)
        assert isinstance(encoded, Encoded)
        await store.put(chunk_id_of(bytes(data)), encoded, touch=1)
        assert await content(store, chunk_id_of(bytes(data))) == data
