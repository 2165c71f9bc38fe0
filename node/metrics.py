"""What a node shows of itself at /metrics besides its requests: a table of figures, with help.

The figures are those of `Node.load()`, which `status` shows as well, and some of the Raft group and
the cluster as this node sees them. Read when somebody scrapes; nothing is kept up to date in
between. Units stand last in the names; what only grows while a node runs is a counter, whose name
gets `_total` as Prometheus wants it. docs/operations/metrics.md is the same table for people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from gateway.documents import ClusterDocument
from metadata_raft.replica import RaftStatus

PREFIX = "holdfast_"


class Figure(NamedTuple):
    help: str
    is_counter: bool = False


_COUNTER = True

RAFT: Mapping[str, Figure] = {
    "quorum": Figure("1: this node knows a leader, so a majority of the voters answers"),
    "raft_leader": Figure("1: this node leads the Raft group"),
    "raft_term": Figure("Raft's term; it grows with every election, and should rarely do so"),
    "raft_commit_index": Figure("The last entry of the log that is committed, as known here"),
    "raft_applied_index": Figure("The last entry of the log that is applied here"),
    "raft_lag_entries_max": Figure("On the leader: entries that the slowest member lacks; else 0"),
}
"""Of the Raft group."""

CLUSTER: Mapping[str, Figure] = {
    "settled": Figure("1: every copy is where the current epoch of the ring wants it"),
    "cluster_members": Figure("Nodes of the cluster, whatever their stage"),
    "cluster_members_in_ring": Figure("Nodes that hold chunks"),
    "cluster_members_unreachable": Figure("Other nodes that do not answer this one"),
    "cluster_voters": Figure("Nodes that count in Raft's majority"),
    "cluster_epoch": Figure("The ring's epoch; each change of nodes or weights makes a new one"),
    "cluster_generation": Figure("The generation that garbage collection runs on"),
    "cluster_version": Figure("The version of commands that all nodes have agreed on"),
    "setting_repair_bytes_per_second": Figure("The cluster's setting; 0: without limit"),
    "setting_repair_bytes_per_second_beside_clients": Figure(
        "The cluster's setting; 0: a quarter of the other while clients are served"
    ),
    "setting_scrub_bytes_per_second": Figure("The cluster's setting; 0: without limit"),
    "setting_scrub_interval_seconds": Figure("The cluster's setting; 0: only when told to"),
    "collection_held": Figure("1: no space is reclaimed, after a restore, until it is resumed"),
    "warnings": Figure("Sentences that `holdfast status` shows as warnings on this node"),
}
"""Of the cluster, as this node sees it."""

FIGURES: Mapping[str, Figure] = {
    # The chunk store.
    "chunks": Figure("Chunks held on this node, damaged ones left out"),
    "chunks_plain_bytes": Figure("Their bytes before compression"),
    "chunks_stored_bytes": Figure("Their bytes as stored, after compression"),
    "disk_allocated_bytes": Figure("What the volumes occupy on disk, padding and damage included"),
    "store_writable": Figure("1: the store takes chunks; 0: a write or sync failed"),
    "store_full": Figure("1: quota or disk leave no room for a chunk of full length"),
    "chunk_quota_bytes": Figure("What chunks may occupy on this node by its settings; 0: no quota"),
    "quarantined_chunks": Figure("Damaged copies on this node, kept until there are healthy ones"),
    "damage_found": Figure("Damaged copies met since the start", _COUNTER),
    # Repair and moves.
    "repair_remaining_copies": Figure("Copies that this node knows to be lacking"),
    "repair_swept_percent": Figure("How far the present sweep is, in percent; 100 where none runs"),
    "repair_copied_bytes": Figure("Bytes copied by repair since the start", _COUNTER),
    "repair_bytes_left": Figure("What this node still has to fetch, by estimate"),
    "repair_bytes_per_second": Figure("How fast it fetches"),
    "repair_eta_seconds": Figure("Until it has all its copies, at this rate; not there if unknown"),
    "moves_misplaced_copies": Figure("Copies here that belong elsewhere and wait for their owners"),
    "moves_dropped_copies": Figure("Copies dropped after all owners confirmed theirs", _COUNTER),
    "unrecoverable_chunks": Figure("Referenced chunks that no node has; anything but 0 is a loss"),
    # Anti-entropy.
    "reads_overtaken": Figure(
        "Reads from a node that took long, and another was quicker", _COUNTER
    ),
    "anti_entropy_age_seconds": Figure("Since the oldest comparison with a node it shares with"),
    "anti_entropy_differing_partitions": Figure("Partitions that differed at the last comparisons"),
    "anti_entropy_exchanged_bytes": Figure("Fingerprints and ids received to compare", _COUNTER),
    "anti_entropy_lacking_chunks": Figure("Copies that comparing found lacking", _COUNTER),
    "anti_entropy_repaired_digests": Figure("Wrong digests of partitions put right", _COUNTER),
    # Scrubbing.
    "scrub_running": Figure("1: a scrub is under way"),
    "scrub_passes": Figure("Whole scrubs of this node so far, over restarts"),
    "scrub_done_bytes": Figure("What the scrub under way has read; 0 between two"),
    "scrub_total_bytes": Figure("What the scrub under way has to read; 0 between two"),
    "scrub_bytes_per_second": Figure("How fast the scrub under way reads"),
    "scrub_eta_seconds": Figure("Until the scrub under way ends, at this rate; 0 if not known"),
    "scrub_damage_found": Figure("Records that the present or else the last scrub found bad"),
    "scrub_age_seconds": Figure("Since the last whole scrub ended, or the store was made"),
    "scrub_percent": Figure("How far the scrub under way is; not there between two"),
    # Collection.
    "collected_chunks": Figure("Unreferenced chunks deleted since the start", _COUNTER),
    # The process and its machine.
    "buffers_leased_bytes": Figure("Memory in use for chunks on their way"),
    "jobs_failing": Figure("Background jobs whose last unit of work ended with an error"),
    "disk_size_bytes": Figure("Size of the file system that holds the chunks"),
    "disk_free_bytes": Figure("What is free of it for ordinary processes"),
    "machine_load_percent": Figure("Load average of one minute per processor, in percent"),
    "memory_resident_bytes": Figure("Resident memory of this process"),
    "clock_seconds": Figure("Unix time on this machine's clock, which decides nothing"),
}
"""Every figure of `DataPlane.load()`, by subsystem."""


SOMETIMES = frozenset({"scrub_percent", "repair_eta_seconds"})
"""Of these figures, which are there only while there is something to say."""


class NodeMetrics(Collector):
    """A collector for the registry that the gateway exposes."""

    def __init__(
        self,
        raft: Callable[[], RaftStatus],
        cluster: Callable[[], ClusterDocument],
    ) -> None:
        self._raft = raft
        self._cluster = cluster

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: the registry would otherwise scrape a node that is just starting."""
        return ()

    def collect(self) -> Iterable[Metric]:
        cluster = self._cluster()
        own = next((each for each in cluster.members if each.node_id == cluster.node_id), None)
        yield InfoMetricFamily(
            PREFIX + "node",
            "Who this node is",
            value={
                "node_id": cluster.node_id,
                "cluster_id": cluster.cluster_id,
                "software_version": cluster.software_version,
                "zone": own.zone if own is not None else "",
            },
        )
        for table, values in (
            (RAFT, raft_figures(self._raft())),
            (CLUSTER, cluster_figures(cluster)),
            (FIGURES, cluster.load),
        ):
            for name, value in values.items():
                yield _family(name, table.get(name, _UNKNOWN), float(value))


_UNKNOWN = Figure("A figure of this node")
"""For one that was forgotten in the table: shown nevertheless, and found by a test."""


def _family(name: str, figure: Figure, value: float) -> Metric:
    family = CounterMetricFamily if figure.is_counter else GaugeMetricFamily
    return family(PREFIX + name, figure.help, value=value)


def raft_figures(raft: RaftStatus) -> Mapping[str, float]:
    return {
        "quorum": raft.leader_id is not None,
        "raft_leader": raft.role == "leader",
        "raft_term": raft.term,
        "raft_commit_index": raft.commit_index,
        "raft_applied_index": raft.applied_index,
        "raft_lag_entries_max": max(raft.lag_entries.values(), default=0),
    }


def cluster_figures(cluster: ClusterDocument) -> Mapping[str, float]:
    members = cluster.members
    return {
        "settled": bool(cluster.settled),
        "cluster_members": len(members),
        "cluster_members_in_ring": sum(member.in_ring for member in members),
        "cluster_members_unreachable": sum(member.reachable is False for member in members),
        "cluster_voters": sum(member.stage == "voter" for member in members),
        "cluster_epoch": cluster.epoch,
        "cluster_generation": cluster.generation,
        "cluster_version": cluster.cluster_version,
        **{f"setting_{name}": value for name, value in cluster.settings.items()},
        "collection_held": cluster.collection_held,
        "warnings": len(cluster.warnings),
    }
