"""What an operator should look at, in words: sentences about a cluster as it shows itself. Pure.

Worst first. A warning names the node or the number it is about, says what it means, and goes away
by itself when its cause does. What to do stands in docs/operations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from gateway.documents import ClusterDocument, MemberDocument
from metadata_raft.membership import voters_wanted
from node.cluster_summary import is_fresh

DISK_NEARLY_FULL = 0.1
"""Part of a disk; below it an operator has days rather than weeks on most machines."""

SCRUB_OVERDUE_INTERVALS = 2.0
"""Intervals since the last full scrub; one is normal just before the next begins."""

CLOCK_OFF_SECONDS = 5.0
"""Nothing is lost by it (M5), but logs can't be laid side by side, and certificates may fail."""

LAG_ENTRIES = 10_000
"""Entries of the log; a healthy follower lacks a few hundred under full load."""

SHORT_ID_LENGTH = 8


def short(node_id: str) -> str:
    """The first group of a node id, as all screens show it."""
    return node_id[:SHORT_ID_LENGTH]


def warnings(cluster: ClusterDocument) -> list[str]:
    """One sentence for everything that is not as it should be; [] where all is well."""
    return [sentence for check in _CHECKS for sentence in check(cluster)]


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `5 h`, `3 days`: rounded down to one unit."""
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def _no_quorum(cluster: ClusterDocument) -> Iterator[str]:
    if cluster.quorum:
        return
    voters = [member for member in cluster.members if member.stage == "voter"]
    answering = sum(is_fresh(member, cluster.node_id) for member in voters)
    yield (
        f"No quorum: this node knows no leader; {answering} of {len(voters)} voters answer it, "
        f"{len(voters) // 2 + 1} are needed. Nothing can be written until then."
    )


def _unrecoverable(cluster: ClusterDocument) -> Iterator[str]:
    count = cluster.chunks.unrecoverable_chunks
    if count:
        yield (
            f"{counted(count, 'referenced chunk was', 'referenced chunks were')} found on no node "
            "that answers: the files that hold them can't be read in full until a node that has "
            "them is back."
        )


def _down(cluster: ClusterDocument) -> Iterator[str]:
    for member in cluster.members:
        if member.node_id == cluster.node_id or member.reachable is not False:
            continue
        seen = member.last_seen_seconds
        since = f"; last seen {duration(seen)} ago" if seen is not None else ""
        place = f" in zone {member.zone}" if member.zone else ""
        yield f"Node {short(member.node_id)}{place} ({member.client_url}) does not answer{since}."


def _lacking(cluster: ClusterDocument) -> Iterator[str]:
    count = cluster.chunks.lacking_copies
    if count:
        yield (
            f"{counted(count, 'copy is', 'copies are')} lacking: chunks have fewer copies than "
            "wanted, or a new owner has not got its own yet; repair is at it."
        )


def _store_stopped(cluster: ClusterDocument) -> Iterator[str]:
    for member in _heard(cluster):
        if member.load.get("store_writable", 1.0) == 0.0:
            yield (
                f"Node {short(member.node_id)} takes no more chunks after a failed write or sync: "
                "look at its disk and its log."
            )


def _disk(cluster: ClusterDocument) -> Iterator[str]:
    for member in _heard(cluster):
        name = short(member.node_id)
        size, free = member.load.get("disk_size_bytes"), member.load.get("disk_free_bytes")
        if member.load.get("store_full", 0.0):
            yield f"The chunk store of node {name} is full: its copies go to other nodes."
        elif size and free is not None and free < DISK_NEARLY_FULL * size:
            yield (
                f"The disk of node {name} is nearly full: {100 * free / size:.0f} % of "
                f"{size / 1e9:.0f} GB are free."
            )


def _damage(cluster: ClusterDocument) -> Iterator[str]:
    for member in _heard(cluster):
        found = int(member.load.get("damage_found", 0.0))
        if found:
            yield (
                f"Node {short(member.node_id)} has met "
                f"{counted(found, 'damaged copy', 'damaged copies')} since its start; they are "
                "healed from other nodes, but its disk may be failing."
            )


def _scrub(cluster: ClusterDocument) -> Iterator[str]:
    interval = cluster.settings.get("scrub_interval_seconds", 0)
    for member in _heard(cluster):
        age = member.load.get("scrub_age_seconds")
        if interval and age is not None and age > SCRUB_OVERDUE_INTERVALS * interval:
            yield (
                f"The chunks of node {short(member.node_id)} were last read through "
                f"{duration(age)} ago, {duration(interval)} is the interval: scrubbing does not "
                "keep up."
            )


def _collection(cluster: ClusterDocument) -> Iterator[str]:
    if cluster.collection_held:
        yield (
            "Collection is held since the metadata was restored from a backup: space of deleted "
            "files does not come back until it is resumed."
        )


def _voters(cluster: ClusterDocument) -> Iterator[str]:
    voters = sum(member.stage == "voter" for member in cluster.members)
    wanted = voters_wanted(len(cluster.members))
    if voters < wanted:
        yield (
            f"{counted(voters, 'node votes', 'nodes vote')}, {wanted} should: the metadata "
            "survives fewer failures than the number of nodes would allow."
        )
    elif voters > 2 and voters % 2 == 0:
        yield f"{voters} nodes vote: an even number survives no more failures than one fewer."


def _few_nodes(cluster: ClusterDocument) -> Iterator[str]:
    count = sum(member.in_ring for member in cluster.members)
    if 0 < count < cluster.replicas:
        yield (
            f"{counted(count, 'node holds', 'nodes hold')} chunks, so each has "
            f"{counted(count, 'copy', 'copies')} instead of {cluster.replicas}."
        )


def _departing(cluster: ClusterDocument) -> Iterator[str]:
    for member in cluster.members:
        name = short(member.node_id)
        left = int(member.load.get("moves_misplaced_copies", 0.0))
        still = f"; {counted(left, 'copy', 'copies')} still to hand over" if left else ""
        match member.intent:
            case "drain":
                yield f"Node {name} is drained: it holds no share of the chunks{still}."
            case "leave":
                yield f"Node {name} is leaving{still}."
            case "remove":
                yield f"Node {name} is being removed."


def _versions(cluster: ClusterDocument) -> Iterator[str]:
    versions = Counter(member.software_version for member in cluster.members)
    if len(versions) > 1:
        named = ", ".join(f"{version} on {count}" for version, count in sorted(versions.items()))
        yield f"Nodes run different versions ({named}): finish the upgrade."


def _lag(cluster: ClusterDocument) -> Iterator[str]:
    answering = {member.node_id for member in _heard(cluster)}
    for node_id, entries in sorted(cluster.raft.lag_entries.items()):
        if node_id in answering and entries > LAG_ENTRIES:
            yield (
                f"Node {short(node_id)} answers but is {entries} entries behind in the log: it is "
                "slow, or downloads the state."
            )


def _clocks(cluster: ClusterDocument) -> Iterator[str]:
    own = cluster.load.get("clock_seconds")
    for member in _heard(cluster):
        told, seen = member.load.get("clock_seconds"), member.last_seen_seconds
        if own is None or told is None or seen is None or member.node_id == cluster.node_id:
            continue
        offset = told + seen - own
        if abs(offset) > CLOCK_OFF_SECONDS:
            direction = "ahead of" if offset > 0 else "behind"
            yield (
                f"The clock of node {short(member.node_id)} is {duration(abs(offset))} {direction} "
                f"that of node {short(cluster.node_id)}."
            )


def _jobs(cluster: ClusterDocument) -> Iterator[str]:
    for member in _heard(cluster):
        failing = int(member.load.get("jobs_failing", 0.0))
        if failing:
            yield (
                f"{counted(failing, 'background job fails', 'background jobs fail')} on node "
                f"{short(member.node_id)}: its log says why."
            )


def _heard(cluster: ClusterDocument) -> Iterator[MemberDocument]:
    return (member for member in cluster.members if is_fresh(member, cluster.node_id))


def counted(count: int, one: str, many: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{count} {one if count == 1 else many}"


_CHECKS: tuple[Callable[[ClusterDocument], Iterator[str]], ...] = (
    _no_quorum,
    _unrecoverable,
    _down,
    _lacking,
    _store_stopped,
    _disk,
    _damage,
    _scrub,
    _collection,
    _voters,
    _few_nodes,
    _departing,
    _versions,
    _lag,
    _clocks,
    _jobs,
)
"""Worst first."""
