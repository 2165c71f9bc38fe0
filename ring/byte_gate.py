"""A bound on the bytes that are under way for one purpose, or to one node; the others wait in line.

A pool of buffers bounds memory, and this bounds a share of it: what hangs on one node must not hold
the buffers that all the others need.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque


class ByteGate:
    """Lets `limit_bytes` in at once, in the order of asking; one that is larger passes alone.

    Belongs to one event loop. Whoever entered leaves with the same size.
    """

    __slots__ = ("_inside", "_limit", "_waiting")

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._inside = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def inside_bytes(self) -> int:
        return self._inside

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def try_enter(self, size: int) -> bool:
        """Enter if there is room and nobody waits."""
        if self._waiting or not self._fits(size):
            return False
        self._inside += size
        return True

    async def enter(self, size: int) -> None:
        """Wait for room; returns at once where there is some and nobody waits."""
        if self.try_enter(size):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # It was let in at the moment in which it gave up.
                self.leave(size)
            else:
                # Unless somebody who left has passed over it already.
                with contextlib.suppress(ValueError):
                    self._waiting.remove((size, turn))
                self._admit()
            raise

    def leave(self, size: int) -> None:
        self._inside -= size
        assert self._inside >= 0, "more left than had entered"
        self._admit()

    def _fits(self, size: int) -> bool:
        return not self._inside or self._inside + size <= self._limit

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size, turn = self._waiting.popleft()
            if not turn.done():
                self._inside += size
                turn.set_result(None)
