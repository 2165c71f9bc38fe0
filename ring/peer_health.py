"""How a peer has been answering, for choosing whom to ask first. Pure: the time is given.

It decides about order alone. A peer that seems down is asked last, never given up on, so a wrong
guess costs time and nothing else.
"""

from __future__ import annotations

_SMOOTHING = 0.2
"""Weight of the newest latency: about the last ten answers count."""

_PATIENCE_SECONDS = 2.0
"""How long a failed peer is asked last. Short: asking it again is how it is found to be back."""


FAILURE_SECONDS = 5.0
"""What a failure counts as, at least: a hanging peer is not asked first again before it has
answered something else, such as a write, which goes to all owners."""


class PeerHealth:
    __slots__ = ("_failed_at", "latency_seconds")

    def __init__(self) -> None:
        self.latency_seconds = 0.0
        """Moving average of the time to an answer; nought before the first, so all are tried."""
        self._failed_at: float | None = None

    def answered(self, seconds: float) -> None:
        self._failed_at = None
        if self.latency_seconds:
            seconds = _SMOOTHING * seconds + (1 - _SMOOTHING) * self.latency_seconds
        self.latency_seconds = seconds

    def failed(self, now: float) -> None:
        self._failed_at = now
        self.latency_seconds = max(self.latency_seconds, FAILURE_SECONDS)

    def rank(self, now: float) -> tuple[bool, float]:
        """Sorts peers: those that failed just now last, the quickest first."""
        failed = self._failed_at is not None and now - self._failed_at < _PATIENCE_SECONDS
        return failed, self.latency_seconds
