"""What a node says of the cluster: the replicated state, joined with what the others said last."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from gateway.errors import ApiError
from metadata_raft.commands import SYSTEM, AdmitMember, CreateJoinToken
from metadata_raft.errors import NoQuorumError
from metadata_raft.replica import RaftStatus
from node.cluster_gateway import ClusterGateway
from node.data_directory import Identity
from node.join import Admission
from node.peer_probe import Probed
from ring.errors import PeerUnreachableError
from ring.members import Member, NodeId
from ring.peer_wire import PeerStatus
from ring.placement import build_ring
from tests.fakes.metadata import FakeMetadata, make_member

OWN = make_member(1).node_id


class StatusMetadata(FakeMetadata):
    """With the part of the Raft group that a status shows."""

    def status(self) -> RaftStatus:
        return RaftStatus(
            node_id=OWN,
            role="leader",
            term=3,
            leader_id=OWN,
            commit_index=9,
            applied_index=8,
            first_index=1,
            last_index=9,
            voters=(OWN,),
            learners=(),
            lag_entries={make_member(2).node_id: 4},
            state_time_ms=0,
        )

    @asynccontextmanager
    async def backup(self) -> AsyncIterator[AsyncIterable[bytes]]:
        raise AssertionError("no test of these backs up")
        yield


class Condition:
    """What the node knows of itself and of the others."""

    def __init__(self) -> None:
        self.others: dict[NodeId, Probed] = {}
        self.fresh: dict[NodeId, Probed] = {}

    def unready(self) -> str | None:
        return None

    def settled(self) -> bool | None:
        return True

    def probed(self, node_id: NodeId) -> Probed | None:
        return self.others.get(node_id)

    async def ask_members(self) -> None:
        """What the others say now takes the place of what they said before."""
        self.others.update(self.fresh)

    def load(self) -> Mapping[str, float]:
        return {"chunks": 5.0}


@pytest.fixture
async def metadata(tmp_path: Path) -> AsyncIterator[StatusMetadata]:
    made = StatusMetadata(str(tmp_path / "state.db"))
    await made.bootstrap()
    yield made
    await made.stop()


def gateway_of(metadata: StatusMetadata, condition: Condition) -> ClusterGateway:
    def ring() -> object:
        with metadata.snapshot() as snapshot:
            return build_ring(snapshot.membership(None))

    async def scrub(member: Member) -> int:
        if member.node_id != OWN:
            raise PeerUnreachableError(member.node_id, "it does not answer")
        return 7

    return ClusterGateway(
        metadata=metadata,
        admission=cast(Admission, None),
        condition=condition,
        ring=ring,  # type: ignore[arg-type]
        answers=cast(Any, None),
        holdings=cast(Any, None),
        scrub=scrub,
        workers=cast(Any, None),
        identity=Identity(cluster_id="c", node_id=OWN, stage="member"),
        software_version="0.1.0",
    )


def answer(node_id: NodeId, **figures: float) -> PeerStatus:
    return PeerStatus(
        node_id=node_id, epoch=1, generation=0, chunks=0, stored_bytes=0, writable=True,
        requests_active=0, figures=figures,
    )  # fmt: skip


async def test_the_answering_node_shows_its_own_figures_as_seen_now(
    metadata: StatusMetadata,
) -> None:
    """No probe is needed for oneself: the load is the present one, last seen is nought."""
    document = gateway_of(metadata, Condition()).status()
    (own,) = document.members
    assert (own.load, own.last_seen_seconds) == ({"chunks": 5.0}, 0.0)
    assert document.load == {"chunks": 5.0}
    assert document.raft.voters == [OWN]
    assert document.raft.lag_entries == {make_member(2).node_id: 4}


async def test_another_node_shows_what_it_said_last(metadata: StatusMetadata) -> None:
    """A node that is silent keeps its last figures and shows their age; an unasked one has none."""
    gateway = gateway_of(metadata, condition := Condition())
    with metadata.snapshot() as snapshot:
        (record,) = snapshot.members()
    other = make_member(2)
    record = type(record)(
        member=other, stage="voter", in_ring=True, boot_counter=1, software_version="0.0.9"
    )
    unasked = gateway.member(record, {})
    assert (unasked.reachable, unasked.last_seen_seconds, unasked.load) == (None, None, {})
    condition.others[other.node_id] = Probed(False, 61.5, answer(other.node_id, chunks=7.0))
    silent = gateway.member(record, {})
    assert (silent.reachable, silent.last_seen_seconds) == (False, 61.5)
    assert silent.load == {"chunks": 7.0}


async def test_a_scrub_is_asked_of_each_member(metadata: StatusMetadata) -> None:
    """With the passes it will have ended, and of a node that can't be told with the reason."""
    secret_hash = bytes(32)
    await metadata.submit(
        CreateJoinToken(token_id="t", secret_hash=secret_hash, actor=SYSTEM, lifetime_ms=1000)
    )
    await metadata.submit(AdmitMember(token_id="t", secret_hash=secret_hash, member=make_member(2)))
    gateway = gateway_of(metadata, Condition())
    told = {each.node_id: each for each in (await gateway.scrub(None)).nodes}
    assert told[OWN].passes == 7
    silent = told[make_member(2).node_id]
    assert (silent.passes, silent.detail) == (None, "it does not answer")
    assert [each.node_id for each in (await gateway.scrub(OWN)).nodes] == [OWN]
    with pytest.raises(ApiError) as refused:
        await gateway.scrub("somebody")
    assert refused.value.code == "no_such_member"


async def test_whether_it_may_stop_is_told_by_what_the_others_say_now(
    metadata: StatusMetadata,
) -> None:
    """A node that fell silent after the last probe is silent; and a majority has to answer now."""
    other, secret_hash = make_member(2), bytes(32)
    await metadata.submit(
        CreateJoinToken(token_id="t", secret_hash=secret_hash, actor=SYSTEM, lifetime_ms=1000)
    )
    await metadata.submit(AdmitMember(token_id="t", secret_hash=secret_hash, member=other))
    gateway = gateway_of(metadata, condition := Condition())
    condition.others[other.node_id] = Probed(True, 1.9, answer(other.node_id))
    condition.fresh[other.node_id] = Probed(False, 1.9, answer(other.node_id))
    silent = f"node {other.node_id[:8]} does not answer"
    assert silent in await gateway.reasons_against_stopping()
    condition.fresh[other.node_id] = Probed(True, 0.0, answer(other.node_id))
    alone = await gateway.reasons_against_stopping()
    assert silent not in alone
    metadata.fail_next = [NoQuorumError("no majority answers")]
    added = set(await gateway.reasons_against_stopping()) - set(alone)
    assert added == {"no majority of the voters answers this node"}
