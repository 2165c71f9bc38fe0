"""Asks every other node now and then how it is: for `status`, health and the settled cluster.

What a node said last is kept, with the time, also when it has fallen silent since. No decision
about a chunk hangs on it; whom to ask first is learnt from real requests (`ring/peer_health.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ring.errors import RingError
from ring.members import Member, NodeId
from ring.peer_wire import PeerStatus

PROBE_INTERVAL_SECONDS = 2.0
"""Each probe is one small request; a node that is gone shows within about this time."""


class StatusClient(Protocol):
    async def status(self, member: Member) -> PeerStatus: ...


@dataclass(frozen=True, slots=True)
class Probed:
    """What is known of another node: the outcome of the last probe, and its last answer ever."""

    reachable: bool
    """Whether it answered the last probe."""
    last_seen_seconds: float | None
    """How long ago it answered; None where it never did since this node started."""
    answer: PeerStatus | None
    """Its last answer, however old."""


class PeerProbe:
    """A background job; `probed` is what it knows. Main loop only. `clock` is monotonic."""

    def __init__(
        self,
        client: StatusClient,
        own_id: NodeId,
        members: Callable[[], Sequence[Member]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._own_id = own_id
        self._members = members
        self._clock = clock
        self._now: dict[NodeId, PeerStatus | None] = {}
        """The outcome of the last probe; only of today's members."""
        self._last: dict[NodeId, tuple[float, PeerStatus]] = {}
        """The last answer and when it came; only of today's members."""
        self._asking = asyncio.Lock()
        self._rounds = 0

    def probed(self, node_id: NodeId) -> Probed | None:
        """None where nobody has been asked yet, and for this node itself."""
        if node_id not in self._now:
            return None
        reachable = self._now[node_id] is not None
        if node_id not in self._last:
            return Probed(reachable, None, None)
        moment, answer = self._last[node_id]
        return Probed(reachable, max(0.0, self._clock() - moment), answer)

    def settled(self, node_ids: Sequence[NodeId], epoch: int) -> bool:
        """Whether each of these nodes, this one left out, said so last, at this epoch.

        Other nodes that answer must say so as well: they may hold what belongs to these.
        """
        wanted = set(node_ids) - {self._own_id}
        others = (answer for node_id, answer in self._now.items() if node_id not in wanted)
        return all(
            answer is not None and answer.settled and answer.epoch == epoch
            for answer in map(self._now.get, wanted)
        ) and all(answer is None or answer.settled for answer in others)

    def clients_active(self) -> bool:
        """Whether another node was serving clients at the last probe."""
        return any(answer is not None and answer.clients_active for answer in self._now.values())

    async def work(self) -> float:
        await self.refresh()
        return PROBE_INTERVAL_SECONDS

    async def refresh(self) -> None:
        """Ask everybody now; takes as long as the slowest. Who calls meanwhile shares a round.

        What is known afterwards was said after the call.
        """
        rounds = self._rounds
        async with self._asking:
            if self._rounds == rounds:
                self._rounds += 1
                await self._round()

    async def _round(self) -> None:
        members = [member for member in self._members() if member.node_id != self._own_id]
        answers = await asyncio.gather(*(self._ask(member) for member in members))
        self._now = {
            member.node_id: answer for member, answer in zip(members, answers, strict=True)
        }
        self._last = {node_id: last for node_id, last in self._last.items() if node_id in self._now}

    async def _ask(self, member: Member) -> PeerStatus | None:
        try:
            answer = await self._client.status(member)
        except RingError:
            return None
        self._last[member.node_id] = (self._clock(), answer)
        return answer
