"""The chunks of one node, on disk.

What `put` has acknowledged survives a power cut; what `get` returns has been verified; what is
damaged is quarantined and never served. Chunks lie in append-only volumes (`ring/volume.py`) which
an index (`ring/chunk_index.py`) finds them in. One thread changes them (`ring/store_writer.py`),
worker threads read and verify (`ring/chunk_reader.py`), and this class, on the event loop, brings
those together. `decisions/0030-chunk-volumes.md` tells why it is made this way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from itertools import islice
from typing import TypeVar

from ring.buffers import BufferPool
from ring.chunk_catalog import ChunkCatalog
from ring.chunk_index import ChunkIndex, IndexRow, remove_index
from ring.chunk_reader import PARTIAL_READ_MINIMUM, ChunkReader, UnsoundError
from ring.codec import verify
from ring.errors import (
    ChunkDamagedError,
    ChunkNotFoundError,
    ChunkRejectedError,
    IndexDamagedError,
    StoreFailedError,
    StoreFullError,
    StoreOverloadedError,
)
from ring.filesystem import FileSystem
from ring.interfaces import (
    BLOCK_SIZE,
    CHUNK_ID_SIZE,
    Checksums,
    ChunkRow,
    ChunkStat,
    Codec,
    Encoded,
    PartitionDigest,
    PutOutcome,
    StoredContent,
    StoreStatistics,
)
from ring.record import DIRECT_PAYLOAD_MINIMUM, RECORD_SIZE_MAX, align
from ring.store_changes import NewRecord, StoreChanges, StoreLimits
from ring.store_recovery import Recovered, open_index, prepare_directory, recover
from ring.store_scrub import StoreScrub
from ring.store_writer import StoreWriter
from ring.touches import Touches

INLINE_HASH_LIMIT = 64 * 1024
"""Plain bytes up to this are hashed on the event loop: ten microseconds, less than a thread's
round trip takes."""

INLINE_STAT_LIMIT = 16
"""Chunks looked up on the event loop: microseconds each, but some milliseconds where a page of the
index has to come from the disk."""

HEADERS_AT_ONCE = 64
"""Record headers read in one go in a worker thread: half a second on a slow disk."""

_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


class DiskChunkStore:
    """A `ChunkStore` in `directory` of `filesystem`; its index is the SQLite file `index_path`.

    `workers` runs reads and hashing; `pool` lends the buffers that large reads go into.
    `on_failure` is called on the event loop when the disk failed and the store takes no more
    changes; `on_damage` with the id of each chunk that is quarantined, so that it is healed.
    """

    def __init__(
        self,
        *,
        filesystem: FileSystem,
        directory: str,
        index_path: str,
        workers: Executor,
        pool: BufferPool,
        limits: StoreLimits | None = None,
        on_failure: Callable[[StoreFailedError], None] | None = None,
        on_damage: Callable[[bytes], None] | None = None,
    ) -> None:
        self._filesystem = filesystem
        self._directory = directory
        self._index_path = index_path
        self._workers = workers
        self._pool = pool
        self._limits = limits if limits is not None else StoreLimits()
        self._on_failure = on_failure if on_failure is not None else _ignore
        self._on_damage = on_damage if on_damage is not None else _ignore
        self._in_flight: dict[bytes, asyncio.Future[None]] = {}
        self._damage_found = 0
        self._is_index_made = False
        self.is_index_new = False
        """The start has built the index from the volumes: which copies had been found bad is not
        known any more."""

    async def start(self) -> None:
        """Recover what is there. Raises StoreFailedError where the directory is of no use."""
        self._loop = asyncio.get_running_loop()
        recovered = await asyncio.to_thread(self._open)
        self._volumes = recovered.volumes
        self._damage_found = recovered.damage_found
        self.is_index_new = self._is_index_made and bool(recovered.volumes)
        self._reader = ChunkReader(self._volumes)
        self._catalog = ChunkCatalog(self._index, Touches())
        self._changes = StoreChanges(
            filesystem=self._filesystem,
            directory=self._directory,
            limits=self._limits,
            index=self._index,
            catalog=self._catalog,
            volumes=self._volumes,
            current=recovered.current,
            end=recovered.end,
        )
        self._writer = StoreWriter(self._changes, on_failure=self._on_failure)
        self._writer.start()
        self.scrub = StoreScrub(
            filesystem=self._filesystem,
            index=self._index,
            volumes=self._volumes,
            reader=self._reader,
            writer=self._writer,
            in_worker=self._in_worker,
            quarantine=self._quarantine,
            on_damage=self._on_damage,
        )

    def _open(self) -> Recovered:
        filesystem, directory = self._filesystem, self._directory
        try:
            prepare_directory(filesystem, directory)
            self._index = open_index(self._index_path)
            self._is_index_made = not self._index.volumes()
            try:
                return recover(filesystem, directory, self._index)
            except IndexDamagedError as error:
                _log.warning("%s; it is built anew from the volumes", error)
                self._index.close()
                remove_index(self._index_path)
                self._is_index_made = True
                self._index = ChunkIndex(self._index_path)
                return recover(filesystem, directory, self._index)
        except (OSError, StoreFullError) as error:
            raise StoreFailedError(f"the chunk store in {directory}: {error}") from error

    async def close(self) -> None:
        """Work off what was asked for and close the files. No call may be under way or follow."""
        await self._writer.stop()
        self._index.close()
        for volume in [*self._volumes.values(), *self._changes.abandoned]:
            volume.close()

    # --- writing -------------------------------------------------------------------------------

    async def put(self, chunk_id: bytes, content: Encoded, *, touch: int) -> PutOutcome:
        """See `ChunkStore.put`."""
        checksums = await self._checksums(chunk_id, content)
        while True:
            in_flight = self._in_flight.get(chunk_id)
            if in_flight is not None:
                # Its payload was verified as ours was, so its durability is ours.
                await asyncio.wait((in_flight,))
                in_flight.result()
            row = self._catalog.find(chunk_id)
            if row is None or row.quarantined:
                if chunk_id in self._in_flight:
                    continue
                await self._write(NewRecord(content, checksums, touch))
                return PutOutcome.WRITTEN
            if not await self._has_sound_header(row):
                await self._quarantine(row, "its record header is bad")
            elif self._catalog.confirm(row, touch):
                return PutOutcome.EXISTED

    async def _checksums(self, chunk_id: bytes, content: Encoded) -> Checksums:
        if content.checksums is None:
            if content.codec == Codec.RAW and content.plain_length <= INLINE_HASH_LIMIT:
                return verify(chunk_id, content)
            return await self._uninterrupted(self._in_worker(partial(verify, chunk_id, content)))
        if content.checksums.chunk_id != chunk_id or len(chunk_id) != CHUNK_ID_SIZE:
            raise ChunkRejectedError(chunk_id, "its checksums are of another chunk")
        return content.checksums

    async def _write(self, record: NewRecord) -> None:
        chunk_id = record.checksums.chunk_id
        future = self._writer.write(record)
        self._in_flight[chunk_id] = future
        # Added first, so it runs before anybody who waits for the future goes on.
        future.add_done_callback(lambda _: self._in_flight.pop(chunk_id, None))
        await self._uninterrupted(future)

    async def touch(self, chunk_ids: Sequence[bytes], *, touch: int) -> list[bool]:
        """See `ChunkStore.touch`."""
        return await self.confirm([(chunk_id, touch) for chunk_id in chunk_ids])

    async def confirm(self, touches: Sequence[tuple[bytes, int]]) -> list[bool]:
        """See `ChunkStore.confirm`."""
        highest: dict[bytes, int] = {}
        for chunk_id, touch in touches:
            highest[chunk_id] = max(touch, highest.get(chunk_id, 0))
        confirmed: set[bytes] = set()
        for batch in _batches(highest, HEADERS_AT_ONCE):
            sound, unsound = await self._in_worker(partial(self._confirm, batch))
            confirmed |= sound
            for row in unsound:
                await self._quarantine(row, "its record header is bad")
        return [chunk_id in confirmed for chunk_id, _ in touches]

    def _confirm(self, touches: Mapping[bytes, int]) -> tuple[set[bytes], list[IndexRow]]:
        """Worker thread: what was confirmed, and the rows whose record headers are bad."""
        confirmed: set[bytes] = set()
        unsound: list[IndexRow] = []
        for chunk_id, row in self._catalog.find_all(list(touches)).items():
            if row.quarantined:
                continue
            if not self._is_header_sound(row):
                unsound.append(row)
            elif self._catalog.confirm(row, touches[chunk_id]):
                confirmed.add(chunk_id)
        return confirmed, unsound

    async def delete(self, chunk_id: bytes, *, unless: Callable[[ChunkRow], bool]) -> bool:
        """See `ChunkStore.delete`."""
        return await self._writer.delete(chunk_id, unless)

    def set_touch_floor(self, generation: int) -> None:
        """See `ChunkStore.set_touch_floor`."""
        self._catalog.raise_floor(generation)

    # --- reading -------------------------------------------------------------------------------

    async def get(
        self,
        chunk_id: bytes,
        *,
        start: int = 0,
        end: int | None = None,
        pool: BufferPool | None = None,
    ) -> StoredContent:
        """See `ChunkStore.get`."""

        async def read(row: IndexRow, from_disk: bool) -> memoryview:
            stop = row.plain_length if end is None else min(end, row.plain_length)
            return await self._read(row, min(start, stop), stop, from_disk=from_disk, pool=pool)

        if start < 0 or (end is not None and end < start):
            raise ValueError(f"no range: {start} to {end}")
        row, data = await self._read_soundly(chunk_id, read)
        return StoredContent(data=data, plain_length=row.plain_length)

    async def get_encoded(self, chunk_id: bytes, *, pool: BufferPool | None = None) -> Encoded:
        """See `ChunkStore.get_encoded`."""

        async def read(row: IndexRow, from_disk: bool) -> memoryview:
            return await self._read_large(
                self._reader.read_payload_into,
                row,
                0,
                row.payload_length,
                from_disk=from_disk,
                pool=pool,
            )

        row, payload = await self._read_soundly(chunk_id, read)
        return Encoded(payload=payload, codec=row.codec, plain_length=row.plain_length)

    async def _read_soundly(
        self,
        chunk_id: bytes,
        read: Callable[[IndexRow, bool], Awaitable[memoryview]],
    ) -> tuple[IndexRow, memoryview]:
        """Read with `read`; where that is unsound find out why, and quarantine if need be (D3)."""
        while True:
            row = self._catalog.find(chunk_id)
            if row is None:
                raise ChunkNotFoundError(chunk_id)
            if row.quarantined:
                raise ChunkDamagedError(chunk_id, "it is quarantined")
            for from_disk in (False, True):
                try:
                    return row, await read(row, from_disk)
                except UnsoundError as error:
                    detail = str(error)
            try:
                # It may have been deleted under the reader's hands: this looks again.
                is_here = await self._quarantine(row, detail)
            except (StoreFailedError, StoreFullError, StoreOverloadedError):
                # It can't be marked; it is no less damaged.
                is_here = True
            if is_here:
                raise ChunkDamagedError(chunk_id, detail)

    async def _read(
        self, row: IndexRow, start: int, end: int, *, from_disk: bool, pool: BufferPool | None
    ) -> memoryview:
        """Return verified plaintext by the cheapest way for this range."""
        if row.codec == Codec.RAW and row.plain_length >= PARTIAL_READ_MINIMUM:
            first, last = start // BLOCK_SIZE, max(start, end - 1) // BLOCK_SIZE
            count = last - first + 1
            if count * BLOCK_SIZE * 2 <= row.plain_length:
                blocks = await self._in_worker(
                    partial(self._reader.read_blocks, row, first, count, from_disk=from_disk)
                )
                base = first * BLOCK_SIZE
                return memoryview(blocks)[start - base : end - base].toreadonly()
        if row.plain_length < DIRECT_PAYLOAD_MINIMUM:
            data = await self._in_worker(partial(self._reader.read_small, row, from_disk=from_disk))
            return memoryview(data)[start:end].toreadonly()
        return await self._read_large(
            self._reader.read_into, row, start, end, from_disk=from_disk, pool=pool
        )

    async def _read_large(
        self,
        read_into: Callable[..., None],
        row: IndexRow,
        start: int,
        end: int,
        *,
        from_disk: bool,
        pool: BufferPool | None,
    ) -> memoryview:
        """Read into a pooled buffer, which returns to the pool with the last view on it."""
        size = align(max(row.plain_length, row.payload_length))
        lease = await (self._pool if pool is None else pool).lease(size)
        try:
            await self._uninterrupted(
                self._in_worker(partial(read_into, row, lease.view, from_disk=from_disk))
            )
        except BaseException:
            lease.release()
            raise
        return lease.lend(start, end)

    async def stat(self, chunk_ids: Sequence[bytes]) -> list[ChunkStat | None]:
        """See `ChunkStore.stat`."""
        if len(chunk_ids) <= INLINE_STAT_LIMIT:
            rows = self._catalog.find_all(chunk_ids)
        else:
            rows = await self._in_worker(partial(self._catalog.find_all, chunk_ids))
        return [self._stat(rows.get(chunk_id)) for chunk_id in chunk_ids]

    def _stat(self, row: IndexRow | None) -> ChunkStat | None:
        if row is None:
            return None
        return ChunkStat(
            plain_length=row.plain_length,
            stored_length=row.payload_length,
            codec=row.codec,
            quarantined=row.quarantined,
            touch=self._catalog.touch_of(row),
        )

    async def wait_indexed(self) -> None:
        """See `ChunkStore.wait_indexed`."""
        await self._writer.update_index()

    def partition_counts(self) -> list[int]:
        """See `ChunkStore.partition_counts`."""
        return self._index.partition_counts()

    def ids(self, after: bytes, limit: int, *, below: bytes | None = None) -> list[bytes]:
        """See `ChunkStore.ids`."""
        return self._index.ids(after, limit, below=below)

    def quarantined(self, limit: int, *, after: bytes = b"") -> list[bytes]:
        """See `ChunkStore.quarantined`."""
        return self._index.quarantined(limit, after=after)

    def partition_digests(self) -> list[PartitionDigest]:
        """See `ChunkStore.partition_digests`."""
        return self._index.partition_digests()

    async def recount(self, partition: int) -> bool:
        """See `ChunkStore.recount`."""
        # The writer thread is asked only where a look without it found something.
        exact = await self._in_worker(partial(self._index.is_digest_exact, partition))
        return not exact and await self._writer.recount(partition)

    def statistics(self) -> StoreStatistics:
        """See `ChunkStore.statistics`."""
        totals, counters = self._index.totals(), self._changes.counters
        return StoreStatistics(
            chunks=totals.chunks,
            plain_bytes=totals.plain_bytes,
            stored_bytes=totals.stored_bytes,
            allocated_bytes=totals.allocated_bytes,
            quarantined=totals.quarantined,
            volumes=len(self._volumes),
            queue_depth=self._writer.queue_depth,
            groups=counters.groups,
            records_written=counters.records_written,
            bytes_written=counters.bytes_written,
            chunks_deleted=counters.chunks_deleted,
            damage_found=self._damage_found + counters.records_quarantined,
            touch_floor=self._catalog.touch_floor,
            writable=self._writer.failure is None,
            full=self._changes.room() < RECORD_SIZE_MAX,
        )

    # --- within --------------------------------------------------------------------------------

    async def _has_sound_header(self, row: IndexRow) -> bool:
        return await self._in_worker(partial(self._is_header_sound, row))

    def _is_header_sound(self, row: IndexRow) -> bool:
        for from_disk in (False, True):
            try:
                self._reader.check_header(row, from_disk=from_disk)
                return True
            except UnsoundError:
                continue
        return False

    async def _quarantine(self, row: IndexRow, detail: str) -> bool:
        """Mark a damaged copy; False where the chunk has moved or gone meanwhile."""
        if not await self._writer.quarantine(row):
            return False
        _log.error("chunk %s is damaged: %s", row.chunk_id.hex(), detail)
        self._on_damage(row.chunk_id)
        return True

    def _in_worker(self, function: Callable[[], _Result]) -> asyncio.Future[_Result]:
        return self._loop.run_in_executor(self._workers, function)

    @staticmethod
    async def _uninterrupted(future: asyncio.Future[_Result]) -> _Result:
        """Wait for a future even if cancelled, and only then be cancelled.

        A thread is using the caller's buffer until it is done; the caller may reuse it after that.
        """
        interruption: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait((future,))
            except asyncio.CancelledError as error:
                interruption = error
        if interruption is not None:
            future.exception()
            raise interruption
        return future.result()


def _batches(touches: Mapping[bytes, int], size: int) -> Iterator[dict[bytes, int]]:
    items = iter(touches.items())
    while batch := dict(islice(items, size)):
        yield batch


def _ignore(_: object) -> None:
    """Nobody asked to be told."""
