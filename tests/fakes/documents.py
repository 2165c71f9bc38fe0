"""Documents as a node would answer them, with what a test cares about filled in."""

from __future__ import annotations

from typing import Any, Literal

from gateway.documents import (
    ClusterDocument,
    MemberDocument,
    RaftDocument,
    RingPreviewDocument,
    RingPreviewMemberDocument,
)


def member(node_id: str, **given: Any) -> MemberDocument:
    values: dict[str, Any] = {
        "client_url": f"http://{node_id}.test:7070",
        "peer_address": f"{node_id}.test:7071",
        "raft_address": f"{node_id}.test:7072",
        "zone": "",
        "weight": 100,
        "stage": "voter",
        "in_ring": True,
        "reachable": None,
        "software_version": "0.1.0",
        **given,
    }
    return MemberDocument(node_id=node_id, **values)


def cluster(*members: MemberDocument, **given: Any) -> ClusterDocument:
    values: dict[str, Any] = {
        "cluster_id": "c1",
        "cluster_version": 1,
        "node_id": members[0].node_id,
        "software_version": "0.1.0",
        "quorum": True,
        "settled": None,
        "epoch": 1,
        "generation": 0,
        "replicas": 3,
        "raft": RaftDocument(
            role="leader", term=1, leader=members[0].node_id, commit_index=5, applied_index=5
        ),
        "load": {},
        **given,
    }
    return ClusterDocument(members=list(members), **values)


def ring_preview(change: Literal["join", "leave"], node_id: str) -> RingPreviewDocument:
    return RingPreviewDocument(
        change=change,
        node_id=node_id,
        copies_before=3,
        copies_after=3,
        partitions_moved=3072,
        partitions_ideal=3072.0,
        bytes_moved=3 * 10**9,
        seconds=11_400.0,
        members=[
            RingPreviewMemberDocument(
                node_id=node_id,
                zone="b",
                weight=100,
                partitions_before=0,
                partitions_after=3072,
                partitions_gained=3072,
                bytes_before=0,
                bytes_after=3 * 10**9,
                bytes_gained=3 * 10**9,
                share_before=0.0,
                share_after=0.25,
                feasible_before=0.0,
                feasible_after=0.25,
            )
        ],
    )
