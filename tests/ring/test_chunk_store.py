"""The conformance suite on the store on disk, and what only that one has."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ring.buffers import BufferPool
from ring.chunk_store import DiskChunkStore
from ring.filesystem import RealFileSystem
from ring.interfaces import ChunkStore
from ring.store_changes import StoreLimits
from tests.fakes.chunk_store import MemoryChunkStore
from tests.ring.chunk_store_conformance import ChunkStoreConformance


class TestMemoryChunkStore(ChunkStoreConformance):
    @asynccontextmanager
    async def make(self, *, quota_bytes: int | None = None) -> AsyncIterator[ChunkStore]:
        yield MemoryChunkStore(quota_bytes=quota_bytes)

    def damage(self, store: ChunkStore, chunk_id: bytes) -> None:
        assert isinstance(store, MemoryChunkStore)
        store.damage(chunk_id)


class TestDiskChunkStore(ChunkStoreConformance):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> Iterator[None]:
        self.directory = tmp_path
        self.made = 0
        with ThreadPoolExecutor(2) as self.workers:
            yield

    @asynccontextmanager
    async def make(self, *, quota_bytes: int | None = None) -> AsyncIterator[ChunkStore]:
        self.made += 1
        place = self.directory / str(self.made)
        place.mkdir()
        store = DiskChunkStore(
            filesystem=RealFileSystem(),
            directory=str(place / "volumes"),
            index_path=str(place / "index.sqlite"),
            workers=self.workers,
            pool=BufferPool(64 * 1024 * 1024),
            limits=StoreLimits(quota=quota_bytes, reserve=0),
        )
        await store.start()
        yield store
        await store.close()

    def damage(self, store: ChunkStore, chunk_id: bytes) -> None:
        assert isinstance(store, DiskChunkStore)
        row = store._catalog.find(chunk_id)
        assert row is not None
        path = store._volumes[row.volume].path
        position = row.offset + row.payload_start + row.payload_length // 2
        with Path(path).open("r+b", buffering=0) as file:
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ 4]))
            os.fsync(file.fileno())
