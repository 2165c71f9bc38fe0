"""Fingerprints and ranges: what nodes compare."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring.digests import (
    FINGERPRINT_SIZE,
    SLICE_COUNT,
    IdRange,
    differing,
    fingerprints,
    partition_range,
    slice_fingerprints,
    slice_of,
    slice_range,
)
from ring.interfaces import PartitionDigest
from ring.members import PARTITION_COUNT, partition_of

_ids = st.binary(min_size=32, max_size=32)


def _holds(bounds: IdRange, chunk_id: bytes) -> bool:
    return bounds.after < chunk_id and (bounds.below is None or chunk_id < bounds.below)


@given(_ids, st.integers(0, PARTITION_COUNT - 1), st.integers(0, SLICE_COUNT - 1))
def test_ranges(chunk_id: bytes, other: int, other_slice: int) -> None:
    """An id lies in the range of its own partition and slice, and in no other."""
    partition, part = partition_of(chunk_id), slice_of(chunk_id)
    assert _holds(partition_range(partition), chunk_id)
    assert _holds(slice_range(partition, part), chunk_id)
    assert _holds(partition_range(other), chunk_id) == (other == partition)
    assert _holds(slice_range(partition, other_slice), chunk_id) == (other_slice == part)


@pytest.mark.parametrize("edge", [bytes(32), b"\xff" * 32])
def test_ranges_at_the_edges(edge: bytes) -> None:
    """The first and the last id there can be have their partition and slice too."""
    assert _holds(partition_range(partition_of(edge)), edge)
    assert _holds(slice_range(partition_of(edge), slice_of(edge)), edge)


def test_fingerprints_differ_by_count_and_by_digest() -> None:
    """Equal digests have equal fingerprints; another count or another XOR has another."""
    one, more, other = (
        fingerprints([PartitionDigest(count, digest)])
        for count, digest in ((1, bytes(32)), (2, bytes(32)), (1, b"\1" * 32))
    )
    assert len({one, more, other}) == 3
    assert one == fingerprints([PartitionDigest(1, bytes(32))])
    assert len(one) == FINGERPRINT_SIZE


def test_differing_names_exactly_what_differs() -> None:
    """Of partitions, and of the slices of one."""
    same, one, other = b"s" * FINGERPRINT_SIZE, b"1" * FINGERPRINT_SIZE, b"2" * FINGERPRINT_SIZE
    assert differing([5, 7, 9], same * 3, same * 3) == []
    assert differing([5, 7, 9], same + one + one, same + other + one) == [7]
    chance = random.Random(1)
    ids = [b"\xab\xc0" + chance.randbytes(30) for _ in range(100)]
    lacking = slice_fingerprints(ids[1:])
    assert differing(range(SLICE_COUNT), slice_fingerprints(ids), lacking) == [slice_of(ids[0])]
