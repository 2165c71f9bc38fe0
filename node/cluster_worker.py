"""What the leader does for the whole cluster, one small step at a time.

Background jobs, run on every node, idle except on the leader: the cluster version rises once all
members support the next one; members get their place in the ring once they have caught up with the
log, lose it when they are to drain, leave or be removed (rule M7), and are placed anew when they
started with another zone or weight; the generation advances, which garbage collection runs on
(rule D4); and the queue of deleted things is worked off. Every step is a command that carries the
expectation it was decided on, so that two nodes that both believe to lead can't do it twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from metadata_raft.commands import (
    CLUSTER_VERSION_SUPPORTED,
    Advanced,
    AdvanceGeneration,
    ChangeRing,
    Command,
    Done,
    Failure,
    Reclaimed,
    ReclaimStep,
    Result,
    RingChanged,
    SetClusterVersion,
)
from metadata_raft.errors import MetadataError
from metadata_raft.membership import STAGE_LEAVING, voters_wanted
from metadata_raft.records import AppliedState, ClusterRecord, MemberRecord
from node.logs import event
from ring.members import Membership

logger = logging.getLogger(__name__)

RING_INTERVAL_SECONDS = 0.25
"""How often the leader looks for members that belong in the ring: a join feels immediate."""

VERSION_INTERVAL_SECONDS = 0.25
"""How often the leader looks whether the cluster version can rise; a new cluster needs it soon."""

RECLAIM_INTERVAL_SECONDS = 2.0
"""How often the leader looks whether something deleted is waiting."""

RECLAIM_IDLE_SECONDS = 600.0
"""How often it takes a step where nothing waits: uploads and tokens expire with time alone."""

RECLAIM_PAUSE_SECONDS = 0.02
"""Between two steps while there is work: the log is for clients first."""

RETRY_SECONDS = 1.0
"""After a failure: about the time in which a cluster finds a new leader."""


class WorkerSnapshot(Protocol):
    def cluster(self) -> ClusterRecord: ...

    def members(self) -> Sequence[MemberRecord]: ...

    def membership(self, epoch: int | None) -> Membership: ...

    def reclaim_pending(self) -> bool: ...


class WorkedMetadata(Protocol):
    """What the jobs need of `MetadataGroup`."""

    async def submit(self, command: Command, *, timeout_seconds: float = 10.0) -> Result: ...

    def snapshot(self) -> AbstractContextManager[WorkerSnapshot]: ...

    def applied(self) -> AppliedState: ...


class RingWorker:
    """Keeps the ring as the members want it; `leads` tells whether this node is the leader."""

    def __init__(self, metadata: WorkedMetadata, leads: Callable[[], bool]) -> None:
        self._metadata = metadata
        self._leads = leads
        self._seen: int | None = None

    async def work(self) -> float:
        """One look, at most one change; returns the seconds until the next."""
        version = self._metadata.applied().members_version
        if not self._leads() or version == self._seen:
            return RING_INTERVAL_SECONDS
        with self._metadata.snapshot() as snapshot:
            cluster, members = snapshot.cluster(), snapshot.members()
            ring = snapshot.membership(None)
        change = ring_change(cluster, ring, members)
        if change is None:
            self._seen = version
            return RING_INTERVAL_SECONDS
        result = await submitted(self._metadata, change)
        if isinstance(result, RingChanged):
            event(
                logger,
                logging.INFO,
                "the ring has a new epoch",
                epoch=result.epoch,
                nodes=len(change.node_ids),
            )
            return RING_INTERVAL_SECONDS
        return RETRY_SECONDS


class VersionWorker:
    """Raises the cluster version as soon as every member's software supports it."""

    def __init__(self, metadata: WorkedMetadata, leads: Callable[[], bool]) -> None:
        self._metadata = metadata
        self._leads = leads
        self._seen: int | None = None

    async def work(self) -> float:
        applied = self._metadata.applied()
        if (
            not self._leads()
            or applied.cluster_version >= CLUSTER_VERSION_SUPPORTED
            or applied.members_version == self._seen
        ):
            return VERSION_INTERVAL_SECONDS
        with self._metadata.snapshot() as snapshot:
            members = snapshot.members()
        supported = min((record.supported_version for record in members), default=0)
        if supported <= applied.cluster_version:
            self._seen = applied.members_version
            return VERSION_INTERVAL_SECONDS
        version = min(supported, CLUSTER_VERSION_SUPPORTED)
        result = await submitted(self._metadata, SetClusterVersion(version=version))
        if not isinstance(result, Done):
            return RETRY_SECONDS
        event(logger, logging.INFO, "the cluster has a new version", version=version)
        return VERSION_INTERVAL_SECONDS


class GenerationWorker:
    """Advances the generation every `interval_seconds` of this leader's own clock.

    No deletion is decided by the clock: a generation that comes too early or too late only moves
    the moment at which space comes back.
    """

    def __init__(
        self,
        metadata: WorkedMetadata,
        leads: Callable[[], bool],
        interval_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metadata = metadata
        self._leads = leads
        self._interval = interval_seconds
        self._clock = clock
        self._generation = -1
        self._since = 0.0

    async def work(self) -> float:
        generation = self._metadata.applied().generation
        now = self._clock()
        if generation != self._generation or not self._leads():
            # A new one, or nothing to do with us: the interval begins anew.
            self._generation, self._since = generation, now
        remaining = self._interval - (now - self._since)
        if remaining > 0:
            return min(remaining, RETRY_SECONDS)
        result = await submitted(self._metadata, AdvanceGeneration(expected=generation))
        return 0.0 if isinstance(result, Advanced) else RETRY_SECONDS


class ReclaimWorker:
    """Works off the queue of deleted versions, buckets and uploads.

    What was deleted less than `grace_seconds` of state time ago stays for downloads under way.
    """

    def __init__(
        self,
        metadata: WorkedMetadata,
        leads: Callable[[], bool],
        grace_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metadata = metadata
        self._leads = leads
        self._step = ReclaimStep(grace_ms=int(grace_seconds * 1000))
        self._clock = clock
        self._worked_at = float("-inf")

    async def work(self) -> float:
        if not self._leads():
            return RECLAIM_INTERVAL_SECONDS
        with self._metadata.snapshot() as snapshot:
            pending = snapshot.reclaim_pending()
        now = self._clock()
        if not pending and now - self._worked_at < RECLAIM_IDLE_SECONDS:
            return RECLAIM_INTERVAL_SECONDS
        result = await submitted(self._metadata, self._step)
        if not isinstance(result, Reclaimed):
            return RETRY_SECONDS
        self._worked_at = now
        return RECLAIM_PAUSE_SECONDS if result.remaining else RECLAIM_INTERVAL_SECONDS


def ring_change(
    cluster: ClusterRecord, ring: Membership, members: Sequence[MemberRecord]
) -> ChangeRing | None:
    """The next ring, if it is not as its members want it.

    Wanted in it is who is to stay and has caught up with the log: a voter has; a learner has where
    no more voters are wanted, so that it stays one, and where it has announced a start of itself,
    which takes applying what it announced: the group lists it as a learner before it has ever been
    heard, and a node that died while it was admitted must not own chunks. Who is in it already
    has. Members that moved to another zone, or have another weight, are placed anew. Where somebody
    loses its place, what it alone may have acknowledged is not to be referenced any more (rule D6):
    the floor rises.
    """
    staying = [
        record for record in members if record.intent == "stay" and record.stage != STAGE_LEAVING
    ]
    following = sum(record.stage != STAGE_LEAVING for record in members)
    enough = sum(record.stage == "voter" for record in members) >= voters_wanted(following)
    wanted = {
        record.member.node_id: (record.member.zone, record.member.weight)
        for record in staying
        if record.in_ring
        or record.stage == "voter"
        or (record.stage == "learner" and enough and record.boot_counter > 0)
    }
    placed = {member.node_id: (member.zone, member.weight) for member in ring.members}
    if cluster.epoch == 0 or not wanted or wanted == placed:
        return None
    return ChangeRing(
        expected_epoch=cluster.epoch,
        node_ids=tuple(sorted(wanted)),
        replicas=cluster.replicas,
        raise_floor=not wanted.keys() >= placed.keys(),
    )


async def submitted(metadata: WorkedMetadata, command: Command) -> Result | None:
    """The result, or None where the cluster can't take the command now; the next look decides."""
    try:
        result = await metadata.submit(command)
    except MetadataError as error:
        event(logger, logging.DEBUG, "a step of the leader waits", reason=str(error))
        return None
    if isinstance(result, Failure):
        event(logger, logging.DEBUG, "a step of the leader was overtaken", reason=result.detail)
    return result
