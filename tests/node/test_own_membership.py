"""A node's own membership: founding once, announcing each start, and being found out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from metadata_raft.commands import (
    CLUSTER_VERSION_SUPPORTED,
    SYSTEM,
    AdmitMember,
    ChangeRing,
    CreateJoinToken,
    Done,
    SetClusterVersion,
    SetMemberIntent,
    SetMemberStage,
)
from metadata_raft.errors import (
    NoQuorumError,
    OutcomeUnknownError,
    RemovedError,
    RestoredDiskError,
)
from metadata_raft.readers import SnapshotContext
from metadata_raft.state_errors import ReadersBusyError
from node import own_membership
from node.data_directory import Identity
from node.errors import MembershipError
from node.own_membership import OwnMembership
from node.settings import Settings
from tests.fakes.metadata import FakeMetadata, make_member

IDENTITY = Identity(
    cluster_id="00000000-0000-4000-8000-00000000c1d0",
    node_id=make_member(1).node_id,
    stage="founding",
    cluster_secret="5e" * 32,
    boot_counter=3,
)


class Metadata(FakeMetadata):
    is_removed = False
    later_boot = 0
    other_incarnation = 0
    busy = False
    """Whether no snapshot can be had now."""

    def snapshot(self) -> SnapshotContext:
        if self.busy:
            raise ReadersBusyError("the state is closed")
        return super().snapshot()


@pytest.fixture
async def metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Metadata]:
    monkeypatch.setattr(own_membership, "PAUSE_SECONDS", 0.001)
    fake = Metadata(str(tmp_path / "state.sqlite"))
    yield fake
    await fake.stop()


def membership(
    metadata: Metadata, identity: Identity = IDENTITY, said: list[str] | None = None
) -> OwnMembership:
    settings = Settings(data="/d", open_bucket="default", zone="z")
    sink: list[str] = [] if said is None else said
    return OwnMembership(metadata, settings, identity, "1.2", sink.append)


async def test_a_cluster_is_founded_once(metadata: Metadata) -> None:
    """The second attempt, after a crash, finds it founded and shows no key that does not work."""
    key = await membership(metadata).found()
    assert key is not None
    assert await membership(metadata).found() is None
    with metadata.snapshot() as snapshot:
        assert snapshot.cluster().cluster_id == IDENTITY.cluster_id
        stored = snapshot.key(key.key_id)
        assert stored is not None
        assert (stored.role, stored.secret_hash) == ("admin", key.secret_hash)
        bucket = snapshot.bucket("default")
        assert bucket is not None
        assert bucket.visibility == "public-read-write"


async def test_a_start_is_announced_as_soon_as_there_is_a_quorum(metadata: Metadata) -> None:
    """Errors that a repetition may cure are waited out; then addresses and boot are recorded."""
    await membership(metadata).found()
    metadata.fail_next = [NoQuorumError("none"), OutcomeUnknownError(bytes(16), "slow")]
    await membership(metadata).announce()
    with metadata.snapshot() as snapshot:
        (record,) = snapshot.members()
    assert (record.boot_counter, record.software_version) == (3, "1.2")
    assert record.member.client_url == "http://127.0.0.1:7070"


async def test_a_restored_disk_is_refused(metadata: Metadata) -> None:
    """The cluster knows a later start than this directory does: it is an old copy (rule M7)."""
    own = membership(metadata)
    await own.found()
    await own.announce()
    older = msgspec.structs.replace(IDENTITY, boot_counter=2)
    with pytest.raises(MembershipError, match="was restored from an older copy") as raised:
        await membership(metadata, older).announce()
    assert not raised.value.left


async def test_a_removed_node_is_told_so(metadata: Metadata) -> None:
    """Whether the group says it or the record is gone: it has left for good."""
    await membership(metadata).found()
    stranger = msgspec.structs.replace(IDENTITY, node_id=make_member(9).node_id)
    for failure in (None, RemovedError("gone")):
        metadata.fail_next = [failure] if failure else []
        with pytest.raises(MembershipError, match="was removed from its cluster") as raised:
            await membership(metadata, stranger).announce()
        assert raised.value.left


async def test_the_steps_into_the_ring_are_told(metadata: Metadata) -> None:
    """Joining, learner, voter, ring: each is said once, from what the state says."""
    await metadata.bootstrap()
    await metadata.submit(CreateJoinToken(token_id="t", secret_hash=bytes(32), actor=SYSTEM))
    await metadata.submit(AdmitMember(token_id="t", secret_hash=bytes(32), member=make_member(2)))
    said: list[str] = []
    own = membership(
        metadata, msgspec.structs.replace(IDENTITY, node_id=make_member(2).node_id), said
    )
    own.look()
    own.look()
    for before, after in (("joining", "learner"), ("learner", "voter")):
        await metadata.submit(
            SetMemberStage(node_id=make_member(2).node_id, stage=after, expected_stage=before)
        )
        own.look()
        assert not own.in_ring
    nodes = (make_member(1).node_id, make_member(2).node_id)
    await metadata.submit(ChangeRing(expected_epoch=1, node_ids=nodes))
    await own.watch()
    assert own.in_ring
    assert [line.split(",")[0] for line in said] == [
        "Joining: admitted",
        "Joining: learner",
        "Joining: voter",
    ]


async def two_members(metadata: Metadata) -> Identity:
    """A second member with a place in the ring; returns its identity."""
    await metadata.bootstrap()
    await metadata.submit(CreateJoinToken(token_id="t", secret_hash=bytes(32), actor=SYSTEM))
    await metadata.submit(AdmitMember(token_id="t", secret_hash=bytes(32), member=make_member(2)))
    second = make_member(2).node_id
    await metadata.submit(SetMemberStage(node_id=second, stage="voter", expected_stage="joining"))
    nodes = (make_member(1).node_id, second)
    await metadata.submit(ChangeRing(expected_epoch=1, node_ids=nodes))
    return msgspec.structs.replace(IDENTITY, node_id=second, stage="member")


async def test_a_node_goes_on_looking_where_its_state_cannot_be_read(metadata: Metadata) -> None:
    """Clients may keep all readers busy, and a downloaded state replaces this one, while a node
    joins and ever after: it still finds its place in the ring, and hears of its removal."""
    identity = await two_members(metadata)
    own = membership(metadata, identity)
    metadata.busy = True
    watching = asyncio.create_task(own.watch())
    await asyncio.sleep(0.01)
    assert not watching.done()
    metadata.busy = False
    await watching
    assert own.in_ring
    metadata.busy = True
    following = asyncio.create_task(own.follow())
    await asyncio.sleep(0.01)
    assert not following.done()
    metadata.is_removed = True
    assert (await following).left


async def intend(metadata: Metadata, identity: Identity, intent: str) -> None:
    command = SetMemberIntent(
        node_id=identity.node_id, actor=SYSTEM, intent=intent, reduce_copies=True
    )
    assert isinstance(await metadata.submit(command), Done)


@pytest.mark.parametrize("intent", ["drain", "leave"])
async def test_a_node_that_is_not_wanted_in_the_ring_does_not_wait_for_it(
    metadata: Metadata, intent: str
) -> None:
    """Started anew while it drains or leaves, it serves clients like any other."""
    identity = await two_members(metadata)
    await intend(metadata, identity, intent)
    first = (make_member(1).node_id,)
    await metadata.submit(ChangeRing(expected_epoch=2, node_ids=first))
    own = membership(metadata, identity)
    async with asyncio.timeout(10):
        await own.watch()
    assert not own.in_ring


async def test_a_node_that_waits_for_the_ring_notices_its_removal(metadata: Metadata) -> None:
    """It would wait for ever for a place that it never gets."""
    await two_members(metadata)
    metadata.is_removed = True
    waiting = msgspec.structs.replace(IDENTITY, node_id=make_member(9).node_id)
    async with asyncio.timeout(10):
        with pytest.raises(MembershipError, match="was removed from its cluster"):
            await membership(metadata, waiting).watch()


async def test_what_is_wanted_of_a_node_is_told_once(metadata: Metadata) -> None:
    """Whoever looks at its output sees why it moves its chunks."""
    identity = await two_members(metadata)
    said: list[str] = []
    own = membership(metadata, identity, said)
    for intent in ("stay", "drain", "drain", "stay", "leave"):
        await intend(metadata, identity, intent)
        own.look()
    assert [line.split(":")[0] for line in said] == ["Draining", "Staying", "Leaving"]


async def test_a_node_that_was_told_to_leave_ends_well(
    metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 0, and it has left for good; one that was removed ends with 1."""
    monkeypatch.setattr(own_membership, "LOOK_SECONDS", 0.001)
    identity = await two_members(metadata)
    for intent, exit_code, sentence in (
        ("leave", 0, "has left its cluster"),
        ("remove", 1, "was removed from its cluster for good"),
    ):
        await intend(metadata, identity, intent)
        metadata.is_removed = True
        async with asyncio.timeout(10):
            end = await membership(metadata, identity).follow()
        assert sentence in str(end)
        assert (end.exit_code, end.left) == (exit_code, True)


async def test_a_node_says_what_it_supports_until_the_cluster_runs_it(
    metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader with older software did not record it the first time."""
    monkeypatch.setattr(own_membership, "ANNOUNCE_AGAIN_SECONDS", 0.001)
    own = membership(metadata)
    await own.found()
    await own.announce()
    said = len(metadata.log)
    again = asyncio.create_task(own.announce_until_upgraded())
    async with asyncio.timeout(60):
        while len(metadata.log) < said + 2:  # noqa: ASYNC110 - bounded by the limit.
            await asyncio.sleep(0)
    with metadata.snapshot() as snapshot:
        (record,) = snapshot.members()
    assert record.supported_version == CLUSTER_VERSION_SUPPORTED
    await metadata.submit(SetClusterVersion(version=CLUSTER_VERSION_SUPPORTED))
    await asyncio.wait_for(again, 60)


async def test_m7_a_disk_that_others_know_to_be_old_ends_the_node(metadata: Metadata) -> None:
    """It learns so in the handshake, before there is a quorum: while it waits to announce itself,
    on its way into the ring, and when it is a member."""
    await membership(metadata).found()
    metadata.later_boot = 8
    made = membership(metadata, msgspec.structs.replace(IDENTITY, boot_counter=6))
    metadata.fail_next = [RestoredDiskError("boot 8 is known")]
    with pytest.raises(MembershipError, match=r"older copy \(this is its boot 6, .* boot 8"):
        await made.announce()
    ended = await made.follow()
    assert isinstance(ended, MembershipError)
    assert not ended.left


async def test_m7_a_node_of_a_former_incarnation_is_told_why_it_waits(
    metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on waiting: where the restore was a mistake its own cluster must not end by it."""
    monkeypatch.setattr(own_membership, "SILENCE_SECONDS", 0.0)
    await membership(metadata).found()
    metadata.other_incarnation = 9
    metadata.fail_next = [NoQuorumError("no leader"), NoQuorumError("no leader")]
    said: list[str] = []
    await membership(metadata, said=said).announce()
    assert any("restored elsewhere, in incarnation 9" in line for line in said)
    assert any("holdfast meta rejoin" in line for line in said)
