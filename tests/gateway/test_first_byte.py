"""How soon a download begins: its first bytes don't wait for a whole chunk."""

from __future__ import annotations

import pytest

from gateway.downloads import FIRST_SIZE, WHOLE_BODY_LIMIT, short_first
from gateway.ranges import Piece

CHUNK = 8 * 1024 * 1024


def test_a_long_body_begins_with_a_short_piece() -> None:
    """The first piece is cut in two, which join to it; the others are left alone."""
    wanted = [Piece(b"a", CHUNK, 1000, CHUNK), Piece(b"b", CHUNK, 0, CHUNK)]
    assert list(short_first(iter(wanted))) == [
        Piece(b"a", CHUNK, 1000, 1000 + FIRST_SIZE),
        Piece(b"a", CHUNK, 1000 + FIRST_SIZE, CHUNK),
        Piece(b"b", CHUNK, 0, CHUNK),
    ]


@pytest.mark.parametrize("size", [1, FIRST_SIZE, WHOLE_BODY_LIMIT])
def test_what_goes_out_at_once_is_read_at_once(size: int) -> None:
    """A body that is sent in one go with its headers stays one piece, one request to a store."""
    wanted = [Piece(b"a", size, 0, size)]
    assert list(short_first(iter(wanted))) == wanted


def test_nothing_stays_nothing() -> None:
    """An empty list of pieces stays one."""
    assert list(short_first(iter([]))) == []
