"""Tells the cluster that this node holds every copy that the ring of an epoch wants of it.

What all members of the ring have reported decides what comes next: former epochs that all are
beyond are forgotten (rule D3), and a node that is to leave may go once the others hold its copies.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from metadata_raft.commands import Command, Failure, ReportSettled, Result
from metadata_raft.errors import MetadataError
from metadata_raft.records import MemberRecord
from node.logs import event
from ring.members import NodeId

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""Between two looks: a departure waits for the last of these reports."""

RETRY_SECONDS = 1.0
"""After a report that did not get through: about the time in which a new leader is found."""


class ReporterSnapshot(Protocol):
    def members(self) -> Sequence[MemberRecord]: ...


class ReporterMetadata(Protocol):
    """What this needs of `MetadataGroup`."""

    async def submit(self, command: Command, *, timeout_seconds: float = 10.0) -> Result: ...

    def snapshot(self) -> AbstractContextManager[ReporterSnapshot]: ...


class SettledReporter:
    """A `ring.worker.Job`. `settled_epoch`: for which epoch all is here, None where not for the
    current one."""

    def __init__(
        self,
        metadata: ReporterMetadata,
        node_id: NodeId,
        settled_epoch: Callable[[], int | None],
    ) -> None:
        self._metadata = metadata
        self._node_id = node_id
        self._settled_epoch = settled_epoch
        self._reported = 0

    async def work(self) -> float:
        epoch = self._settled_epoch()
        if epoch is None or epoch <= self._reported:
            return LOOK_SECONDS
        if epoch <= self._recorded():
            self._reported = epoch
            return LOOK_SECONDS
        try:
            result = await self._metadata.submit(ReportSettled(node_id=self._node_id, epoch=epoch))
        except MetadataError as error:
            event(logger, logging.DEBUG, "a report has to wait", reason=str(error))
            return RETRY_SECONDS
        if isinstance(result, Failure):
            # The cluster's version is too old for it, or this node is no member any more.
            return RETRY_SECONDS
        self._reported = epoch
        event(logger, logging.INFO, "settled", epoch=epoch)
        return LOOK_SECONDS

    def _recorded(self) -> int:
        with self._metadata.snapshot() as snapshot:
            for record in snapshot.members():
                if record.member.node_id == self._node_id:
                    return record.settled_epoch
        return 0
