"""Documents of a cluster where all is well, for tests that change what they are about."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.documents import ClusterDocument, MemberDocument, RaftDocument
from node.cluster_summary import summarise

GB = 1_000_000_000
CLOCK = 1_800_000_000.0


def node_id(number: int) -> str:
    return f"{number}000000a-0000-4000-8000-000000000000"


def member(number: int, **changed: Any) -> MemberDocument:
    """A voter in the ring that answered half a second ago."""
    load = {
        "disk_size_bytes": 100.0 * GB,
        "disk_free_bytes": 60.0 * GB,
        "chunks_stored_bytes": 40.0 * GB,
        "machine_load_percent": 12.0,
        "clock_seconds": CLOCK - 0.5,
    }
    load.update(changed.pop("load", {}))
    document = MemberDocument(
        node_id=node_id(number),
        client_url=f"http://10.0.0.{number}:7070",
        peer_address=f"10.0.0.{number}:7071",
        raft_address=f"10.0.0.{number}:7072",
        zone="",
        weight=100,
        stage="voter",
        in_ring=True,
        reachable=True,
        software_version="0.1.0",
        last_seen_seconds=0.5,
        load=load,
    )
    return msgspec.structs.replace(document, **changed)


def own(**changed: Any) -> MemberDocument:
    """Node 1, which answers."""
    load = {"clock_seconds": CLOCK, **changed.pop("load", {})}
    return member(1, **{"reachable": None, "last_seen_seconds": 0.0, "load": load, **changed})


def cluster(*members: MemberDocument, **changed: Any) -> ClusterDocument:
    """The cluster of these members (three healthy ones), seen by node 1, which leads."""
    shown = list(members) or [own(), member(2), member(3)]
    leader = node_id(1)
    document = ClusterDocument(
        cluster_id="c1057e00-0000-4000-8000-000000000000",
        cluster_version=2,
        node_id=node_id(1),
        software_version="0.1.0",
        quorum=True,
        settled=True,
        epoch=3,
        generation=5,
        replicas=3,
        raft=RaftDocument(
            role="leader",
            term=4,
            leader=leader,
            commit_index=120,
            applied_index=120,
            voters=[each.node_id for each in shown if each.stage == "voter"],
            lag_entries={each.node_id: 0 for each in shown if each.node_id != leader},
        ),
        members=shown,
        load=shown[0].load,
        chunks=summarise(shown, node_id(1)),
        settings={"scrub_interval_seconds": 14 * 86_400},
    )
    return msgspec.structs.replace(document, **changed)
