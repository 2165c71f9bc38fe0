"""Byte ranges (RFC 9110 §14), and which parts of which chunks a range is made of. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from metadata_raft.chunk_references import unpack
from metadata_raft.records import SegmentRecord

_SINGLE_RANGE = re.compile(r"bytes=[ \t]*(\d{0,19})-(\d{0,19})[ \t]*", re.ASCII | re.IGNORECASE)


class Span(NamedTuple):
    """Bytes `start` up to `end`, exclusive."""

    start: int
    end: int


class UnsatisfiableRangeError(ValueError):
    """The range lies wholly behind the end of the file (416)."""


def parse_range(header: str, size: int) -> Span | None:
    """The span a Range header asks for, or None where the header is to be ignored.

    A header that is malformed, has another unit, or asks for several ranges is ignored, as §14.2
    allows: the answer is then the whole file. Raises UnsatisfiableRangeError.
    """
    match = _SINGLE_RANGE.fullmatch(header)
    if match is None:
        return None
    first, last = match.groups()
    if not first:
        if not last:
            return None
        suffix = int(last)
        if suffix == 0 or size == 0:
            raise UnsatisfiableRangeError
        return Span(max(0, size - suffix), size)
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= size:
        raise UnsatisfiableRangeError
    return Span(start, min(size, int(last) + 1) if last else size)


class Piece(NamedTuple):
    """A part of one chunk: its bytes `start` up to `end`, exclusive."""

    chunk_id: bytes
    length: int
    """Of the whole chunk."""
    start: int
    end: int


def pieces(segments: Sequence[SegmentRecord], span: Span) -> Iterator[Piece]:
    """The parts of chunks that make up those bytes of `span` which `segments` cover, in order."""
    for segment in segments:
        offset = segment.start
        for chunk_id, length in unpack(segment.chunks):
            if offset >= span.end or span.start == span.end:
                return
            if offset + length > span.start:
                yield Piece(
                    chunk_id,
                    length,
                    max(0, span.start - offset),
                    min(length, span.end - offset),
                )
            offset += length
