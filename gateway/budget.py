"""A bound on the bytes that are in memory at once, shared fairly by those who wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import NamedTuple

from gateway.errors import ApiError

WAIT_SECONDS = 10.0
"""As long as for an upload's buffer (ring/buffers.py): then the node is overloaded, and says so."""

WAITING_LIMIT = 1024


class _Waiter(NamedTuple):
    size: int
    future: asyncio.Future[None]


class ByteBudget:
    """At most `limit_bytes` taken at once; served in the order of asking. One event loop."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.taken_bytes = 0
        self._waiters: deque[_Waiter] = deque()

    def try_take(self, size: int) -> bool:
        """Take without waiting, if nobody else waits; whether it worked.

        More than the whole budget is given as soon as nothing else is taken.
        """
        if self._waiters or not self._fits(size):
            return False
        self.taken_bytes += size
        return True

    async def take(self, size: int) -> None:
        """Raises ApiError(overloaded) if there is no room in time, or too many wait already."""
        if self.try_take(size):
            return
        if len(self._waiters) >= WAITING_LIMIT:
            raise ApiError("overloaded", f"{WAITING_LIMIT} requests wait for memory already")
        waiter = _Waiter(size, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await waiter.future
        except BaseException as error:
            if waiter.future.done() and not waiter.future.cancelled():
                self.give_back(size)
            else:
                # `_serve` may have met it, cancelled already, and dropped it.
                with contextlib.suppress(ValueError):
                    self._waiters.remove(waiter)
                self._serve()
            if isinstance(error, TimeoutError):
                raise ApiError(
                    "overloaded", f"all {self.limit_bytes} bytes for downloads are in use"
                ) from None
            raise

    def give_back(self, size: int) -> None:
        self.taken_bytes -= size
        self._serve()

    def _fits(self, size: int) -> bool:
        return self.taken_bytes == 0 or self.taken_bytes + size <= self.limit_bytes

    def _serve(self) -> None:
        while self._waiters and self._fits(self._waiters[0].size):
            waiter = self._waiters.popleft()
            if waiter.future.cancelled():
                continue
            self.taken_bytes += waiter.size
            waiter.future.set_result(None)
