"""Values of query parameters that several routes share. Pure."""

from __future__ import annotations

from gateway.errors import ApiError

PAGE_LIMIT = 1000
"""Entries of one page at most, and where a request names no limit."""

BOOLEANS = {"true": True, "false": False}


def parse_limit(text: str | None) -> int:
    """How many entries a page may have. Raises ApiError(invalid_parameter)."""
    if text is None:
        return PAGE_LIMIT
    if not (
        text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= PAGE_LIMIT
    ):
        raise ApiError("invalid_parameter", f"limit has to be a number from 1 to {PAGE_LIMIT}")
    return int(text)
