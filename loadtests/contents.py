"""Contents of files that nobody has to store to know: any range, and the hash, from a seed.

The bytes are the extendable output of BLAKE3 over the seed (section 2.7 of the BLAKE3 paper), which
can be read from any offset at several gigabytes a second. Contents of different seeds share no
chunk, so nothing that removes duplicates can make a load look lighter than it is, and they do not
compress, unless asked for: the compressible kind spells the same output in hexadecimal digits.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from blake3 import blake3

PIECE_SIZE = 1 << 20
"""Bytes generated at a time: large enough to be fast, small enough for many users at once."""


class Contents(msgspec.Struct, frozen=True):
    """The contents that belong to a seed, `size` bytes long. Equal fields mean equal bytes."""

    seed: int
    size: int
    compressible: bool = False
    """Half as much entropy as bytes; zstd gets them to little more than half."""

    def read(self, start: int, end: int) -> bytes:
        """Return bytes `start` to `end` (exclusive), cut off at the end of the contents."""
        end = min(end, self.size)
        if start >= end:
            return b""
        output = blake3(b"holdfast contents %d" % self.seed)
        if not self.compressible:
            return output.digest(length=end - start, seek=start)
        first = start // 2
        digits = output.digest(length=(end + 1) // 2 - first, seek=first).hex().encode()
        return digits[start - 2 * first : end - 2 * first]

    def pieces(self) -> Iterator[bytes]:
        """Yield the contents in order, `PIECE_SIZE` bytes at a time."""
        for start in range(0, self.size, PIECE_SIZE):
            yield self.read(start, start + PIECE_SIZE)

    def checksum(self) -> str:
        """Return the BLAKE3-256 of the whole contents in hexadecimal."""
        hasher = blake3()
        for piece in self.pieces():
            hasher.update(piece)
        return hasher.hexdigest()


class ContentsReader:
    """A file-like view of `Contents` with a length, as HTTP clients want request bodies."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._position = 0
        self._piece = b""
        """What is generated already, ahead of clients that read a few kilobytes at a time."""
        self._hasher = blake3()

    def __len__(self) -> int:
        return self._contents.size - self._position

    def read(self, size: int = -1) -> bytes:
        """Return the next `size` bytes, or all that is left for a negative size."""
        wanted = len(self) if size < 0 else min(size, len(self))
        offset = self._position % PIECE_SIZE
        if offset + wanted > PIECE_SIZE:
            data = self._contents.read(self._position, self._position + wanted)
            self._piece = b""
        else:
            if not self._piece or not offset:
                start = self._position - offset
                self._piece = self._contents.read(start, start + PIECE_SIZE)
            data = self._piece[offset : offset + wanted]
        self._position += len(data)
        self._hasher.update(data)
        return data

    def checksum(self) -> str:
        """Return the BLAKE3-256 in hexadecimal of what has been read so far."""
        return self._hasher.hexdigest()
