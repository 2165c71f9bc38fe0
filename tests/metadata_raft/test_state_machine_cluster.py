"""Bootstrap, joining, the ring and the generation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from metadata_raft.commands import (
    AdmitMember,
    Advanced,
    AdvanceGeneration,
    BootstrapCluster,
    BucketDone,
    ChangeRing,
    CreateBucket,
    CreateJoinToken,
    Done,
    Failure,
    SetMemberStage,
    UpdateMember,
)
from tests.fakes.metadata import make_member
from tests.metadata_raft.replica import (
    ADMIN,
    Replica,
)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    replica = Replica(str(tmp_path / "state.db")).bootstrap()
    yield replica
    replica.close()


def test_bootstrap_makes_identity_member_ring_and_key(tmp_path: Path) -> None:
    """A new cluster starts in epoch 1 with one voter; its admin key works."""
    replica = Replica(str(tmp_path / "new.db")).bootstrap(open_bucket=None)
    applied = replica.machine.applied
    assert (applied.epoch, applied.generation) == (1, 0)
    with replica.snapshot() as snapshot:
        assert snapshot.cluster().cluster_id == "c1d0"
        assert [(m.stage, m.in_ring) for m in snapshot.members()] == [("voter", True)]
        assert snapshot.membership(None).members == (make_member(1),)
    assert replica.do(CreateBucket(name="abc", actor=ADMIN)) == BucketDone(created=True)
    replica.close()


def test_a_bad_bootstrap_changes_nothing(tmp_path: Path) -> None:
    """Everything is checked before anything is written."""
    replica = Replica(str(tmp_path / "new.db"))
    bad = BootstrapCluster(
        cluster_id="c",
        member=make_member(1),
        replicas=1,
        admin_key_id="k",
        admin_secret_hash=bytes(32),
        open_bucket="NO",
    )
    assert replica.failure(bad).code == "invalid_command"
    replica.bootstrap()
    replica.close()


def test_a_member_joins_step_by_step(replica: Replica) -> None:
    """Token, joining, learner, voter, ring: each step is a comparison with the one before."""
    second = make_member(2)
    replica.do(CreateJoinToken(token_id="t", secret_hash=bytes(32), actor=ADMIN))
    admit = AdmitMember(token_id="t", secret_hash=bytes(32), member=second)
    versions = [replica.machine.applied.members_version]
    for command in (
        admit,
        SetMemberStage(node_id=second.node_id, stage="learner", expected_stage="joining"),
        SetMemberStage(node_id=second.node_id, stage="voter", expected_stage="learner"),
    ):
        assert replica.do(command) == Done()
        versions.append(replica.machine.applied.members_version)
    assert versions == sorted(set(versions))
    assert replica.do(admit) == Done()
    assert replica.machine.applied.members_version == versions[-1]
    both = (second.node_id, make_member(1).node_id)
    result = replica.do(ChangeRing(expected_epoch=1, node_ids=both))
    assert result.epoch == 2  # type: ignore[union-attr]
    assert replica.machine.applied.epoch == 2
    with replica.snapshot() as snapshot:
        assert [member.node_id for member in snapshot.membership(None).members] == sorted(both)


def test_m7_a_node_that_was_started_is_admitted_no_more(replica: Replica) -> None:
    """Its token tells nobody else the cluster's secret, and no copy of its directory from before
    comes back as the voter that it may be by now; neither with its token nor with another one."""
    second = make_member(2)
    admissions = [
        AdmitMember(token_id=token_id, secret_hash=bytes(32), member=second)
        for token_id in ("t", "u", "v")
    ]
    for admission in admissions:
        replica.do(CreateJoinToken(token_id=admission.token_id, secret_hash=bytes(32), actor=ADMIN))
    # Before its start it may ask as often as it likes.
    for admission in (*admissions[:2], admissions[0]):
        assert replica.do(admission) == Done()
    assert replica.do(UpdateMember(member=second, boot_counter=1)) == Done()
    for admission in admissions:
        assert replica.failure(admission).code == "token_invalid"
    third = AdmitMember(token_id="v", secret_hash=bytes(32), member=make_member(3))
    assert replica.do(third) == Done()


def test_a_generation_advances_once_for_each_expectation(replica: Replica) -> None:
    """Two proposers that saw the same generation advance it once."""
    first, second = replica.apply(
        [replica.propose(AdvanceGeneration(expected=0)) for _ in range(2)]
    )
    assert first == Advanced(generation=1)
    assert isinstance(second, Failure)
    assert replica.machine.applied.generation == 1
