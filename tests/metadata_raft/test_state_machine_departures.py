"""What is wanted of members, how they leave, and which epochs are remembered (rules D3, M7)."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from metadata_raft.commands import (
    AdmitMember,
    ChangeRing,
    CreateJoinToken,
    Done,
    Failure,
    ForgetMember,
    ReportSettled,
    Result,
    ResumeCollection,
    SetClusterSettings,
    SetMemberIntent,
    SetMemberStage,
)
from metadata_raft.records import ClusterSettings
from tests.fakes.metadata import make_member
from tests.metadata_raft.replica import ADMIN, Replica

IDS = [make_member(number).node_id for number in range(6)]
"""Of the members; the founder has number 1."""


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    """Four members of one ring, epoch 2; all have settled it."""
    replica = Replica(str(tmp_path / "state.db")).bootstrap()
    for number in (2, 3, 4):
        admit(replica, number)
        for before, after in (("joining", "learner"), ("learner", "voter")):
            stage(replica, number, before, after)
    change_ring(replica, 1, 2, 3, 4)
    settle(replica, 1, 2, 3, 4)
    yield replica
    replica.close()


def admit(replica: Replica, number: int) -> Result:
    token = f"t{number}"
    replica.do(CreateJoinToken(token_id=token, secret_hash=bytes(32), actor=ADMIN))
    return replica.do(
        AdmitMember(token_id=token, secret_hash=bytes(32), member=make_member(number))
    )


def stage(replica: Replica, number: int, before: str, after: str) -> Result:
    return replica.do(SetMemberStage(node_id=IDS[number], stage=after, expected_stage=before))


def intend(replica: Replica, number: int, intent: str, *, reduce_copies: bool = False) -> Result:
    return replica.do(
        SetMemberIntent(
            node_id=IDS[number], actor=ADMIN, intent=intent, reduce_copies=reduce_copies
        )
    )


def change_ring(replica: Replica, *numbers: int) -> None:
    replica.do(
        ChangeRing(
            expected_epoch=replica.machine.applied.epoch,
            node_ids=tuple(IDS[number] for number in numbers),
            raise_floor=True,
        )
    )


def settle(replica: Replica, *numbers: int) -> None:
    for number in numbers:
        epoch = replica.machine.applied.epoch
        assert replica.do(ReportSettled(node_id=IDS[number], epoch=epoch)) == Done()


def code(result: Result) -> str:
    return result.code if isinstance(result, Failure) else "done"


def epochs(replica: Replica) -> list[int]:
    with replica.snapshot() as snapshot:
        return [each.epoch for each in snapshot.epochs()]


def test_a_member_leaves_when_the_ring_has_settled_without_it(replica: Replica) -> None:
    """Not while it is in the ring, nor while a copy may be on it alone; then for good."""
    assert intend(replica, 4, "leave") == Done()
    assert code(stage(replica, 4, "voter", "leaving")) == "stale_expectation"
    change_ring(replica, 1, 2, 3)
    settle(replica, 1, 2)
    assert code(stage(replica, 4, "voter", "leaving")) == "stale_expectation"
    settle(replica, 3)
    assert stage(replica, 4, "voter", "leaving") == Done()
    assert replica.do(ForgetMember(node_id=IDS[4])) == Done()
    with replica.snapshot() as snapshot:
        assert [each.member.node_id for each in snapshot.members()] == IDS[1:4]
        assert snapshot.departed(IDS[4])
        assert not snapshot.departed(IDS[3])


def test_a_removal_waits_for_nobody(replica: Replica) -> None:
    """A dead node will never settle anything, and its copies are lost anyhow; but the ring has to
    let go of it before it is forgotten."""
    assert intend(replica, 4, "remove") == Done()
    assert stage(replica, 4, "voter", "leaving") == Done()
    assert code(replica.do(ForgetMember(node_id=IDS[4]))) == "stale_expectation"
    change_ring(replica, 1, 2, 3)
    assert replica.do(ForgetMember(node_id=IDS[4])) == Done()
    assert replica.do(ForgetMember(node_id=IDS[4])) == Done()


def test_leaving_is_the_point_of_no_return(replica: Replica) -> None:
    """Before it any intent may be taken back; from it on nothing is, and no stage follows."""
    for intent in ("leave", "drain", "remove", "stay", "remove"):
        assert intend(replica, 4, intent) == Done()
    stage(replica, 4, "voter", "leaving")
    assert intend(replica, 4, "remove") == Done()
    assert code(intend(replica, 4, "stay")) == "stale_expectation"
    assert code(intend(replica, 4, "leave")) == "stale_expectation"
    assert code(stage(replica, 4, "leaving", "voter")) == "stale_expectation"
    assert stage(replica, 4, "leaving", "leaving") == Done()


def test_what_is_taken_back_in_time_keeps_the_member(replica: Replica) -> None:
    """A leader that decided to remove it before is overtaken."""
    intend(replica, 4, "leave")
    change_ring(replica, 1, 2, 3)
    settle(replica, 1, 2, 3)
    intend(replica, 4, "stay")
    assert code(stage(replica, 4, "voter", "leaving")) == "stale_expectation"


def test_the_ring_keeps_as_many_nodes_as_there_are_copies(replica: Replica) -> None:
    """Fewer only when it is said so; none never; a dead node may always be removed."""
    assert intend(replica, 4, "drain") == Done()
    refusal = intend(replica, 3, "drain")
    assert refusal == Failure(
        code="too_few_nodes",
        detail="Only 2 of the nodes would be left, for 3 copies of each chunk.",
    )
    assert code(intend(replica, 3, "leave")) == "too_few_nodes"
    assert intend(replica, 4, "leave") == Done(), "it counts no more already"
    assert intend(replica, 3, "remove") == Done()
    assert intend(replica, 2, "drain", reduce_copies=True) == Done()
    for intent in ("drain", "leave", "remove"):
        assert code(intend(replica, 1, intent, reduce_copies=True)) == "too_few_nodes"


def test_a_removed_id_never_comes_back(replica: Replica) -> None:
    """Whatever token it has: what it promised went with its row, so it has to be a new node."""
    intend(replica, 4, "remove")
    stage(replica, 4, "voter", "leaving")
    change_ring(replica, 1, 2, 3)
    replica.do(ForgetMember(node_id=IDS[4]))
    assert code(admit(replica, 4)) == "member_removed"
    replica.do(CreateJoinToken(token_id="new", secret_hash=bytes(32), actor=ADMIN))
    refused = AdmitMember(token_id="new", secret_hash=bytes(32), member=make_member(4))
    assert replica.failure(refused).code == "member_removed"
    accepted = AdmitMember(token_id="new", secret_hash=bytes(32), member=make_member(5))
    assert replica.do(accepted) == Done()


def test_removed_ids_are_remembered_in_bounded_number(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest gone are forgotten first."""
    monkeypatch.setattr("metadata_raft.apply_departures.DEPARTED_LIMIT", 2)
    for number in (2, 3, 4):
        replica.time_ms += 1
        intend(replica, number, "remove")
        stage(replica, number, "voter", "leaving")
        change_ring(replica, *range(number + 1, 5), 1)
        assert replica.do(ForgetMember(node_id=IDS[number])) == Done()
    with replica.snapshot() as snapshot:
        assert [snapshot.departed(IDS[number]) for number in (2, 3, 4)] == [False, True, True]


def test_epochs_are_forgotten_once_all_have_settled_beyond_them(replica: Replica) -> None:
    """Reads may need every older one until then (rule D3)."""
    assert epochs(replica) == [2]
    change_ring(replica, 1, 2, 3)
    change_ring(replica, 1, 2, 3, 4)
    settle(replica, 1, 2, 3)
    assert epochs(replica) == [4, 3, 2]
    replica.do(ReportSettled(node_id=IDS[4], epoch=3))
    assert epochs(replica) == [4, 3]
    settle(replica, 4)
    assert epochs(replica) == [4]


def test_who_is_not_in_the_ring_holds_no_epoch(replica: Replica) -> None:
    """A node that is gone or drained will not settle, and is not waited for."""
    change_ring(replica, 1, 2)
    settle(replica, 1, 2)
    assert epochs(replica) == [3]


def test_a_settled_epoch_never_goes_back(replica: Replica) -> None:
    """A late report changes nothing, not even the version of the members."""
    version = replica.machine.applied.members_version
    assert replica.do(ReportSettled(node_id=IDS[1], epoch=1)) == Done()
    assert replica.machine.applied.members_version == version
    with replica.snapshot() as snapshot:
        assert {each.settled_epoch for each in snapshot.members()} == {2}


def test_settings_are_published_and_go_back_to_the_default(replica: Replica) -> None:
    """Jobs read them without SQL, also after a restart."""
    replica.do(SetClusterSettings(actor=ADMIN, settings={"repair_bytes_per_second": 7}))
    assert replica.machine.applied.settings == ClusterSettings(repair_bytes_per_second=7)
    replica.reopen()
    assert replica.machine.applied.settings == ClusterSettings(repair_bytes_per_second=7)
    with replica.snapshot() as snapshot:
        assert snapshot.cluster().settings == ClusterSettings(repair_bytes_per_second=7)
    replica.do(SetClusterSettings(actor=ADMIN, settings={"repair_bytes_per_second": None}))
    assert replica.machine.applied.settings == ClusterSettings()


def test_held_collection_is_published_until_it_is_resumed(replica: Replica) -> None:
    """A restored state holds it (rule D10); only an admin lets it go on."""
    replica.machine.close()
    with contextlib.closing(sqlite3.connect(replica.path)) as connection, connection:
        connection.execute("UPDATE cluster SET collection_held = 1")
    replica.reopen()
    assert replica.machine.applied.collection_held
    assert replica.do(ResumeCollection(actor=ADMIN)) == Done()
    assert not replica.machine.applied.collection_held
    with replica.snapshot() as snapshot:
        assert not snapshot.cluster().collection_held
