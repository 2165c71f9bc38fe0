"""The files that hold chunks: append-only, with holes where chunks were deleted.

This is the one module that touches volume files. It writes records (see `ring/record.py` for their
bytes), reads them back, and finds them again after a crash; what they mean is decided elsewhere.

Large payloads bypass the page cache in both directions (O_DIRECT): they go from and to the
caller's aligned buffer without a copy, and do not turn memory over. Small ones go through it.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ring.errors import RecordError
from ring.filesystem import Buffer, File, FileSystem
from ring.interfaces import CHUNK_SIZE_LIMIT
from ring.record import (
    ALIGNMENT,
    DIRECT_PAYLOAD_MINIMUM,
    FIRST_RECORD_OFFSET,
    KEY_SIZE,
    RecordHeader,
    align,
    decode_header,
    decode_volume_header,
    encode_header,
    encode_volume_header,
    may_be_header,
)

SCAN_WINDOW_SIZE = 1024 * 1024
"""Bytes read at once in a scan: large enough for the disk's full speed."""

_NAME = re.compile(r"([0-9]{10})\.volume")
_ZEROS = bytes(SCAN_WINDOW_SIZE)


@dataclass(frozen=True, slots=True)
class DamagedRegion:
    """Bytes that are neither a record nor a hole."""

    offset: int
    length: int


class AppendScratch:
    """The aligned memory that one appending thread needs beside the caller's buffers."""

    def __init__(self) -> None:
        self._edges = memoryview(mmap.mmap(-1, 2 * ALIGNMENT))
        self.head = self._edges[:ALIGNMENT]
        self.tail = self._edges[ALIGNMENT:]
        self._copy: memoryview | None = None

    def copy(self, payload: memoryview) -> memoryview:
        """Return an aligned copy of a payload, zero-padded to the alignment."""
        if self._copy is None:
            self._copy = memoryview(mmap.mmap(-1, CHUNK_SIZE_LIMIT))
        return _padded(payload, self._copy[: align(len(payload))])


class Volume:
    """One open volume. Appending is for one thread at a time, the rest for any."""

    def __init__(
        self, number: int, key: bytes, path: str, file: File, direct_file: File | None
    ) -> None:
        self.number = number
        self.key = key
        self.path = path
        self._file = file
        self._direct = direct_file

    @classmethod
    def create(cls, filesystem: FileSystem, directory: str, number: int) -> Volume:
        """Make a new volume with a random key; it is durable, name included, on return."""
        path = os.path.join(directory, _name(number))
        if filesystem.exists(path):
            raise FileExistsError(f"{path} is there already")
        key = os.urandom(KEY_SIZE)
        file = filesystem.open(path, create=True)
        try:
            file.write_at(0, encode_volume_header(number, key))
            file.datasync()
            filesystem.sync_directory(directory)
        except OSError:
            file.close()
            filesystem.unlink(path)
            raise
        return cls(number, key, path, file, _open_direct(filesystem, path))

    @classmethod
    def open(
        cls, filesystem: FileSystem, directory: str, number: int, *, known_key: bytes | None
    ) -> Volume:
        """Open an existing volume; `known_key` is the index's, for when the header is damaged.

        Raises FileNotFoundError, and RecordError if no key can be had.
        """
        path = os.path.join(directory, _name(number))
        file = filesystem.open(path)
        try:
            key = _own_key(file, number)
        except RecordError:
            if known_key is None:
                file.close()
                raise
            key = known_key
        return cls(number, key, path, file, _open_direct(filesystem, path))

    def close(self) -> None:
        self._file.close()
        if self._direct is not None:
            self._direct.close()

    def size(self) -> int:
        return self._file.size()

    def is_in_place(self, filesystem: FileSystem) -> bool:
        """Whether the volume's path still leads to the file that is open here.

        One that was removed or replaced can be read and written as before, but not by the next
        start.
        """
        return filesystem.identity(self.path) == self._file.identity()

    # --- writing -------------------------------------------------------------------------------

    def append(
        self, headers: Sequence[RecordHeader], payloads: Sequence[Buffer], scratch: AppendScratch
    ) -> None:
        """Write records that lie one behind the other; durable after `sync`.

        Neighbouring small records go out in one write, each large one in one of its own.
        """
        pieces: list[Buffer] = []
        start = headers[0].offset
        for header, payload in zip(headers, payloads, strict=True):
            encoded = encode_header(header, self.key)
            if self._direct is not None and header.payload_start == ALIGNMENT:
                if pieces:
                    self._file.write_vector_at(start, pieces)
                    pieces = []
                self._append_direct(self._direct, header.offset, encoded, payload, scratch)
                start = header.end
            else:
                gap = header.payload_start - len(encoded)
                padding = header.record_length - header.payload_start - len(payload)
                pieces += [encoded + bytes(gap), payload, bytes(padding)]
        if pieces:
            self._file.write_vector_at(start, pieces)

    @staticmethod
    def _append_direct(
        file: File, offset: int, encoded: bytes, payload: Buffer, scratch: AppendScratch
    ) -> None:
        view = memoryview(payload).cast("B")
        whole = len(view) - len(view) % ALIGNMENT
        head = _padded(encoded, scratch.head)
        pieces: list[Buffer] = [head, view[:whole]]
        if whole < len(view):
            pieces.append(_padded(view[whole:], scratch.tail))
        try:
            file.write_vector_at(offset, pieces)
        except OSError as error:
            # The kernel wants the memory aligned as well, as the buffers of the pool are. What
            # came from elsewhere, compressed for instance, is copied.
            if error.errno != errno.EINVAL:
                raise
            file.write_vector_at(offset, [head, scratch.copy(view)])

    def sync(self) -> None:
        """Make all that was appended and punched durable."""
        self._file.datasync()

    def punch(self, offset: int, length: int) -> None:
        """Give the space of a record back; durable after `sync`."""
        self._file.punch_hole(offset, length)

    def truncate(self, size: int) -> None:
        """Cut off what follows `size`; durable with the next `sync`."""
        self._file.truncate(size)

    # --- reading -------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes through the page cache; fewer at the end of the volume."""
        return self._file.read_at(offset, length)

    def read_into(self, offset: int, length: int, buffer: memoryview) -> int:
        """Read into an aligned buffer with room for `align(length)`; return the bytes read.

        Bypasses the page cache where `offset` is aligned and `length` is worth it.
        """
        direct = self._direct
        if direct is None or offset % ALIGNMENT or length < DIRECT_PAYLOAD_MINIMUM:
            return self._file.read_into(offset, buffer[:length])
        return min(length, direct.read_into(offset, buffer[: align(length)]))

    def read_from_disk(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes as the disk has them, whatever the page cache says."""
        if self._direct is None:
            return self._file.read_at(offset, length)
        start = offset - offset % ALIGNMENT
        buffer = memoryview(mmap.mmap(-1, align(offset + length - start)))
        count = self._direct.read_into(start, buffer)
        return bytes(buffer[offset - start : min(count, offset + length - start)])

    def read_header(self, offset: int, *, from_disk: bool = False) -> RecordHeader:
        """Return the record header at `offset`. Raises RecordError if there is none, or it is bad.

        The caller compares its chunk id with what it expects there.
        """
        read = self.read_from_disk if from_disk else self.read
        return decode_header(
            read(offset, ALIGNMENT), key=self.key, volume=self.number, offset=offset
        )

    def scan(self, start: int) -> Iterator[RecordHeader | DamagedRegion]:
        """Yield what follows `start` in order, as the disk has it; holes are passed over.

        Payloads are not looked at. A header is searched at every multiple of the alignment.
        """
        position, size = start, self._file.size()
        damaged_from: int | None = None
        window, window_start = b"", 0
        while position < size:
            if not window_start <= position < window_start + len(window):
                window = self.read_from_disk(position, min(SCAN_WINDOW_SIZE, size - position))
                window_start = position
                if not window:
                    break
            block = window[position - window_start : position - window_start + ALIGNMENT]
            header = self._decoded(block, position)
            is_hole = header is None and block == _ZEROS[: len(block)]
            if (header is not None or is_hole) and damaged_from is not None:
                yield DamagedRegion(damaged_from, position - damaged_from)
                damaged_from = None
            if header is not None:
                yield header
                position = header.end
            elif is_hole and position == window_start and window == _ZEROS[: len(window)]:
                position += len(window)
            else:
                if not is_hole and damaged_from is None:
                    damaged_from = position
                position += ALIGNMENT
        if damaged_from is not None:
            yield DamagedRegion(damaged_from, size - damaged_from)

    def _decoded(self, block: bytes, offset: int) -> RecordHeader | None:
        if not may_be_header(block):
            return None
        try:
            return decode_header(block, key=self.key, volume=self.number, offset=offset)
        except RecordError:
            return None


def volume_numbers(filesystem: FileSystem, directory: str) -> list[int]:
    """Return the numbers of the volumes in a directory, in order."""
    matches = (_NAME.fullmatch(name) for name in filesystem.names(directory))
    return sorted(int(match[1]) for match in matches if match)


def discard_unborn(filesystem: FileSystem, directory: str, number: int) -> bool:
    """Remove a volume without a header if it can't ever have held a record; return whether so.

    A crash while a volume is made leaves such a file: the header is durable before the first
    record is written.
    """
    path = os.path.join(directory, _name(number))
    file = filesystem.open(path)
    try:
        unborn = file.size() <= FIRST_RECORD_OFFSET
    finally:
        file.close()
    if unborn:
        filesystem.unlink(path)
    return unborn


def _own_key(file: File, number: int) -> bytes:
    own_number, key = decode_volume_header(file.read_at(0, FIRST_RECORD_OFFSET))
    if own_number != number:
        raise RecordError(f"volume {number} says it is volume {own_number}")
    return key


def _name(number: int) -> str:
    return f"{number:010d}.volume"


def _open_direct(filesystem: FileSystem, path: str) -> File | None:
    with contextlib.suppress(OSError):
        return filesystem.open(path, direct=True)
    return None


def _padded(data: Buffer, target: memoryview) -> memoryview:
    """Copy into `target` and clear the rest of it."""
    target[: len(data)] = data
    target[len(data) :] = bytes(len(target) - len(data))
    return target
