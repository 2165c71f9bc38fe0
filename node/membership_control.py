"""What an administrator does about members and settings: a `gateway.interfaces.MembershipControl`.

The wish goes into the replicated state, where it is decided; the leader carries it out step by step
(`cluster_worker.py`), whoever that is by then. Only what can't be in a state machine is decided
here: whether a node that is to be removed answers, what version those support that do, and how many
bytes a change of the ring would move.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec

from gateway.documents import MemberDocument, RingPreviewDocument, SettingsDocument
from gateway.errors import ApiError, from_failure
from gateway.interfaces import Intent
from metadata_raft.commands import (
    Command,
    Failure,
    ResumeCollection,
    SetClusterSettings,
    SetClusterVersion,
    SetMemberIntent,
    required_version,
)
from metadata_raft.commands import Result as CommandResult
from metadata_raft.records import AppliedState, ClusterRecord, ClusterSettings, MemberRecord
from node.ring_preview import departed, estimated_partition_bytes, joined, preview_document
from ring.members import Member, Membership, NodeId
from ring.placement import Ring


class ControlSnapshot(Protocol):
    def cluster(self) -> ClusterRecord: ...

    def members(self) -> Sequence[MemberRecord]: ...


class ControlMetadata(Protocol):
    """What this needs of `MetadataGroup`."""

    async def submit(self, command: Command, *, timeout_seconds: float = 10.0) -> CommandResult: ...

    async def barrier(self, *, timeout_seconds: float = 1.0) -> int: ...

    def snapshot(self) -> AbstractContextManager[ControlSnapshot]: ...

    def applied(self) -> AppliedState: ...


class Holdings(msgspec.Struct, frozen=True):
    """What chunks there are, as far as this node knows."""

    chunk_counts: Sequence[int]
    """Chunks on this node in each partition."""
    chunk_bytes_mean: float
    """What one of them occupies on average."""
    others_bytes: int
    """What all other nodes say that they hold."""


class MembershipControl:
    """Main loop only. `answers` asks a node right now; `holdings` may take milliseconds."""

    def __init__(
        self,
        *,
        metadata: ControlMetadata,
        own_id: NodeId,
        ring: Callable[[], Ring],
        document: Callable[[MemberRecord], MemberDocument],
        answers: Callable[[Member], Awaitable[bool]],
        holdings: Callable[[], Holdings],
        workers: Executor,
    ) -> None:
        self._metadata = metadata
        self._own_id = own_id
        self._ring = ring
        self._document = document
        self._answers = answers
        self._holdings = holdings
        self._workers = workers
        self._previewing = asyncio.Lock()

    async def set_intent(
        self, node_id: NodeId, intent: Intent, *, actor: str, reduce_copies: bool = False
    ) -> MemberDocument:
        """Record what is wanted of a member. Raises ApiError."""
        record = await self._record(node_id)
        await self._submit(
            SetMemberIntent(
                node_id=node_id, actor=actor, intent=intent, reduce_copies=reduce_copies
            )
        )
        return msgspec.structs.replace(self._document(record), intent=intent)

    async def remove(self, node_id: NodeId, *, actor: str, force: bool) -> None:
        """Record that a member is gone for good. Raises ApiError, `node_is_alive` among them."""
        record = await self._record(node_id)
        if not force and (node_id == self._own_id or await self._answers(record.member)):
            raise ApiError(
                "node_is_alive",
                f"node {node_id} answers: let it leave, which keeps every copy until the others "
                "have it, or force its removal",
            )
        command = SetMemberIntent(node_id=node_id, actor=actor, intent="remove")
        if self._metadata.applied().cluster_version < required_version(command):
            await self._raise_version(required_version(command), going=node_id)
        await self._submit(command)

    async def preview_join(self, *, weight: int, zone: str) -> RingPreviewDocument:
        ring = self._ring()
        return await self._preview(ring, joined(ring.membership, weight=weight, zone=zone))

    async def preview_leave(self, node_id: NodeId) -> RingPreviewDocument:
        """Raises ApiError where the node is not in the ring, or alone in it."""
        ring = self._ring()
        if node_id not in ring.members:
            raise ApiError("no_such_member", f"node {node_id[:80]!a} is not in the ring")
        if len(ring.members) == 1:
            raise ApiError("too_few_nodes", "no node would be left to hold chunks")
        return await self._preview(ring, departed(ring.membership, node_id))

    async def change_settings(
        self, settings: Mapping[str, int | None], *, actor: str
    ) -> SettingsDocument:
        """Change what is named. Raises ApiError."""
        await self._submit(SetClusterSettings(actor=actor, settings=dict(settings)))
        return settings_document(self._metadata.applied().settings)

    async def resume_collection(self, *, actor: str) -> None:
        """Raises ApiError."""
        await self._submit(ResumeCollection(actor=actor))

    async def _preview(self, ring: Ring, after: Membership) -> RingPreviewDocument:
        holdings = self._holdings
        rate = self._metadata.applied().settings.repair_bytes_per_second

        def compute() -> RingPreviewDocument:
            held = holdings()
            sizes = estimated_partition_bytes(
                ring,
                self._own_id,
                chunk_counts=held.chunk_counts,
                chunk_bytes_mean=held.chunk_bytes_mean,
                others_bytes=held.others_bytes,
            )
            return preview_document(ring, after, sizes, bytes_per_second=rate)

        # One at a time: a second of a core each, for whoever has any key.
        async with self._previewing:
            return await asyncio.get_running_loop().run_in_executor(self._workers, compute)

    async def _raise_version(self, version: int, *, going: NodeId) -> None:
        """Let the cluster reach `version` without `going` and other members that are silent.

        A dead member with old software would hold the version back for ever, and could not be
        removed because of that. One that only seemed to be dead meets the new version in the log
        before anything it can't read, and ends with a sentence until it is upgraded (decision
        0064). Raises ApiError where a member that answers does not support it.
        """
        with self._metadata.snapshot() as snapshot:
            behind = [
                record.member
                for record in snapshot.members()
                if record.supported_version < version
                and record.member.node_id not in (going, self._own_id)
            ]
        if any(await asyncio.gather(*map(self._answers, behind))):
            raise ApiError(
                "cluster_version_too_old",
                f"this needs cluster version {version}, which begins when all nodes that answer "
                "support it: finish the upgrade first",
            )
        await self._submit(SetClusterVersion(version=version))

    async def _record(self, node_id: NodeId) -> MemberRecord:
        await self._metadata.barrier()
        with self._metadata.snapshot() as snapshot:
            for record in snapshot.members():
                if record.member.node_id == node_id:
                    return record
        raise ApiError("no_such_member", f"there is no node {node_id[:80]!a} in the cluster")

    async def _submit(self, command: Command) -> None:
        result = await self._metadata.submit(command)
        if isinstance(result, Failure):
            raise from_failure(result)


def settings_document(settings: ClusterSettings) -> SettingsDocument:
    """All settings, those at their default as well."""
    return SettingsDocument(**msgspec.structs.asdict(settings))
