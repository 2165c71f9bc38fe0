"""The gateway's counters, in a registry of their own (Prometheus text format at /metrics).

The label `operation` is the method and the route's template, never a path, so that the number of
series is bounded. Observing a request costs a few microseconds.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class Metrics:
    """What the gateway counts. `registry` is shared with whoever wants to be scraped as well."""

    def __init__(self, registry: CollectorRegistry, *, in_progress: Callable[[], float]) -> None:
        self.registry = registry
        self._requests = Counter(
            "holdfast_requests", "Requests answered", ["operation", "status"], registry=registry
        )
        self._seconds = Histogram(
            "holdfast_request_seconds",
            "From the request's headers to the answer's last byte handed to the kernel",
            ["operation"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.received_bytes = Counter(
            "holdfast_received_bytes", "Bytes of file contents received", registry=registry
        )
        self.sent_bytes = Counter(
            "holdfast_sent_bytes", "Bytes of file contents sent", registry=registry
        )
        self.aborted_downloads = Counter(
            "holdfast_aborted_downloads",
            "Downloads cut off because their contents could not be had in full",
            registry=registry,
        )
        Gauge(
            "holdfast_requests_in_progress", "Requests being served", registry=registry
        ).set_function(in_progress)
        # Looking a child up by its labels costs more than counting: keep those that were used.
        self._counters: dict[tuple[str, int], Counter] = {}
        self._histograms: dict[str, Histogram] = {}

    def observe(self, operation: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        counter = self._counters.get((operation, status))
        if counter is None:
            counter = self._requests.labels(operation, str(status))
            self._counters[operation, status] = counter
        counter.inc()
        histogram = self._histograms.get(operation)
        if histogram is None:
            histogram = self._seconds.labels(operation)
            self._histograms[operation] = histogram
        histogram.observe(seconds)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
