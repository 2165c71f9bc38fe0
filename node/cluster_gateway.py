"""What this node says about itself and the cluster, and what it does about access and joining.

The gateway's `Cluster`, answered from the replicated metadata, the Raft group and the ring. Reading
the state of the cluster needs no quorum, because it is asked for most when there is none.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from typing import Protocol

import msgspec

from gateway.authentication import new_key
from gateway.documents import (
    ClusterDocument,
    MemberDocument,
    NewKey,
    NewToken,
    RaftDocument,
    RingDocument,
    RingMemberDocument,
    ScrubDocument,
    ScrubNodeDocument,
)
from gateway.errors import ApiError, from_failure
from metadata_raft.commands import SYSTEM, Command, CreateKey, Failure, Result
from metadata_raft.errors import MetadataError
from metadata_raft.records import AppliedState, ClusterRecord, MemberRecord
from metadata_raft.replica import RaftStatus
from node.cluster_summary import summarise
from node.cluster_warnings import warnings
from node.data_directory import Identity
from node.join import Admission
from node.maintenance import Situation, reasons_against_stopping
from node.membership_control import Holdings, MembershipControl
from node.peer_probe import Probed
from ring.errors import RingError
from ring.members import PARTITION_COUNT, Member, NodeId
from ring.placement import Ring


class GatewaySnapshot(Protocol):
    def cluster(self) -> ClusterRecord: ...

    def members(self) -> Sequence[MemberRecord]: ...


class ClusterMetadata(Protocol):
    """What the status needs of `MetadataGroup`."""

    async def submit(self, command: Command, *, timeout_seconds: float = 10.0) -> Result: ...

    async def barrier(self, *, timeout_seconds: float = 1.0) -> int: ...

    def snapshot(self) -> AbstractContextManager[GatewaySnapshot]: ...

    def applied(self) -> AppliedState: ...

    def status(self) -> RaftStatus: ...

    def backup(self) -> AbstractAsyncContextManager[AsyncIterable[bytes]]: ...


class NodeCondition(Protocol):
    """What only the running node knows of itself."""

    def unready(self) -> str | None: ...

    def settled(self) -> bool | None: ...

    def probed(self, node_id: NodeId) -> Probed | None: ...

    async def ask_members(self) -> None:
        """Renew what is known of the other nodes."""

    def load(self) -> Mapping[str, float]: ...


class ClusterGateway:
    """A `gateway.interfaces.Cluster`, and what the control socket asks for. Main loop only."""

    def __init__(
        self,
        *,
        metadata: ClusterMetadata,
        admission: Admission,
        condition: NodeCondition,
        ring: Callable[[], Ring],
        answers: Callable[[Member], Awaitable[bool]],
        holdings: Callable[[], Holdings],
        scrub: Callable[[Member], Awaitable[int]],
        workers: Executor,
        identity: Identity,
        software_version: str,
    ) -> None:
        self._metadata = metadata
        self._admission = admission
        self._condition = condition
        self._ring = ring
        self._scrub = scrub
        self._identity = identity
        self._software_version = software_version
        self.membership = MembershipControl(
            metadata=metadata,
            own_id=identity.node_id,
            ring=ring,
            document=lambda record: self.member(record, condition.load()),
            answers=answers,
            holdings=holdings,
            workers=workers,
        )

    def unready(self) -> str | None:
        return self._condition.unready()

    async def reasons_against_stopping(self) -> list[str]:
        """Why this node should not be stopped now, as the other nodes say at this moment."""
        try:
            await self._metadata.barrier()
        except MetadataError:
            quorum = False
        else:
            quorum = True
        await self._condition.ask_members()
        document, ring = self.status(), self._ring()
        return reasons_against_stopping(
            Situation(
                node_id=self._identity.node_id,
                members=document.members,
                quorum=quorum,
                settled=bool(document.settled),
                lacking_copies=document.chunks.lacking_copies,
                owners=map(ring.partition_owners, range(PARTITION_COUNT)),
                ring_quorum=ring.quorum,
            )
        )

    def status(self) -> ClusterDocument:
        with self._metadata.snapshot() as snapshot:
            cluster, members = snapshot.cluster(), snapshot.members()
        raft, own_id = self._metadata.status(), self._identity.node_id
        own_load = self._condition.load()
        documents = [self.member(record, own_load) for record in members]
        document = ClusterDocument(
            cluster_id=self._identity.cluster_id,
            cluster_version=cluster.cluster_version,
            incarnation=self._identity.incarnation,
            node_id=own_id,
            software_version=self._software_version,
            # A leader that no majority answers steps down, and a member that hears none forgets it.
            quorum=raft.leader_id is not None,
            settled=self._condition.settled(),
            epoch=cluster.epoch,
            generation=cluster.generation,
            replicas=cluster.replicas,
            raft=RaftDocument(
                role=raft.role,
                term=raft.term,
                leader=raft.leader_id,
                commit_index=raft.commit_index,
                applied_index=raft.applied_index,
                voters=list(raft.voters),
                learners=list(raft.learners),
                lag_entries=raft.lag_entries,
            ),
            members=documents,
            load=dict(own_load),
            settings=msgspec.structs.asdict(cluster.settings),
            collection_held=cluster.collection_held,
            chunks=summarise(documents, own_id),
        )
        return msgspec.structs.replace(document, warnings=warnings(document))

    def member(self, record: MemberRecord, own_load: Mapping[str, float]) -> MemberDocument:
        """A member as recorded, with what it said of itself last; of itself this node says it."""
        member = record.member
        probed = self._condition.probed(member.node_id)
        answer = probed.answer if probed is not None else None
        if member.node_id == self._identity.node_id:
            last_seen: float | None = 0.0
            load = dict(own_load)
        else:
            last_seen = probed.last_seen_seconds if probed is not None else None
            load = answer.figures if answer is not None else {}
        return MemberDocument(
            node_id=member.node_id,
            client_url=member.client_url,
            peer_address=member.peer_address,
            raft_address=member.raft_address,
            zone=member.zone,
            weight=member.weight,
            stage=record.stage,
            in_ring=record.in_ring,
            reachable=probed.reachable if probed is not None else None,
            software_version=record.software_version,
            intent=record.intent,
            settled_epoch=record.settled_epoch,
            last_seen_seconds=last_seen,
            load=load,
        )

    def ring(self) -> RingDocument:
        with self._metadata.snapshot() as snapshot:
            cluster = snapshot.cluster()
        ring = self._ring()
        counts = ring.partition_counts()
        copies = max(1, PARTITION_COUNT * ring.copies)
        return RingDocument(
            epoch=ring.epoch,
            epoch_floor=cluster.epoch_floor,
            replicas=ring.membership.replicas,
            partitions=PARTITION_COUNT,
            members=[
                RingMemberDocument(
                    node_id=member.node_id,
                    zone=member.zone,
                    weight=member.weight,
                    partitions=counts[member.node_id],
                    share=counts[member.node_id] / copies,
                )
                for member in ring.membership.members
            ],
        )

    async def scrub(self, node_id: str | None) -> ScrubDocument:
        """Let one member, or all, reread their chunks. Raises ApiError(no_such_member)."""
        with self._metadata.snapshot() as snapshot:
            members = [record.member for record in snapshot.members()]
        if node_id is not None:
            members = [member for member in members if member.node_id == node_id]
            if not members:
                raise ApiError("no_such_member", f"no node of the cluster is {node_id[:80]!r}")
        told = await asyncio.gather(*(self._scrub_one(member) for member in members))
        return ScrubDocument(nodes=told)

    async def _scrub_one(self, member: Member) -> ScrubNodeDocument:
        try:
            passes = await self._scrub(member)
        except RingError as error:
            return ScrubNodeDocument(node_id=member.node_id, detail=str(error))
        return ScrubNodeDocument(node_id=member.node_id, passes=passes)

    async def create_token(self, *, actor: str, lifetime_seconds: int) -> NewToken:
        return await self._admission.create_token(actor=actor, lifetime_seconds=lifetime_seconds)

    async def join(self, sealed: bytes) -> bytes:
        return await self._admission.answer(sealed)

    async def leave(self, *, reduce_copies: bool) -> MemberDocument:
        """This node is to leave, as its own machine's administrator wants it. Raises ApiError."""
        return await self.membership.set_intent(
            self._identity.node_id, "leave", actor=SYSTEM, reduce_copies=reduce_copies
        )

    @asynccontextmanager
    async def backup(self) -> AsyncIterator[AsyncIterable[bytes]]:
        async with self._metadata.backup() as backup:
            yield backup

    async def reset_admin_key(self) -> NewKey:
        """A new admin key; all earlier ones are revoked in the same step. Raises ApiError."""
        key = new_key()
        description = "made by reset-key on a node"
        result = await self._metadata.submit(
            CreateKey(
                key_id=key.key_id,
                secret_hash=key.secret_hash,
                actor=SYSTEM,
                role="admin",
                description=description,
                replaces_role="admin",
            )
        )
        if isinstance(result, Failure):
            raise from_failure(result)
        return NewKey(key_id=key.key_id, role="admin", description=description, key=key.text)
