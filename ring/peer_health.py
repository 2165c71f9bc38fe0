"""How a peer has been answering, for choosing whom to ask first. Pure: the time is given.

It decides about order alone. A peer that seems down is asked last, never given up on, so a wrong
guess costs time and nothing else.
"""

from __future__ import annotations

import bisect

_SMOOTHING = 0.2
"""Weight of the newest latency: about the last ten answers count."""

_PATIENCE_SECONDS = 2.0
"""How long a failed peer is asked last. Short: asking it again is how it is found to be back."""


FAILURE_SECONDS = 5.0
"""What a failure counts as, at least: a hanging peer is not asked first again before it has
answered something else, such as a write, which goes to all owners."""


READ_SIZES = (64 * 1024, 1024 * 1024)
"""Reads up to these sizes (bytes), and larger ones, are timed apart."""

RACE_FACTOR = 4.0
"""A peer is raced once it takes this many times as long as it does on average."""

RACE_SECONDS_MIN = 0.02
"""Never sooner: a busy event loop, here or there, may take so long over something else."""

RACE_SECONDS_MAX = 0.5
"""Never later: readers wait."""

RACE_SECONDS_UNKNOWN = 0.05
RACE_BYTES_PER_SECOND_UNKNOWN = 200e6
"""For a peer that nothing was read from yet: a time for its answer to begin, and a rate."""


class PeerHealth:
    __slots__ = ("_failed_at", "_read_seconds", "latency_seconds")

    def __init__(self) -> None:
        self.latency_seconds = 0.0
        """Moving average of the time to an answer; nought before the first, so all are tried."""
        self._failed_at: float | None = None
        self._read_seconds = [0.0] * (len(READ_SIZES) + 1)
        """Moving averages of whole reads, by size; nought before the first."""

    def answered(self, seconds: float) -> None:
        self._failed_at = None
        self.latency_seconds = _smoothed(self.latency_seconds, seconds)

    def has_read(self, size: int, seconds: float) -> None:
        """A read of `size` bytes has come, whole and good."""
        number = _size_class(size)
        self._read_seconds[number] = _smoothed(self._read_seconds[number], seconds)

    def beaten(self, seconds: float) -> None:
        """Another peer answered while this one had taken `seconds` already: it takes longer."""
        self.latency_seconds = max(self.latency_seconds, seconds)

    def race_seconds(self, size: int) -> float:
        """How long a read of `size` bytes may take before another peer is asked as well."""
        usual = self._read_seconds[_size_class(size)]
        if not usual:
            return RACE_SECONDS_UNKNOWN + size / RACE_BYTES_PER_SECOND_UNKNOWN
        return min(max(RACE_FACTOR * usual, RACE_SECONDS_MIN), RACE_SECONDS_MAX)

    def failed(self, now: float) -> None:
        self._failed_at = now
        self.latency_seconds = max(self.latency_seconds, FAILURE_SECONDS)

    def rank(self, now: float) -> tuple[bool, float]:
        """Sorts peers: those that failed just now last, the quickest first."""
        return self.has_just_failed(now), self.latency_seconds

    def has_just_failed(self, now: float) -> bool:
        return self._failed_at is not None and now - self._failed_at < _PATIENCE_SECONDS


def _smoothed(average: float, newest: float) -> float:
    return _SMOOTHING * newest + (1 - _SMOOTHING) * average if average else newest


def _size_class(size: int) -> int:
    return bisect.bisect_left(READ_SIZES, size)
