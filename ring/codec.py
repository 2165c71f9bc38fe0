"""Chunks between plaintext and the form in which they are stored and sent.

`encode` and `verify` are the two ways to an `Encoded` with checksums: one saw the plaintext before
it was compressed, the other got it back out of a received payload. Both are for worker threads;
hashing and zstd release the interpreter lock.
"""

from __future__ import annotations

import threading

import zstandard
from blake3 import blake3

from ring.errors import ChunkRejectedError
from ring.filesystem import Buffer
from ring.interfaces import (
    BLOCK_CHECKSUM_SIZE,
    BLOCK_SIZE,
    CHUNK_SIZE_LIMIT,
    Checksums,
    Codec,
    Encoded,
)

COMPRESSION_LEVEL = 1
"""About 0.45 GB/s on text on one core; higher levels would make zstd the slowest step by far."""

SAMPLE_SIZE = 64 * 1024
"""Compressing this much of a chunk decides about all of it: media and archives cost next to
nothing that way."""

WORTHWHILE_PERCENT = 88
"""Compressed form at most this much of the plain one, or it isn't worth reading it back through
zstd."""


def checksums(plaintext: Buffer) -> Checksums:
    """Hash a chunk: its id, and the checksum of each 64 KiB."""
    view = memoryview(plaintext)
    blocks = [
        blake3(view[start : start + BLOCK_SIZE]).digest(BLOCK_CHECKSUM_SIZE)
        for start in range(0, len(view), BLOCK_SIZE)
    ]
    return Checksums(chunk_id=blake3(view).digest(), blocks=b"".join(blocks))


def encode(plaintext: memoryview) -> Encoded:
    """Hash a chunk of 1 byte to 8 MiB and compress it if that pays.

    A raw result's payload is `plaintext` itself, not a copy.
    """
    compressed = _compressed(plaintext)
    if compressed is None:
        payload, codec = plaintext, Codec.RAW
    else:
        payload, codec = memoryview(compressed), Codec.ZSTD
    return Encoded(
        payload=payload,
        codec=codec,
        plain_length=len(plaintext),
        checksums=checksums(plaintext),
    )


def verify(chunk_id: bytes, content: Encoded) -> Checksums:
    """Hash what a payload stands for. Raises ChunkRejectedError unless it is this very chunk."""
    try:
        plaintext = decode(content.payload, content.codec, content.plain_length)
    except ValueError as error:
        raise ChunkRejectedError(chunk_id, str(error)) from error
    found = checksums(plaintext)
    if found.chunk_id != chunk_id:
        raise ChunkRejectedError(chunk_id, f"the contents are chunk {found.chunk_id.hex()}")
    return found


def decode(payload: Buffer, codec: Codec, plain_length: int) -> Buffer:
    """Return the plaintext, not yet verified. Raises ValueError for a payload of another form.

    Allocates no more than 8 MiB, whatever the payload claims. The plaintext of a raw payload is the
    payload itself.
    """
    if not 0 < plain_length <= CHUNK_SIZE_LIMIT:
        raise ValueError(f"a chunk has 1 to {CHUNK_SIZE_LIMIT} bytes, not {plain_length}")
    if codec == Codec.RAW:
        if len(payload) != plain_length:
            raise ValueError(f"{len(payload)} bytes instead of {plain_length}")
        return payload
    plaintext = bytearray(plain_length)
    decode_into(payload, memoryview(plaintext))
    return plaintext


def decode_into(payload: Buffer, target: memoryview) -> None:
    """Fill `target` with the plaintext of a zstd payload, not yet verified.

    Raises ValueError unless the payload starts with a zstd frame of exactly that length.
    """
    try:
        # A frame that says nothing of its length, or another one, is not from `encode`.
        announced = zstandard.get_frame_parameters(payload).content_size
        if announced != len(target):
            raise ValueError(f"a zstd frame of {announced} bytes instead of {len(target)}")
        with _zstd().decompressor.stream_reader(payload) as stream:
            filled = 0
            while filled < len(target):
                count = stream.readinto(target[filled:])
                if count == 0:
                    raise ValueError(f"a zstd frame that ends after {filled} bytes")
                filled += count
    except zstandard.ZstdError as error:
        raise ValueError(f"damaged zstd frame: {error}") from error


def _compressed(plaintext: memoryview) -> bytes | None:
    sample = plaintext[:SAMPLE_SIZE]
    compressor = _zstd().compressor
    compressed = compressor.compress(sample)
    if not _worthwhile(compressed, sample):
        return None
    if len(plaintext) > SAMPLE_SIZE:
        compressed = compressor.compress(plaintext)
        if not _worthwhile(compressed, plaintext):
            return None
    # Nobody compares the compressed form with the plain one ever again: do it now.
    if decode(compressed, Codec.ZSTD, len(plaintext)) != plaintext:
        return None
    return compressed


def _worthwhile(compressed: bytes, plain: memoryview) -> bool:
    return len(compressed) * 100 <= len(plain) * WORTHWHILE_PERCENT


class _Zstd(threading.local):
    """The contexts of one thread: they can't be shared, and are dear to make."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(
            level=COMPRESSION_LEVEL, write_content_size=True, write_checksum=False
        )
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Zstd()


def _zstd() -> _Zstd:
    return _contexts
