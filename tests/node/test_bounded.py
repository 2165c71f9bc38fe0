"""Several files at once: bounded, in order, and ended by the first failure."""

from __future__ import annotations

import asyncio

import pytest

from node.commands import bounded


async def test_results_keep_the_order_and_no_more_than_the_limit_run_at_once() -> None:
    """Whatever finishes first, the results stand as the items did."""
    running = most = 0

    async def work(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(20 - number):
            await asyncio.sleep(0)
        running -= 1
        return number

    assert await bounded.each(work, [(number,) for number in range(12)]) == list(range(12))
    assert most == bounded.PARALLEL_LIMIT


async def test_the_first_failure_ends_the_rest() -> None:
    """Nothing goes on in the background after the call has failed."""
    ended: list[int] = []

    async def work(number: int) -> None:
        if number == 1:
            raise ValueError("no")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    with pytest.raises(ValueError, match="no"):
        await bounded.each(work, [(number,) for number in range(9)])
    assert sorted(ended) == [0, 2, 3]
