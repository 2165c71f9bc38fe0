"""What can be uploaded, and how it is read: in large pieces, hashed on the way, in a thread."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, BinaryIO

from gateway.client_errors import SourceError

PIECE_SIZE = 1024 * 1024
"""Bytes read, hashed and sent at a time: large enough that the hop to a thread costs nothing."""

Source = bytes | BinaryIO | AsyncIterable[bytes]
"""What can be uploaded: bytes, an open binary file (from where it stands), or a stream."""

Progress = Callable[[int], None]
"""Called with the number of bytes that have just gone over the wire."""


def size_of(source: Source) -> int | None:
    """How many bytes a source will give, where that can be known beforehand."""
    if isinstance(source, bytes):
        return len(source)
    if isinstance(source, AsyncIterable):
        return None
    try:
        status = os.fstat(source.fileno())
        if not stat.S_ISREG(status.st_mode) or not source.seekable():
            return None
        # Zero is no promise either: the kernel's own files say so and have contents.
        return max(0, status.st_size - source.tell()) or None
    except (OSError, AttributeError):
        return None


async def pieces(
    source: Source, hasher: Any, size_bytes: int | None, progress: Progress | None
) -> AsyncIterator[bytes]:
    """The source in pieces, hashed on the way; a file that grows meanwhile ends at `size_bytes`.

    Raises SourceError if it can't be read, or ends before that.
    """
    sent = 0
    if isinstance(source, AsyncIterable):
        async for piece in source:
            hasher.update(piece)
            yield piece
            if progress is not None:
                progress(len(piece))
        return

    def next_piece() -> bytes:
        room = PIECE_SIZE if size_bytes is None else min(PIECE_SIZE, size_bytes - sent)
        piece = source[sent : sent + room] if isinstance(source, bytes) else source.read(room)
        hasher.update(piece)
        return piece

    while True:
        try:
            piece = await asyncio.to_thread(next_piece)
        except OSError as error:
            raise SourceError(f"what was to be sent can't be read: {error.strerror}") from error
        if not piece:
            if size_bytes is not None and sent < size_bytes:
                # Said at once: the gateway would wait for the rest until its patience ends.
                raise SourceError(f"what was to be sent ended after {sent} of {size_bytes} bytes")
            return
        sent += len(piece)
        yield piece
        if progress is not None:
            progress(len(piece))
