"""The ring's view of the cluster, read from this node's replicated metadata.

`membership` and `generation` are called for every chunk, so both are plain attributes, renewed when
the metadata says that members or the epoch have changed. Members have their addresses of today, so
a node may move; placement follows what an epoch recorded of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from metadata_raft.records import AppliedState
from node.logs import event
from ring.members import Membership

logger = logging.getLogger(__name__)

NO_MEMBERSHIP = Membership(epoch=0, members=())
"""Before the first state has arrived: nobody owns anything."""

FORMER_MANY = 64
"""More former placements than this are worth a warning: the cluster changes faster than it
settles, and a read that misses elsewhere asks member after member."""


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
        """Older epochs that some member may not have settled beyond (rule D3), newest first; of
        those in which everything lies alike, one."""
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
        self._membership, self._former = current, distinct_placements(current, former)
        if len(self._former) > FORMER_MANY:
            event(logger, logging.WARNING, "many epochs have not settled", count=len(self._former))
        self._seen = version


def distinct_placements(
    current: Membership, former: Sequence[Membership]
) -> tuple[Membership, ...]:
    """The newest former epoch of each placement that is not the current one.

    Owners depend on ids, zones, weights and replicas alone. So a member that comes and goes a
    hundred times before the ring has settled makes two placements, not two hundred, and none is
    left out.
    """
    seen = {_placement(current)}
    distinct: list[Membership] = []
    for membership in former:
        placement = _placement(membership)
        if placement not in seen:
            seen.add(placement)
            distinct.append(membership)
    return tuple(distinct)


def _placement(membership: Membership) -> tuple[object, ...]:
    return (
        membership.replicas,
        tuple((member.node_id, member.zone, member.weight) for member in membership.members),
    )


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
