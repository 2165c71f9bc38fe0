"""What a change of the ring would move: the same as what it then does move."""

from __future__ import annotations

import pytest

from node.ring_preview import (
    NEW_NODE,
    departed,
    estimated_partition_bytes,
    joined,
    preview_document,
)
from ring.members import PARTITION_COUNT, Membership
from ring.placement import build_ring
from tests.fakes.metadata import make_member

THREE = Membership(epoch=4, members=tuple(make_member(number) for number in (1, 2, 3)))
FOUR = Membership(epoch=4, members=tuple(make_member(number) for number in (1, 2, 3, 4)))
SIZES = [1000] * PARTITION_COUNT


def test_a_joining_node_takes_its_share_from_the_others() -> None:
    """What it fetches is what it then holds, and what the others have less."""
    document = preview_document(
        build_ring(THREE), joined(THREE, weight=100, zone=""), SIZES, bytes_per_second=1000
    )
    assert (document.change, document.node_id) == ("join", NEW_NODE)
    new = next(member for member in document.members if member.node_id == NEW_NODE)
    assert new.partitions_before == 0
    assert new.partitions_after == new.partitions_gained == document.partitions_moved
    assert (
        new.bytes_after == new.bytes_gained == document.bytes_moved == 1000 * new.partitions_after
    )
    assert new.feasible_after == 0.25
    assert abs(new.share_after - 0.25) < 0.05
    assert document.seconds == new.bytes_gained / 1000
    for member in document.members:
        if member is not new:
            assert member.partitions_before == PARTITION_COUNT
            assert member.bytes_before == 1000 * PARTITION_COUNT
            assert member.partitions_gained == 0
            assert member.share_before == pytest.approx(1 / 3)
    assert sum(member.partitions_after for member in document.members) == 3 * PARTITION_COUNT


def test_what_a_leaving_node_held_is_made_anew_by_the_others() -> None:
    """It is in the table with nothing left, and the slowest of the others decides on the time."""
    leaver = FOUR.members[1].node_id
    document = preview_document(
        build_ring(FOUR), departed(FOUR, leaver), SIZES, bytes_per_second=500
    )
    assert (document.change, document.node_id) == ("leave", leaver)
    gone = next(member for member in document.members if member.node_id == leaver)
    assert (gone.partitions_after, gone.bytes_after, gone.share_after) == (0, 0, 0.0)
    assert gone.partitions_before == document.partitions_moved
    gains = [member.bytes_gained for member in document.members]
    assert sum(gains) == document.bytes_moved
    assert document.seconds == max(gains) / 500


def test_too_few_nodes_means_fewer_copies() -> None:
    """Two of three nodes hold everything already: nothing moves, and one copy is lost."""
    leaver = THREE.members[0].node_id
    document = preview_document(
        build_ring(THREE), departed(THREE, leaver), SIZES, bytes_per_second=0
    )
    assert (document.copies_before, document.copies_after) == (3, 2)
    assert document.bytes_moved == 0
    assert document.seconds is None


def test_partitions_that_are_not_held_here_are_like_those_that_are() -> None:
    """Counted where this node owns them, the mean of those elsewhere."""
    ring = build_ring(FOUR)
    own = FOUR.members[0].node_id
    counts = [2] * PARTITION_COUNT
    lacking = [
        number for number in range(PARTITION_COUNT) if own not in ring.partition_owners(number)
    ]
    for number in lacking:
        # What still lies here of a partition that moved away says nothing about it.
        counts[number] = 77
    assert lacking
    sizes = estimated_partition_bytes(
        ring, own, chunk_counts=counts, chunk_bytes_mean=50.0, others_bytes=10**12
    )
    assert set(sizes) == {100}


def test_a_node_without_a_share_goes_by_what_the_others_say() -> None:
    """What they hold together, through the copies, through the partitions."""
    sizes = estimated_partition_bytes(
        build_ring(THREE),
        "somebody else",
        chunk_counts=[0] * PARTITION_COUNT,
        chunk_bytes_mean=0.0,
        others_bytes=3 * PARTITION_COUNT * 700,
    )
    assert set(sizes) == {700}
