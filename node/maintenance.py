"""Whether a node can be stopped now without cost: for an upgrade, a reboot, a new disk. Pure.

A cluster is made to lose one node. Stopping one on purpose is safe while no other is away, and no
copy is missing; then reads and writes go on as if nothing had happened. What speaks against it is
said in sentences, all at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gateway.documents import MemberDocument
from node.cluster_warnings import short
from ring.members import NodeId


@dataclass(frozen=True, slots=True)
class Situation:
    """The cluster as the node that would stop sees it, its members freshly asked."""

    node_id: NodeId
    members: Sequence[MemberDocument]
    quorum: bool
    """Whether a majority of the voters answered a moment ago."""
    settled: bool
    """Whether every node of the ring said at the current epoch that it has all its copies."""
    lacking_copies: int
    owners: Iterable[Sequence[NodeId]]
    """Of each partition."""
    ring_quorum: int
    """Copies that have to answer for a write."""


def reasons_against_stopping(situation: Situation) -> list[str]:
    """Why `situation.node_id` should go on running; [] where it may stop."""
    own_id = situation.node_id
    others = [member for member in situation.members if member.node_id != own_id]
    answering = {member.node_id for member in others if member.reachable}
    reasons: list[str] = []
    if not situation.quorum:
        reasons.append("no majority of the voters answers this node")
    reasons += [
        f"node {short(member.node_id)} does not answer" for member in others if not member.reachable
    ]
    reasons += [
        f"node {short(member.node_id)} is on its way out of the cluster"
        for member in others
        if member.intent in ("leave", "remove") or member.stage == "leaving"
    ]
    reasons += _of_voters(situation, answering)
    reasons += _of_partitions(situation, answering)
    if not situation.settled:
        count = situation.lacking_copies
        reasons.append(
            "not every copy is where it belongs" + (f", {count} are lacking" if count else "")
        )
    return reasons


def _of_voters(situation: Situation, answering: set[NodeId]) -> list[str]:
    voters = {member.node_id for member in situation.members if member.stage == "voter"}
    if situation.node_id not in voters:
        return []
    needed, left = len(voters) // 2 + 1, len(voters & answering)
    if left >= needed:
        return []
    return [f"{left} of {len(voters)} voters would be left, and {needed} are needed"]


def _of_partitions(situation: Situation, answering: set[NodeId]) -> list[str]:
    """Of the partitions that this node owns: the others are no worse without it."""
    short_of = [
        sum(owner in answering for owner in owners)
        for owners in situation.owners
        if situation.node_id in owners
    ]
    worst = min(short_of, default=situation.ring_quorum)
    if worst >= situation.ring_quorum:
        return []
    count = sum(left < situation.ring_quorum for left in short_of)
    left = f"{worst} {'copy' if worst == 1 else 'copies'}"
    return [
        f"of {count} partitions only {left} would answer, a write needs {situation.ring_quorum}"
    ]
