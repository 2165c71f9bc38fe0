"""Runs one coroutine per item, a few at a time; the first failure ends the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar, TypeVarTuple

PARALLEL_LIMIT = 4
"""Files of a folder under way at once: hides the round trips of small ones, bounds memory."""

_R = TypeVar("_R")
_Arguments = TypeVarTuple("_Arguments")


async def each(
    work: Callable[[*_Arguments], Awaitable[_R]], items: Sequence[tuple[*_Arguments]]
) -> list[_R]:
    """The results in the order of the items. Raises the first error, after cancelling the rest."""
    results: dict[int, _R] = {}
    waiting = iter(enumerate(items))

    async def worker() -> None:
        for index, arguments in waiting:
            results[index] = await work(*arguments)

    workers = [asyncio.create_task(worker()) for _ in range(min(PARALLEL_LIMIT, len(items)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [results[index] for index in range(len(items))]
