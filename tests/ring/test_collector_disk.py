"""What collection gives back is space on a real disk, counted in blocks by the operating system."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blake3 import blake3

from ring import collector
from ring.buffers import BufferPool
from ring.chunk_store import DiskChunkStore
from ring.codec import encode
from ring.collector import Collector
from ring.filesystem import RealFileSystem
from ring.record import FIRST_RECORD_OFFSET
from ring.store_changes import StoreLimits
from tests.fakes.ring_nodes import FixedView, LiveSet

BLOCK_BYTES = 512
"""What `st_blocks` counts in, whatever the file system's blocks are (stat(2))."""

EXTENTS_BYTES = 16 * 1024
"""What a file system may need for one volume to remember where its holes are."""


def _allocated(directory: Path) -> int:
    return sum(path.stat().st_blocks * BLOCK_BYTES for path in directory.glob("*.volume"))


async def test_collected_chunks_free_their_blocks(tmp_path: Path) -> None:
    """Of every volume nothing but its header stays allocated once nothing is referenced; and as
    long as some chunks are, no more than theirs."""
    directory = tmp_path / "volumes"
    noise = random.Random(1)
    with ThreadPoolExecutor(2) as workers:
        store = DiskChunkStore(
            filesystem=RealFileSystem(),
            directory=str(directory),
            index_path=str(tmp_path / "index.sqlite"),
            workers=workers,
            pool=BufferPool(64 * 1024 * 1024),
            limits=StoreLimits(volume_size=2_000_000, reserve=0),
        )
        await store.start()
        store.set_touch_floor(0)
        view, live = FixedView(), LiveSet()
        job = Collector(store=store, view=view, live=live, workers=workers)

        async def collected(generation: int) -> None:
            await store.wait_indexed()
            view.number = generation
            while await job.work() != collector.IDLE_SECONDS:
                pass

        chunk_ids: list[bytes] = []
        for _ in range(60):
            content = noise.randbytes(noise.choice([700, 30_000, 200_000]))
            chunk_id = blake3(content).digest()
            # Twice, as a deduplicating upload does: that takes no more space.
            for touch in (0, 1):
                await store.put(chunk_id, encode(memoryview(content)), touch=touch)
            chunk_ids.append(chunk_id)
        live.chunks.update(chunk_ids[::4])
        await collected(2)
        assert store.statistics().chunks == 60, "two generations have not passed since the touches"
        full = _allocated(directory)
        assert full >= store.statistics().allocated_bytes

        await collected(3)
        left = store.statistics()
        assert left.chunks == len(live.chunks)
        headers = left.volumes * (FIRST_RECORD_OFFSET + EXTENTS_BYTES)
        assert left.volumes > 2
        assert headers < full // 20
        assert _allocated(directory) <= left.allocated_bytes + headers

        live.chunks.clear()
        await collected(4)
        assert store.statistics().allocated_bytes == 0
        assert _allocated(directory) <= headers
        await store.close()
