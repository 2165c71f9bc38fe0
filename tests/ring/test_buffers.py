"""The pool never exceeds its budget, serves in order, and gets every buffer back exactly once."""

from __future__ import annotations

import asyncio
import ctypes
import gc

import pytest

from ring.buffers import SIZE_CLASSES, BufferPool, Lease
from ring.errors import OverloadedError
from ring.interfaces import CHUNK_SIZE_LIMIT

MIB = 1024 * 1024


def address(lease: Lease) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(lease.view))


async def test_lease() -> None:
    """A lease holds a chunk, is aligned and writable, and is reused after its release."""
    pool = BufferPool()
    lease = await pool.lease()
    assert len(lease.view) == CHUNK_SIZE_LIMIT
    assert address(lease) % 4096 == 0
    lease.view[-1] = 7
    first = address(lease)
    lease.release()
    assert pool.leased_bytes == 0
    again = await pool.lease()
    assert address(again) == first
    again.release()


async def test_size_classes() -> None:
    """A small lease takes a small buffer."""
    pool = BufferPool()
    for size, limit in ((1, SIZE_CLASSES[0]), (SIZE_CLASSES[0] + 1, SIZE_CLASSES[1])):
        lease = await pool.lease(size)
        assert len(lease.view) == limit == pool.leased_bytes
        lease.release()


async def test_holders() -> None:
    """A buffer goes back when the last of its holders lets go, not before, and only once."""
    pool = BufferPool()
    lease = await pool.lease()
    lease.retain()
    lease.release()
    assert pool.leased_bytes == CHUNK_SIZE_LIMIT
    lease.release()
    assert pool.leased_bytes == 0
    with pytest.raises(AssertionError, match="twice"):
        lease.release()
    with pytest.raises(AssertionError, match="held again"):
        lease.retain()


async def test_budget_and_order() -> None:
    """Beyond the budget requests wait, and are served in the order of asking."""
    # What is left would do for the small one, which must not overtake the large one all the same.
    pool = BufferPool(2 * CHUNK_SIZE_LIMIT + SIZE_CLASSES[0])
    leases = [await pool.lease(), await pool.lease()]
    served: list[int] = []

    async def ask(number: int, size: int) -> None:
        lease = await pool.lease(size)
        served.append(number)
        lease.release()

    tasks = [
        asyncio.create_task(ask(number, size))
        for number, size in enumerate([CHUNK_SIZE_LIMIT, 1000, CHUNK_SIZE_LIMIT])
    ]
    for _ in range(10):
        await asyncio.sleep(0)
    assert pool.waiting == 3
    assert pool.leased_bytes == 2 * CHUNK_SIZE_LIMIT
    leases[0].release()
    await asyncio.gather(*tasks)
    assert served == [0, 1, 2]
    leases[1].release()
    assert pool.leased_bytes == 0


async def test_overload() -> None:
    """Who waits too long is told so, and takes nothing away from those who come later."""
    pool = BufferPool(CHUNK_SIZE_LIMIT, wait_seconds=0.01)
    lease = await pool.lease()
    with pytest.raises(OverloadedError):
        await pool.lease()
    assert pool.waiting == 0
    lease.release()
    (await pool.lease()).release()
    assert pool.leased_bytes == 0


async def test_cancelled_waiter() -> None:
    """A waiter that is cancelled, even as it is served, loses no buffer."""
    for turns in range(4):
        pool = BufferPool(CHUNK_SIZE_LIMIT)
        lease = await pool.lease()
        task = asyncio.create_task(pool.lease())
        while not pool.waiting:  # noqa: ASYNC110
            await asyncio.sleep(0)
        lease.release()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        result = await asyncio.gather(task, return_exceptions=True)
        if isinstance(result[0], Lease):
            result[0].release()
        for _ in range(3):
            await asyncio.sleep(0)
        assert pool.leased_bytes == 0
        (await pool.lease()).release()


async def test_free_buffers_make_room() -> None:
    """Free buffers of one size don't keep others from being made."""
    pool = BufferPool(2 * CHUNK_SIZE_LIMIT)
    large = [await pool.lease() for _ in range(2)]
    for lease in large:
        lease.release()
    small = [await pool.lease(1000) for _ in range(128)]
    assert pool.leased_bytes == 128 * SIZE_CLASSES[0] == CHUNK_SIZE_LIMIT
    last = await pool.lease()
    for lease in [*small, last]:
        lease.release()


async def test_lent_view() -> None:
    """A lent buffer returns when the last view on it is gone, however it was sliced."""
    pool = BufferPool()
    lease = await pool.lease()
    lease.view[:3] = b"abc"
    view: memoryview | None = lease.lend(1, 3)
    del lease
    assert view is not None
    assert view.readonly
    piece: memoryview | None = view[1:]
    view = None
    assert piece is not None
    assert bytes(piece) == b"c"
    assert pool.leased_bytes == CHUNK_SIZE_LIMIT
    piece = None
    gc.collect()
    assert pool.leased_bytes == 0


async def test_lent_view_wakes_a_waiter() -> None:
    """The end of a lent view serves whoever waits, from whichever thread it ends in."""
    pool = BufferPool(CHUNK_SIZE_LIMIT)
    views = [(await pool.lease()).lend(0, 10)]
    task = asyncio.create_task(pool.lease())
    while not pool.waiting:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await asyncio.to_thread(views.clear)
    (await asyncio.wait_for(task, 5)).release()
    assert pool.leased_bytes == 0


def test_impossible_budget() -> None:
    """A budget that holds no chunk is refused."""
    with pytest.raises(ValueError, match="holds no chunk"):
        BufferPool(MIB)
