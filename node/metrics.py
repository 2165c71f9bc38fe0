"""What a node counts besides its requests, for Prometheus: Raft, chunks, buffers, repair, copies.

Read when somebody scrapes; nothing is kept up to date in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from metadata_raft.replica import RaftStatus

_HELP = "See docs/operations/README.md, Watching a node"


class NodeMetrics(Collector):
    """A collector for the registry that the gateway exposes."""

    def __init__(
        self,
        raft: Callable[[], RaftStatus],
        load: Callable[[], Mapping[str, float]],
        settled: Callable[[], bool | None],
    ) -> None:
        self._raft = raft
        self._load = load
        self._settled = settled

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: the registry would otherwise scrape a node that is just starting."""
        return ()

    def collect(self) -> Iterable[Metric]:
        raft = self._raft()
        figures = {
            "raft_leader": raft.role == "leader",
            "raft_term": raft.term,
            "raft_commit_index": raft.commit_index,
            "raft_applied_index": raft.applied_index,
            "raft_lag_entries_max": max(raft.lag_entries.values(), default=0),
            "quorum": raft.leader_id is not None,
            "settled": bool(self._settled()),
            **self._load(),
        }
        for name, value in figures.items():
            yield GaugeMetricFamily(f"holdfast_{name}", _HELP, value=float(value))
