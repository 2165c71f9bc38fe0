"""The generated contents are what the load tests verify everything against."""

from __future__ import annotations

import zstandard
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.contents import PIECE_SIZE, Contents, ContentsReader

_SIZES = st.integers(min_value=0, max_value=5000)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    size=_SIZES,
    compressible=st.booleans(),
    start=_SIZES,
    end=_SIZES,
)
def test_any_range_is_the_slice_of_the_whole(
    seed: int, size: int, compressible: bool, start: int, end: int
) -> None:
    """A range read by itself is the same bytes as in the whole, which is exactly `size` long."""
    contents = Contents(seed=seed, size=size, compressible=compressible)
    whole = b"".join(contents.pieces())
    assert len(whole) == size
    assert contents.read(start, end) == whole[start:end]
    assert contents.checksum() == blake3(whole).hexdigest()


def test_pieces_join_seamlessly() -> None:
    """Contents of several pieces are the same as read at once, in both kinds."""
    for compressible in (False, True):
        contents = Contents(seed=7, size=2 * PIECE_SIZE + 5, compressible=compressible)
        assert b"".join(contents.pieces()) == contents.read(0, contents.size)


def test_seeds_share_nothing_and_repeat_themselves() -> None:
    """The same seed gives the same bytes for good, another seed gives others."""
    assert Contents(seed=1, size=64).read(0, 64) == Contents(seed=1, size=100).read(0, 64)
    assert Contents(seed=1, size=64).checksum() != Contents(seed=2, size=64).checksum()
    # Golden: figures and failures of other days stay comparable.
    assert Contents(seed=1, size=8).read(0, 8).hex() == "31b32fdaa39f5452"


def test_only_the_compressible_kind_compresses() -> None:
    """zstd makes the compressible kind little more than half as long, the other one no shorter."""
    random = Contents(seed=3, size=100_000).read(0, 100_000)
    digits = Contents(seed=3, size=100_000, compressible=True).read(0, 100_000)
    compressor = zstandard.ZstdCompressor(level=1)
    assert len(compressor.compress(random)) >= 100_000
    assert len(compressor.compress(digits)) < 60_000


def test_a_reader_has_the_length_that_is_left_and_hashes_what_went_through() -> None:
    """HTTP clients see the length before they read; the checksum is of what they were given."""
    contents = Contents(seed=9, size=10_000)
    reader = ContentsReader(contents)
    assert len(reader) == 10_000
    first = reader.read(4000)
    assert (len(first), len(reader)) == (4000, 6000)
    assert first + reader.read() == contents.read(0, 10_000)
    assert (reader.read(10), len(reader)) == (b"", 0)
    assert reader.checksum() == contents.checksum()


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 700_000), min_size=4, max_size=12),
    size=st.integers(0, 3 * PIECE_SIZE),
)
def test_a_reader_gives_the_contents_whatever_is_asked_at_a_time(
    sizes: list[int], size: int
) -> None:
    """Reads of any sizes, across the pieces it generates, join to the contents."""
    contents = Contents(seed=4, size=size)
    reader = ContentsReader(contents)
    parts = [reader.read(each) for each in sizes]
    assert b"".join(parts) + reader.read() == contents.read(0, size)
