"""What stopped nodes hold on their disks: their states side by side, every copy of every chunk.

Opened with the product's own classes once the processes have ended, because only then is nothing
left to a cache, a retry or another node.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from metadata_raft.digests import state_digest
from metadata_raft.raft_thread import STATE_NAME
from metadata_raft.readers import ReaderPool
from node.data_directory import read_identity
from ring.buffers import BufferPool
from ring.chunk_store import DiskChunkStore
from ring.errors import ChunkDamagedError, ChunkNotFoundError
from ring.filesystem import RealFileSystem
from ring.placement import Ring, build_ring

_READS_AT_ONCE = 4
_IDS_LIMIT = 4096


def table_digests(data: Path) -> dict[str, str]:
    """Return the digest of every replicated table of a stopped node, by the table's name."""
    return dict(state_digest(str(data / "raft" / STATE_NAME)).tables)


def referenced_chunks(data: Path) -> list[bytes]:
    """Return the ids of all chunks that the state of a stopped node refers to."""
    with sqlite3.connect(f"file:{data / 'raft' / STATE_NAME}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT chunk_id FROM chunks ORDER BY chunk_id").fetchall()
    connection.close()
    return [chunk_id for (chunk_id,) in rows]


def current_ring(data: Path) -> Ring:
    """Return the ring of the newest epoch in the state of a stopped node."""
    readers = ReaderPool(str(data / "raft" / STATE_NAME))
    try:
        with readers.snapshot() as snapshot:
            return build_ring(snapshot.membership(None))
    finally:
        readers.close()


async def bad_copies(data: Path, chunk_ids: Iterable[bytes]) -> list[str]:
    """Read every one of the chunks from a stopped node's disk; return what is wrong, by chunk."""
    problems: list[str] = []
    left = list(chunk_ids)

    async with _opened(data) as store:

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
    return problems


async def misplaced_copies(data: Path) -> list[str]:
    """Compare a stopped node's chunks with what its state wants: all that is referenced and owned
    here, whole, and nothing else. Returns what is wrong, by chunk."""
    identity = read_identity(str(data), RealFileSystem())
    assert identity is not None
    ring = current_ring(data)
    wanted = {
        chunk_id
        for chunk_id in referenced_chunks(data)
        if identity.node_id in ring.owners(chunk_id)
    }
    async with _opened(data) as store:
        held = set(_ids(store))
    problems = [f"{chunk_id.hex()}: of no use here" for chunk_id in sorted(held - wanted)]
    return problems + await bad_copies(data, sorted(wanted))


def _ids(store: DiskChunkStore) -> Iterator[bytes]:
    """All chunks of a store, quarantined ones too."""
    yield from store.quarantined(_IDS_LIMIT)
    after = b""
    while page := store.ids(after, _IDS_LIMIT):
        yield from page
        after = page[-1]


@contextlib.asynccontextmanager
async def _opened(data: Path) -> AsyncIterator[DiskChunkStore]:
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        store = DiskChunkStore(
            filesystem=RealFileSystem(),
            directory=str(data / "chunks"),
            index_path=str(data / "chunks" / "index.db"),
            workers=workers,
            pool=BufferPool(),
        )
        await store.start()
        try:
            yield store
        finally:
            await store.close()
