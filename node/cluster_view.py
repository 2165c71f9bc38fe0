"""The ring's view of the cluster, read from this node's replicated metadata.

`membership` and `generation` are called for every chunk, so both are plain attributes, renewed when
the metadata says that members or the epoch have changed. Members have their addresses of today, so
a node may move; placement follows what an epoch recorded of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from metadata_raft.records import AppliedState
from ring.members import Membership

NO_MEMBERSHIP = Membership(epoch=0, members=())
"""Before the first state has arrived: nobody owns anything."""

FORMER_LIMIT = 64
"""Older epochs that reads may fall back to; a cluster that changes more often than it settles has
other worries, and every member is asked in the end anyway."""


class ViewSnapshot(Protocol):
    def epochs(self) -> Sequence[Membership]:
        """Newest first."""

    def referenced(self, chunk_ids: Sequence[bytes]) -> set[bytes]: ...

    def chunk_page(self, after: bytes, limit: int) -> list[bytes]: ...


class ViewedMetadata(Protocol):
    """What the view needs of `MetadataGroup`."""

    async def barrier(self, *, timeout_seconds: float = 1.0) -> int: ...

    def snapshot(self) -> AbstractContextManager[ViewSnapshot]: ...

    def applied(self) -> AppliedState: ...

    def add_listener(self, listener: Callable[[AppliedState], None]) -> None: ...


class ReplicatedView:
    """A `ring.interfaces.ClusterView`. Main loop only, except for the plain reads."""

    def __init__(self, metadata: ViewedMetadata) -> None:
        self._metadata = metadata
        self._membership = NO_MEMBERSHIP
        self._former: tuple[Membership, ...] = ()
        self._seen: tuple[int, int] | None = None
        metadata.add_listener(self._renew)

    def membership(self) -> Membership:
        return self._membership

    def former(self) -> Sequence[Membership]:
        return self._former

    def generation(self) -> int:
        return self._metadata.applied().generation

    def collection_held(self) -> bool:
        return self._metadata.applied().collection_held

    async def refresh(self) -> None:
        """Raises NoQuorumError where a majority can't be asked."""
        await self._metadata.barrier()
        self._renew(self._metadata.applied())

    def load(self) -> None:
        """Read what this node knows already, once at start."""
        self._renew(self._metadata.applied())

    def _renew(self, applied: AppliedState) -> None:
        version = (applied.epoch, applied.members_version)
        if applied.epoch == 0 or version == self._seen:
            return
        with self._metadata.snapshot() as snapshot:
            current, *former = snapshot.epochs()
        self._membership, self._former = current, tuple(former[:FORMER_LIMIT])
        self._seen = version


class ReplicatedLiveChunks:
    """A `ring.interfaces.LiveChunks`: references as this node's applied state has them."""

    def __init__(self, metadata: ViewedMetadata) -> None:
        self._metadata = metadata

    def referenced(self, chunk_ids: Sequence[bytes]) -> set[bytes]:
        with self._metadata.snapshot() as snapshot:
            return snapshot.referenced(chunk_ids)

    def page(self, after: bytes, limit: int) -> list[bytes]:
        with self._metadata.snapshot() as snapshot:
            return snapshot.chunk_page(after, limit)
