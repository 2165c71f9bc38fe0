"""The budget of bytes that downloads share."""

from __future__ import annotations

import asyncio

import pytest

from gateway import budget as module
from gateway.budget import ByteBudget
from gateway.errors import ApiError


async def test_no_more_than_the_limit_is_out() -> None:
    """What doesn't fit waits until enough has come back, in the order of asking."""
    budget = ByteBudget(10)
    assert budget.try_take(6)
    assert not budget.try_take(5)
    order: list[str] = []

    async def taker(name: str, size: int) -> None:
        await budget.take(size)
        order.append(name)

    large = asyncio.create_task(taker("large", 9))
    await asyncio.sleep(0)
    small = asyncio.create_task(taker("small", 1))
    await asyncio.sleep(0)
    assert not budget.try_take(1), "nobody overtakes those who wait"
    budget.give_back(6)
    await asyncio.gather(large, small)
    assert order == ["large", "small"]
    assert budget.taken_bytes == 10


async def test_more_than_the_whole_comes_alone() -> None:
    """A piece larger than the budget is let through when nothing else is out."""
    budget = ByteBudget(10)
    await budget.take(25)
    assert not budget.try_take(1)
    budget.give_back(25)
    assert budget.try_take(1)


async def test_waiting_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the bound a waiter is told that the node is overloaded, and takes nothing."""
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.01)
    budget = ByteBudget(10)
    await budget.take(10)
    with pytest.raises(ApiError) as caught:
        await budget.take(1)
    assert caught.value.code == "overloaded"
    budget.give_back(10)
    assert budget.taken_bytes == 0


async def test_a_queue_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many waiters are refused at once."""
    monkeypatch.setattr(module, "WAITING_LIMIT", 1)
    budget = ByteBudget(10)
    await budget.take(10)
    waiting = asyncio.create_task(budget.take(1))
    await asyncio.sleep(0)
    with pytest.raises(ApiError):
        await budget.take(1)
    budget.give_back(10)
    await waiting


@pytest.mark.parametrize("is_served_first", [False, True])
async def test_a_cancelled_waiter_takes_nothing(is_served_first: bool) -> None:
    """Whether or not its turn had come, and those behind it go on."""
    budget = ByteBudget(10)
    await budget.take(10)
    waiting = asyncio.create_task(budget.take(10))
    behind = asyncio.create_task(budget.take(1))
    await asyncio.sleep(0)
    if is_served_first:
        budget.give_back(10)
        waiting.cancel()
    else:
        waiting.cancel()
        budget.give_back(10)
    await asyncio.wait([waiting])
    await behind
    assert waiting.cancelled()
    assert budget.taken_bytes == 1
