"""The leader's chores: who enters the ring when, and when generation and reclaiming move."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest

from metadata_raft.commands import (
    Advanced,
    AdvanceGeneration,
    ChangeRing,
    Command,
    Done,
    Failure,
    Reclaimed,
    ReclaimStep,
    Result,
    RingChanged,
    SetClusterVersion,
)
from metadata_raft.errors import NoQuorumError
from metadata_raft.records import AppliedState, ClusterRecord, MemberRecord
from node import cluster_worker
from node.cluster_worker import (
    GenerationWorker,
    ReclaimWorker,
    RingWorker,
    VersionWorker,
    ring_change,
)
from ring.members import Member, Membership


def record(
    name: str,
    stage: str = "voter",
    *,
    in_ring: bool = True,
    intent: str = "stay",
    supported_version: int = 2,
    boot_counter: int = 1,
) -> MemberRecord:
    return MemberRecord(
        member=Member(node_id=name, peer_address="", raft_address="", client_url=""),
        stage=stage,
        in_ring=in_ring,
        boot_counter=boot_counter,
        software_version="",
        intent=intent,
        supported_version=supported_version,
    )


def cluster(epoch: int = 4) -> ClusterRecord:
    return ClusterRecord(
        cluster_id="c", cluster_version=1, generation=7, epoch=epoch, epoch_floor=0, replicas=3
    )


def ring_of(members: Sequence[MemberRecord]) -> Membership:
    """The ring that those in it make as they are recorded."""
    return Membership(epoch=4, members=tuple(each.member for each in members if each.in_ring))


def change_of(members: Sequence[MemberRecord], epoch: int = 4) -> ChangeRing | None:
    return ring_change(cluster(epoch), ring_of(members), members)


class FakeMetadata:
    """Applies nothing; answers as told and keeps what was submitted."""

    def __init__(self, members: Sequence[MemberRecord] = ()) -> None:
        self.records = members
        self.pending = False
        self.submitted: list[Command] = []
        self.answers: list[Result | Exception] = []
        self.index = self.generation = self.members_version = 1
        self.cluster_version = 1

    async def submit(self, command: Command, *, timeout_seconds: float = 10.0) -> Result:
        self.submitted.append(command)
        self.index += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[FakeMetadata]:
        yield self

    def cluster(self) -> ClusterRecord:
        return cluster()

    def reclaim_pending(self) -> bool:
        return self.pending

    def members(self) -> Sequence[MemberRecord]:
        return self.records

    def membership(self, epoch: int | None) -> Membership:
        assert epoch is None
        return ring_of(self.records)

    def applied(self) -> AppliedState:
        return AppliedState(
            index=self.index,
            term=1,
            time_ms=0,
            generation=self.generation,
            epoch=4,
            members_version=self.members_version,
            cluster_version=self.cluster_version,
        )


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_new_voter_enters_the_ring_with_those_that_are_in_it() -> None:
    """The change names everybody, sorted, and expects the epoch it was decided on."""
    change = change_of([record("b"), record("a", in_ring=False)])
    assert change == ChangeRing(expected_epoch=4, node_ids=("a", "b"), replicas=3)


@pytest.mark.parametrize("stage", ["joining", "learner"])
def test_a_member_that_has_not_caught_up_waits(stage: str) -> None:
    """Nobody gets chunks before it knows the state by which it would judge them."""
    members = [record("a"), record("b"), record("c", stage, in_ring=False)]
    assert change_of(members) is None


def test_a_learner_that_stays_one_enters_too() -> None:
    """The fourth of four nodes never votes, and stores all the same."""
    members = [record("a"), record("b"), record("c"), record("d", "learner", in_ring=False)]
    change = change_of(members)
    assert change is not None
    assert change.node_ids == ("a", "b", "c", "d")


def test_a_settled_ring_and_an_unfounded_cluster_change_nothing() -> None:
    """No epoch without a reason."""
    assert change_of([record("a"), record("b")]) is None
    assert change_of([record("a", in_ring=False)], epoch=0) is None


@pytest.mark.parametrize("change", [{"zone": "rack 2"}, {"weight": 50}])
def test_a_member_with_another_zone_or_weight_is_placed_anew(change: dict[str, Any]) -> None:
    """A node that was started with other settings: the ring is made again, with everybody."""
    before = [record("a"), record("b")]
    after = [
        before[0],
        msgspec.structs.replace(
            before[1], member=msgspec.structs.replace(before[1].member, **change)
        ),
    ]
    assert ring_change(cluster(), ring_of(before), after) == ChangeRing(
        expected_epoch=4, node_ids=("a", "b"), replicas=3
    )
    assert change_of(after) is None


@pytest.mark.parametrize("intent", ["drain", "leave", "remove"])
def test_who_is_not_to_stay_loses_its_place_behind_a_fence(intent: str) -> None:
    """What it alone may have acknowledged can't be referenced any more (rule D6)."""
    members = [record("a"), record("b"), record("c", intent=intent)]
    assert change_of(members) == ChangeRing(
        expected_epoch=4, node_ids=("a", "b"), replicas=3, raise_floor=True
    )
    out = [record("a"), record("b"), record("c", intent=intent, in_ring=False)]
    assert change_of(out) is None


def test_a_member_that_leaves_for_good_gets_no_place_again() -> None:
    """Not even where somebody changed their mind in the last moment."""
    members = [record("a"), record("b"), record("c", "leaving")]
    change = change_of(members)
    assert change is not None
    assert change.node_ids == ("a", "b")


def test_a_drained_member_gets_its_place_back() -> None:
    """As soon as it is to stay; nobody loses a place then, so no fence is needed."""
    members = [record("a"), record("b"), record("c", in_ring=False)]
    assert change_of(members) == ChangeRing(
        expected_epoch=4, node_ids=("a", "b", "c"), replicas=3, raise_floor=False
    )


def test_a_demoted_voter_keeps_its_place() -> None:
    """It is down for minutes; what it holds is not lost, and the ring does not move for that."""
    assert change_of([record("a"), record("b"), record("c", "learner")]) is None


def test_comings_and_goings_make_one_change() -> None:
    """Two have joined and one leaves: one epoch, one move of the data."""
    members = [
        record("a"),
        record("b"),
        record("c", intent="leave"),
        record("d", in_ring=False),
        record("e", "learner", in_ring=False),
    ]
    change = change_of(members)
    assert change is not None
    assert change.node_ids == ("a", "b", "d")
    members[4] = record("e", in_ring=False)
    change = change_of(members)
    assert change is not None
    assert (change.node_ids, change.raise_floor) == (("a", "b", "d", "e"), True)


def test_the_last_one_keeps_its_place() -> None:
    """A ring without members would lose everything."""
    assert change_of([record("a", intent="remove")]) is None


async def test_the_version_rises_when_all_support_it() -> None:
    """Not before the last one; then once, and only by the leader."""
    metadata, leading = FakeMetadata([record("a"), record("b", supported_version=1)]), [False]
    worker = VersionWorker(metadata, lambda: leading[0])
    await worker.work()
    leading[0] = True
    await worker.work()
    assert metadata.submitted == []
    metadata.records = [record("a"), record("b", supported_version=3)]
    await worker.work()
    assert metadata.submitted == [], "looked at again only when members changed"
    metadata.members_version += 1
    metadata.answers = [NoQuorumError("none"), Done()]
    assert await worker.work() == cluster_worker.RETRY_SECONDS
    await worker.work()
    assert metadata.submitted == [SetClusterVersion(version=2)] * 2
    metadata.cluster_version = 2
    await worker.work()
    assert len(metadata.submitted) == 2


async def test_only_the_leader_changes_the_ring() -> None:
    """A follower looks on."""
    metadata = FakeMetadata([record("a"), record("b", in_ring=False)])
    await RingWorker(metadata, lambda: False).work()
    assert metadata.submitted == []


async def test_the_ring_is_looked_at_again_only_when_members_changed() -> None:
    """An idle leader reads nothing, four times a second."""
    metadata = FakeMetadata([record("a"), record("b", in_ring=False)])
    metadata.answers = [NoQuorumError("none"), RingChanged(epoch=5)]
    worker = RingWorker(metadata, lambda: True)
    assert await worker.work() == cluster_worker.RETRY_SECONDS
    await worker.work()
    assert len(metadata.submitted) == 2
    metadata.records = [record("a"), record("b")]
    await worker.work()
    metadata.records = [record("a"), record("b", in_ring=False)]
    await worker.work()
    assert len(metadata.submitted) == 2
    metadata.members_version += 1
    metadata.answers = [Failure(code="stale_expectation", detail="")]
    await worker.work()
    assert len(metadata.submitted) == 3


async def test_the_generation_advances_once_per_interval_of_leadership() -> None:
    """A new leader waits a whole interval; a failure is tried again; the expectation is carried."""
    metadata, clock, leading = FakeMetadata(), Clock(), [False]
    worker = GenerationWorker(metadata, lambda: leading[0], 100.0, clock)
    clock.now += 500
    await worker.work()
    leading[0] = True
    clock.now += 99
    assert await worker.work() > 0
    assert metadata.submitted == []
    clock.now += 2
    metadata.answers = [NoQuorumError("none"), Advanced(generation=2)]
    assert await worker.work() == cluster_worker.RETRY_SECONDS
    await worker.work()
    assert metadata.submitted == [AdvanceGeneration(expected=1)] * 2
    metadata.generation = 2
    await worker.work()
    clock.now += 99
    await worker.work()
    assert len(metadata.submitted) == 2


async def test_reclaiming_goes_on_while_there_is_work_and_then_rests() -> None:
    """Steps follow each other while something remains; then only new work, or much time, count."""
    metadata, clock = FakeMetadata(), Clock()
    worker = ReclaimWorker(metadata, lambda: True, 60, clock)
    metadata.pending = True
    metadata.answers = [Reclaimed(rows=500, remaining=True), Reclaimed(rows=1, remaining=False)]
    assert await worker.work() == cluster_worker.RECLAIM_PAUSE_SECONDS
    assert await worker.work() == cluster_worker.RECLAIM_INTERVAL_SECONDS
    metadata.pending = False
    await worker.work()
    assert metadata.submitted == [ReclaimStep(grace_ms=60_000)] * 2
    clock.now += cluster_worker.RECLAIM_IDLE_SECONDS + 1
    metadata.answers = [NoQuorumError("none"), Reclaimed(rows=0, remaining=False)]
    assert await worker.work() == cluster_worker.RETRY_SECONDS
    await worker.work()
    await worker.work()
    assert len(metadata.submitted) == 4


async def test_a_follower_reclaims_nothing() -> None:
    """The queue is the leader's to work off."""
    metadata = FakeMetadata()
    metadata.pending = True
    await ReclaimWorker(metadata, lambda: False, 60, Clock()).work()
    assert metadata.submitted == []


def test_a_learner_that_was_never_heard_owns_nothing() -> None:
    """It died while it was admitted: its share would be lacking on every file until it is back."""
    placed = Membership(epoch=4, members=tuple(record(name).member for name in "abc"))
    voters = [record(name) for name in "abc"]
    silent = record("d", "learner", in_ring=False, boot_counter=0)
    assert ring_change(cluster(), placed, [*voters, silent]) is None
    heard = record("d", "learner", in_ring=False)
    change = ring_change(cluster(), placed, [*voters, heard])
    assert change is not None
    assert change.node_ids == ("a", "b", "c", "d")
