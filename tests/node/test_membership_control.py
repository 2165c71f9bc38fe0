"""What is decided beside the state machine: who answers, and what a change would move."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.errors import ApiError
from metadata_raft.commands import (
    SYSTEM,
    AdmitMember,
    ChangeRing,
    CreateJoinToken,
    SetMemberIntent,
    SetMemberStage,
    UpdateMember,
    required_version,
)
from metadata_raft.records import MemberRecord
from node.membership_control import Holdings, MembershipControl
from ring.members import PARTITION_COUNT, Member, NodeId
from ring.placement import Ring, build_ring
from tests.fakes.documents import member as document
from tests.fakes.metadata import ADMIN_KEY_ID, FakeMetadata, make_member

OWN, OTHER, THIRD = (make_member(number).node_id for number in (1, 2, 3))


@pytest.fixture
async def metadata(tmp_path: Path) -> AsyncIterator[FakeMetadata]:
    made = FakeMetadata(str(tmp_path / "state.db"))
    await made.bootstrap()
    await admit_others(made)
    yield made
    await made.stop()


async def admit_others(made: FakeMetadata) -> None:
    """Three nodes with a place in the ring."""
    for number in (2, 3):
        secret_hash = bytes([number]) * 32
        await made.submit(
            CreateJoinToken(
                token_id=f"t{number}", secret_hash=secret_hash, actor=SYSTEM, lifetime_ms=1000
            )
        )
        node = make_member(number)
        await made.submit(AdmitMember(token_id=f"t{number}", secret_hash=secret_hash, member=node))
        await made.submit(
            SetMemberStage(node_id=node.node_id, stage="voter", expected_stage="joining")
        )
    await made.submit(ChangeRing(expected_epoch=1, node_ids=(OWN, OTHER, THIRD), replicas=3))


class Others:
    """Which nodes answer."""

    def __init__(self, *node_ids: NodeId) -> None:
        self.node_ids = set(node_ids)

    async def __call__(self, member: Member) -> bool:
        return member.node_id in self.node_ids


@pytest.fixture
def others() -> Others:
    return Others(OTHER)


@pytest.fixture
def control(metadata: FakeMetadata, others: Others) -> MembershipControl:
    return make_control(metadata, others)


def make_control(metadata: FakeMetadata, others: Others) -> MembershipControl:
    def ring() -> Ring:
        with metadata.snapshot() as snapshot:
            return build_ring(snapshot.membership(None))

    def documented(record: MemberRecord) -> object:
        return document(record.member.node_id, intent=record.intent)

    return MembershipControl(
        metadata=metadata,
        own_id=OWN,
        ring=ring,
        document=documented,  # type: ignore[arg-type]
        answers=others,
        holdings=lambda: Holdings([1] * PARTITION_COUNT, 1000.0, 0),
        workers=ThreadPoolExecutor(1),
    )


def intents(metadata: FakeMetadata) -> dict[NodeId, str]:
    with metadata.snapshot() as snapshot:
        return {record.member.node_id: record.intent for record in snapshot.members()}


async def test_what_is_wanted_is_recorded_and_answered(
    control: MembershipControl, metadata: FakeMetadata
) -> None:
    """The answer shows the member as it stands after the wish."""
    told = await control.set_intent(OTHER, "drain", actor=ADMIN_KEY_ID, reduce_copies=True)
    assert told.intent == "drain"
    assert intents(metadata)[OTHER] == "drain"
    assert (await control.set_intent(OTHER, "stay", actor=ADMIN_KEY_ID)).intent == "stay"
    assert intents(metadata)[OTHER] == "stay"


async def test_the_state_machine_has_the_last_word(
    control: MembershipControl, metadata: FakeMetadata
) -> None:
    """Too few nodes for the copies, a member that is not there, an actor without the role."""
    for node_id, actor, code in (
        (OTHER, ADMIN_KEY_ID, "too_few_nodes"),
        ("nobody", ADMIN_KEY_ID, "no_such_member"),
        (OTHER, "nobody", "forbidden"),
    ):
        with pytest.raises(ApiError) as refused:
            await control.set_intent(node_id, "leave", actor=actor)
        assert refused.value.code == code
    assert set(intents(metadata).values()) == {"stay"}


async def test_only_a_dead_node_is_removed_without_force(
    control: MembershipControl, metadata: FakeMetadata, others: Others
) -> None:
    """One that answers is not, nor this node itself; `force` overrides it."""
    for node_id in (OTHER, OWN):
        with pytest.raises(ApiError) as refused:
            await control.remove(node_id, actor=ADMIN_KEY_ID, force=False)
        assert refused.value.code == "node_is_alive"
    await control.remove(THIRD, actor=ADMIN_KEY_ID, force=False)
    assert intents(metadata) == {OWN: "stay", OTHER: "stay", THIRD: "remove"}
    await control.remove(OTHER, actor=ADMIN_KEY_ID, force=True)
    assert intents(metadata)[OTHER] == "remove"
    with pytest.raises(ApiError, match="no node 'nobody'"):
        await control.remove("nobody", actor=ADMIN_KEY_ID, force=True)


async def test_a_dead_node_with_old_software_is_removed(tmp_path: Path) -> None:
    """It holds the cluster's version back, and with it its own removal, until an operator removes
    it; not while another node with old software answers, which could not read what comes then."""
    metadata, others = FakeMetadata(str(tmp_path / "old.db")), Others(OTHER)
    await metadata.bootstrap(cluster_version=1)
    await admit_others(metadata)
    control = make_control(metadata, others)
    remove = SetMemberIntent(node_id=THIRD, actor=ADMIN_KEY_ID, intent="remove")
    with pytest.raises(ApiError) as refused:
        await control.remove(THIRD, actor=ADMIN_KEY_ID, force=False)
    assert refused.value.code == "cluster_version_too_old"
    assert metadata.applied().cluster_version == 1
    upgraded = UpdateMember(
        member=make_member(2), boot_counter=2, supported_version=required_version(remove)
    )
    await metadata.submit(upgraded)
    await control.remove(THIRD, actor=ADMIN_KEY_ID, force=False)
    assert metadata.applied().cluster_version == required_version(remove)
    assert intents(metadata) == {OWN: "stay", OTHER: "stay", THIRD: "remove"}
    await metadata.stop()


async def test_several_dead_nodes_with_old_software_are_removed(tmp_path: Path) -> None:
    """None of them has to be the first."""
    metadata = FakeMetadata(str(tmp_path / "old.db"))
    await metadata.bootstrap(cluster_version=1)
    await admit_others(metadata)
    control = make_control(metadata, Others())
    for node_id in (THIRD, OTHER):
        await control.remove(node_id, actor=ADMIN_KEY_ID, force=False)
    assert intents(metadata) == {OWN: "stay", OTHER: "remove", THIRD: "remove"}
    await metadata.stop()


async def test_settings_change_at_once_and_are_shown_whole(
    control: MembershipControl, metadata: FakeMetadata
) -> None:
    """What is named changes, None is the default again, a wrong name is refused."""
    default = (await control.change_settings({}, actor=ADMIN_KEY_ID)).repair_bytes_per_second
    changed = await control.change_settings({"repair_bytes_per_second": 5}, actor=ADMIN_KEY_ID)
    assert changed.repair_bytes_per_second == 5
    assert metadata.applied().settings.repair_bytes_per_second == 5
    again = await control.change_settings({"repair_bytes_per_second": None}, actor=ADMIN_KEY_ID)
    assert again.repair_bytes_per_second == default
    with pytest.raises(ApiError) as refused:
        await control.change_settings({"speed": 1}, actor=ADMIN_KEY_ID)
    assert refused.value.code == "invalid_command"


async def test_a_preview_goes_by_the_rate_of_the_settings(control: MembershipControl) -> None:
    """Bytes as this node counts them, time as the settings allow."""
    await control.change_settings({"repair_bytes_per_second": 1000}, actor=ADMIN_KEY_ID)
    joined = await control.preview_join(weight=100, zone="")
    assert joined.bytes_moved == 1000 * joined.partitions_moved > 0
    assert joined.seconds == joined.partitions_moved
    left = await control.preview_leave(OTHER)
    assert (left.copies_after, left.bytes_moved) == (2, 0)
    with pytest.raises(ApiError) as refused:
        await control.preview_leave("nobody")
    assert refused.value.code == "no_such_member"
