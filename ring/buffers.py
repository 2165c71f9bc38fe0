"""Large buffers: page-aligned, reused, and never more of them than a node's budget.

Fresh memory is dear (the kernel clears every page of it) and unbounded memory ends a node, so all
contents that pass through a node pass through the buffers of one pool. A buffer goes back when its
last holder releases it; one that was lent to a reader goes back when the reader's last view on it
is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import mmap
import threading
import weakref
from collections import deque
from dataclasses import dataclass

from ring.errors import OverloadedError
from ring.interfaces import CHUNK_SIZE_LIMIT

DEFAULT_BUDGET_BYTES = 256 * 1024 * 1024
SIZE_CLASSES = (64 * 1024, 512 * 1024, CHUNK_SIZE_LIMIT)
"""A lease gets the smallest that holds it: few classes, so that free buffers fit what comes."""

LEASE_WAIT_SECONDS = 10.0
"""How long a request waits for a buffer before it is told that the node is overloaded: a few
times what a full pool needs to pass through one slow disk."""

WAITING_LIMIT = 1024
"""Requests waiting for a buffer; beyond it they are refused at once."""

_HUGE_PAGE_SIZE = 2 * 1024 * 1024


def size_class(size: int) -> int:
    """Bytes of the buffer that a lease of `size` bytes gets."""
    return next(limit for limit in SIZE_CLASSES if size <= limit)


class Lease:
    """One buffer, held. Made by `BufferPool.lease` with one holder; usable from any thread."""

    __slots__ = ("_holders", "_memory", "_pool", "view")

    view: memoryview
    """Writable, 4 KiB aligned, at least as long as asked for. Old contents are still in it."""

    def __init__(self, pool: BufferPool, memory: mmap.mmap) -> None:
        self._pool = pool
        self._memory = memory
        self._holders = 1
        self.view = memoryview(memory)

    def retain(self) -> None:
        """Add a holder; each holder releases once."""
        with self._pool.lock:
            assert self._holders > 0, "a released buffer is held again"
            self._holders += 1

    def release(self) -> None:
        """Give one hold up; the last one returns the buffer, and `view` must be left alone."""
        with self._pool.lock:
            assert self._holders > 0, "a buffer is released twice"
            self._holders -= 1
            if self._holders:
                return
        self._pool.take_back(self._memory)

    def lend(self, start: int, end: int) -> memoryview:
        """Turn the caller's hold into a read-only view that releases it when it is gone.

        The view may be sliced and cast; the buffer returns with the last of its descendants.
        """
        # memoryviews on an mmap tell nobody when they end, a ctypes array over it does.
        array = (ctypes.c_char * len(self.view)).from_buffer(self._memory)
        weakref.finalize(array, self.release).atexit = False
        return memoryview(array).cast("B")[start:end].toreadonly()


@dataclass(slots=True)
class _Waiter:
    size: int
    future: asyncio.Future[mmap.mmap]


class BufferPool:
    """Leases on buffers of at most 8 MiB; at most `budget_bytes` of memory, free ones included."""

    def __init__(
        self,
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
        *,
        wait_seconds: float = LEASE_WAIT_SECONDS,
    ) -> None:
        if budget_bytes < CHUNK_SIZE_LIMIT:
            raise ValueError(f"a buffer budget of {budget_bytes} bytes holds no chunk")
        self.budget_bytes = budget_bytes
        # Finalizers may run in the middle of anything, even of code that holds the lock.
        self.lock = threading.RLock()
        self._wait_seconds = wait_seconds
        self._free: dict[int, list[mmap.mmap]] = {size: [] for size in SIZE_CLASSES}
        self._total_bytes = 0
        self._free_bytes = 0
        self._waiters: deque[_Waiter] = deque()

    @property
    def leased_bytes(self) -> int:
        return self._total_bytes - self._free_bytes

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    async def lease(self, size: int = CHUNK_SIZE_LIMIT) -> Lease:
        """Return a buffer of at least `size` bytes, in the order of asking.

        Raises OverloadedError if none comes free in time, or too many wait already.
        """
        size = size_class(size)
        with self.lock:
            memory = None if self._waiters else self._take(size)
            if memory is not None:
                return Lease(self, memory)
            if len(self._waiters) >= WAITING_LIMIT:
                raise OverloadedError(f"{WAITING_LIMIT} requests wait for a buffer already")
            waiter = _Waiter(size, asyncio.get_running_loop().create_future())
            self._waiters.append(waiter)
        try:
            async with asyncio.timeout(self._wait_seconds):
                memory = await asyncio.shield(waiter.future)
        except BaseException as error:
            self._abandon(waiter)
            if isinstance(error, TimeoutError):
                raise OverloadedError(
                    f"all {self.budget_bytes} bytes of buffers are in use"
                ) from None
            raise
        return Lease(self, memory)

    def take_back(self, memory: mmap.mmap) -> None:
        """Return the memory of a lease whose last hold was given up. Any thread."""
        with self.lock:
            self._free[len(memory)].append(memory)
            self._free_bytes += len(memory)
            self._serve_waiters()

    def _serve_waiters(self) -> None:
        while self._waiters:
            waiter = self._waiters[0]
            memory = self._take(waiter.size)
            if memory is None:
                return
            self._waiters.popleft()
            try:
                waiter.future.get_loop().call_soon_threadsafe(self._hand_over, waiter, memory)
            except RuntimeError:
                # The waiter's loop has ended, and the waiter with it.
                self._free[len(memory)].append(memory)
                self._free_bytes += len(memory)

    def _hand_over(self, waiter: _Waiter, memory: mmap.mmap) -> None:
        if waiter.future.done():
            self.take_back(memory)
        else:
            waiter.future.set_result(memory)

    def _abandon(self, waiter: _Waiter) -> None:
        """Forget a waiter that gave up, and pass on what it may have been given meanwhile."""
        with self.lock:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)
            if waiter.future.done() and not waiter.future.cancelled():
                self.take_back(waiter.future.result())
            waiter.future.cancel()
            self._serve_waiters()

    def _take(self, size: int) -> mmap.mmap | None:
        """Take a free buffer, make one, or make room for one; None where the budget is used up."""
        if self._free[size]:
            self._free_bytes -= size
            return self._free[size].pop()
        if self._total_bytes - self._free_bytes + size > self.budget_bytes:
            return None
        while self._total_bytes + size > self.budget_bytes:
            self._drop_largest()
        self._total_bytes += size
        memory = mmap.mmap(-1, size)
        if size >= _HUGE_PAGE_SIZE:
            # Fewer faults and fewer pages to pin for O_DIRECT; a kernel without them says so.
            with contextlib.suppress(OSError):
                memory.madvise(mmap.MADV_HUGEPAGE)
        return memory

    def _drop_largest(self) -> None:
        size = max(size for size in SIZE_CLASSES if self._free[size])
        # Unmapped by the last view on it: a released lease's view may still be around.
        self._free[size].pop()
        self._free_bytes -= size
        self._total_bytes -= size
