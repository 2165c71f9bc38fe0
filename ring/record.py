"""The bytes of a volume: its own header, and the header in front of each chunk. Pure.

A record header is believed only if its keyed checksum is right, and the key is random for each
volume and never leaves the node: so no content, however chosen, can pass for a record, and no
record copied from elsewhere or moved within the volume can either (rule D8).

Volume header, 4,096 bytes, little-endian, written at 0 and again at 4,096:

    offset size
         0    8  magic "HFVOLUME"
         8    2  format version (1)
        10    6  zero
        16    8  volume number
        24   32  key of the record headers
        56   32  BLAKE3-256 of bytes 0 to 55
        88       zero

Record, at a multiple of 4,096 from 8,192 on, zero-padded to a multiple of 4,096:

    offset size
         0    8  magic "HFRECORD"
         8    2  format version (1)
        10    1  codec (0 raw, 1 zstd)
        11    1  zero
        12    4  payload start, from the start of the record
        16    4  payload length
        20    4  plain length
        24    8  volume number
        32    8  offset of this record within the volume
         40    8  synced up to: the volume was durable up to here before this was written
        48   32  chunk id: BLAKE3-256 of the plaintext
        80  16n  block checksums: first half of the BLAKE3-256 of each 64 KiB of plaintext
     80+16n  32  BLAKE3-256 of all before, keyed with the volume's key

The payload follows at once, or, if it is long enough to be written past the page cache, at 4,096.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from blake3 import blake3

from ring.errors import RecordError
from ring.filesystem import Buffer
from ring.interfaces import (
    BLOCK_CHECKSUM_SIZE,
    BLOCK_SIZE,
    CHUNK_ID_SIZE,
    CHUNK_SIZE_LIMIT,
    Codec,
)

ALIGNMENT = 4096
"""Records start and end on multiples of this: the block of the file system, of holes and of
O_DIRECT."""

VOLUME_HEADER_SIZE = 4096
FIRST_RECORD_OFFSET = 2 * VOLUME_HEADER_SIZE

DIRECT_PAYLOAD_MINIMUM = 256 * 1024
"""Payloads from this length on start at 4,096 of their record, for O_DIRECT. Below it the page
cache costs less than the padding, and keeps what is likely to be read again."""

KEY_SIZE = 32
_CHECKSUM_SIZE = 32
_FORMAT_VERSION = 1
_VOLUME_MAGIC = b"HFVOLUME"
_RECORD_MAGIC = b"HFRECORD"
_VOLUME_HEADER = struct.Struct("<8sH6xQ32s")
_RECORD_HEADER = struct.Struct("<8sHBxIIIQQQ32s")
RECORD_HEADER_SIZE_MAX = (
    _RECORD_HEADER.size + CHUNK_SIZE_LIMIT // BLOCK_SIZE * BLOCK_CHECKSUM_SIZE + _CHECKSUM_SIZE
)
assert RECORD_HEADER_SIZE_MAX <= ALIGNMENT

RECORD_SIZE_MAX = ALIGNMENT + CHUNK_SIZE_LIMIT
"""Bytes of the record of a chunk of full length. (Payloads never grow: what zstd can't shorten is
stored raw.)"""


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """What stands in front of a chunk; offsets and lengths in bytes."""

    volume: int
    offset: int
    synced_up_to: int
    chunk_id: bytes
    codec: Codec
    payload_start: int
    payload_length: int
    plain_length: int
    block_checksums: bytes

    @property
    def record_length(self) -> int:
        return align(self.payload_start + self.payload_length)

    @property
    def end(self) -> int:
        return self.offset + self.record_length


def align(length: int) -> int:
    """Round up to the next multiple of 4,096."""
    return -(-length // ALIGNMENT) * ALIGNMENT


def payload_start(payload_length: int, plain_length: int) -> int:
    """Return where the payload of a new record starts, counted from the record's start."""
    if payload_length >= DIRECT_PAYLOAD_MINIMUM:
        return ALIGNMENT
    return _header_size(plain_length)


def encode_volume_header(number: int, key: bytes) -> bytes:
    """Return the 8,192 bytes that a volume starts with: its header, twice."""
    fields = _VOLUME_HEADER.pack(_VOLUME_MAGIC, _FORMAT_VERSION, number, key)
    block = (fields + blake3(fields).digest()).ljust(VOLUME_HEADER_SIZE, b"\0")
    return block * 2


def decode_volume_header(data: bytes) -> tuple[int, bytes]:
    """Return number and key from a volume's first 8,192 bytes; either copy will do.

    Raises RecordError if both are damaged, or of another format version.
    """
    size = _VOLUME_HEADER.size
    for start in range(0, FIRST_RECORD_OFFSET, VOLUME_HEADER_SIZE):
        fields, checksum = data[start : start + size], data[start + size : start + size + 32]
        if len(checksum) == _CHECKSUM_SIZE and blake3(fields).digest() == checksum:
            magic, version, number, key = _VOLUME_HEADER.unpack(fields)
            if magic == _VOLUME_MAGIC and version == _FORMAT_VERSION:
                return number, key
            raise RecordError(f"the volume has format version {version}, not {_FORMAT_VERSION}")
    raise RecordError("both headers of the volume are damaged")


def encode_header(header: RecordHeader, key: bytes) -> bytes:
    """Return the header's bytes, sealed with the volume's key."""
    fields = (
        _RECORD_HEADER.pack(
            _RECORD_MAGIC,
            _FORMAT_VERSION,
            header.codec,
            header.payload_start,
            header.payload_length,
            header.plain_length,
            header.volume,
            header.offset,
            header.synced_up_to,
            header.chunk_id,
        )
        + header.block_checksums
    )
    return fields + blake3(fields, key=key).digest()


def may_be_header(data: Buffer) -> bool:
    """Whether it is worth decoding: a scan passes over zeros and payloads quickly by this."""
    return bytes(data[: len(_RECORD_MAGIC)]) == _RECORD_MAGIC


def decode_header(data: Buffer, *, key: bytes, volume: int, offset: int) -> RecordHeader:
    """Return the header at the start of `data`, which was read at `offset` of `volume`.

    Raises RecordError unless it is whole, sealed with this volume's key, and speaks of this place.
    """
    if len(data) < _RECORD_HEADER.size or not may_be_header(data):
        raise RecordError(f"no record at {offset} of volume {volume}")
    (
        _,
        version,
        codec,
        start,
        payload_length,
        plain_length,
        own_volume,
        own_offset,
        synced_up_to,
        chunk_id,
    ) = _RECORD_HEADER.unpack(data[: _RECORD_HEADER.size])
    if not 0 < plain_length <= CHUNK_SIZE_LIMIT:
        raise RecordError(f"impossible length at {offset} of volume {volume}")
    size = _header_size(plain_length)
    fields, checksum = data[: size - _CHECKSUM_SIZE], data[size - _CHECKSUM_SIZE : size]
    if len(checksum) != _CHECKSUM_SIZE or blake3(fields, key=key).digest() != checksum:
        raise RecordError(f"damaged record header at {offset} of volume {volume}")
    if version != _FORMAT_VERSION:
        raise RecordError(f"record of format version {version} at {offset} of volume {volume}")
    if (own_volume, own_offset) != (volume, offset):
        raise RecordError(f"record at {offset} of volume {volume} belongs elsewhere")
    return RecordHeader(
        volume=volume,
        offset=offset,
        synced_up_to=synced_up_to,
        chunk_id=chunk_id,
        codec=Codec(codec),
        payload_start=start,
        payload_length=payload_length,
        plain_length=plain_length,
        block_checksums=bytes(fields[_RECORD_HEADER.size :]),
    )


def _header_size(plain_length: int) -> int:
    blocks = -(-plain_length // BLOCK_SIZE)
    return _RECORD_HEADER.size + blocks * BLOCK_CHECKSUM_SIZE + _CHECKSUM_SIZE


assert _RECORD_HEADER.size == 48 + CHUNK_ID_SIZE
