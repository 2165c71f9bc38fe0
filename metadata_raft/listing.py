"""Listing a bucket in key order, one page at a time, by seeking.

Keys are ordered by their UTF-8 bytes, which is also the order of code points. A page costs one
step per file it gives and one seek per common prefix, however many files lie below that prefix.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

LISTING_LIMIT = 10_000
"""Files and prefixes on a page at most."""

_LAST_CODE_POINT = 0x10FFFF
_SURROGATES_START, _SURROGATES_END = 0xD800, 0xDFFF


def after_prefix(prefix: str) -> str | None:
    """Return the least string above every string that begins with `prefix`; None if none is.

    The last code point grows by one; surrogates are skipped, for they are not valid UTF-8.
    """
    stripped = prefix.rstrip(chr(_LAST_CODE_POINT))
    if not stripped:
        return None
    following = ord(stripped[-1]) + 1
    if _SURROGATES_START <= following <= _SURROGATES_END:
        following = _SURROGATES_END + 1
    return stripped[:-1] + chr(following)


def common_prefix(path: str, prefix: str, delimiter: str) -> str | None:
    """Return `path` up to the first delimiter behind `prefix`, delimiter included; None without."""
    found = path.find(delimiter, len(prefix))
    return None if found < 0 else path[: found + len(delimiter)]


def list_page(
    execute: Callable[[str, tuple[Any, ...]], sqlite3.Cursor],
    select: str,
    *,
    bucket_id: int,
    prefix: str,
    delimiter: str,
    cursor: str | None,
    limit: int,
) -> tuple[list[tuple[Any, ...]], list[str], str | None]:
    """Return the rows and common prefixes of a page, and where the next one starts.

    `select` yields rows whose first column is the path, and ends in a WHERE clause for the bucket;
    an empty delimiter groups nothing. The cursor is the last key or prefix of the former page.
    """
    limit = max(1, min(limit, LISTING_LIMIT))
    rows: list[tuple[Any, ...]] = []
    prefixes: list[str] = []
    end = after_prefix(prefix)
    start, comparison, last = prefix, ">=", ""
    if cursor is not None and cursor >= prefix:
        group = common_prefix(cursor, prefix, delimiter) if delimiter else None
        if group is None or not cursor.startswith(prefix):
            start, comparison = cursor, ">"
        else:
            # The former page ended in a prefix: go on behind all that it stands for.
            behind = after_prefix(group)
            if behind is None:
                return rows, prefixes, None
            start = behind
    upper, upper_value = ("", ()) if end is None else (" AND path < ?", (end,))
    while True:
        found = execute(
            f"{select} AND path {comparison} ?{upper} ORDER BY path",
            (bucket_id, start, *upper_value),
        )
        group = None
        for row in found:
            if len(rows) + len(prefixes) == limit:
                return rows, prefixes, last
            path = row[0]
            group = common_prefix(path, prefix, delimiter) if delimiter else None
            if group is not None:
                break
            rows.append(row)
            last = path
        if group is None:
            return rows, prefixes, None
        prefixes.append(group)
        last = group
        behind = after_prefix(group)
        if behind is None:
            return rows, prefixes, None
        start, comparison = behind, ">="
