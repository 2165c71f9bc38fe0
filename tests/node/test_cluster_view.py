"""The ring's view of the cluster: current, cheap, and bounded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from msgspec.structs import replace

from metadata_raft.records import AppliedState
from node.cluster_view import (
    NO_MEMBERSHIP,
    ReplicatedLiveChunks,
    ReplicatedView,
    distinct_placements,
)
from ring.members import Member, Membership


def member(name: str) -> Member:
    return Member(node_id=name, peer_address="", raft_address="", client_url="")


class FakeMetadata:
    def __init__(self) -> None:
        self.listeners: list[Callable[[AppliedState], None]] = []
        self.memberships: list[Membership] = []
        self.state = AppliedState(
            index=0, term=0, time_ms=0, generation=0, epoch=0, members_version=0
        )
        self.snapshots = self.barriers = 0

    def apply(self, **changes: int) -> None:
        self.state = replace(self.state, **changes)
        for listener in self.listeners:
            listener(self.state)

    async def barrier(self, *, timeout_seconds: float = 1.0) -> int:
        self.barriers += 1
        return self.state.index

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[FakeMetadata]:
        self.snapshots += 1
        yield self

    def applied(self) -> AppliedState:
        return self.state

    def add_listener(self, listener: Callable[[AppliedState], None]) -> None:
        self.listeners.append(listener)

    def epochs(self) -> Sequence[Membership]:
        return self.memberships[::-1]

    def referenced(self, chunk_ids: Sequence[bytes]) -> set[bytes]:
        return set(chunk_ids[:1])

    def chunk_page(self, after: bytes, limit: int) -> list[bytes]:
        return [after] * limit


def test_before_any_state_nobody_owns_anything() -> None:
    """A joining node's view is empty rather than wrong."""
    view = ReplicatedView(FakeMetadata())
    view.load()
    assert view.membership() is NO_MEMBERSHIP
    assert view.former() == ()


def test_epochs_arrive_with_the_state_newest_first() -> None:
    """The newest is the membership, the others stand behind it for reads."""
    metadata = FakeMetadata()
    view = ReplicatedView(metadata)
    rings = {1: "a", 2: "ab", 3: "abc"}
    metadata.memberships = [
        Membership(epoch=epoch, members=tuple(map(member, names))) for epoch, names in rings.items()
    ]
    metadata.apply(epoch=3, members_version=9, generation=5)
    assert view.membership() == metadata.memberships[-1]
    assert [former.epoch for former in view.former()] == [2, 1]
    assert view.generation() == 5


def test_no_placement_that_may_hold_copies_is_left_out() -> None:
    """However many epochs have not settled; where the same owners come again, once is enough."""
    metadata = FakeMetadata()
    view = ReplicatedView(metadata)
    names = ["ab", "abc"] * 100 + [f"{number:03}" for number in range(100)] + ["abc"]
    metadata.memberships = [
        Membership(epoch=epoch, members=tuple(map(member, each)))
        for epoch, each in enumerate(names, start=1)
    ]
    metadata.apply(epoch=len(names), members_version=1)
    assert [each.epoch for each in view.former()] == [*range(300, 200, -1), 199]


def test_other_weights_zones_and_replicas_are_other_placements() -> None:
    """They move owners; a new address doesn't."""
    one = member("a")
    weighty, zoned, moved = (
        replace(one, weight=7),
        replace(one, zone="z"),
        replace(one, peer_address="elsewhere"),
    )
    current = Membership(epoch=9, members=(one,))
    former = [
        Membership(epoch=8, members=(moved,)),
        Membership(epoch=7, members=(weighty,)),
        Membership(epoch=6, members=(zoned,)),
        Membership(epoch=5, members=(one,), replicas=2),
    ]
    assert [each.epoch for each in distinct_placements(current, former)] == [7, 6, 5]


def test_what_changes_no_member_reads_nothing() -> None:
    """Thousands of commits a second cost the view nothing."""
    metadata = FakeMetadata()
    view = ReplicatedView(metadata)
    metadata.memberships = [Membership(epoch=1, members=(member("a"),))]
    metadata.apply(epoch=1, members_version=1)
    before, seen = metadata.snapshots, view.membership()
    for index in range(10):
        metadata.apply(index=index, generation=index)
    assert metadata.snapshots == before
    assert view.membership() is seen
    assert view.generation() == 9


async def test_refresh_asks_a_majority_first() -> None:
    """The view is as new as the cluster was when it was asked for."""
    metadata = FakeMetadata()
    view = ReplicatedView(metadata)
    metadata.memberships = [Membership(epoch=1, members=(member("a"),))]
    metadata.state = AppliedState(
        index=1, term=1, time_ms=0, generation=0, epoch=1, members_version=1
    )
    await view.refresh()
    assert metadata.barriers == 1
    assert view.membership().epoch == 1


def test_live_chunks_are_those_of_the_applied_state() -> None:
    """Asked by the collector, answered by the state."""
    live = ReplicatedLiveChunks(FakeMetadata())
    assert live.referenced([b"a", b"b"]) == {b"a"}
    assert live.page(b"x", 2) == [b"x", b"x"]
