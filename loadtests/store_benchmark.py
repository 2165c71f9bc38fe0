"""How fast one chunk store is, as ratios to the bare system calls in the same run.

    python -m loadtests.store_benchmark [--directory DIR] [--megabytes 1024]

Writes and reads everything it measures below DIR and removes it again.
"""

from __future__ import annotations

import argparse
import asyncio
import mmap
import os
import platform
import random
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import uvloop

from ring.buffers import BufferPool
from ring.chunk_store import DiskChunkStore
from ring.codec import checksums, encode
from ring.filesystem import RealFileSystem
from ring.interfaces import CHUNK_SIZE_LIMIT, Codec, Encoded

LARGE_IN_FLIGHT = 4
SMALL_IN_FLIGHT = 32
SMALL_SIZE = 64 * 1024
SMALL_COUNT = 4000
TINY_SIZE = 8 * 1024


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", default=".")
    parser.add_argument("--megabytes", type=int, default=1024)
    arguments = parser.parse_args()
    directory = tempfile.mkdtemp(prefix="store-benchmark-", dir=arguments.directory)
    try:
        await _measure(directory, arguments.megabytes * 1024 * 1024)
    finally:
        shutil.rmtree(directory)


async def _measure(directory: str, total: int) -> None:
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {os.uname().release}")
    workers = ThreadPoolExecutor(4)
    store = DiskChunkStore(
        filesystem=RealFileSystem(),
        directory=os.path.join(directory, "volumes"),
        index_path=os.path.join(directory, "index.sqlite"),
        workers=workers,
        pool=BufferPool(),
    )
    await store.start()
    await _measure_large(store, directory, total)
    await _measure_small(store, directory, SMALL_SIZE)
    await _measure_small(store, directory, TINY_SIZE)
    print(store.statistics())
    await store.close()


async def _measure_large(store: DiskChunkStore, directory: str, total: int) -> None:
    """Whole chunks of noise, four at a time; each put hashes, writes and syncs."""
    count = total // CHUNK_SIZE_LIMIT
    views = _aligned(LARGE_IN_FLIGHT)
    chunk_ids: list[bytes] = []

    async def ingest(start: int) -> None:
        view = views[start]
        for number in range(start, count, LARGE_IN_FLIGHT):
            view[:8] = number.to_bytes(8, "big")
            encoded = await asyncio.get_running_loop().run_in_executor(None, encode, view)
            assert encoded.checksums is not None
            chunk_ids.append(encoded.checksums.chunk_id)
            await store.put(encoded.checksums.chunk_id, encoded, touch=1)

    async def receive(start: int) -> None:
        view = views[start]
        for number in range(start, count, LARGE_IN_FLIGHT):
            view[:8] = (number + count).to_bytes(8, "big")
            content = Encoded(view, Codec.RAW, len(view))
            await store.put(checksums(view).chunk_id, content, touch=1)

    async def read(start: int) -> None:
        for number in range(start, count, LARGE_IN_FLIGHT):
            content = await store.get(chunk_ids[number])
            assert len(content.data) == CHUNK_SIZE_LIMIT

    raw_write = _time(lambda: _raw_write(directory, views[0], count, sync_every=1))
    raw_read = _time(lambda: _raw_read(directory, views[0], count))
    _report("8 MiB put", await _gather(ingest), total, raw_write, "pwrite + fdatasync, O_DIRECT")
    _report("8 MiB get", await _gather(read), total, raw_read, "pread, O_DIRECT")
    _report("8 MiB put, hash in the loop", await _gather(receive), total, raw_write, "the same")


async def _measure_small(store: DiskChunkStore, directory: str, size: int) -> None:
    """Small chunks of noise, 32 at a time."""
    noise = random.Random(size)
    chunks = [noise.randbytes(size) for _ in range(SMALL_COUNT)]
    chunk_ids = [checksums(chunk).chunk_id for chunk in chunks]

    async def ingest(start: int) -> None:
        for number in range(start, SMALL_COUNT, SMALL_IN_FLIGHT):
            content = Encoded(chunks[number], Codec.RAW, size)
            await store.put(chunk_ids[number], content, touch=1)

    async def read(start: int) -> None:
        for number in range(start, SMALL_COUNT, SMALL_IN_FLIGHT):
            await store.get(chunk_ids[number])

    view = _aligned(1)[0][:size]
    raw_write = _time(lambda: _raw_write(directory, view, SMALL_COUNT, sync_every=SMALL_IN_FLIGHT))
    raw_read = _time(lambda: _raw_read(directory, view, SMALL_COUNT))
    name = f"{size // 1024} KiB"
    _report_rate(f"{name} put", await _gather(ingest, SMALL_IN_FLIGHT), raw_write)
    _report_rate(f"{name} get", await _gather(read, SMALL_IN_FLIGHT), raw_read)
    _report_rate(f"{name} put again", await _gather(ingest, SMALL_IN_FLIGHT), raw_write)


def _aligned(count: int) -> list[memoryview]:
    views = [memoryview(mmap.mmap(-1, CHUNK_SIZE_LIMIT)) for _ in range(count)]
    for number, view in enumerate(views):
        view[:] = random.Random(number).randbytes(CHUNK_SIZE_LIMIT)
    return views


def _raw_write(directory: str, view: memoryview, count: int, *, sync_every: int) -> None:
    direct = os.O_DIRECT if len(view) >= CHUNK_SIZE_LIMIT else 0
    file = os.open(os.path.join(directory, "raw"), os.O_RDWR | os.O_CREAT | direct, 0o600)
    for number in range(count):
        os.pwrite(file, view, number * len(view))
        if (number + 1) % sync_every == 0:
            os.fdatasync(file)
    os.close(file)


def _raw_read(directory: str, view: memoryview, count: int) -> None:
    direct = os.O_DIRECT if len(view) >= CHUNK_SIZE_LIMIT else 0
    path = os.path.join(directory, "raw")
    file = os.open(path, os.O_RDONLY | direct)
    for number in range(count):
        os.preadv(file, [view], number * len(view))
    os.close(file)
    os.unlink(path)


def _time(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


async def _gather(work: Callable[[int], Awaitable[None]], parallel: int = LARGE_IN_FLIGHT) -> float:
    started = time.perf_counter()
    await asyncio.gather(*(work(start) for start in range(parallel)))
    return time.perf_counter() - started


def _report(name: str, seconds: float, total: int, raw_seconds: float, raw_name: str) -> None:
    print(
        f"{name:30} {total / seconds / 1e6:8.0f} MB/s, {raw_seconds / seconds:5.2f} of"
        f" {raw_name} ({total / raw_seconds / 1e6:.0f} MB/s)"
    )


def _report_rate(name: str, seconds: float, raw_seconds: float) -> None:
    print(
        f"{name:30} {SMALL_COUNT / seconds:8.0f} /s,   {raw_seconds / seconds:5.2f} of the bare"
        f" calls ({SMALL_COUNT / raw_seconds:.0f}/s)"
    )


if __name__ == "__main__":
    uvloop.run(main())
