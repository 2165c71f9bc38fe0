"""Conditional requests (RFC 9110 §13): parsing, and the decision for reads. Pure.

The decision for writes is the state machine's (`Preconditions` in metadata_raft/commands.py); what
is decided here concerns reads only, whose file is already at hand.
"""

from __future__ import annotations

import email.utils
import enum
import functools
import re
from collections.abc import Mapping

from metadata_raft.commands import Preconditions

_ENTITY_TAG = re.compile(r'[ \t]*(W/)?"([\x21\x23-\x7e\x80-\uffff]*)"[ \t]*')


class MalformedConditionError(ValueError):
    """A conditional header that is no list of entity tags; names the header and its value."""


class Verdict(enum.Enum):
    PROCEED = 200
    NOT_MODIFIED = 304
    FAILED = 412


def entity_tags(header: str, value: str) -> list[tuple[bool, str]]:
    """The tags of a list as (weak, opaque tag); `*` is ("not weak", "*")."""
    if value.strip(" \t") == "*":
        return [(False, "*")]
    tags: list[tuple[bool, str]] = []
    position = 0
    while True:
        match = _ENTITY_TAG.match(value, position)
        if match is None:
            raise MalformedConditionError(f"{header}: {value!r} is no list of entity tags")
        tags.append((match[1] is not None, match[2]))
        position = match.end()
        if position == len(value):
            return tags
        if value[position] != ",":
            raise MalformedConditionError(f"{header}: {value!r} is no list of entity tags")
        position += 1


def for_write(headers: Mapping[str, str]) -> Preconditions:
    """What If-Match and If-None-Match say, for the state machine.

    If-Match compares strongly, so weak tags in it can never match and are left out; If-None-Match
    compares weakly. Raises MalformedConditionError, also for If-Unmodified-Since, whose one-second
    resolution can't protect a write.
    """
    if "If-Unmodified-Since" in headers:
        raise MalformedConditionError("If-Unmodified-Since cannot protect a write; use If-Match")
    if_match: tuple[str, ...] | None = None
    if_none_match: tuple[str, ...] | None = None
    value = headers.get("If-Match")
    if value is not None:
        if_match = tuple(tag for weak, tag in entity_tags("If-Match", value) if not weak)
    value = headers.get("If-None-Match")
    if value is not None:
        if_none_match = tuple(tag for _, tag in entity_tags("If-None-Match", value))
    return Preconditions(if_match=if_match, if_none_match=if_none_match)


def for_read(headers: Mapping[str, str], etag: str, modified_ms: int) -> Verdict:
    """Whether a GET or HEAD of this representation proceeds, in the order of §13.2.2."""
    value = headers.get("If-Match")
    if value is not None:
        if not any(tag in ("*", etag) for weak, tag in entity_tags("If-Match", value) if not weak):
            return Verdict.FAILED
    elif (value := headers.get("If-Unmodified-Since")) is not None:
        limit = parse_date(value)
        if limit is not None and modified_ms // 1000 > limit:
            return Verdict.FAILED
    value = headers.get("If-None-Match")
    if value is not None:
        if any(tag in ("*", etag) for _, tag in entity_tags("If-None-Match", value)):
            return Verdict.NOT_MODIFIED
    elif (value := headers.get("If-Modified-Since")) is not None:
        since = parse_date(value)
        if since is not None and modified_ms // 1000 <= since:
            return Verdict.NOT_MODIFIED
    return Verdict.PROCEED


def range_applies(if_range: str | None, etag: str) -> bool:
    """Whether a Range header counts, given If-Range: only if it has this very entity tag.

    A date there is taken for "no": within one second a file may have changed twice (§13.1.5 wants
    a strong validator, and only the tag is one).
    """
    return if_range is None or if_range.strip(" \t") == f'"{etag}"'


@functools.lru_cache(maxsize=1024)
def parse_date(value: str) -> int | None:
    """Seconds of the Unix epoch, or None for what is no HTTP date (then the header is ignored)."""
    try:
        return int(email.utils.parsedate_to_datetime(value).timestamp())
    except (ValueError, OverflowError):
        return None


@functools.lru_cache(maxsize=4096)
def format_date(seconds: int) -> str:
    """An HTTP date (IMF-fixdate) from seconds of the Unix epoch."""
    return email.utils.formatdate(seconds, usegmt=True)
