"""Packed chunk references: what segments and commands hold instead of contents.

    0        32         36
    | id     | length   |   id: BLAKE3-256 of the plaintext; length: uint32 little-endian, 1..8 MiB

A run of at most 1,024 of them, without padding, is the chunk list of one segment.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from metadata_raft.commands import CHUNK_REFERENCE_SIZE, SEGMENT_CHUNK_LIMIT

CHUNK_LENGTH_LIMIT = 8 * 1024 * 1024
"""Bytes of plaintext in a chunk."""

ID_SIZE = 32

_REFERENCE = struct.Struct("<32sI")


def pack(references: Iterable[tuple[bytes, int]]) -> bytes:
    """Pack (chunk id, length) pairs."""
    return b"".join(_REFERENCE.pack(chunk_id, length) for chunk_id, length in references)


def unpack(chunks: bytes) -> list[tuple[bytes, int]]:
    """Return the (chunk id, length) pairs. Raises struct.error on a partial reference."""
    return list(_REFERENCE.iter_unpack(chunks))


def unpack_checked(chunks: bytes) -> list[tuple[bytes, int]] | str:
    """Return the pairs of one segment's list, or why it is none, as the end of a sentence."""
    count, rest = divmod(len(chunks), CHUNK_REFERENCE_SIZE)
    if rest or not 1 <= count <= SEGMENT_CHUNK_LIMIT:
        return f"has {len(chunks)} bytes, which is not 1 to {SEGMENT_CHUNK_LIMIT} references"
    references = unpack(chunks)
    for _, length in references:
        if not 1 <= length <= CHUNK_LENGTH_LIMIT:
            return f"holds a chunk of {length} bytes, not of 1 to {CHUNK_LENGTH_LIMIT}"
    return references
