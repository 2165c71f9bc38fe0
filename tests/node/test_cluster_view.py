"""The ring's view of the cluster: current, cheap, and bounded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from metadata_raft.records import AppliedState
from node.cluster_view import NO_MEMBERSHIP, ReplicatedLiveChunks, ReplicatedView
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
        from msgspec.structs import replace  # noqa: PLC0415

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
    metadata.memberships = [
        Membership(epoch=epoch, members=(member("a"),) if epoch < 3 else (member("a"), member("b")))
        for epoch in (1, 2, 3)
    ]
    metadata.apply(epoch=3, members_version=9, generation=5)
    assert view.membership() == metadata.memberships[-1]
    assert [former.epoch for former in view.former()] == [2, 1]
    assert view.generation() == 5


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
