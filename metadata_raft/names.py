"""Which names a bucket and a file may have: pure functions, shared with the gateway.

A name is stored exactly as given: nothing is folded, normalised or trimmed, so that what a client
lists is what it wrote. What is refused here is refused everywhere, by the gateway before a body is
read and by the state machine before a command takes effect.
"""

from __future__ import annotations

import re

PATH_SIZE_LIMIT = 1024
"""Bytes of a path in UTF-8, as in S3."""

BUCKET_NAME_LENGTH_MIN = 3
BUCKET_NAME_LENGTH_MAX = 63

_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", re.ASCII)


def bucket_name_problem(name: str) -> str | None:
    """Return why `name` can't name a bucket, as the end of a sentence; None if it can."""
    if not BUCKET_NAME_LENGTH_MIN <= len(name) <= BUCKET_NAME_LENGTH_MAX:
        return f"has {len(name)} characters, not 3 to 63"
    if _BUCKET_NAME.fullmatch(name) is None:
        return "may hold only a-z, 0-9 and hyphens, and neither begin nor end with a hyphen"
    return None


def path_problem(path: str) -> str | None:
    """Return why `path` can't name a file, as the end of a sentence; None if it can."""
    try:
        size = len(path) if path.isascii() else len(path.encode())
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if size > PATH_SIZE_LIMIT:
        return f"has {size} bytes, the limit is {PATH_SIZE_LIMIT}"
    if not path:
        return "is empty"
    if "\0" in path:
        return "holds a NUL character"
    if path[0] == "/":
        return "begins with a slash"
    # The plain path without dots or double slashes is by far the most common: two searches.
    if "//" in path or path[-1] == "/":
        return "has an empty component"
    if "." in path and not {".", ".."}.isdisjoint(path.split("/")):
        return "has a '.' or '..' component"
    return None
