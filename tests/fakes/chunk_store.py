"""A `ChunkStore` in memory: the same promises as the one on disk, as far as one process can tell.

For tests of what stands above the store. `damage` makes a copy bad, `hold_writes` keeps writes
from becoming durable until released.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ring.buffers import BufferPool
from ring.codec import decode, verify
from ring.errors import (
    ChunkDamagedError,
    ChunkNotFoundError,
    ChunkRejectedError,
    StoreFailedError,
    StoreFullError,
)
from ring.interfaces import (
    ChunkRow,
    ChunkStat,
    Encoded,
    PartitionDigest,
    PutOutcome,
    StoredContent,
    StoreStatistics,
)
from ring.members import PARTITION_COUNT


@dataclass(frozen=True)
class _Chunk:
    content: Encoded
    touch: int
    quarantined: bool = False
    damaged: bool = False


class MemoryChunkStore:
    """Holds at most `quota_bytes` of payloads. `failure` makes every change raise."""

    def __init__(self, *, quota_bytes: int | None = None) -> None:
        self.failure: str | None = None
        self.on_damage: Callable[[bytes], None] | None = None
        self.quota_bytes = quota_bytes
        self._chunks: dict[bytes, _Chunk] = {}
        self._floor: int | None = None
        self._gate = asyncio.Event()
        self._gate.set()
        self._reads_gate = asyncio.Event()
        self._reads_gate.set()
        self.reads_begun = 0
        self._in_flight: dict[bytes, asyncio.Future[None]] = {}
        self._judged: set[bytes] = set()
        """Being asked about, and not confirmed since."""
        self._damage_found = 0
        self._deleted = 0
        self._written = 0
        self._bytes_written = 0

    # --- what tests do to it -------------------------------------------------------------------

    def damage(self, chunk_id: bytes) -> None:
        """Let the copy be found bad by whoever reads it next."""
        self._chunks[chunk_id] = replace(self._chunks[chunk_id], damaged=True)

    def hold_reads(self) -> None:
        """Let reads wait, as on a disk that hangs."""
        self._reads_gate.clear()

    def release_reads(self) -> None:
        self._reads_gate.set()

    def hold_writes(self) -> None:
        self._gate.clear()

    def release_writes(self) -> None:
        self._gate.set()

    # --- the interface -------------------------------------------------------------------------

    async def put(self, chunk_id: bytes, content: Encoded, *, touch: int) -> PutOutcome:
        if content.checksums is None:
            verify(chunk_id, content)
        elif content.checksums.chunk_id != chunk_id:
            raise ChunkRejectedError(chunk_id, "its checksums are of another chunk")
        while True:
            in_flight = self._in_flight.get(chunk_id)
            if in_flight is not None:
                await asyncio.wait((in_flight,))
                in_flight.result()
                continue
            chunk = self._chunks.get(chunk_id)
            if chunk is not None and chunk.damaged and not chunk.quarantined:
                self._quarantine(chunk_id)
                continue
            if chunk is not None and not chunk.quarantined:
                self._raise(chunk_id, touch)
                return PutOutcome.EXISTED
            await self._write(chunk_id, content, touch)
            return PutOutcome.WRITTEN

    async def _write(self, chunk_id: bytes, content: Encoded, touch: int) -> None:
        self._refuse_if_failed()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._in_flight[chunk_id] = future
        interruption: asyncio.CancelledError | None = None
        while not self._gate.is_set():
            try:
                await self._gate.wait()
            except asyncio.CancelledError as error:
                interruption = error
        del self._in_flight[chunk_id]
        used = self._used()
        if self.quota_bytes is not None and used + len(content.payload) > self.quota_bytes:
            full = StoreFullError(f"{used} of {self.quota_bytes} bytes are used")
            future.set_exception(full)
            future.exception()
            raise full
        damaged = self._chunks.get(chunk_id)
        if damaged is not None:
            touch = max(touch, damaged.touch)
        payload = memoryview(bytes(content.payload))
        self._chunks[chunk_id] = _Chunk(replace(content, payload=payload), touch)
        self._written += 1
        self._bytes_written += len(payload)
        future.set_result(None)
        if interruption is not None:
            raise interruption

    async def get(
        self,
        chunk_id: bytes,
        *,
        start: int = 0,
        end: int | None = None,
        pool: BufferPool | None = None,
    ) -> StoredContent:
        if start < 0 or (end is not None and end < start):
            raise ValueError(f"no range: {start} to {end}")
        await self._reading()
        content = self._sound(chunk_id).content
        plaintext = decode(content.payload, content.codec, content.plain_length)
        data = memoryview(plaintext)[start : content.plain_length if end is None else end]
        return StoredContent(data=data.toreadonly(), plain_length=content.plain_length)

    async def get_encoded(self, chunk_id: bytes, *, pool: BufferPool | None = None) -> Encoded:
        await self._reading()
        return replace(self._sound(chunk_id).content, checksums=None)

    async def _reading(self) -> None:
        self.reads_begun += 1
        if not self._reads_gate.is_set():
            await self._reads_gate.wait()

    async def stat(self, chunk_ids: Sequence[bytes]) -> list[ChunkStat | None]:
        return [self._stat(chunk_id) for chunk_id in chunk_ids]

    async def touch(self, chunk_ids: Sequence[bytes], *, touch: int) -> list[bool]:
        return await self.confirm([(chunk_id, touch) for chunk_id in chunk_ids])

    async def confirm(self, touches: Sequence[tuple[bytes, int]]) -> list[bool]:
        await asyncio.sleep(0)
        found: list[bool] = []
        for chunk_id, touch in touches:
            chunk = self._chunks.get(chunk_id)
            is_here = chunk is not None and not chunk.quarantined
            found.append(is_here)
            if is_here:
                self._raise(chunk_id, touch)
        return found

    async def delete(self, chunk_id: bytes, *, unless: Callable[[ChunkRow], bool]) -> bool:
        self._refuse_if_failed()
        chunk = self._chunks.get(chunk_id)
        if chunk is None or self._floor is None:
            return False
        row = ChunkRow(
            chunk_id=chunk_id,
            plain_length=chunk.content.plain_length,
            stored_length=len(chunk.content.payload),
            quarantined=chunk.quarantined,
            touch=max(self._floor, chunk.touch),
        )
        # As in the other one, whose writer thread asks while this one's loop goes on.
        self._judged.add(chunk_id)
        await asyncio.sleep(0)
        keep = await asyncio.to_thread(unless, row)
        if keep or chunk_id not in self._judged or self._chunks.get(chunk_id) != chunk:
            return False
        del self._chunks[chunk_id]
        self._deleted += 1
        return True

    def set_touch_floor(self, generation: int) -> None:
        self._floor = max(self._floor or 0, generation)

    async def wait_indexed(self) -> None:
        """There is no index to wait for."""

    def ids(self, after: bytes, limit: int, *, below: bytes | None = None) -> list[bytes]:
        return [
            each for each in self._healthy() if each > after and (below is None or each < below)
        ][:limit]

    def quarantined(self, limit: int, *, after: bytes = b"") -> list[bytes]:
        found = (each for each, chunk in self._chunks.items() if chunk.quarantined)
        return sorted(each for each in found if each > after)[:limit]

    def partition_counts(self) -> list[int]:
        counts = [0] * PARTITION_COUNT
        for chunk_id, chunk in self._chunks.items():
            counts[int.from_bytes(chunk_id[:2], "big") >> 4] += not chunk.quarantined
        return counts

    def partition_digests(self) -> list[PartitionDigest]:
        counts, digests = [0] * PARTITION_COUNT, [0] * PARTITION_COUNT
        for chunk_id in self._healthy():
            partition = int.from_bytes(chunk_id, "big") >> (256 - 12)
            counts[partition] += 1
            digests[partition] ^= int.from_bytes(chunk_id, "big")
        return [
            PartitionDigest(count, digest.to_bytes(32, "big"))
            for count, digest in zip(counts, digests, strict=True)
        ]

    async def recount(self, partition: int) -> bool:
        """Digests are computed from what is here: they are never wrong."""
        assert 0 <= partition < PARTITION_COUNT
        return False

    def statistics(self) -> StoreStatistics:
        healthy = [self._chunks[chunk_id].content for chunk_id in self._healthy()]
        stored = sum(len(content.payload) for content in healthy)
        return StoreStatistics(
            chunks=len(healthy),
            plain_bytes=sum(content.plain_length for content in healthy),
            stored_bytes=stored,
            allocated_bytes=self._used(),
            quarantined=len(self._chunks) - len(healthy),
            volumes=1,
            queue_depth=len(self._in_flight),
            groups=self._written,
            records_written=self._written,
            bytes_written=self._bytes_written,
            chunks_deleted=self._deleted,
            damage_found=self._damage_found,
            touch_floor=self._floor,
            writable=self.failure is None,
            full=self.quota_bytes is not None and self._used() >= self.quota_bytes,
        )

    # --- within --------------------------------------------------------------------------------

    def _used(self) -> int:
        return sum(len(chunk.content.payload) for chunk in self._chunks.values())

    def _healthy(self) -> list[bytes]:
        return sorted(each for each, chunk in self._chunks.items() if not chunk.quarantined)

    def _sound(self, chunk_id: bytes) -> _Chunk:
        chunk = self._chunks.get(chunk_id)
        if chunk is None:
            raise ChunkNotFoundError(chunk_id)
        if chunk.damaged and not chunk.quarantined:
            self._quarantine(chunk_id)
        if chunk.damaged:
            raise ChunkDamagedError(chunk_id, "it is quarantined")
        return chunk

    def _quarantine(self, chunk_id: bytes) -> None:
        self._chunks[chunk_id] = replace(self._chunks[chunk_id], quarantined=True)
        self._damage_found += 1
        if self.on_damage is not None:
            self.on_damage(chunk_id)

    def _raise(self, chunk_id: bytes, touch: int) -> None:
        self._judged.discard(chunk_id)
        chunk = self._chunks[chunk_id]
        self._chunks[chunk_id] = replace(chunk, touch=max(chunk.touch, touch))

    def _stat(self, chunk_id: bytes) -> ChunkStat | None:
        chunk = self._chunks.get(chunk_id)
        if chunk is None:
            return None
        return ChunkStat(
            plain_length=chunk.content.plain_length,
            stored_length=len(chunk.content.payload),
            codec=chunk.content.codec,
            quarantined=chunk.quarantined,
            touch=None if self._floor is None else max(self._floor, chunk.touch),
        )

    def _refuse_if_failed(self) -> None:
        if self.failure is not None:
            raise StoreFailedError(self.failure)
