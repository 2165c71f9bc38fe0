"""What of the log may go: decided here, done by the journal (pure).

A segment goes only when the state machine has made its entries durable (rule M4). Of what could
go, a tail is kept for followers that were away for a moment, and everything from the index of a
state download on, so that its receiver can continue behind it (rule M6); both within bounds, so
that the log, which is in memory too, stays bounded whatever the followers do.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

LEASE_SECONDS_LIMIT = 600.0
"""A download that takes longer than this starts again; it would have moved a terabyte."""


@dataclass(frozen=True)
class SegmentSummary:
    first_index: int
    size_bytes: int


def segments_to_drop(
    segments: Sequence[SegmentSummary],
    *,
    durable_index: int,
    last_index: int,
    tail_entries: int,
    tail_bytes: int,
    lease_index: int | None = None,
    lease_bytes: int = 0,
) -> int:
    """How many segments from the front may go; never the last one.

    The entry at `durable_index` itself stays in the log: the next one is matched against it.
    """
    count = 0
    total = sum(segment.size_bytes for segment in segments)
    behind = total
    for segment, follower in itertools.pairwise(segments):
        behind -= segment.size_bytes
        if follower.first_index > durable_index:
            break
        leased = lease_index is not None and follower.first_index > lease_index
        if leased and total <= lease_bytes:
            break
        entries_behind = last_index + 1 - follower.first_index
        if entries_behind < tail_entries and behind + segment.size_bytes <= tail_bytes:
            break
        count += 1
    return count


class LogLease:
    """Holds the log from an index on for a state download; one at a time, for a bounded time."""

    def __init__(self) -> None:
        self._index: int | None = None
        self._expires = 0.0

    def grant(self, index: int, now: float, *, seconds: float = LEASE_SECONDS_LIMIT) -> None:
        """Hold the log from `index` on; `now` is seconds of a monotonic clock."""
        self._index = index
        self._expires = now + min(seconds, LEASE_SECONDS_LIMIT)

    def end_within(self, seconds: float, now: float) -> None:
        """Let the lease end then, or as before if that is sooner."""
        self._expires = min(self._expires, now + seconds)

    def index(self, now: float) -> int | None:
        """The index to hold, None where there is no lease or it ran out."""
        if self._index is not None and now >= self._expires:
            self._index = None
        return self._index
