"""Bringing a store's volumes and index together at the start (rules D7, D9).

The index knows how far it reflects each volume; what lies behind that is read back from the disk.
A record whose header says that the volume was durable beyond it needs no second look. The others,
the last group before the store went down, are hashed:

- sound: the chunk is here;
- unsound, with a sound record behind it: it was damaged, and is quarantined;
- unsound, with none behind it: a torn tail that was never acknowledged; it is cut off.

An index that is missing or damaged is simply one that reflects nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from ring.chunk_index import (
    ChunkIndex,
    IndexChange,
    IndexRow,
    Transition,
    VolumePosition,
    remove_index,
)
from ring.chunk_reader import ChunkReader, UnsoundError
from ring.errors import IndexDamagedError, RecordError, StoreFailedError
from ring.filesystem import FileSystem, can_punch_holes
from ring.record import FIRST_RECORD_OFFSET, RecordHeader
from ring.store_changes import punch_extents, row_of
from ring.volume import (
    DamagedRegion,
    Volume,
    discard_unborn,
    volume_numbers,
)

ROWS_PER_COMMIT = 1024
"""Rows found in a scan before they are committed; bounds memory however long the scan."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Recovered:
    """A store ready for work. The next record goes to `end` of `current`, or to a new volume."""

    volumes: dict[int, Volume] = field(default_factory=dict)
    current: Volume | None = None
    end: int = 0
    damage_found: int = 0
    """Records quarantined and regions unreadable."""


def open_index(path: str) -> ChunkIndex:
    """Open the index, or start an empty one in place of a damaged one."""
    try:
        return ChunkIndex(path)
    except IndexDamagedError as error:
        _log.warning("%s; it is built anew from the volumes", error)
        remove_index(path)
        return ChunkIndex(path)


def prepare_directory(filesystem: FileSystem, directory: str) -> None:
    """Make the directory of the volumes; durable on return.

    Raises StoreFailedError where its file system can't punch holes.
    """
    if not filesystem.exists(directory):
        filesystem.make_directory(directory)
    filesystem.sync_directory(os.path.dirname(directory))
    if not can_punch_holes(filesystem, directory):
        raise StoreFailedError(
            f"the file system of {directory} can't punch holes into files, which deleting needs;"
            " ext4, XFS, Btrfs and tmpfs can"
        )


def recover(filesystem: FileSystem, directory: str, index: ChunkIndex) -> Recovered:
    """Open all volumes, finish deletions, and index what the index does not reflect yet.

    Raises OSError where the disk fails, IndexDamagedError, StoreFullError.
    """
    return _Recovery(filesystem, directory, index).run()


class _Recovery:
    def __init__(self, filesystem: FileSystem, directory: str, index: ChunkIndex) -> None:
        self._filesystem = filesystem
        self._directory = directory
        self._index = index
        self._result = Recovered()
        self._reader = ChunkReader(self._result.volumes)
        self._change = IndexChange()
        self._fresh: dict[bytes, IndexRow] = {}

    def run(self) -> Recovered:
        known = {position.number: position for position in self._index.volumes()}
        # Like the contents below: a volume may be there and its name not be durable yet.
        self._filesystem.sync_directory(self._directory)
        numbers = volume_numbers(self._filesystem, self._directory)
        for number in numbers:
            self._open(number, known.get(number))
        newest = max([0, *numbers, *known])
        for number in sorted({*known, *self._result.volumes}):
            volume = self._result.volumes.get(number)
            position = known.get(number)
            if volume is None:
                self._lose(number, 0)
                continue
            if position is None:
                position = VolumePosition(number, volume.key, FIRST_RECORD_OFFSET)
            self._recover_volume(volume, position, is_newest=number == newest)
        self._commit()
        # What was found twice, and deletions that the last end of the store interrupted.
        punch_extents(self._index, self._result.volumes, self._index.to_punch())
        return self._result

    def _open(self, number: int, position: VolumePosition | None) -> None:
        known_key = position.key if position is not None else None
        try:
            self._result.volumes[number] = Volume.open(
                self._filesystem, self._directory, number, known_key=known_key
            )
        except RecordError as error:
            if not discard_unborn(self._filesystem, self._directory, number):
                _log.error("volume %d of %s is lost: %s", number, self._directory, error)
                self._result.damage_found += 1

    def _recover_volume(self, volume: Volume, position: VolumePosition, *, is_newest: bool) -> None:
        size = volume.size()
        if size < position.indexed_up_to:
            self._lose(volume.number, size)
        end = position.indexed_up_to
        if is_newest or size > end:
            # What a killed process left in the page cache must be durable before it counts.
            volume.sync()
        if size > end:
            end = max(end, self._scan(volume, end))
        if is_newest and not position.sealed:
            if size != end:
                volume.truncate(end)
            self._result.current, self._result.end = volume, end
        else:
            end = max(end, size)
        self._change.volumes.append(position._replace(indexed_up_to=end))
        self._commit()

    def _scan(self, volume: Volume, start: int) -> int:
        """Index the records from `start` on; return where the last sound one ends, or `start`."""
        doubtful: list[RecordHeader] = []
        regions: list[DamagedRegion] = []
        end = synced_up_to = start
        for found in volume.scan(start):
            if isinstance(found, DamagedRegion):
                regions.append(found)
                continue
            if found.synced_up_to > synced_up_to:
                synced_up_to = found.synced_up_to
                for header in doubtful:
                    if header.end <= synced_up_to:
                        self._settle(header, is_sound=True)
                        end = max(end, header.end)
                doubtful = [header for header in doubtful if header.end > synced_up_to]
            doubtful.append(found)
        sound = [self._is_sound(header) for header in doubtful]
        end = max(
            [end, *(header.end for header, good in zip(doubtful, sound, strict=True) if good)]
        )
        for header, good in zip(doubtful, sound, strict=True):
            if header.end <= end:
                self._settle(header, is_sound=good)
        for region in regions:
            if region.offset < end:
                self._result.damage_found += 1
                _log.error(
                    "damaged: %d bytes at %d of %s", region.length, region.offset, volume.path
                )
        return end

    def _is_sound(self, header: RecordHeader) -> bool:
        try:
            self._reader.read_small(row_of(header, touch=0), from_disk=True)
        except UnsoundError:
            return False
        return True

    def _settle(self, header: RecordHeader, *, is_sound: bool) -> None:
        """Put a record's row into the index; of two records of a chunk one goes."""
        row = row_of(header, touch=0, quarantined=not is_sound)
        before = self._fresh.get(row.chunk_id)
        if before is None:
            before = self._index.find((row.chunk_id,)).get(row.chunk_id)
        if before is not None and before.extent() == row.extent():
            return
        if not is_sound:
            self._result.damage_found += 1
            _log.error("chunk %s is damaged, in volume %d", row.chunk_id.hex(), row.volume)
        if before is None:
            self._put(None, row)
        elif is_sound and self._is_sound(header):
            # The younger one was verified when it was written, maybe because the older was bad.
            self._put(before, row)
            self._change.to_punch.append(before.extent())
        else:
            self._change.to_punch.append(row.extent())
        if len(self._change.transitions) >= ROWS_PER_COMMIT:
            self._commit()

    def _put(self, before: IndexRow | None, after: IndexRow) -> None:
        self._change.transitions.append(Transition(before, after))
        self._fresh[after.chunk_id] = after

    def _lose(self, number: int, size: int) -> None:
        """Quarantine the chunks of a volume that lie beyond its end."""
        rows = self._index.rows_beyond(number, size)
        if rows:
            _log.error("%d chunks of volume %d of %s are lost", len(rows), number, self._directory)
        self._result.damage_found += len(rows)
        for batch in _batches(rows):
            self._index.apply(
                IndexChange(
                    transitions=[Transition(row, row._replace(quarantined=True)) for row in batch]
                )
            )

    def _commit(self) -> None:
        if self._change:
            self._index.apply(self._change)
        self._change = IndexChange()
        self._fresh.clear()


def _batches(rows: Sequence[IndexRow]) -> list[Sequence[IndexRow]]:
    return [rows[start : start + ROWS_PER_COMMIT] for start in range(0, len(rows), ROWS_PER_COMMIT)]
