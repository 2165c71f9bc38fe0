"""A backup of the metadata: one file that holds the state of one node at one index, or nothing.

It is the stream of a state download (`state_stream.py`) with a head that names it and a frame
around each piece, so that a file that was cut off or changed is known for what it is before
anything is restored from it. Layout: docs/format.md, "Metadata backup".
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import AsyncIterator, Callable, Iterator

from metadata_raft.download import in_thread
from metadata_raft.state_stream import (
    StateDescription,
    StateEncoder,
    StateStreamError,
    StateVerifier,
)
from ring.filesystem import File, FileSystem

MAGIC = b"HFbackup"
FORMAT_VERSION = 1

PIECE_SIZE_LIMIT = 1 << 20
"""Bytes of one piece: twice what a piece holds uncompressed, and a bound on what damage costs."""

_FIRST_READ_SIZE = 4096

_HEAD = struct.Struct("<8sI")
_FRAME = struct.Struct("<BI")
_PIECE, _LAST = 0, 1


class BackupError(Exception):
    """The file is no whole backup; the message is the end of a sentence about it."""


class StateBackup:
    """A state on its way into a backup: iterate it once, then close it. Main loop."""

    def __init__(self, filesystem: FileSystem, path: str, description: StateDescription) -> None:
        """Takes over the copy at `path`. Raises OSError."""
        self._filesystem = filesystem
        self._path = path
        self._file: File | None = filesystem.open(path)
        self.description = description

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The bytes of the backup, in pieces of at most about a megabyte. Raises OSError,
        StateStreamError: what came before is of no use then."""
        assert self._file is not None
        encoder = StateEncoder(self._file, self.description)
        yield _HEAD.pack(MAGIC, FORMAT_VERSION)
        last = False
        while not last:
            data, last = await in_thread(encoder.next)
            yield _FRAME.pack(_LAST if last else _PIECE, len(data)) + data

    def close(self) -> None:
        """Remove the copy. May be repeated."""
        if self._file is not None:
            self._file.close()
            self._file = None
            with contextlib.suppress(OSError):
                self._filesystem.unlink(self._path)


class BackupReader:
    """Checks the bytes of a backup as they come, in pieces of any size; `finish` decides."""

    def __init__(
        self,
        write: Callable[[bytes], None] | None = None,
        *,
        begin: Callable[[StateDescription], None] | None = None,
    ) -> None:
        """`begin` is told what the backup holds, then `write` is given the plain database."""
        self._write = write
        self._begin = begin
        self._verifier = StateVerifier()
        self._buffer = bytearray()
        self._has_head = False

    def feed(self, data: bytes) -> None:
        """Raises BackupError where the bytes can't be a backup's."""
        self._buffer += data
        for kind, piece in self._frames():
            is_first = self._verifier.description is None
            if self._verifier.is_whole:
                raise BackupError("goes on where a backup ends")
            if kind not in (_PIECE, _LAST) or (is_first and kind == _LAST):
                raise BackupError("is damaged: its pieces are not in order")
            try:
                plain = self._verifier.take(piece, last=kind == _LAST)
            except StateStreamError as error:
                raise BackupError(f"is damaged: {error}") from error
            if is_first and self._begin is not None:
                assert self._verifier.description is not None
                self._begin(self._verifier.description)
            if plain and self._write is not None:
                self._write(plain)

    def finish(self) -> StateDescription:
        """What the backup holds. Raises BackupError unless all of it came, and nothing else."""
        description = self._verifier.description
        if description is None or not self._verifier.is_whole:
            raise BackupError("is cut off")
        if self._buffer:
            raise BackupError("goes on where a backup ends")
        return description

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        buffer = self._buffer
        if not self._has_head:
            if len(buffer) < _HEAD.size:
                return
            magic, version = _HEAD.unpack_from(buffer)
            if magic != MAGIC:
                raise BackupError("is no backup of Holdfast's metadata")
            if version != FORMAT_VERSION:
                raise BackupError(f"has version {version}; this Holdfast knows {FORMAT_VERSION}")
            self._has_head = True
            del buffer[: _HEAD.size]
        while len(buffer) >= _FRAME.size:
            kind, length = _FRAME.unpack_from(buffer)
            if length > PIECE_SIZE_LIMIT:
                raise BackupError("is damaged: a piece is longer than pieces are")
            end = _FRAME.size + length
            if len(buffer) < end:
                return
            piece = bytes(memoryview(buffer)[_FRAME.size : end])
            del buffer[:end]
            yield kind, piece


def read_backup(path: str, reader: BackupReader) -> StateDescription:
    """Read a backup from a file. Raises BackupError, OSError."""
    with open(path, "rb") as file:
        while data := file.read(PIECE_SIZE_LIMIT):
            reader.feed(data)
    return reader.finish()


def verify_backup(path: str) -> StateDescription:
    """Read and check a whole backup; returns what it holds. Raises BackupError, OSError."""
    return read_backup(path, BackupReader())


def describe_backup(path: str) -> StateDescription:
    """What a backup says it holds; nothing of it is verified. Raises BackupError, OSError."""
    found: list[StateDescription] = []
    reader = BackupReader(begin=found.append)
    with open(path, "rb") as file:
        while not found:
            data = file.read(_FIRST_READ_SIZE)
            if not data:
                raise BackupError("is cut off")
            reader.feed(data)
    return found[0]
