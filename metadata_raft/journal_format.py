"""The bytes of a journal file: encoding, and finding out what a crash left (pure).

A journal file is a header of 128 bytes, then records, then the zeros of its preallocated space.

    header                                          record, at a multiple of 8
     0  4  b"HFjs"                                   0  4  b"HFr1"
     4  4  format version                            4  4  length n of the entry
     8  8  number of the file                        8  8  index
    16  8  index of its first entry                 16  8  term
    24 32  random key of this file                  24  4  synced: bytes of the file that were
    56 32  BLAKE3 of cluster id, 0, node id                durable when this record was written
    88  8  1: begins a new log, 0: continues        28  4  zero
    96 32  BLAKE3 of all before it                  32  8  keyed BLAKE3 of 0..32 and the entry,
                                                           its first 8 bytes
                                                    40  n  the entry, zeros up to a multiple of 8

All numbers are little-endian. The key makes it impossible for contents that clients choose to
look like a record, and for a block's former contents to be taken for one.

`synced` tells a torn tail from damage. Records of one flush reach the disk in any order, so after
a power cut a valid record can follow an invalid one although neither was ever acknowledged. But
where any later record says that the invalid one had been durable, acknowledged data is damaged.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from blake3 import blake3

from metadata_raft.manifest import Identity
from metadata_raft.messages import LogEntry
from metadata_raft.storage_errors import (
    StorageDamagedError,
    StorageForeignError,
    StorageUnusableError,
)
from ring.filesystem import Buffer

FORMAT_VERSION = 1
KEY_SIZE = 32

_HEADER = struct.Struct("<4sIQQ32s32sQ32s")
HEADER_SIZE = _HEADER.size
_HEADER_MAGIC = b"HFjs"
_DIGEST_SIZE = 32

_RECORD = struct.Struct("<4sIQQI4x")
_RECORD_MAGIC = b"HFr1"
_CHECKSUM_SIZE = 8
RECORD_OVERHEAD = _RECORD.size + _CHECKSUM_SIZE
_ALIGNMENT = 8
_PADDING = tuple(bytes(-length % _ALIGNMENT) for length in range(_ALIGNMENT))


@dataclass(frozen=True)
class FileHeader:
    number: int
    first_index: int
    key: bytes
    begins_log: bool
    """Not the continuation of the file before it: it counts only if the manifest names it."""


@dataclass(frozen=True)
class FileContents:
    """What a file holds: entries with their offsets, and where the valid part ends."""

    entries: list[LogEntry]
    offsets: list[int]
    end: int
    torn: bool
    """Something other than zeros follows the valid part."""


def owner_digest(identity: Identity) -> bytes:
    return blake3(f"{identity.cluster_id}\0{identity.node_id}".encode()).digest()


def encode_header(header: FileHeader, identity: Identity) -> bytes:
    content = _HEADER.pack(
        _HEADER_MAGIC,
        FORMAT_VERSION,
        header.number,
        header.first_index,
        header.key,
        owner_digest(identity),
        int(header.begins_log),
        b"",
    )[:-_DIGEST_SIZE]
    return content + blake3(content).digest()


def decode_header(data: bytes, identity: Identity, path: str) -> FileHeader:
    """Raises StorageDamagedError, StorageForeignError, or StorageUnusableError (version)."""
    if len(data) < HEADER_SIZE:
        raise StorageDamagedError(path, f"only {len(data)} bytes long")
    content = data[: HEADER_SIZE - _DIGEST_SIZE]
    magic, version, number, first_index, key, owner, begins_log, digest = _HEADER.unpack_from(data)
    if magic != _HEADER_MAGIC or blake3(content).digest() != digest:
        raise StorageDamagedError(path, "its header is damaged")
    if version != FORMAT_VERSION:
        raise StorageUnusableError(
            f"{path} has format version {version}, this program knows {FORMAT_VERSION}; "
            "use the version of Holdfast that wrote it, or a newer one"
        )
    if owner != owner_digest(identity):
        raise StorageForeignError(f"{path} was not written by {identity}")
    return FileHeader(number, first_index, key, bool(begins_log))


def record_size(entry_length: int) -> int:
    """Bytes a record takes in a file."""
    return RECORD_OVERHEAD + entry_length + -entry_length % _ALIGNMENT


def encode_record(key: bytes, entry: LogEntry, synced: int) -> list[Buffer]:
    """The pieces of a record, of `record_size` bytes together; the entry is not copied."""
    content, index, term = entry
    head = _RECORD.pack(_RECORD_MAGIC, len(content), index, term, synced)
    return [head + _checksum(key, head, content), content, _PADDING[len(content) % _ALIGNMENT]]


def _checksum(key: bytes, head: Buffer, content: Buffer) -> bytes:
    return blake3(head, key=key).update(content).digest(length=_CHECKSUM_SIZE)


def decode_contents(data: bytes, header: FileHeader, path: str) -> FileContents:
    """Read the records behind a header, up to the first one that is not whole and in order.

    Raises StorageDamagedError where a record that had been durable is not valid any more.
    """
    entries: list[LogEntry] = []
    offsets: list[int] = []
    offset, index = HEADER_SIZE, header.first_index
    while (record := _decode_record(data, offset, header.key)) is not None:
        entry, _ = record
        if entry[1] != index:
            raise StorageDamagedError(path, f"entry {entry[1]} stands where {index} belongs")
        entries.append(entry)
        offsets.append(offset)
        offset, index = offset + record_size(len(entry[0])), index + 1
    if any(synced > offset for synced in _synced_after(data, offset, header.key)):
        raise StorageDamagedError(
            path, f"entry {index} at byte {offset} is damaged, and was durable once"
        )
    return FileContents(entries, offsets, offset, torn=_any_set(data, offset))


def _synced_after(data: bytes, offset: int, key: bytes) -> list[int]:
    """The `synced` values of all valid records from `offset` on."""
    found: list[int] = []
    position = data.find(_RECORD_MAGIC, offset)
    while position >= 0:
        if position % _ALIGNMENT == 0 and (record := _decode_record(data, position, key)):
            found.append(record[1])
        position = data.find(_RECORD_MAGIC, position + 1)
    return found


def _decode_record(data: bytes, offset: int, key: bytes) -> tuple[LogEntry, int] | None:
    """The entry and its `synced`, None where there is no whole valid record."""
    start = offset + RECORD_OVERHEAD
    if start > len(data):
        return None
    magic, length, index, term, synced = _RECORD.unpack_from(data, offset)
    if magic != _RECORD_MAGIC or start + length > len(data):
        return None
    head = data[offset : offset + _RECORD.size]
    content = data[start : start + length]
    if data[offset + _RECORD.size : start] != _checksum(key, head, content):
        return None
    return (content, index, term), synced


def _any_set(data: bytes, offset: int) -> bool:
    """Whether anything but zeros stands from `offset` on."""
    return data.count(0, offset) != max(0, len(data) - offset)
