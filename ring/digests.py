"""What two nodes compare to find out whether they hold the same chunks. Pure.

A store keeps count and XOR of ids for each partition. Two owners of a partition exchange a
fingerprint of that. Where fingerprints differ, a small partition is listed whole; a large one is
first split into 256 slices by the next bits of the ids, so that the answer to "which chunks?" costs
as much as there are differences and not as much as there are chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from blake3 import blake3

from ring.interfaces import CHUNK_ID_SIZE, PartitionDigest

FINGERPRINT_SIZE = 16
"""Bytes: two sets that differ are taken for equal once in 2**128 comparisons."""

SLICE_COUNT = 256
"""Slices of a partition, by the 8 bits of an id behind the partition's 12."""

LISTED_WHOLE_LIMIT = 256
"""Chunks of a partition here up to which it is listed whole: 8 KiB of ids, where the slices'
fingerprints alone would be 4."""


class IdRange(NamedTuple):
    """Ids greater than `after` and, unless it is None, smaller than `below`."""

    after: bytes
    below: bytes | None


def partition_range(partition: int) -> IdRange:
    return _range(partition << 12, 1 << 12)


def slice_range(partition: int, number: int) -> IdRange:
    return _range(partition << 12 | number << 4, 1 << 4)


def _range(start: int, length: int) -> IdRange:
    """Bounds by leading 24 bits: a prefix sorts before all that begins with it."""
    end = start + length
    return IdRange(start.to_bytes(3, "big"), end.to_bytes(3, "big") if end < 1 << 24 else None)


def slice_of(chunk_id: bytes) -> int:
    return (chunk_id[1] & 0xF) << 4 | chunk_id[2] >> 4


def fingerprints(digests: Iterable[PartitionDigest]) -> bytes:
    """The fingerprints of the digests, one behind the other."""
    return b"".join(
        blake3(each.count.to_bytes(8, "big") + each.digest).digest(FINGERPRINT_SIZE)
        for each in digests
    )


def slice_fingerprints(chunk_ids: Iterable[bytes]) -> bytes:
    """The fingerprints of the slices of the partition that consists of these chunks."""
    counts, mixed = [0] * SLICE_COUNT, [0] * SLICE_COUNT
    for chunk_id in chunk_ids:
        number = slice_of(chunk_id)
        counts[number] += 1
        mixed[number] ^= int.from_bytes(chunk_id, "big")
    return fingerprints(
        PartitionDigest(count, digest.to_bytes(CHUNK_ID_SIZE, "big"))
        for count, digest in zip(counts, mixed, strict=True)
    )


def differing(numbers: Sequence[int], one: bytes, other: bytes) -> list[int]:
    """Those of `numbers` whose fingerprints are not the same in both."""
    assert len(one) == len(other) == len(numbers) * FINGERPRINT_SIZE
    if one == other:
        return []
    return [
        number
        for at, number in zip(range(0, len(one), FINGERPRINT_SIZE), numbers, strict=True)
        if one[at : at + FINGERPRINT_SIZE] != other[at : at + FINGERPRINT_SIZE]
    ]
