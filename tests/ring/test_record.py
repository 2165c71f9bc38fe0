"""Record and volume headers: what is written is read back, and nothing else is believed."""

from __future__ import annotations

import dataclasses
import random

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from ring.errors import RecordError
from ring.interfaces import BLOCK_CHECKSUM_SIZE, BLOCK_SIZE, CHUNK_SIZE_LIMIT, Codec
from ring.record import (
    ALIGNMENT,
    DIRECT_PAYLOAD_MINIMUM,
    FIRST_RECORD_OFFSET,
    RecordHeader,
    decode_header,
    decode_volume_header,
    encode_header,
    encode_volume_header,
    payload_start,
)

KEY = bytes(range(32))


def header(plain_length: int = 100_000, payload_length: int | None = None) -> RecordHeader:
    length = plain_length if payload_length is None else payload_length
    return RecordHeader(
        volume=3,
        offset=40_960,
        synced_up_to=36_864,
        chunk_id=bytes(range(32, 64)),
        codec=Codec.RAW if length == plain_length else Codec.ZSTD,
        payload_start=payload_start(length, plain_length),
        payload_length=length,
        plain_length=plain_length,
        block_checksums=random.Random(1).randbytes(
            -(-plain_length // BLOCK_SIZE) * BLOCK_CHECKSUM_SIZE
        ),
    )


def decode(data: bytes, *, volume: int = 3, offset: int = 40_960) -> RecordHeader:
    return decode_header(data, key=KEY, volume=volume, offset=offset)


@given(plain=st.integers(1, CHUNK_SIZE_LIMIT), saved=st.integers(0, CHUNK_SIZE_LIMIT - 1))
def test_round_trip(plain: int, saved: int) -> None:
    """Any header comes back as it was written, from a block that goes on behind it."""
    written = header(plain, max(1, plain - saved))
    data = encode_header(written, KEY)
    assert len(data) <= ALIGNMENT
    assert decode(data.ljust(ALIGNMENT, b"x")) == written
    assert written.payload_start >= len(data)
    assert written.record_length % ALIGNMENT == 0


def test_large_payloads_are_aligned() -> None:
    """A payload that is written past the page cache starts on a block of its own."""
    assert payload_start(DIRECT_PAYLOAD_MINIMUM, CHUNK_SIZE_LIMIT) == ALIGNMENT
    assert payload_start(DIRECT_PAYLOAD_MINIMUM - 1, BLOCK_SIZE * 4) < ALIGNMENT


@settings(max_examples=300)
@given(bit=st.integers(0, len(encode_header(header(), KEY)) * 8 - 1))
def test_every_bit_counts(bit: int) -> None:
    """A header with one flipped bit anywhere is refused."""
    data = bytearray(encode_header(header(), KEY))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RecordError):
        decode(bytes(data))


@pytest.mark.parametrize("length", [0, 7, 79, 80, 143])
def test_cut_off(length: int) -> None:
    """A header that is not whole is refused."""
    with pytest.raises(RecordError):
        decode(encode_header(header(), KEY)[:length])


def test_another_place() -> None:
    """A sound header is believed only where it was written (D8)."""
    data = encode_header(header(), KEY)
    with pytest.raises(RecordError, match="belongs elsewhere"):
        decode(data, offset=45_056)
    with pytest.raises(RecordError, match="belongs elsewhere"):
        decode(data, volume=4)


def test_another_key() -> None:
    """Who does not know the volume's key can't make a header for it (D8)."""
    for forged in (
        encode_header(header(), bytes(32)),
        encode_header(header(), KEY)[:-32] + blake3(encode_header(header(), KEY)[:-32]).digest(),
    ):
        with pytest.raises(RecordError, match="damaged"):
            decode(forged)


def test_other_format_version() -> None:
    """A record of another format version is refused by name, not taken for damage."""
    data = bytearray(encode_header(header(), KEY)[:-32])
    data[8] = 2
    sealed = bytes(data) + blake3(bytes(data), key=KEY).digest()
    with pytest.raises(RecordError, match="format version 2"):
        decode(sealed)


def test_layout() -> None:
    """The bytes are those of docs/format.md."""
    written = dataclasses.replace(header(10, 10), block_checksums=b"c" * 16)
    assert encode_header(written, KEY)[:96].hex() == (
        "4846524543 4f5244 0100 00 00 80000000 0a000000 0a000000".replace(" ", "")
        + "0300000000000000 00a0000000000000 0090000000000000".replace(" ", "")
        + bytes(range(32, 64)).hex()
        + (b"c" * 16).hex()
    )


def test_volume_header() -> None:
    """Number and key are read from either copy of a volume's header."""
    data = encode_volume_header(7, KEY)
    assert len(data) == FIRST_RECORD_OFFSET
    assert decode_volume_header(data) == (7, KEY)
    for bit in range(88 * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        assert decode_volume_header(bytes(damaged)) == (7, KEY)
        damaged[4096 + bit // 8] ^= 1 << bit % 8
        with pytest.raises(RecordError):
            decode_volume_header(bytes(damaged))


@pytest.mark.parametrize("length", [0, 50, 87])
def test_short_volume_header(length: int) -> None:
    """A file that ends within its header is no volume."""
    with pytest.raises(RecordError):
        decode_volume_header(encode_volume_header(7, KEY)[:length])
