"""The cluster in a few numbers, from what its nodes said of themselves. Pure.

Each node counts what it lacks, holds in excess or has found damaged itself; here that is added up.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.documents import ChunksDocument, MemberDocument


def is_fresh(member: MemberDocument, own_id: str) -> bool:
    """Whether a member's figures are of now: its own, or of a node that answers."""
    return member.node_id == own_id or bool(member.reachable)


def summarise(members: Sequence[MemberDocument], own_id: str) -> ChunksDocument:
    """What the members that answer say of their chunks, added up; see ChunksDocument."""
    heard = [member for member in members if is_fresh(member, own_id)]

    def total(name: str) -> float:
        return sum(member.load.get(name, 0.0) for member in heard)

    def each(name: str) -> list[float]:
        return [member.load[name] for member in heard if name in member.load]

    bytes_left = total("repair_bytes_left")
    etas = each("repair_eta_seconds")
    return ChunksDocument(
        complete=all(is_fresh(member, own_id) for member in members if member.in_ring),
        lacking_copies=int(total("repair_remaining_copies")),
        misplaced_copies=int(total("moves_misplaced_copies")),
        # A chunk that nobody has is counted by each of its owners.
        unrecoverable_chunks=int(max(each("unrecoverable_chunks"), default=0)),
        quarantined_chunks=int(total("quarantined_chunks")),
        bytes_left=int(bytes_left),
        bytes_per_second=total("repair_bytes_per_second"),
        # Nodes fetch at the same time, so the slowest is the last; one without a rate yet hides it.
        eta_seconds=max(etas) if etas and bytes_left else None,
        scrub_age_seconds=max(each("scrub_age_seconds"), default=None),
        scrub_passes=int(min(passes)) if (passes := each("scrub_passes")) else None,
        scrub_percent=min(each("scrub_percent"), default=None),
    )
