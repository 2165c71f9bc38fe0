"""Asks every other node now and then how it is: for `status`, and for nothing else.

No decision about data hangs on it; whom to ask first is learnt from real requests
(`ring/peer_health.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from ring.errors import RingError
from ring.members import Member, NodeId
from ring.peer_wire import PeerStatus

PROBE_INTERVAL_SECONDS = 2.0
"""Each probe is one small request; a node that is gone shows within about this time."""


class StatusClient(Protocol):
    async def status(self, member: Member) -> PeerStatus: ...


class PeerProbe:
    """A background job; `reachable` is its last answer. Main loop only."""

    def __init__(
        self, client: StatusClient, own_id: NodeId, members: Callable[[], Sequence[Member]]
    ) -> None:
        self._client = client
        self._own_id = own_id
        self._members = members
        self._answers: dict[NodeId, PeerStatus | None] = {}

    def reachable(self, node_id: NodeId) -> bool | None:
        """None where nobody has been asked yet."""
        if node_id not in self._answers:
            return None
        return self._answers[node_id] is not None

    def settled(self, node_ids: Sequence[NodeId], epoch: int) -> bool:
        """Whether each of these nodes, this one left out, said so last, at this epoch."""
        return all(
            answer is not None and answer.settled and answer.epoch == epoch
            for answer in (
                self._answers.get(node_id) for node_id in node_ids if node_id != self._own_id
            )
        )

    async def work(self) -> float:
        members = [member for member in self._members() if member.node_id != self._own_id]
        answers = await asyncio.gather(*(self._ask(member) for member in members))
        self._answers = {
            member.node_id: answer for member, answer in zip(members, answers, strict=True)
        }
        return PROBE_INTERVAL_SECONDS

    async def _ask(self, member: Member) -> PeerStatus | None:
        try:
            return await self._client.status(member)
        except RingError:
            return None
