"""What stopped nodes hold on their disks: their states side by side, every copy of every chunk.

Opened with the product's own classes once the processes have ended, because only then is nothing
left to a cache, a retry or another node.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from metadata_raft.digests import state_digest
from metadata_raft.raft_thread import STATE_NAME
from ring.buffers import BufferPool
from ring.chunk_store import DiskChunkStore
from ring.errors import ChunkDamagedError, ChunkNotFoundError
from ring.filesystem import RealFileSystem

_READS_AT_ONCE = 4


def table_digests(data: Path) -> dict[str, str]:
    """Return the digest of every replicated table of a stopped node, by the table's name."""
    return dict(state_digest(str(data / "raft" / STATE_NAME)).tables)


def referenced_chunks(data: Path) -> list[bytes]:
    """Return the ids of all chunks that the state of a stopped node refers to."""
    with sqlite3.connect(f"file:{data / 'raft' / STATE_NAME}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT chunk_id FROM chunks ORDER BY chunk_id").fetchall()
    connection.close()
    return [chunk_id for (chunk_id,) in rows]


async def bad_copies(data: Path, chunk_ids: Iterable[bytes]) -> list[str]:
    """Read every one of the chunks from a stopped node's disk; return what is wrong, by chunk."""
    problems: list[str] = []
    left = list(chunk_ids)
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        store = DiskChunkStore(
            filesystem=RealFileSystem(),
            directory=str(data / "chunks"),
            index_path=str(data / "chunks" / "index.db"),
            workers=workers,
            pool=BufferPool(),
        )
        await store.start()

        async def read() -> None:
            while left:
                chunk_id = left.pop()
                try:
                    await store.get(chunk_id)
                except (ChunkNotFoundError, ChunkDamagedError) as error:
                    problems.append(f"{chunk_id.hex()}: {error}")

        async with asyncio.TaskGroup() as group:
            for _ in range(_READS_AT_ONCE):
                group.create_task(read())
        await store.close()
    return problems
