"""Compression is decided by the beginning, verified, and never a way to smuggle bytes in."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import zstandard
from blake3 import blake3

from ring import codec
from ring.codec import SAMPLE_SIZE, checksums, decode, encode, verify
from ring.errors import ChunkRejectedError
from ring.interfaces import BLOCK_CHECKSUM_SIZE, BLOCK_SIZE, CHUNK_SIZE_LIMIT, Codec, Encoded


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def text(size: int) -> bytes:
    return (b"all work and no play makes a dull store; " * (size // 40 + 1))[:size]


@pytest.mark.parametrize("size", [1, 63, 4097, BLOCK_SIZE, BLOCK_SIZE + 1, 1_000_000])
@pytest.mark.parametrize("make", [noise, text])
def test_round_trip(size: int, make: Callable[[int], bytes]) -> None:
    """What was encoded decodes to itself, and verifies as its id."""
    data = make(size)
    encoded = encode(memoryview(data))
    assert decode(encoded.payload, encoded.codec, encoded.plain_length) == data
    assert encoded.checksums == verify(blake3(data).digest(), encoded)


def test_checksums() -> None:
    """Id and block checksums are BLAKE3 of the plaintext."""
    data = text(BLOCK_SIZE * 2 + 5)
    found = checksums(data)
    assert found.chunk_id == blake3(data).digest()
    blocks = [data[:BLOCK_SIZE], data[BLOCK_SIZE : 2 * BLOCK_SIZE], data[2 * BLOCK_SIZE :]]
    assert found.blocks == b"".join(blake3(each).digest(BLOCK_CHECKSUM_SIZE) for each in blocks)


def test_noise_stays_raw() -> None:
    """What does not compress is kept as it is, without a copy."""
    data = memoryview(noise(200_000))
    encoded = encode(data)
    assert encoded.codec is Codec.RAW
    assert encoded.payload is data


def test_the_beginning_decides() -> None:
    """A chunk that starts like noise is not compressed, whatever follows."""
    assert encode(memoryview(noise(SAMPLE_SIZE) + text(1_000_000))).codec is Codec.RAW
    assert encode(memoryview(text(SAMPLE_SIZE) + noise(10_000))).codec is Codec.ZSTD


def test_the_whole_must_save_too() -> None:
    """A chunk that only starts compressible is kept raw."""
    assert encode(memoryview(text(SAMPLE_SIZE) + noise(1_000_000))).codec is Codec.RAW


def test_compression_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressor that loses something is noticed before anything is stored."""

    class Broken:
        def compress(self, data: memoryview) -> bytes:
            wrong = bytearray(data)
            wrong[0] ^= 1
            return zstandard.ZstdCompressor().compress(bytes(wrong))

    monkeypatch.setattr(codec._zstd(), "compressor", Broken())
    data = memoryview(text(100_000))
    encoded = encode(data)
    assert encoded.codec is Codec.RAW
    assert encoded.payload is data


def _frame(data: bytes, *, announced: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=announced).compress(data)


@pytest.mark.parametrize(
    "content",
    [
        Encoded(noise(99), Codec.RAW, 100),
        Encoded(noise(100), Codec.RAW, 99),
        Encoded(b"", Codec.RAW, 0),
        Encoded(noise(100), Codec.ZSTD, 1000),
        Encoded(_frame(text(1000)), Codec.ZSTD, 1001),
        Encoded(_frame(text(1000)), Codec.ZSTD, 999),
        Encoded(_frame(text(1000))[:-5], Codec.ZSTD, 1000),
        Encoded(_frame(text(1000), announced=False), Codec.ZSTD, 1000),
        Encoded(_frame(bytes(50_000_000)), Codec.ZSTD, 50_000_000),
        Encoded(_frame(bytes(50_000_000)), Codec.ZSTD, CHUNK_SIZE_LIMIT),
        Encoded(noise(1000), Codec.RAW, 1000),
    ],
    ids=lambda content: f"{content.codec.name}-{len(content.payload)}-{content.plain_length}",
)
def test_refused(content: Encoded) -> None:
    """A payload of the wrong form, length or hash is refused, without allocating what it claims."""
    with pytest.raises(ChunkRejectedError):
        verify(blake3(text(1000)).digest(), content)
