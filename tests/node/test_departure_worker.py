"""Members on their way out: each step in its order, once, and by the leader only (rule M7)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import msgspec

from metadata_raft.commands import (
    Command,
    Done,
    Failure,
    ForgetMember,
    Result,
    SetMemberStage,
)
from metadata_raft.errors import NoQuorumError
from metadata_raft.records import AppliedState, ClusterRecord, MemberRecord
from metadata_raft.replica import RaftStatus
from node import cluster_worker, departure_worker
from node.departure_worker import DepartureWorker, departure_step
from ring.members import Member, Membership

EPOCH = 4


def record(
    name: str,
    *,
    stage: str = "voter",
    intent: str = "stay",
    in_ring: bool = True,
    settled: int = EPOCH,
) -> MemberRecord:
    return MemberRecord(
        member=Member(node_id=name, peer_address="", raft_address="", client_url=""),
        stage=stage,
        in_ring=in_ring,
        boot_counter=1,
        software_version="",
        intent=intent,
        settled_epoch=settled,
    )


def cluster() -> ClusterRecord:
    return ClusterRecord(
        cluster_id="c", cluster_version=2, generation=7, epoch=EPOCH, epoch_floor=0, replicas=3
    )


def step(*members: MemberRecord, removed: Sequence[str] = ()) -> Command | None:
    return departure_step(cluster(), members, removed)


def leaving(name: str, expected_stage: str = "voter") -> SetMemberStage:
    return SetMemberStage(node_id=name, stage="leaving", expected_stage=expected_stage)


def test_a_member_leaves_when_the_ring_has_settled_without_it() -> None:
    """Not while it is in the ring; not while another lacks copies that it may have alone."""
    b = record("b", intent="leave", in_ring=False, settled=1)
    assert step(record("a"), record("b", intent="leave")) is None
    assert step(record("a", settled=EPOCH - 1), b) is None
    assert step(record("a"), b) == leaving("b")
    assert step(record("a"), record("b", intent="leave", stage="learner", in_ring=False)) == (
        leaving("b", "learner")
    )


def test_a_drained_member_stays() -> None:
    """It is out of the ring, and no more is wanted."""
    assert step(record("a"), record("b", intent="drain", in_ring=False)) is None


def test_a_dead_member_is_not_waited_for() -> None:
    """It is marked while it is in the ring, whatever has settled."""
    assert step(record("a", settled=0), record("b", intent="remove")) == leaving("b")


def test_the_record_goes_last() -> None:
    """After the Raft group has let go, as a committed configuration says, and the ring too."""
    b = record("b", stage="leaving", intent="leave", in_ring=False)
    assert step(record("a"), b) is None
    assert step(record("a"), b, removed=["x", "b"]) == ForgetMember(node_id="b")
    still = msgspec.structs.replace(b, in_ring=True)
    assert step(record("a"), still, removed=["b"]) is None


def test_one_that_waits_holds_up_no_other() -> None:
    """Each goes as soon as it can."""
    members = [
        record("a"),
        record("b", stage="leaving", intent="leave", in_ring=False),
        record("c", intent="remove", in_ring=False),
    ]
    assert step(*members) == leaving("c")


class FakeMetadata:
    """Applies nothing; answers as told and keeps what was submitted."""

    def __init__(self, *members: MemberRecord) -> None:
        self.records = members
        self.submitted: list[Command] = []
        self.answers: list[Result | Exception] = []
        self.members_version = self.looks = 0
        self.removed: tuple[str, ...] = ()

    async def submit(self, command: Command, *, timeout_seconds: float = 10.0) -> Result:
        self.submitted.append(command)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[FakeMetadata]:
        self.looks += 1
        yield self

    def cluster(self) -> ClusterRecord:
        return cluster()

    def members(self) -> Sequence[MemberRecord]:
        return self.records

    def membership(self, epoch: int | None) -> Membership:
        raise AssertionError

    def reclaim_pending(self) -> bool:
        raise AssertionError

    def applied(self) -> AppliedState:
        return AppliedState(
            index=1,
            term=1,
            time_ms=0,
            generation=1,
            epoch=EPOCH,
            members_version=self.members_version,
        )

    def status(self) -> RaftStatus:
        return RaftStatus(
            node_id="a",
            role="leader",
            term=1,
            leader_id="a",
            commit_index=1,
            applied_index=1,
            first_index=1,
            last_index=1,
            voters=("a",),
            learners=(),
            removed=self.removed,
            lag_entries={},
            state_time_ms=0,
        )


async def test_only_the_leader_takes_steps() -> None:
    """The others look on."""
    metadata = FakeMetadata(record("a"), record("b", intent="remove"))
    await DepartureWorker(metadata, lambda: False).work()
    assert (metadata.submitted, metadata.looks) == ([], 0)


async def test_a_step_that_fails_is_taken_again_later() -> None:
    """Without haste: the log is for clients."""
    metadata = FakeMetadata(record("a"), record("b", intent="remove"))
    metadata.answers = [
        NoQuorumError("none"),
        Failure(code="stale_expectation", detail=""),
        Done(),
    ]
    worker = DepartureWorker(metadata, lambda: True)
    assert await worker.work() == cluster_worker.RETRY_SECONDS
    assert await worker.work() == cluster_worker.RETRY_SECONDS
    assert await worker.work() == 0.0
    assert metadata.submitted == [leaving("b")] * 3


async def test_nothing_is_looked_at_until_something_has_changed() -> None:
    """Members, or who has been removed from the Raft group."""
    b = record("b", stage="leaving", intent="remove", in_ring=False)
    metadata = FakeMetadata(record("a"), b)
    worker = DepartureWorker(metadata, lambda: True)
    for _ in range(3):
        assert await worker.work() == departure_worker.DEPARTURE_INTERVAL_SECONDS
    assert metadata.looks == 1
    metadata.removed = ("b",)
    metadata.answers = [Done()]
    await worker.work()
    assert metadata.submitted == [ForgetMember(node_id="b")]
