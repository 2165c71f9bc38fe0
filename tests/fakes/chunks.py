"""A `Replicator` of one dictionary: chunks in memory, with the failures a test asks for.

The buffers are the real pool (`ring/buffers.py`), so that a lease released twice, or never, shows.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3

from ring.buffers import BufferPool, Lease
from ring.errors import ChunkNotFoundError


@dataclass(frozen=True, slots=True)
class MemoryChunkWritten:
    chunk_id: bytes
    length: int
    epoch: int


@dataclass(frozen=True, slots=True)
class MemoryChunksTouched:
    epoch: int
    confirmed: list[bool]


class MemoryChunks:
    """The asynchronous interface of `Replicator`, as docs/architecture.md gives it."""

    def __init__(self) -> None:
        self.contents: dict[bytes, bytes] = {}
        self.epoch = 1
        """Of the acknowledgements to come."""
        self.fail_writes: list[Exception] = []
        """Raised, one each, by the next writes; their leases are released."""
        self.fail_reads: list[Exception] = []
        self.gate: asyncio.Event | None = None
        """While it is there and not set, writes and reads wait for it."""
        self.forgets = False
        """Whether what is written is gone at once, as if collected."""
        self.unconfirmed: set[bytes] = set()
        """Chunks that can be read and are not where they belong: touches don't find them."""
        self.touches: list[int] = []
        """With which generation each touch came, in order."""
        self.generations: list[int] = []
        """With which generation each write came, in order."""
        self.writes_now = 0
        self.writes_most = 0
        """Writes in flight at once, at most so far."""
        self.reads: Counter[bytes] = Counter()
        self.reads_now = 0
        self.pool: BufferPool | None = None
        """Where reads take their buffers from, as the real ones do; fresh memory where None."""

    async def write(self, lease: Lease, length: int, *, generation: int) -> MemoryChunkWritten:
        self.writes_now += 1
        self.writes_most = max(self.writes_most, self.writes_now)
        self.generations.append(generation)
        epoch = self.epoch
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.fail_writes:
                raise self.fail_writes.pop(0)
            contents = bytes(lease.view[:length])
        finally:
            self.writes_now -= 1
            lease.release()
        chunk_id = blake3(contents).digest()
        if not self.forgets:
            self.contents[chunk_id] = contents
        self.unconfirmed.discard(chunk_id)
        return MemoryChunkWritten(chunk_id, length, epoch)

    async def touch(self, chunk_ids: Sequence[bytes], *, generation: int) -> MemoryChunksTouched:
        self.touches.append(generation)
        there = self.contents.keys() - self.unconfirmed
        return MemoryChunksTouched(self.epoch, [chunk_id in there for chunk_id in chunk_ids])

    async def read(
        self, chunk_id: bytes, *, length: int, start: int = 0, end: int | None = None
    ) -> memoryview:
        self.reads[chunk_id] += 1
        self.reads_now += 1
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.fail_reads:
                raise self.fail_reads.pop(0)
        finally:
            self.reads_now -= 1
        contents = self.contents.get(chunk_id)
        if contents is None:
            raise ChunkNotFoundError(chunk_id)
        assert len(contents) == length, "a reference has another length than its chunk"
        if self.pool is None:
            return memoryview(contents)[start:end].toreadonly()
        lease = await self.pool.lease(length)
        lease.view[:length] = contents
        return lease.lend(start, length if end is None else end)
