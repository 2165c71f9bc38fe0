"""Small chunks for a peer, sent together: what waits while one batch is under way is the next.

A request between peers costs some hundreds of microseconds of CPU on either side, whatever it
carries; of an 8 KiB chunk that is most of the cost. Under load several wait at any moment, so they
share a request, as they share a sync at the other end. Alone, a chunk goes at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ring.errors import PeerRefusedError, PeerUnreachableError, RingError
from ring.members import Member, NodeId
from ring.peer_wire import PUT_BATCH_LIMIT, PUT_BATCH_SIZE_LIMIT, PutAnswer, PutTarget, SmallPut

BATCHES_AT_ONCE = 2
"""Requests under way to one peer: one is received while the other waits for the disk. More would
only make them smaller."""

WAITING_LIMIT = 4096
"""Chunks that may wait for one peer: seconds of its work. Beyond it a copy fails at once, and is
repaired later, as if the peer itself had said that it is overloaded."""

Send = Callable[[Member, list[SmallPut]], Awaitable[list[PutAnswer]]]


@dataclass(frozen=True, slots=True)
class _Waiting:
    member: Member
    put: SmallPut
    answered: asyncio.Future[PutAnswer]


@dataclass(slots=True)
class _Lane:
    """What waits for one peer, and how many tasks carry it there."""

    waiting: deque[_Waiting] = field(default_factory=deque)
    carrying: int = 0


class PutBatches:
    """Belongs to one event loop. `send` carries a batch and returns an answer for each chunk."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lanes: dict[NodeId, _Lane] = {}
        self._carriers: set[asyncio.Task[None]] = set()

    async def put(self, member: Member, target: PutTarget, payload: memoryview) -> PutAnswer:
        """Send a chunk of at most `SMALL_PUT_LIMIT` bytes; returns what the peer says of it.

        The payload is copied before it is sent, so a cancelled caller may reuse it at once. Raises
        PeerUnreachableError or PeerRefusedError where the batch has failed, or the one before it,
        and PeerRefusedError (overloaded) where too many wait.
        """
        lane = self._lanes.setdefault(member.node_id, _Lane())
        if len(lane.waiting) >= WAITING_LIMIT:
            detail = f"{WAITING_LIMIT} chunks wait for it already"
            raise PeerRefusedError(member.node_id, "overloaded", detail)
        answered: asyncio.Future[PutAnswer] = asyncio.get_running_loop().create_future()
        lane.waiting.append(_Waiting(member, SmallPut(target, payload), answered))
        if lane.carrying < BATCHES_AT_ONCE:
            lane.carrying += 1
            carrier = asyncio.ensure_future(self._carry(lane))
            self._carriers.add(carrier)
            carrier.add_done_callback(self._carriers.discard)
        return await answered

    async def _carry(self, lane: _Lane) -> None:
        try:
            while batch := _take(lane.waiting):
                await self._carry_one(lane, batch)
        finally:
            # In the same step as the last look at what waits, or a chunk could wait for nobody.
            lane.carrying -= 1

    async def _carry_one(self, lane: _Lane, batch: list[_Waiting]) -> None:
        try:
            answers = await self._send(batch[-1].member, [waiting.put for waiting in batch])
        except BaseException as error:
            # Those behind would only meet the same, one time limit after the other.
            _fail([*batch, *lane.waiting], error)
            lane.waiting.clear()
            if not isinstance(error, RingError):
                raise
            return
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.answered.done():
                waiting.answered.set_result(answer)


def _take(waiting: deque[_Waiting]) -> list[_Waiting]:
    """Remove and return the next batch, oldest first, without those that were given up."""
    batch: list[_Waiting] = []
    size = 0
    while waiting and len(batch) < PUT_BATCH_LIMIT:
        size += len(waiting[0].put.payload)
        if batch and size > PUT_BATCH_SIZE_LIMIT:
            break
        first = waiting.popleft()
        if not first.answered.done():
            batch.append(first)
    return batch


def _fail(batch: list[_Waiting], error: BaseException) -> None:
    """An error of its own for each: a shared one would keep all their frames alive."""
    for waiting in batch:
        if waiting.answered.done():
            continue
        node_id = waiting.member.node_id
        own: RingError
        if isinstance(error, PeerRefusedError):
            own = PeerRefusedError(node_id, error.code, error.detail)
        else:
            own = PeerUnreachableError(node_id, str(error) or type(error).__name__)
        waiting.answered.set_exception(own)
