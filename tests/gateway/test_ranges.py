"""Byte ranges: the arithmetic as such, and as served."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.ranges import Span, UnsatisfiableRangeError, parse_range, pieces
from metadata_raft.chunk_references import pack
from metadata_raft.records import SegmentRecord
from tests.gateway.serving import Serving, contents


@pytest.mark.parametrize(
    ("header", "size", "span"),
    [
        ("bytes=0-0", 10, (0, 1)),
        ("bytes=0-9", 10, (0, 10)),
        ("bytes=3-", 10, (3, 10)),
        ("bytes=3-99", 10, (3, 10)),
        ("bytes=-3", 10, (7, 10)),
        ("bytes=-99", 10, (0, 10)),
        ("BYTES=1-2", 10, (1, 3)),
        ("bytes=0-1,3-4", 10, None),
        ("bytes=5-3", 10, None),
        ("bytes=-", 10, None),
        ("bytes=a-b", 10, None),
        ("items=0-1", 10, None),
        ("", 10, None),
    ],
)
def test_a_range_header_means(header: str, size: int, span: tuple[int, int] | None) -> None:
    """RFC 9110 §14: one satisfiable range counts; what is malformed or several is ignored."""
    assert parse_range(header, size) == span


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=10-", 10), ("bytes=0-", 0), ("bytes=-0", 10), ("bytes=-5", 0)]
)
def test_a_range_behind_the_end_is_unsatisfiable(header: str, size: int) -> None:
    """A range without a single byte of the file in it is an error, not an empty answer."""
    with pytest.raises(UnsatisfiableRangeError):
        parse_range(header, size)


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    segments=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), max_size=5),
    data=st.data(),
)
def test_pieces_add_up_to_the_span(segments: list[list[int]], data: st.DataObject) -> None:
    """Whatever the chunks' lengths, the pieces are exactly the bytes of the span, in order."""
    records: list[SegmentRecord] = []
    stored: dict[bytes, bytes] = {}
    whole = b""
    for ordinal, lengths in enumerate(segments):
        references = []
        start = len(whole)
        for length in lengths:
            chunk = bytes(range(len(whole) % 200, len(whole) % 200 + length))
            chunk_id = len(stored).to_bytes(32, "big")
            stored[chunk_id] = chunk
            references.append((chunk_id, length))
            whole += chunk
        records.append(
            SegmentRecord(
                ordinal=ordinal,
                start=start,
                size_bytes=len(whole) - start,
                chunks=pack(references),
            )
        )
    begin = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(begin, len(whole)))
    found = list(pieces(records, Span(begin, end)))
    assert all(piece.start < piece.end <= piece.length for piece in found)
    parts = [stored[piece.chunk_id][piece.start : piece.end] for piece in found]
    assert b"".join(parts) == whole[begin:end]


@pytest.mark.parametrize("size", [3000, 10_000])
@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=999-1000", 999, 1001),
        ("bytes=1000-1999", 1000, 2000),
        ("bytes=500-2999", 500, 3000),
        ("bytes=2500-", 2500, None),
        ("bytes=-1", -1, None),
    ],
)
async def test_a_range_is_served(
    gateway: Serving, size: int, header: str, start: int, end: int | None
) -> None:
    """206 with exactly the bytes asked for, across chunk borders, and where they are."""
    data = contents(size)
    await gateway.file("PUT", "box/f", data=data)
    got = await gateway.file("GET", "box/f", headers={"Range": header})
    wanted = data[start:end]
    first = start % size
    assert (got.status, got.body) == (206, wanted)
    assert got.headers["Content-Length"] == str(len(wanted))
    assert got.headers["Content-Range"] == f"bytes {first}-{first + len(wanted) - 1}/{size}"


async def test_an_unsatisfiable_range_is_refused(gateway: Serving) -> None:
    """416 says how long the file is."""
    await gateway.file("PUT", "box/f", data=b"0123456789")
    got = await gateway.file("GET", "box/f", headers={"Range": "bytes=10-"})
    assert got.code == "range_not_satisfiable"
    assert got.status == 416
    assert got.headers["Content-Range"] == "bytes */10"


async def test_several_ranges_are_answered_with_the_whole(gateway: Serving) -> None:
    """A multi-range request is answered with 200 and the whole file, as RFC 9110 allows."""
    await gateway.file("PUT", "box/f", data=b"0123456789")
    got = await gateway.file("GET", "box/f", headers={"Range": "bytes=0-1,4-5"})
    assert (got.status, got.body) == (200, b"0123456789")


async def test_if_range_guards_against_a_mixture(gateway: Serving) -> None:
    """With another entity tag, or a date, the range is dropped and the whole file comes."""
    put = await gateway.file("PUT", "box/f", data=b"0123456789")
    for value, status in (
        (put.headers["ETag"], 206),
        ('"other"', 200),
        ("Sat, 01 Jan 2028 00:00:00 GMT", 200),
        (f"W/{put.headers['ETag']}", 200),
    ):
        got = await gateway.file("GET", "box/f", headers={"Range": "bytes=2-3", "If-Range": value})
        assert got.status == status, value
