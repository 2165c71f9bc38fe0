"""What a change of the ring would move, as the document that operators see. Pure.

The bytes of a partition are an estimate: the chunks that this node counts in a partition which it
owns, times the mean of what its chunks occupy; for a partition that it does not own, the mean of
those it owns. Chunk ids are hashes, so partitions are about equal, and the estimate is good as soon
as there are many chunks. Where this node owns nothing, what the others say they hold is shared out.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.documents import RingPreviewDocument, RingPreviewMemberDocument
from ring.members import PARTITION_COUNT, Member, Membership, NodeId
from ring.placement import Ring, build_ring, preview
from ring.shares import feasible_shares

NEW_NODE = "new"
"""Stands for the id of a node that is yet to join. The real one is placed a little differently,
because where a node's partitions lie depends on its id; how many they are hardly does."""


def joined(membership: Membership, *, weight: int, zone: str) -> Membership:
    """The next epoch with a new node in it."""
    node = Member(
        node_id=NEW_NODE, peer_address="", raft_address="", client_url="", zone=zone, weight=weight
    )
    return Membership(
        epoch=membership.epoch + 1,
        members=(*membership.members, node),
        replicas=membership.replicas,
    )


def departed(membership: Membership, node_id: NodeId) -> Membership:
    """The next epoch without a node."""
    return Membership(
        epoch=membership.epoch + 1,
        members=tuple(each for each in membership.members if each.node_id != node_id),
        replicas=membership.replicas,
    )


def estimated_partition_bytes(
    ring: Ring,
    own_id: NodeId,
    *,
    chunk_counts: Sequence[int],
    chunk_bytes_mean: float,
    others_bytes: int = 0,
) -> list[int]:
    """The bytes of one copy of each partition, see the module.

    `chunk_counts` are those of this node by partition; `others_bytes` is what all other nodes
    together hold, used where this node owns nothing.
    """
    owned = {
        partition
        for partition in range(PARTITION_COUNT)
        if own_id in ring.partition_owners(partition)
    }
    if owned:
        chunks = sum(chunk_counts[partition] for partition in owned)
        elsewhere = chunks * chunk_bytes_mean / len(owned)
    else:
        elsewhere = others_bytes / max(1, PARTITION_COUNT * ring.copies)
    return [
        round(chunk_counts[partition] * chunk_bytes_mean if partition in owned else elsewhere)
        for partition in range(PARTITION_COUNT)
    ]


def preview_document(
    before: Ring,
    after_membership: Membership,
    partition_bytes: Sequence[int],
    *,
    bytes_per_second: int,
) -> RingPreviewDocument:
    """Compare the ring with the one a change would make: 0.5 s, so not on an event loop.

    `bytes_per_second` is what one node fetches at most, 0 without limit.
    """
    after = build_ring(after_membership)
    moves = preview(before, after, partition_bytes)
    gains = {node.node_id: node for node in moves.nodes}
    known = {**before.members, **after.members}
    (changed,) = set(before.members) ^ set(after.members)
    feasible_before = feasible_shares(before.membership)
    feasible_after = feasible_shares(after_membership)
    held_before, held_after = _held(before, partition_bytes), _held(after, partition_bytes)
    slots_before = max(1, PARTITION_COUNT * before.copies)
    slots_after = max(1, PARTITION_COUNT * after.copies)
    members = []
    for node_id, member in sorted(known.items()):
        partitions_before, bytes_before = held_before.get(node_id, (0, 0))
        partitions_after, bytes_after = held_after.get(node_id, (0, 0))
        gain = gains.get(node_id)
        members.append(
            RingPreviewMemberDocument(
                node_id=node_id,
                zone=member.zone,
                weight=member.weight,
                partitions_before=partitions_before,
                partitions_after=partitions_after,
                partitions_gained=gain.partitions_gained if gain else 0,
                bytes_before=bytes_before,
                bytes_after=bytes_after,
                bytes_gained=gain.bytes_gained if gain else 0,
                share_before=partitions_before / slots_before,
                share_after=partitions_after / slots_after,
                feasible_before=float(feasible_before.get(node_id, 0) / max(1, before.copies)),
                feasible_after=float(feasible_after.get(node_id, 0) / max(1, after.copies)),
            )
        )
    most = max((member.bytes_gained for member in members), default=0)
    return RingPreviewDocument(
        change="join" if changed in after.members else "leave",
        node_id=changed,
        copies_before=before.copies,
        copies_after=after.copies,
        partitions_moved=moves.partitions_moved,
        partitions_ideal=moves.partitions_ideal,
        bytes_moved=moves.bytes_moved,
        seconds=most / bytes_per_second if bytes_per_second else None,
        members=members,
    )


def _held(ring: Ring, partition_bytes: Sequence[int]) -> dict[NodeId, tuple[int, int]]:
    """The partitions of each member and their bytes."""
    held = dict.fromkeys(ring.members, (0, 0))
    for partition in range(PARTITION_COUNT):
        for node_id in ring.partition_owners(partition):
            count, size = held[node_id]
            held[node_id] = (count + 1, size + partition_bytes[partition])
    return held
