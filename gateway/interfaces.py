"""What the gateway needs of the layers around it, said in its own words.

`node/` passes a `MetadataGroup`, a `Replicator` and a `BufferPool`; tests pass a state machine
without Raft and a dictionary of chunks. What these raise is translated in `gateway/errors.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Literal, Protocol

import msgspec

from gateway.documents import (
    ClusterDocument,
    MemberDocument,
    NewToken,
    RingDocument,
    RingPreviewDocument,
    ScrubDocument,
    SettingsDocument,
)
from metadata_raft.commands import Command, IdempotencyKey, Result
from metadata_raft.records import (
    AppliedState,
    BucketRecord,
    ClusterRecord,
    FileRecord,
    KeyRecord,
    Listing,
    SegmentRecord,
)
from ring.buffers import Lease

MIB = 1024 * 1024

ReadOnlyBuffer = bytes | bytearray | memoryview


class Snapshot(Protocol):
    """A consistent view of the replicated state; lives for less than a second."""

    def cluster(self) -> ClusterRecord | None: ...

    def bucket(self, name: str) -> BucketRecord | None: ...

    def buckets(self, after: str, limit: int) -> Sequence[BucketRecord]: ...

    def file(self, bucket: str, path: str) -> FileRecord | None: ...

    def file_by_id(self, file_id: int) -> FileRecord | None: ...

    def files(
        self, bucket: str, prefix: str, delimiter: str, cursor: str | None, limit: int
    ) -> Listing: ...

    def segments(
        self, version_id: int, from_offset: int, limit: int
    ) -> Sequence[SegmentRecord]: ...

    def key(self, key_id: str) -> KeyRecord | None: ...

    def keys(self) -> Sequence[KeyRecord]: ...


class Metadata(Protocol):
    """The replicated metadata (docs/architecture.md, `MetadataGroup`)."""

    async def submit(
        self,
        command: Command,
        *,
        timeout_seconds: float = 10.0,
        request_id: bytes | None = None,
        idempotency: IdempotencyKey | None = None,
    ) -> Result: ...

    async def barrier(self, *, timeout_seconds: float = 1.0) -> int: ...

    def snapshot(self) -> AbstractContextManager[Snapshot]: ...

    def applied(self) -> AppliedState: ...


class Buffers(Protocol):
    """The node's pool of large buffers (ring/buffers.py)."""

    async def lease(self, size: int) -> Lease: ...


class ChunkWritten(Protocol):
    @property
    def chunk_id(self) -> bytes: ...

    @property
    def length(self) -> int: ...

    @property
    def epoch(self) -> int: ...


class ChunksTouched(Protocol):
    @property
    def epoch(self) -> int: ...

    @property
    def confirmed(self) -> Sequence[bool]: ...


class Chunks(Protocol):
    """The replicated chunks (docs/architecture.md, `Replicator`)."""

    async def write(self, lease: Lease, length: int, *, generation: int) -> ChunkWritten: ...

    async def touch(self, chunk_ids: Sequence[bytes], *, generation: int) -> ChunksTouched: ...

    async def read(
        self, chunk_id: bytes, *, length: int, start: int = 0, end: int | None = None
    ) -> ReadOnlyBuffer: ...


Intent = Literal["stay", "drain", "leave"]


class MembershipControl(Protocol):
    """What an administrator does about members. Raises `gateway.errors.ApiError`."""

    async def set_intent(
        self, node_id: str, intent: Intent, *, actor: str, reduce_copies: bool = False
    ) -> MemberDocument:
        """Record what its operator wants of a member; returns it as it then stands."""

    async def remove(self, node_id: str, *, actor: str, force: bool) -> None:
        """Take a dead member out for good; with `force` one that answers as well."""

    async def preview_join(self, *, weight: int, zone: str) -> RingPreviewDocument:
        """What would move if a node of this weight joined."""

    async def preview_leave(self, node_id: str) -> RingPreviewDocument:
        """What would move if a node left the ring."""

    async def change_settings(
        self, settings: Mapping[str, int | None], *, actor: str
    ) -> SettingsDocument:
        """Change the cluster's settings that are named; None is the default."""

    async def resume_collection(self, *, actor: str) -> None:
        """Let space be reclaimed again after a restore from a backup (rule D10)."""


class Cluster(Protocol):
    """What the node says about itself and the others, and what it does about joining.

    May raise `gateway.errors.ApiError` with any code of its table.
    """

    def status(self) -> ClusterDocument: ...

    def ring(self) -> RingDocument: ...

    def unready(self) -> str | None:
        """Why this node should get no requests now, as a sentence; None when it is ready."""

    @property
    def membership(self) -> MembershipControl: ...

    async def scrub(self, node_id: str | None) -> ScrubDocument:
        """Let one member, or all, reread their chunks. Raises no_such_member."""

    async def reasons_against_stopping(self) -> Sequence[str]:
        """Why stopping this node now would cost availability, each in words; empty if it would not.

        Asks the other nodes: takes as long as the slowest, some seconds where one is silent.
        """

    async def create_token(self, *, actor: str, lifetime_seconds: int) -> NewToken: ...

    async def join(self, sealed: bytes) -> bytes:
        """Answer a joining node; both bodies are sealed with the token and opaque here."""

    def backup(self) -> AbstractAsyncContextManager[AsyncIterable[bytes]]:
        """The metadata of this node in the form of a backup file, one backup at a time."""


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator may choose of a gateway; bounds that nobody tunes are constants in place."""

    chunk_size_bytes: int = 8 * MIB
    """What files are cut into, at most 8 MiB; small in tests."""
    body_silence_seconds: float = 30.0
    """A request's body may pause for this long, an answer's reader as well."""
    body_rate_bytes_min: int = 8192
    """Bytes per second a body must keep up on average, once it had `body_silence_seconds`. A chunk
    then fills in 17 minutes at most, within one generation: it is never too old to be used."""
    read_budget_bytes: int = 128 * MIB
    """Memory for chunks on their way to clients; a download takes at most a few chunks of it."""
    requests_max: int = 2048
    """Requests in progress; more are told to come back."""
