"""Small files that are either whole or recognised as damaged: the form of vote file and manifest.

     0  4  b"HFsf"
     4  4  kind: four ASCII letters
     8  4  format version of the body, little-endian
    12  4  length of the body
    16  n  body: msgpack
  16+n 32  BLAKE3-256 of all before it

They are replaced atomically and durably, never changed in place, so damage is damage and not a
torn write. A failed write or sync is fatal: what the disk then holds is unknown.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

from blake3 import blake3

from metadata_raft.storage_errors import (
    StorageDamagedError,
    StorageFailedError,
    StorageUnusableError,
)
from metadata_raft.suspect import is_disk_full, mark_suspect
from ring.filesystem import FileSystem, read_file, write_file_atomically

_HEADER = struct.Struct("<4s4sII")
_MAGIC = b"HFsf"
_DIGEST_SIZE = 32

SIZE_LIMIT = 1 << 20
"""Bytes of a sealed file; far above any manifest, and a bound on what damage can make us read."""


def seal(kind: bytes, version: int, body: bytes) -> bytes:
    """The bytes of the file. `kind` has four bytes."""
    head = _HEADER.pack(_MAGIC, kind, version, len(body)) + body
    return head + blake3(head).digest()


def unseal(kind: bytes, version: int, data: bytes, path: str) -> bytes:
    """The body. Raises StorageDamagedError; StorageUnusableError for a newer format version."""
    if len(data) < _HEADER.size + _DIGEST_SIZE:
        raise StorageDamagedError(path, f"only {len(data)} bytes long")
    content, digest = data[:-_DIGEST_SIZE], data[-_DIGEST_SIZE:]
    if blake3(content).digest() != digest:
        raise StorageDamagedError(path, "its checksum does not match")
    magic, found_kind, found_version, length = _HEADER.unpack_from(content)
    if magic != _MAGIC or found_kind != kind or length != len(content) - _HEADER.size:
        raise StorageDamagedError(path, "it is another kind of file")
    if found_version != version:
        raise StorageUnusableError(
            f"{path} has format version {found_version}, this program knows {version}; "
            "use the version of Holdfast that wrote it, or a newer one"
        )
    return content[_HEADER.size :]


def read_sealed(filesystem: FileSystem, path: str, kind: bytes, version: int) -> bytes | None:
    """The body of a sealed file, None where there is none. Raises as `unseal`."""
    if not filesystem.exists(path):
        return None
    return unseal(kind, version, read_file(filesystem, path)[:SIZE_LIMIT], path)


class SealedFile:
    """One sealed file of a kind that is written again and again.

    `make_room` is called when the disk is full, and says whether another try makes sense.
    """

    def __init__(
        self,
        filesystem: FileSystem,
        path: str,
        kind: bytes,
        version: int,
        make_room: Callable[[], bool],
    ) -> None:
        self._filesystem = filesystem
        self._path = path
        self._kind = kind
        self._version = version
        self._make_room = make_room

    def write(self, body: bytes) -> None:
        """Replace the file; durable on return. Raises StorageFailedError."""
        data = seal(self._kind, self._version, body)
        try:
            try:
                write_file_atomically(self._filesystem, self._path, data)
            except OSError as error:
                if not (is_disk_full(error) and self._make_room()):
                    raise
                write_file_atomically(self._filesystem, self._path, data)
        except OSError as error:
            mark_suspect(self._filesystem, os.path.dirname(self._path), error)
            raise StorageFailedError(f"{self._path} could not be made durable: {error}") from error


def no_room() -> bool:
    """The `make_room` of a place without a reserve."""
    return False
