"""Damage on a disk is found by rereading it, and files that vanish under a store by a look."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ring import store_scrub
from ring.buffers import BufferPool
from ring.chunk_index import IndexRow, remove_index
from ring.chunk_store import DiskChunkStore
from ring.errors import ChunkDamagedError, StoreFailedError
from ring.filesystem import FileSystem, RealFileSystem
from ring.record import FIRST_RECORD_OFFSET
from ring.store_changes import StoreLimits
from ring.store_scrub import Position
from ring.volume import Volume
from tests.fakes.filesystem import FakeFileSystem
from tests.ring.chunk_store_conformance import content, noise, put, raw, text

MIB = 1024 * 1024


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as workers:
        yield workers


class Bench:
    """A disk, real or not, and stores on it one after the other."""

    def __init__(self, workers: ThreadPoolExecutor, filesystem: FileSystem, place: Path) -> None:
        self.filesystem = filesystem
        is_fake = isinstance(filesystem, FakeFileSystem)
        self.directory = "/store" if is_fake else str(place / "store")
        self.index_path = str(place / "index.sqlite")
        self.workers = workers
        self.failures: list[StoreFailedError] = []
        self.damage: list[bytes] = []

    @asynccontextmanager
    async def run(self, limits: StoreLimits | None = None) -> AsyncIterator[DiskChunkStore]:
        store = DiskChunkStore(
            filesystem=self.filesystem,
            directory=self.directory,
            index_path=self.index_path,
            workers=self.workers,
            pool=BufferPool(64 * MIB),
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

    def path(self, volume: int) -> str:
        return os.path.join(self.directory, f"{volume:010d}.volume")

    def overwrite_index(self, data: bytes) -> None:
        Path(self.index_path).write_bytes(data)

    def flip(self, row: IndexRow, *, at: int) -> None:
        """Flip a bit of a record on the disk, `at` bytes from its start."""
        path, place = self.path(row.volume), row.offset + at
        if isinstance(self.filesystem, FakeFileSystem):
            self.filesystem.flip_bit(path, place * 8 + 3)
            return
        with open(path, "r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 8]))


@pytest.fixture
def bench(workers: ThreadPoolExecutor, tmp_path: Path) -> Bench:
    return Bench(workers, FakeFileSystem(), tmp_path)


@pytest.fixture
def real(workers: ThreadPoolExecutor, tmp_path: Path) -> Bench:
    return Bench(workers, RealFileSystem(), tmp_path)


def row_of(store: DiskChunkStore, chunk_id: bytes) -> IndexRow:
    row = store._catalog.find(chunk_id)
    assert row is not None
    return row


async def whole_pass(store: DiskChunkStore) -> tuple[int, int, int]:
    """Reread everything; returns bytes, records found damaged, and units of work."""
    position, end = Position(), await store.scrub.end()
    size = damaged = units = 0
    while (verified := await store.scrub.verify(position, end)) is not None:
        assert verified.position > position
        position = verified.position
        size, damaged, units = size + verified.size_bytes, damaged + verified.damaged, units + 1
    return size, damaged, units


async def fill(store: DiskChunkStore) -> list[bytes]:
    """Small and large, raw and compressed."""
    chunks = [await put(store, noise(900 + 97 * seed, seed)) for seed in range(40)]
    chunks += [await put(store, text(100_000 + seed, seed)) for seed in range(5)]
    chunks += [await put(store, noise(700_000, 1000 + seed)) for seed in range(3)]
    return chunks


@pytest.mark.parametrize("kind", ["bench", "real"])
async def test_all_is_read_once_and_sound_records_stay(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """A pass reads exactly the bytes that the records occupy, over volumes and holes."""
    bench: Bench = request.getfixturevalue(kind)
    async with bench.run(StoreLimits(volume_size=MIB, reserve=0)) as store:
        chunks = await fill(store)
        for chunk_id in chunks[::7]:
            assert await store.delete(chunk_id, unless=lambda _: False)
        await store.wait_indexed()
        size, damaged, _ = await whole_pass(store)
        assert store.statistics().volumes > 1
        assert size == store.statistics().allocated_bytes
        assert damaged == 0
        assert bench.damage == []


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["bench", "real"])
async def test_flipped_bits_are_found(kind: str, seed: int, request: pytest.FixtureRequest) -> None:
    """Anywhere in header or payload, without anybody reading the chunk; neighbours stay sound."""
    bench: Bench = request.getfixturevalue(kind)
    chance = random.Random(seed)
    async with bench.run() as store:
        chunks = await fill(store)
        await store.wait_indexed()
        hit = set(chance.sample(chunks, 6))
        for chunk_id in hit:
            row = row_of(store, chunk_id)
            bench.flip(row, at=chance.randrange(row.payload_start + row.payload_length))
        _, damaged, _ = await whole_pass(store)
        # Between the header and a payload at 4,096 there is padding, which means nothing.
        assert set(bench.damage) <= hit
        assert damaged == len(bench.damage) == store.statistics().quarantined
        for chunk_id in chunks:
            if chunk_id in bench.damage:
                with pytest.raises(ChunkDamagedError):
                    await store.get(chunk_id)
            else:
                await store.get(chunk_id)


@pytest.mark.parametrize("at", [0, 60, 100, 130, 4095])
async def test_each_part_of_a_record_is_covered(bench: Bench, at: int) -> None:
    """Magic, chunk id, block checksums, keyed checksum and payload: a flip in each is found."""
    async with bench.run() as store:
        chunk_id = await put(store, noise(50_000))
        bench.flip(row_of(store, chunk_id), at=at)
        assert await whole_pass(store) == (
            row_of(store, chunk_id).record_length,
            1,
            1,
        )
        assert bench.damage == [chunk_id]


async def test_damage_below_the_page_cache(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What memory still has whole is found bad on the disk all the same."""
    async with bench.run() as store:
        chunk_id = await put(store, noise(3000))
        row = row_of(store, chunk_id)
        volume = store._volumes[row.volume]
        cached = volume.read(0, volume.size())
        bench.flip(row, at=1000)
        monkeypatch.setattr(
            Volume, "read", lambda _, offset, length: cached[offset : offset + length]
        )
        assert await content(store, chunk_id) == noise(3000)
        await whole_pass(store)
        assert bench.damage == [chunk_id]


async def test_a_healed_chunk_frees_the_bad_bytes(bench: Bench) -> None:
    """They stay while the copy is quarantined, and are punched when it was stored again."""
    async with bench.run() as store:
        data = noise(300_000)
        chunk_id = await put(store, data)
        row = row_of(store, chunk_id)
        await store.wait_indexed()
        before = store.statistics().allocated_bytes
        bench.flip(row, at=5000)
        await whole_pass(store)
        volume = store._volumes[row.volume]
        assert any(volume.read(row.offset, row.record_length))
        await store.put(chunk_id, raw(data), touch=1)
        await store.wait_indexed()
        assert not any(volume.read(row.offset, row.record_length))
        assert store.statistics().allocated_bytes == before
        assert store.statistics().quarantined == 0
        assert await content(store, chunk_id) == data
        assert (await whole_pass(store))[1] == 0


async def test_what_moves_during_a_pass_is_no_damage(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk deleted between the look into the index and the look at the disk just is gone."""
    async with bench.run() as store:
        chunk_id = await put(store, noise(5000))
        await store.wait_indexed()
        span = store.scrub._span

        def then_deleted(position: Position, end: Position) -> list[IndexRow]:
            rows = span(position, end)
            for row in rows:
                store._volumes[row.volume].punch(row.offset, row.record_length)
                store._changes.delete([(row.chunk_id, lambda _: False)])
            return rows

        monkeypatch.setattr(store.scrub, "_span", then_deleted)
        await whole_pass(store)
        assert bench.damage == []
        assert await store.stat([chunk_id]) == [None]


async def test_small_records_share_a_read(bench: Bench) -> None:
    """A thousand files of a kilobyte take a handful of reads, not two each."""
    async with bench.run() as store:
        for seed in range(600):
            await put(store, noise(1000, seed))
        _, _, units = await whole_pass(store)
        assert units == -(-600 // store_scrub.SPAN_ROWS_LIMIT)


async def test_a_volume_removed_under_the_store(real: Bench) -> None:
    """Its open descriptor still reads, and would until the process ends: all its chunks count as
    lost, what is written from then on is in another volume, and a restart agrees."""
    async with real.run() as store:
        lost = [await put(store, noise(3000, seed)) for seed in range(5)]
        await store.wait_indexed()
        os.unlink(real.path(1))
        assert await content(store, lost[0]) == noise(3000)
        assert await store.scrub.check_files() == 5
        assert sorted(real.damage) == sorted(lost)
        assert await store.scrub.check_files() == 0
        with pytest.raises(ChunkDamagedError):
            await store.get(lost[0])
        await store.put(lost[0], raw(noise(3000)), touch=1)
        new = await put(store, noise(3000, 77))
        assert real.filesystem.exists(real.path(2))
    async with real.run() as store:
        assert await content(store, lost[0]) == noise(3000)
        assert await content(store, new) == noise(3000, 77)
        assert sorted(store.quarantined(10)) == sorted(lost[1:])
        assert await store.scrub.check_files() == 0


async def test_a_volume_replaced_under_the_store(real: Bench) -> None:
    """A copy put in its place is another file: the store must not go on with the old one."""
    async with real.run() as store:
        chunk_id = await put(store, noise(3000))
        await store.wait_indexed()
        shutil.copy(real.path(1), real.path(1) + ".copy")
        real.filesystem.replace(real.path(1) + ".copy", real.path(1))
        assert await store.scrub.check_files() == 1
        assert real.damage == [chunk_id]


@pytest.mark.parametrize("kept", [0, 1, 3])
async def test_a_volume_cut_under_the_store(real: Bench, kept: int) -> None:
    """What lies beyond the cut is lost, the rest is not; new records are sound, and stay so."""
    async with real.run() as store:
        chunks = [await put(store, noise(3000, seed)) for seed in range(5)]
        await store.wait_indexed()
        os.truncate(real.path(1), FIRST_RECORD_OFFSET + kept * 4096)
        assert await store.scrub.check_files() == 5 - kept
        assert sorted(real.damage) == sorted(chunks[kept:])
        for seed, chunk_id in enumerate(chunks[:kept]):
            assert await content(store, chunk_id) == noise(3000, seed)
        await store.put(chunks[4], raw(noise(3000, 4)), touch=1)
        assert await content(store, chunks[4]) == noise(3000, 4)
        assert (await whole_pass(store))[1] == 0
    async with real.run() as store:
        assert await content(store, chunks[4]) == noise(3000, 4)


async def test_a_cut_that_was_written_over_is_found_by_a_pass(real: Bench) -> None:
    """The file has its length again when it is looked at; the hole in it is found all the same."""
    async with real.run() as store:
        chunks = [await put(store, noise(3000, seed)) for seed in range(5)]
        await store.wait_indexed()
        os.truncate(real.path(1), FIRST_RECORD_OFFSET)
        await put(store, noise(3000, 9))
        await store.wait_indexed()
        assert await store.scrub.check_files() == 0
        _, damaged, _ = await whole_pass(store)
        assert damaged == 5
        assert sorted(real.damage) == sorted(chunks)


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
async def test_an_index_removed_under_the_store(real: Bench, suffix: str) -> None:
    """What SQLite commits from then on would be lost: the store says so once and changes no more;
    the next start has every chunk that was acknowledged."""
    async with real.run() as store:
        chunks = [await put(store, noise(3000, seed)) for seed in range(5)]
        await store.wait_indexed()
        os.unlink(real.index_path + suffix)
        await store.scrub.check_files()
        await store.scrub.check_files()
        assert len(real.failures) == 1
        assert "chunk index" in str(real.failures[0])
        with pytest.raises(StoreFailedError):
            await put(store, noise(10))
    async with real.run() as store:
        for seed, chunk_id in enumerate(chunks):
            assert await content(store, chunk_id) == noise(3000, seed)
        assert await store.scrub.check_files() == 0
        assert len(real.failures) == 1


async def test_files_that_are_in_place_are_left_alone(real: Bench) -> None:
    """Also while the store grows over several volumes, deletes and restarts."""
    for _ in range(2):
        async with real.run(StoreLimits(volume_size=MIB, reserve=0)) as store:
            chunks = await fill(store)
            await store.delete(chunks[0], unless=lambda _: False)
            assert await store.scrub.check_files() == 0
        assert real.failures == []
        assert real.damage == []


async def test_a_new_index_knows_no_damage(real: Bench) -> None:
    """The store says that its index was built from the volumes: what had been found bad counts as
    sound again until it is read, so a scrub is due. An index that is kept is not a new one."""
    async with real.run() as store:
        assert not store.is_index_new
        chunk_id = await put(store, noise(3000))
        # A later group vouches that this one was durable, so a rebuild does not hash it again.
        await put(store, noise(3000, 1))
        real.flip(row_of(store, chunk_id), at=1000)
        assert (await whole_pass(store))[1] == 1
    async with real.run() as store:
        assert not store.is_index_new
        assert store.quarantined(10) == [chunk_id]
    remove_index(real.index_path)
    async with real.run() as store:
        assert store.is_index_new
        assert store.quarantined(10) == []
        assert (await whole_pass(store))[1] == 1
    real.overwrite_index(b"no index")
    async with real.run() as store:
        assert store.is_index_new
