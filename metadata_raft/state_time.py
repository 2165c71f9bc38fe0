"""State time: the one clock of the state machine, kept by the leader (rule M5).

The leader stamps every entry with T = max(T, lower median of the voters' clocks). Voters tell
their wall clock in every acknowledgement; between two of them the leader lets it run by its own
monotonic clock. So one wrong clock among three, fast or slow, leader's or not, moves nothing, and T
never goes back. Pure: every reading is an argument.
"""

from __future__ import annotations

from collections.abc import Collection

from ring.members import NodeId

_UNKNOWN = float("-inf")


class StateTime:
    """Readings of the voters' clocks, and the last time that was stamped."""

    def __init__(self, last_ms: int) -> None:
        self._last_ms = last_ms
        self._offsets: dict[NodeId, float] = {}

    @property
    def last_ms(self) -> int:
        return self._last_ms

    def observe(self, node_id: NodeId, clock_ms: int, now_seconds: float) -> None:
        """Note a voter's wall clock, read when this node's monotonic clock said `now_seconds`."""
        self._offsets[node_id] = clock_ms - now_seconds * 1000

    def advance_to(self, time_ms: int) -> None:
        """Never stamp less than this: the time of an entry in the log, or told by a leader."""
        self._last_ms = max(self._last_ms, time_ms)

    def now_ms(self, now_seconds: float, voters: Collection[NodeId]) -> int:
        """T for an entry that is made now; never less than any T before.

        A clock that is not known yet counts as the earliest: T stands still until a majority of
        the voters has told its own, so that a new leader does not go by its clock alone.
        """
        offsets = sorted(self._offsets.get(voter, _UNKNOWN) for voter in voters)
        median = offsets[(len(offsets) - 1) // 2] if offsets else _UNKNOWN
        if median != _UNKNOWN:
            self._last_ms = max(self._last_ms, int(median + now_seconds * 1000))
        return self._last_ms
