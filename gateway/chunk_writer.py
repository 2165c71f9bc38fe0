"""From a stream of bytes to chunks in the ring, and to what a `PutFile` command needs of them.

The stream is copied once, into leased buffers; each full buffer is written while the next one
fills, a few at a time, so that an upload's memory is bounded and its order kept. What is longer
than a segment, or outlasts a generation, is staged segment by segment (rules M2, D4): a manifest
never stands whole in memory, and no reference is committed under a generation that has passed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from typing import Any, NamedTuple

from blake3 import blake3

from gateway.backends import Backends
from gateway.interfaces import ChunkWritten
from gateway.restaging import submit_references
from metadata_raft.chunk_references import pack
from metadata_raft.commands import (
    INLINE_SIZE_LIMIT,
    SEGMENT_CHUNK_LIMIT,
    AbortUpload,
    StageSegment,
)
from metadata_raft.request_ids import new_request_id
from ring.buffers import Lease

WRITES_IN_FLIGHT = 3
"""Chunks of one upload on their way to the ring, besides the one that fills: enough to cover the
sync of a disk at the speed of the network, and eight uploads fit the node's buffers."""


class Staged(NamedTuple):
    """Contents that are durable but not visible yet. Exactly one of the first three is set."""

    inline: bytes | None
    chunks: bytes | None
    upload_id: bytes | None
    size_bytes: int
    digest: bytes
    """BLAKE3-256 of the contents."""
    chunking: int
    generation: int
    oldest_epoch: int


class ChunkWriter:
    """One upload's contents. `feed` it, then `finish`; or `abandon` it at any point.

    `size_bytes` is the expected size where it is known: buffers are then no larger than needed.
    Raises what `Buffers.lease` and `Chunks.write` raise, and ApiError where a segment is refused.
    """

    def __init__(
        self, backends: Backends, *, bucket: str, actor: str, size_bytes: int | None
    ) -> None:
        self._backends = backends
        self._bucket = bucket
        self._actor = actor
        self._expected = size_bytes
        self._chunk_size = backends.settings.chunk_size_bytes
        self.size_bytes = 0
        """Bytes fed so far."""
        # What has come of contents that may still fit the metadata; None once a buffer is leased.
        self._head: bytearray | None = bytearray()
        self._lease: Lease | None = None
        self._filled = 0
        self._dispatched_bytes = 0
        self._writes: deque[asyncio.Task[ChunkWritten]] = deque()
        self._references: list[tuple[bytes, int]] = []
        self._generation = 0
        """Of the present segment: read before its first chunk was written."""
        self._oldest_epoch: int | None = None
        self._upload_id: bytes | None = None
        self._segments_staged = 0
        self._hasher: Any = None
        self._hashing: asyncio.Future[None] | None = None

    async def feed(self, piece: bytes) -> None:
        """Take the next bytes of the contents; returns when there is room for more."""
        self.size_bytes += len(piece)
        if self._head is not None:
            if self.size_bytes <= INLINE_SIZE_LIMIT:
                self._head += piece
                return
            head, self._head = self._head, None
            await self._copy(memoryview(head))
        await self._copy(memoryview(piece))

    async def finish(self) -> Staged:
        """The contents are complete: return once all of them are durable."""
        if self._head is not None:
            contents = bytes(self._head)
            return Staged(contents, None, None, len(contents), blake3(contents).digest(), 0, 0, 0)
        if not self._dispatched_bytes:
            return await self._finish_single()
        await self._dispatch()
        while self._writes:
            await self._settle_oldest()
        assert self._hashing is not None
        await self._hashing
        digest = self._hasher.digest()
        chunks: bytes | None = None
        oldest_epoch = self._oldest_epoch or 0
        if self._upload_id is None:
            chunks = pack(self._references)
        else:
            await self._stage_segment()
        return Staged(
            None,
            chunks,
            self._upload_id,
            self.size_bytes,
            digest,
            self._chunk_size,
            self._generation,
            oldest_epoch,
        )

    def abandon(self) -> None:
        """Let go of everything; what was written is collected when its generation has passed."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None
        for write in self._writes:
            # Not cancelled: a copy under way ends by itself and gives its buffer back.
            self._backends.background.adopt(write)
        self._writes.clear()
        if self._upload_id is not None:
            command = AbortUpload(upload_id=self._upload_id, actor=self._actor)
            self._backends.background.run(self._backends.submit(command))

    async def _finish_single(self) -> Staged:
        """The only chunk: its id is the BLAKE3 of the whole contents, so they are hashed once."""
        lease, self._lease = self._lease, None
        assert lease is not None
        generation = self._backends.metadata.applied().generation
        written = await self._backends.chunks.write(lease, self._filled, generation=generation)
        return Staged(
            None,
            pack([(written.chunk_id, written.length)]),
            None,
            self.size_bytes,
            written.chunk_id,
            self._chunk_size,
            generation,
            written.epoch,
        )

    async def _copy(self, view: memoryview) -> None:
        while view:
            if self._lease is not None and self._filled == self._chunk_size:
                await self._dispatch()
            if self._lease is None:
                self._lease = await self._backends.buffers.lease(self._buffer_size())
                self._filled = 0
            take = min(self._chunk_size - self._filled, len(view))
            self._lease.view[self._filled : self._filled + take] = view[:take]
            self._filled += take
            view = view[take:]

    def _buffer_size(self) -> int:
        if self._expected is None:
            return self._chunk_size
        left = self._expected - self._dispatched_bytes
        # More than was announced may come, and is refused by who counts; it must just fit.
        return self._chunk_size if left <= 0 else min(self._chunk_size, left)

    async def _dispatch(self) -> None:
        """Send the filled buffer on its way, once fewer than `WRITES_IN_FLIGHT` are."""
        generation = self._backends.metadata.applied().generation
        in_segment = len(self._references) + len(self._writes)
        if in_segment and (in_segment == SEGMENT_CHUNK_LIMIT or generation != self._generation):
            while self._writes:
                await self._settle_oldest()
            await self._stage_segment()
            in_segment = 0
        if not in_segment:
            self._generation = generation
        while len(self._writes) >= WRITES_IN_FLIGHT:
            await self._settle_oldest()
        lease, self._lease = self._lease, None
        assert lease is not None
        self._dispatched_bytes += self._filled
        await self._hash(lease, self._filled)
        write = self._backends.chunks.write(lease, self._filled, generation=self._generation)
        self._writes.append(asyncio.ensure_future(write))

    async def _hash(self, lease: Lease, length: int) -> None:
        """Add a chunk to the digest of the whole in a worker thread, in order, one at a time."""
        if self._hasher is None:
            self._hasher = blake3()
        if self._hashing is not None:
            try:
                await self._hashing
            except BaseException:
                lease.release()
                raise
        lease.retain()
        hashing = asyncio.get_running_loop().run_in_executor(
            self._backends.workers, self._hasher.update, lease.view[:length]
        )
        hashing.add_done_callback(lambda _: lease.release())
        self._hashing = hashing

    async def _settle_oldest(self) -> None:
        written = await self._writes.popleft()
        self._references.append((written.chunk_id, written.length))
        if self._oldest_epoch is None or written.epoch < self._oldest_epoch:
            self._oldest_epoch = written.epoch

    async def _stage_segment(self) -> None:
        if self._upload_id is None:
            self._upload_id = secrets.token_bytes(16)
        assert self._oldest_epoch is not None
        command = StageSegment(
            upload_id=self._upload_id,
            actor=self._actor,
            bucket=self._bucket,
            ordinal=self._segments_staged,
            chunks=pack(self._references),
            generation=self._generation,
            oldest_epoch=self._oldest_epoch,
        )
        await submit_references(
            self._backends,
            command,
            lambda each: self._backends.submit_patiently(each, request_id=new_request_id()),
        )
        self._segments_staged += 1
        self._references.clear()
        self._oldest_epoch = None
