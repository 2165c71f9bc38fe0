"""The chunks of the whole cluster, added up from what its nodes say."""

from __future__ import annotations

from node.cluster_summary import summarise
from tests.fakes.cluster_documents import member, node_id, own


def test_what_nodes_lack_and_hold_in_excess_is_added_up() -> None:
    """Copies and bytes are sums; the slowest node tells when all will be done."""
    members = [
        own(
            load={
                "repair_remaining_copies": 3.0,
                "repair_bytes_left": 300.0,
                "repair_bytes_per_second": 10.0,
                "repair_eta_seconds": 30.0,
                "scrub_age_seconds": 50.0,
                "scrub_passes": 3.0,
            }
        ),
        member(
            2,
            load={
                "repair_remaining_copies": 1.0,
                "repair_bytes_left": 100.0,
                "repair_bytes_per_second": 1.0,
                "repair_eta_seconds": 100.0,
                "moves_misplaced_copies": 6.0,
                "scrub_age_seconds": 70.0,
                "scrub_passes": 1.0,
                "scrub_percent": 25.0,
            },
        ),
        member(3, load={"quarantined_chunks": 1.0, "unrecoverable_chunks": 2.0}),
    ]
    found = summarise(members, node_id(1))
    assert found.complete
    assert (found.lacking_copies, found.misplaced_copies) == (4, 6)
    assert (found.quarantined_chunks, found.unrecoverable_chunks) == (1, 2)
    assert (found.bytes_left, found.bytes_per_second, found.eta_seconds) == (400, 11.0, 100.0)
    assert (found.scrub_age_seconds, found.scrub_percent) == (70.0, 25.0)
    assert found.scrub_passes == 1


def test_without_an_answer_from_every_node_of_the_ring_the_sum_is_not_complete() -> None:
    """Old figures of a silent node are left out; a drained one is not waited for."""
    silent = member(3, reachable=False, load={"repair_remaining_copies": 9.0})
    found = summarise([own(), member(2), silent], node_id(1))
    assert (found.complete, found.lacking_copies) == (False, 0)
    outside = member(3, reachable=False, in_ring=False)
    assert summarise([own(), member(2), outside], node_id(1)).complete


def test_nothing_on_its_way_has_no_end_in_sight() -> None:
    """An estimate left over from the last move is not shown."""
    found = summarise([own(load={"repair_eta_seconds": 4.0})], node_id(1))
    assert (found.bytes_left, found.eta_seconds, found.scrub_age_seconds) == (0, None, None)
