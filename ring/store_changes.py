"""What happens to a store's volumes and index when chunks are added, deleted or found damaged.

Synchronous and without threads: `ring/store_writer.py` calls it from the one thread that may change
a store. The order of steps here is what survives a power cut (rules D7, D9):

- append: records, sync, known to the catalog (and acknowledged), later the row in the index;
- delete: row gone and extent in `to_punch`, on disk; hole; sync; extent removed from `to_punch`.

`indexed_up_to` never falls behind an extent in `to_punch`, and space before it is never written
again, so a hole that is punched twice can't hit a newer record.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from ring.chunk_catalog import ChunkCatalog
from ring.chunk_index import (
    ChunkIndex,
    Extent,
    IndexChange,
    IndexRow,
    Transition,
    VolumePosition,
)
from ring.errors import RecordError, StoreFullError
from ring.filesystem import FileSystem
from ring.interfaces import Checksums, ChunkRow, Encoded
from ring.record import FIRST_RECORD_OFFSET, RecordHeader, align, payload_start
from ring.volume import AppendScratch, Volume, volume_numbers

GROUP_BYTES_LIMIT = 32 * 1024 * 1024
"""Bytes of one group: beyond it a sync adds little to the time of the writes, and the first of the
group would wait for the last."""

UNINDEXED_LIMIT = 512
"""Rows that may wait for the index while groups keep coming."""

_log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)


class StoreLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much a store may take. Sizes are in bytes."""

    volume_size: int = 4 * 1024**3
    """A record that would end beyond it starts the next volume."""
    quota: int | None = None
    """What all records may occupy; None: what the disk has."""
    reserve: int = 256 * 1024**2
    """Left free on the disk: deletions, the index and the metadata need room to work."""


@dataclass(frozen=True, slots=True)
class NewRecord:
    """A verified chunk on its way into a volume."""

    content: Encoded
    checksums: Checksums
    touch: int

    @property
    def payload_start(self) -> int:
        return payload_start(len(self.content.payload), self.content.plain_length)

    @property
    def length(self) -> int:
        """Bytes of the whole record in its volume."""
        return align(self.payload_start + len(self.content.payload))


@dataclass(slots=True)
class ChangeCounters:
    """Since the start; written by one thread, read by any."""

    groups: int = 0
    records_written: int = 0
    bytes_written: int = 0
    chunks_deleted: int = 0
    records_quarantined: int = 0


class StoreChanges:
    """The changes of one store, for one thread.

    `volumes` is shared with the readers and grows here. `current` is the volume appended to, from
    `end` on; without one the first record makes one.
    """

    def __init__(
        self,
        *,
        filesystem: FileSystem,
        directory: str,
        limits: StoreLimits,
        index: ChunkIndex,
        catalog: ChunkCatalog,
        volumes: dict[int, Volume],
        current: Volume | None,
        end: int,
    ) -> None:
        self._filesystem = filesystem
        self._directory = directory
        self._limits = limits
        self._index = index
        self._catalog = catalog
        self._volumes = volumes
        self._current = current
        self._end = end
        self._scratch = AppendScratch()
        self._unindexed: list[Transition] = []
        self._unindexed_bytes = 0
        self.counters = ChangeCounters()
        self.abandoned: list[Volume] = []
        """Volumes whose files were removed under the store; reads may be under way on them."""

    # --- adding --------------------------------------------------------------------------------

    def append_group(self, records: Sequence[NewRecord]) -> int:
        """Make the first of these records, as many as suit one group, durable; return how many.

        The ids are not in the store, or quarantined. Raises StoreFullError if there is no room for
        the group, of which nothing is kept then; OSError if the disk fails.
        """
        if len(self._unindexed) >= UNINDEXED_LIMIT:
            self.update_index()
        volume = self._volume_for(records[0])
        headers = self._lay_out(records, volume)
        try:
            volume.append(
                headers,
                [record.content.payload for record in records[: len(headers)]],
                self._scratch,
            )
        except OSError as error:
            if error.errno not in _FULL:
                raise
            volume.truncate(self._end)
            raise StoreFullError(f"no space left for {volume.path}") from error
        # No space here, after the writes got some, is as bad as any error of a sync: what it was
        # to secure may be lost, and a second sync would not say so.
        volume.sync()
        replaced = self._catalog.find_all([header.chunk_id for header in headers])
        rows = [
            # A copy that was damaged here had a touch, too, which somebody relies on.
            row_of(header, touch=max(record.touch, _touch_of(replaced.get(header.chunk_id))))
            for header, record in zip(headers, records, strict=False)
        ]
        self._unindexed += [Transition(replaced.get(row.chunk_id), row) for row in rows]
        self._catalog.add(rows)
        written = headers[-1].end - self._end
        self._unindexed_bytes += written
        self._end = headers[-1].end
        self.counters.groups += 1
        self.counters.records_written += len(headers)
        self.counters.bytes_written += written
        return len(headers)

    def _volume_for(self, record: NewRecord) -> Volume:
        if self._current is None or self._end + record.length > self._limits.volume_size:
            self.update_index()
            known = [position.number for position in self._index.volumes()]
            present = volume_numbers(self._filesystem, self._directory)
            number = max([0, *known, *present]) + 1
            try:
                self._current = Volume.create(self._filesystem, self._directory, number)
            except OSError as error:
                if error.errno in _FULL:
                    raise StoreFullError(f"no space for a volume in {self._directory}") from error
                raise
            self._volumes[number] = self._current
            self._end = FIRST_RECORD_OFFSET
        return self._current

    def _lay_out(self, records: Sequence[NewRecord], volume: Volume) -> list[RecordHeader]:
        """Return the headers of the group: at least one. Raises StoreFullError."""
        start = offset = self._end
        room = self.room()
        headers: list[RecordHeader] = []
        for record in records:
            end = offset + record.length
            if end - start > room:
                break
            if headers and (end - start > GROUP_BYTES_LIMIT or end > self._limits.volume_size):
                break
            headers.append(
                RecordHeader(
                    volume=volume.number,
                    offset=offset,
                    synced_up_to=start,
                    chunk_id=record.checksums.chunk_id,
                    codec=record.content.codec,
                    payload_start=record.payload_start,
                    payload_length=len(record.content.payload),
                    plain_length=record.content.plain_length,
                    block_checksums=record.checksums.blocks,
                )
            )
            offset = end
        if not headers:
            raise StoreFullError(
                f"a record of {records[0].length} bytes does not fit into the {max(room, 0)} that"
                f" quota and reserve leave to {self._directory}"
            )
        return headers

    def room(self) -> int:
        """Bytes that quota and reserve leave for records; may be below nought. Any thread."""
        room = self._filesystem.free_bytes(self._directory) - self._limits.reserve
        if self._limits.quota is not None:
            used = self._index.totals().allocated_bytes + self._unindexed_bytes
            room = min(room, self._limits.quota - used)
        return room

    def update_index(self) -> None:
        """Commit the rows that wait.

        Raises StoreFullError and IndexDamagedError, after which they wait on.
        """
        if not self._unindexed:
            return
        assert self._current is not None
        # A chunk that was damaged here and has been stored again: the bad record may go now. That
        # need not be durable first: a scan that finds the new record replaces the old one again.
        replaced = [step.before.extent() for step in self._unindexed if step.before is not None]
        position = VolumePosition(self._current.number, self._current.key, self._end)
        self._index.apply(
            IndexChange(transitions=self._unindexed, to_punch=replaced, volumes=[position])
        )
        self._catalog.indexed(step.after for step in self._unindexed if step.after is not None)
        self._unindexed = []
        self._unindexed_bytes = 0
        punch_extents(self._index, self._volumes, replaced)

    # --- deleting ------------------------------------------------------------------------------

    def delete(
        self, requests: Sequence[tuple[bytes, Callable[[ChunkRow], bool]]]
    ) -> list[bool | Exception]:
        """Delete chunks unless their callbacks object; what a callback raised is in its place.

        Raises StoreFullError (nothing was deleted), OSError (what was deleted stays so).
        """
        self.update_index()
        condemned: list[IndexRow] = []
        outcomes: list[bool | Exception] = []
        for chunk_id, unless in requests:
            try:
                row = self._condemn(chunk_id, unless)
            except Exception as error:
                outcomes.append(error)
                continue
            outcomes.append(row is not None)
            if row is not None:
                condemned.append(row)
        if not condemned:
            return outcomes
        extents = [row.extent() for row in condemned]
        try:
            self._index.apply(
                IndexChange(
                    transitions=[Transition(row, None) for row in condemned], to_punch=extents
                ),
                durable=True,
            )
        except BaseException:
            for row in condemned:
                self._catalog.reprieve(row.chunk_id)
            raise
        for row in condemned:
            self._catalog.gone(row.chunk_id)
        self.counters.chunks_deleted += len(condemned)
        punch_extents(self._index, self._volumes, extents)
        return outcomes

    def _condemn(self, chunk_id: bytes, unless: Callable[[ChunkRow], bool]) -> IndexRow | None:
        row = self._catalog.find(chunk_id)
        if row is None:
            return None
        touch = self._catalog.judge(row)
        try:
            if touch is None:
                return None
            asked = ChunkRow(
                chunk_id=chunk_id,
                plain_length=row.plain_length,
                stored_length=row.payload_length,
                quarantined=row.quarantined,
                touch=touch,
            )
            if unless(asked) or not self._catalog.condemn(row, touch=touch):
                return None
            return row
        finally:
            self._catalog.absolve(row)

    def recount(self, partition: int) -> bool:
        """Put a partition's digest right; returns whether it was wrong. Raises StoreFullError."""
        if not self._index.recount(partition):
            return False
        _log.error("the digest of partition %d in the chunk index was wrong", partition)
        return True

    # --- damage --------------------------------------------------------------------------------

    def quarantine(self, row: IndexRow) -> bool:
        """Mark a damaged copy; False where the chunk's row is not `row` any more."""
        self.update_index()
        if row.quarantined or self._catalog.find(row.chunk_id) != row:
            return False
        self._mark_damaged([row])
        return True

    def _mark_damaged(self, rows: Sequence[IndexRow]) -> None:
        for row in rows:
            self._catalog.fail(row)
        try:
            self._index.apply(
                IndexChange(
                    transitions=[Transition(row, row._replace(quarantined=True)) for row in rows]
                )
            )
        finally:
            for row in rows:
                self._catalog.failed(row)
        self.counters.records_quarantined += len(rows)

    def inspect(self, number: int) -> list[bytes]:
        """Look whether a volume's file still is what the index takes it for.

        Chunks that lie beyond its end, or all where the file was removed or replaced, are
        quarantined; returns their ids. Raises StoreFullError where that can't be written down.
        """
        self.update_index()
        volume = self._volumes.get(number)
        if volume is None:
            return []
        is_in_place = volume.is_in_place(self._filesystem)
        if not is_in_place and volume is self._current:
            # What is written to it from here on would be gone with this process.
            self._current = None
        rows = self._index.rows_beyond(number, volume.size() if is_in_place else 0)
        for start in range(0, len(rows), UNINDEXED_LIMIT):
            self._mark_damaged(rows[start : start + UNINDEXED_LIMIT])
        if not is_in_place:
            self.abandoned.append(self._volumes.pop(number))
        return [row.chunk_id for row in rows]

    def seal(self) -> None:
        """Remember that the current volume had a write error: no more records go into it.

        The next start reads back from the disk what the index does not cover yet.
        """
        if self._current is not None:
            positions = {position.number: position for position in self._index.volumes()}
            number, key = self._current.number, self._current.key
            known = positions.get(number, VolumePosition(number, key, FIRST_RECORD_OFFSET))
            self._index.apply(IndexChange(volumes=[known._replace(sealed=True)]), durable=True)


def punch_extents(
    index: ChunkIndex, volumes: Mapping[int, Volume], extents: Sequence[Extent]
) -> None:
    """Give back the space of extents that are in the index's `to_punch`, and take them off it."""
    if not extents:
        return
    punched: set[int] = set()
    for extent in extents:
        volume = volumes.get(extent.volume)
        if volume is not None and not _holds_another(volume, extent):
            volume.punch(extent.offset, extent.length)
            punched.add(extent.volume)
    for number in sorted(punched):
        volumes[number].sync()
    index.apply(IndexChange(punched=list(extents)))


def row_of(header: RecordHeader, *, touch: int, quarantined: bool = False) -> IndexRow:
    """Return the index row of a record."""
    return IndexRow(
        chunk_id=header.chunk_id,
        volume=header.volume,
        offset=header.offset,
        payload_start=header.payload_start,
        payload_length=header.payload_length,
        plain_length=header.plain_length,
        codec=header.codec,
        touch=touch,
        quarantined=quarantined,
    )


def _touch_of(row: IndexRow | None) -> int:
    return row.touch if row is not None else 0


def _holds_another(volume: Volume, extent: Extent) -> bool:
    """Whether a sound record of another chunk lies there: then the index is out of date."""
    try:
        return volume.read_header(extent.offset).chunk_id != extent.chunk_id
    except RecordError:
        return False
