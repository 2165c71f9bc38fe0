"""Reading chunks back, in worker threads: nothing leaves here unverified.

A whole chunk is verified by its id; a part of a large raw one by the block checksums in the
record's header, which its keyed checksum covers. `UnsoundError` says that what was read is not the
chunk: it may have been deleted meanwhile, the page cache may be wrong, or the copy is damaged;
`ring/chunk_store.py` finds out which.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Mapping, Sequence

from blake3 import blake3

from ring.chunk_index import IndexRow
from ring.codec import decode, decode_into
from ring.errors import RecordError, RingError
from ring.filesystem import Buffer
from ring.interfaces import BLOCK_CHECKSUM_SIZE, BLOCK_SIZE, CHUNK_SIZE_LIMIT, Codec
from ring.record import ALIGNMENT, RecordHeader, decode_header
from ring.volume import Volume

PARTIAL_READ_MINIMUM = 256 * 1024
"""Of shorter chunks the whole is read and hashed sooner than a header is checked."""


class UnsoundError(RingError):
    """What was read is not the chunk it should be."""


class _Scratch(threading.local):
    """An aligned buffer for each worker thread, made when it is needed first."""

    def __init__(self) -> None:
        self._view: memoryview | None = None

    @property
    def view(self) -> memoryview:
        if self._view is None:
            self._view = memoryview(mmap.mmap(-1, CHUNK_SIZE_LIMIT))
        return self._view


class ChunkReader:
    """Reads from `volumes`, which others may add to. Usable from several threads at once.

    `from_disk` leaves the page cache out of it. All methods raise UnsoundError.
    """

    def __init__(self, volumes: Mapping[int, Volume]) -> None:
        self._volumes = volumes
        self._scratch = _Scratch()

    def read_small(self, row: IndexRow, *, from_disk: bool = False) -> Buffer:
        """Return the plaintext of a chunk in memory of its own."""
        payload = self._read_payload(row, from_disk=from_disk)
        return self._verified(row, self._decoded(row, payload))

    def read_into(self, row: IndexRow, target: memoryview, *, from_disk: bool = False) -> None:
        """Read the plaintext of a chunk into the start of an aligned buffer with room for it."""
        if row.codec == Codec.RAW:
            self._fill(row, target, from_disk=from_disk)
        else:
            self._fill(row, self._scratch.view, from_disk=from_disk)
            try:
                decode_into(self._scratch.view[: row.payload_length], target[: row.plain_length])
            except ValueError as error:
                raise UnsoundError(str(error)) from error
        self._verified(row, target[: row.plain_length])

    def read_payload_into(
        self, row: IndexRow, target: memoryview, *, from_disk: bool = False
    ) -> None:
        """Read a chunk as it is stored into the start of an aligned buffer with room for it."""
        self._fill(row, target, from_disk=from_disk)
        payload = target[: row.payload_length]
        if row.codec == Codec.RAW:
            self._verified(row, payload)
            return
        plaintext = self._scratch.view[: row.plain_length]
        try:
            decode_into(payload, plaintext)
        except ValueError as error:
            raise UnsoundError(str(error)) from error
        self._verified(row, plaintext)

    def read_blocks(
        self, row: IndexRow, first: int, count: int, *, from_disk: bool = False
    ) -> bytes:
        """Return `count` blocks of 64 KiB of a raw chunk; the chunk's last one may be shorter."""
        header = self.check_header(row, from_disk=from_disk)
        volume = self._volume(row)
        start = first * BLOCK_SIZE
        length = min(count * BLOCK_SIZE, row.plain_length - start)
        offset = row.offset + row.payload_start + start
        try:
            read = volume.read_from_disk if from_disk else volume.read
            data = read(offset, length)
        except OSError as error:
            raise UnsoundError(str(error)) from error
        view = memoryview(data)
        for index in range(count):
            block = view[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]
            at = (first + index) * BLOCK_CHECKSUM_SIZE
            wanted = header.block_checksums[at : at + BLOCK_CHECKSUM_SIZE]
            if blake3(block).digest(BLOCK_CHECKSUM_SIZE) != wanted:
                raise UnsoundError(f"block {first + index} has another checksum")
        return data

    def check_header(self, row: IndexRow, *, from_disk: bool = False) -> RecordHeader:
        """Return the record's header, which is sound and says what the row says."""
        try:
            header = self._volume(row).read_header(row.offset, from_disk=from_disk)
        except (RecordError, OSError) as error:
            raise UnsoundError(str(error)) from error
        _check_same(row, header)
        return header

    def unsound(self, rows: Sequence[IndexRow]) -> list[tuple[IndexRow, str]]:
        """Return those of neighbouring records whose header or contents are bad on the disk.

        `rows` lie in one volume, in the order of their offsets; all that lies between the first and
        the last is read at once. What looks bad so is read once more by itself.
        """
        start, end = rows[0].offset, rows[-1].offset + rows[-1].record_length
        try:
            data = self._volume(rows[0]).read_from_disk(start, end - start)
        except (UnsoundError, OSError):
            # A bad sector spoils the whole read, and mostly one record.
            data = b""
        found: list[tuple[IndexRow, str]] = []
        for row in rows:
            if not self._is_sound_in(row, memoryview(data)[row.offset - start :]):
                try:
                    self.check_header(row, from_disk=True)
                    self.read_small(row, from_disk=True)
                except UnsoundError as error:
                    found.append((row, str(error)))
        return found

    def _is_sound_in(self, row: IndexRow, data: memoryview) -> bool:
        """Whether the record of a row stands at the start of `data`, whole."""
        try:
            header = decode_header(
                data[:ALIGNMENT],
                key=self._volume(row).key,
                volume=row.volume,
                offset=row.offset,
            )
            payload = data[row.payload_start : row.payload_start + row.payload_length]
            _check_same(row, header)
            _check_length(row, len(payload))
            self._verified(row, self._decoded(row, payload))
        except (RecordError, UnsoundError):
            return False
        return True

    def _volume(self, row: IndexRow) -> Volume:
        volume = self._volumes.get(row.volume)
        if volume is None:
            raise UnsoundError(f"volume {row.volume} is missing")
        return volume

    def _fill(self, row: IndexRow, target: memoryview, *, from_disk: bool) -> None:
        if from_disk:
            target[: row.payload_length] = self._read_payload(row, from_disk=True)
            return
        offset = row.offset + row.payload_start
        try:
            count = self._volume(row).read_into(offset, row.payload_length, target)
        except OSError as error:
            raise UnsoundError(str(error)) from error
        _check_length(row, count)

    def _read_payload(self, row: IndexRow, *, from_disk: bool) -> bytes:
        volume = self._volume(row)
        read = volume.read_from_disk if from_disk else volume.read
        try:
            payload = read(row.offset + row.payload_start, row.payload_length)
        except OSError as error:
            raise UnsoundError(str(error)) from error
        _check_length(row, len(payload))
        return payload

    @staticmethod
    def _decoded(row: IndexRow, payload: Buffer) -> Buffer:
        try:
            return decode(payload, row.codec, row.plain_length)
        except ValueError as error:
            raise UnsoundError(str(error)) from error

    @staticmethod
    def _verified(row: IndexRow, plaintext: Buffer) -> Buffer:
        if blake3(plaintext).digest() != row.chunk_id:
            raise UnsoundError("the contents have another hash")
        return plaintext


def _check_same(row: IndexRow, header: RecordHeader) -> None:
    same = (
        header.chunk_id == row.chunk_id
        and header.codec == row.codec
        and header.payload_start == row.payload_start
        and header.payload_length == row.payload_length
        and header.plain_length == row.plain_length
    )
    if not same:
        raise UnsoundError(f"the record at {row.offset} of volume {row.volume} is another one")


def _check_length(row: IndexRow, count: int) -> None:
    if count < row.payload_length:
        raise UnsoundError(f"only {count} of {row.payload_length} bytes are there")
