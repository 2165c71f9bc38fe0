"""The bytes of a state on its way to another node: a copy of the database, compressed, sealed.

Piece 0 describes it, the last one is the BLAKE3-256 of the description and all plain bytes, and
between them is one zstd stream cut anywhere. Nothing counts before the last piece has been checked
and the file synced. Synchronous, for a worker thread: each call works on one piece. Layout:
docs/format.md, "State download".
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from urllib.parse import quote

import msgspec
import zstandard
from blake3 import blake3

from metadata_raft.configuration import Configuration
from metadata_raft.manifest import Base
from ring.filesystem import File, FileSystem

STREAM_VERSION = 1

PLAIN_PIECE_SIZE = 512 * 1024
"""Bytes of the database that go into a piece; compressed it always fits a message."""

COMPRESSION_LEVEL = 1
"""0.45 GB/s on a core: as fast as a disk takes it."""

SPACE_LEFT_BYTES = 64 * 1024 * 1024
"""What copying a state must leave free on the disk."""


class StateStreamError(Exception):
    """This attempt at a download is lost; another one may succeed."""


class StateDescription(msgspec.Struct, frozen=True, array_like=True):
    """Which state it is. The receiver's log begins at `base`."""

    version: int
    cluster_id: str
    incarnation: int
    base: Base
    configuration: Configuration
    """The Raft configuration in force at `base`."""
    size_bytes: int
    cluster_version: int = 0
    """What the state allows (`SetClusterVersion`); told in backups, 0 elsewhere."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(StateDescription)


def _read_base(connection: sqlite3.Connection) -> Base:
    row = connection.execute("SELECT applied_index, applied_term FROM cluster").fetchone()
    return Base(row[0], row[1])


def copy_database(database: str, copy: str) -> Base:
    """Copy a database that is in use, as one of its commits left it; returns which one.

    One read transaction and one step: later commits are neither seen nor waited for. Raises
    StateStreamError.
    """
    for suffix in ("", "-wal", "-shm", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(copy + suffix)
    try:
        with (
            contextlib.closing(
                sqlite3.connect(f"file:{quote(database)}?mode=ro", uri=True, isolation_level=None)
            ) as source,
            contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as target,
        ):
            # A copy that a crash leaves behind is of no use, so nothing of it has to be synced.
            target.execute("PRAGMA synchronous = OFF")
            source.execute("BEGIN")
            base = _read_base(source)
            source.backup(target, pages=-1)
            return base
    except sqlite3.Error as error:
        raise StateStreamError(f"{database} can't be copied: {error}") from error


def prepare_backup(database: str) -> tuple[int, int]:
    """Take out of a copied state what is nobody's to keep; returns size and cluster version.

    The hash of a join token is as good as the token: what is sealed with it is admitted, and told
    the cluster's secret. A restore makes tokens worthless anyhow. Raises OSError, StateStreamError.
    """
    try:
        with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            # Else the rows would be unlinked, and their bytes stay in the file.
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("DELETE FROM tokens")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            row = connection.execute("SELECT cluster_version FROM cluster").fetchone()
        return os.path.getsize(database), int(row[0])
    except sqlite3.Error as error:
        raise StateStreamError(f"{database} can't be made a backup: {error}") from error


class StateEncoder:
    """Cuts a copied database into pieces."""

    def __init__(self, file: File, description: StateDescription) -> None:
        self._file = file
        self._description = description
        self._offset = 0
        self._compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).compressobj()
        self._digest = blake3()
        self._buffer = memoryview(bytearray(PLAIN_PIECE_SIZE))
        self._phase = 0

    def next(self) -> tuple[bytes, bool]:
        """The next piece, and whether it is the last. Raises OSError, StateStreamError."""
        if self._phase == 0:
            self._phase = 1
            head = _encoder.encode(self._description)
            self._digest.update(head)
            return head, False
        while self._phase == 1:
            count = self._file.read_into(self._offset, self._buffer)
            self._offset += count
            with self._buffer[:count] as plain:
                self._digest.update(plain)
                data = self._compressor.compress(plain)
            if self._offset == self._description.size_bytes:
                data += self._compressor.flush()
                self._phase = 2
            elif count == 0:
                raise StateStreamError("the copy of the state got shorter")
            if data:
                return data, False
        return self._digest.digest(), True


class StateVerifier:
    """Checks the pieces of a state and gives out its plain bytes, which count only at the end.

    Anything that does not fit raises StateStreamError.
    """

    def __init__(self) -> None:
        self.description: StateDescription | None = None
        """Known from the first piece on."""
        self.is_whole = False
        """The last piece has come, and fits."""
        self._size = 0
        self._decompressor = zstandard.ZstdDecompressor().decompressobj()
        self._digest = blake3()

    def take(self, data: bytes, *, last: bool) -> bytes:
        """Take the next piece; returns its plain bytes, none for the first and the last piece."""
        if self.description is None:
            self._begin(data)
            return b""
        if last:
            self._finish(data, self.description)
            return b""
        try:
            plain = self._decompressor.decompress(data)
        except zstandard.ZstdError as error:
            raise StateStreamError(f"the stream is damaged: {error}") from error
        self._size += len(plain)
        if self._size > self.description.size_bytes:
            raise StateStreamError("the stream is longer than its description says")
        self._digest.update(plain)
        return plain

    def _begin(self, data: bytes) -> None:
        try:
            description = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise StateStreamError(f"no description of a state: {error}") from error
        if description.version != STREAM_VERSION:
            raise StateStreamError(f"version {description.version} of the stream is not known")
        self._digest.update(data)
        self.description = description

    def _finish(self, digest: bytes, description: StateDescription) -> None:
        whole = self._decompressor.eof and not self._decompressor.unused_data
        size_bytes = description.size_bytes
        if not whole or self._size != size_bytes or digest != self._digest.digest():
            raise StateStreamError(
                f"{self._size} bytes of {size_bytes} came, and they are not what was sent"
            )
        self.is_whole = True


class StateFile:
    """A file that a state is written to; of no use before `finish`."""

    def __init__(self, filesystem: FileSystem, path: str, size_bytes: int) -> None:
        """Raises StateStreamError where there is no space for `size_bytes`."""
        directory = os.path.dirname(path)
        free = filesystem.free_bytes(directory)
        if free < size_bytes + SPACE_LEFT_BYTES:
            raise StateStreamError(
                f"{directory} has {free} bytes free, the state takes {size_bytes}"
            )
        self._filesystem = filesystem
        self._directory = directory
        self._file: File | None = filesystem.open(path, create=True)
        self._file.truncate(0)
        self._offset = 0

    def write(self, plain: bytes) -> None:
        assert self._file is not None
        self._file.write_at(self._offset, plain)
        self._offset += len(plain)

    def finish(self) -> None:
        """Durable on return."""
        assert self._file is not None
        self._file.datasync()
        self.close()
        self._filesystem.sync_directory(self._directory)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class StateDecoder:
    """Writes the pieces to a file, and says at the end whether it is what was sent.

    Anything about it that does not fit raises StateStreamError; the file is of no use then.
    """

    def __init__(
        self, filesystem: FileSystem, path: str, *, cluster_id: str, incarnation: int
    ) -> None:
        self._filesystem = filesystem
        self._path = path
        self._identity = (cluster_id, incarnation)
        self._verifier = StateVerifier()
        self._file: StateFile | None = None

    def take(self, data: bytes, *, last: bool) -> StateDescription | None:
        """Take the next piece; after the last one the file is verified and durable.

        Returns the description with the last piece. Raises OSError besides.
        """
        plain = self._verifier.take(data, last=last)
        description = self._verifier.description
        assert description is not None
        if self._file is None:
            if (description.cluster_id, description.incarnation) != self._identity:
                raise StateStreamError(
                    f"it is of cluster {description.cluster_id}, "
                    f"incarnation {description.incarnation}"
                )
            self._file = StateFile(self._filesystem, self._path, description.size_bytes)
        if not self._verifier.is_whole:
            self._file.write(plain)
            return None
        self._file.finish()
        return description

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
