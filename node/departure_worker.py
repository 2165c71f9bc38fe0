"""How members leave: the leader's job between an operator's word and the end of the record (M7).

A member that is to leave first loses its place in the ring (`ring_change`). When all that are in
the ring have reported to hold every copy without it, it is marked as leaving, which can't be taken
back. The Raft group then removes it, handing over first where it leads (`membership.py` there), and
its record goes. One that is to be removed is dead, and is marked at once. Each step is decided on
what is committed and carries its expectation, so any next leader goes on with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from metadata_raft.commands import Done, ForgetMember, SetMemberStage
from metadata_raft.membership import STAGE_LEAVING
from metadata_raft.records import ClusterRecord, MemberRecord
from metadata_raft.replica import RaftStatus
from node.cluster_worker import RETRY_SECONDS, WorkedMetadata, submitted
from node.logs import event
from ring.members import NodeId

logger = logging.getLogger(__name__)

DEPARTURE_INTERVAL_SECONDS = 0.25
"""How often the leader looks for members that are on their way out."""


class DepartingMetadata(WorkedMetadata, Protocol):
    def status(self) -> RaftStatus: ...


class DepartureWorker:
    """Brings the departures to their end; `leads` tells whether this node is the leader."""

    def __init__(self, metadata: DepartingMetadata, leads: Callable[[], bool]) -> None:
        self._metadata = metadata
        self._leads = leads
        self._seen: tuple[int, tuple[NodeId, ...]] | None = None

    async def work(self) -> float:
        """One look, at most one step; returns the seconds until the next."""
        removed = self._metadata.status().removed
        seen = (self._metadata.applied().members_version, removed)
        if not self._leads() or seen == self._seen:
            return DEPARTURE_INTERVAL_SECONDS
        with self._metadata.snapshot() as snapshot:
            cluster, members = snapshot.cluster(), snapshot.members()
        step = departure_step(cluster, members, removed)
        if step is None:
            self._seen = seen
            return DEPARTURE_INTERVAL_SECONDS
        if not isinstance(await submitted(self._metadata, step), Done):
            return RETRY_SECONDS
        message = (
            "a member has left for good"
            if isinstance(step, ForgetMember)
            else "a member is leaving for good"
        )
        event(logger, logging.INFO, message, member=step.node_id)
        return 0.0


def departure_step(
    cluster: ClusterRecord, members: Sequence[MemberRecord], removed: Collection[NodeId]
) -> SetMemberStage | ForgetMember | None:
    """The next step of some member's way out; None where all are done or have to wait.

    `removed` are those that the committed Raft configuration names as removed.
    """
    settled = all(record.settled_epoch >= cluster.epoch for record in members if record.in_ring)
    for record in members:
        node_id = record.member.node_id
        if record.stage == STAGE_LEAVING:
            if node_id in removed and not record.in_ring:
                return ForgetMember(node_id=node_id)
        elif record.intent == "remove" or (
            record.intent == "leave" and settled and not record.in_ring
        ):
            return SetMemberStage(node_id=node_id, stage=STAGE_LEAVING, expected_stage=record.stage)
    return None
