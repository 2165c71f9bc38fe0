"""The ring of each membership, computed once and outside the event loop."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor

from ring.interfaces import ClusterView
from ring.members import Membership
from ring.placement import Ring, build_ring

CACHE_LIMIT = 8
"""Rings kept: the current one, and former ones that reads fall back to. Each has a megabyte."""


class RingCache:
    """Rings by membership, for one event loop. Addresses may change within an epoch, so the whole
    membership is the key."""

    def __init__(
        self,
        view: ClusterView,
        workers: Executor,
        *,
        build: Callable[[Membership], Ring] | None = None,
    ) -> None:
        self._view = view
        self._workers = workers
        self._build_ring = build if build is not None else build_ring
        self._rings: OrderedDict[Membership, Ring] = OrderedDict()
        self._building: dict[Membership, asyncio.Future[Ring]] = {}
        self._latest: tuple[Membership, Ring] | None = None
        """The current ring by identity of its membership: no hashing for each chunk."""

    async def current(self) -> Ring:
        """The ring of the newest epoch this node knows."""
        ring = self.ready()
        return ring if ring is not None else await self.of(self._view.membership())

    def ready(self) -> Ring | None:
        """The current ring if it is computed already."""
        membership = self._view.membership()
        if self._latest is not None and self._latest[0] is membership:
            return self._latest[1]
        ring = self._rings.get(membership)
        if ring is not None:
            self._latest = membership, ring
        return ring

    async def of(self, membership: Membership) -> Ring:
        ring = self._rings.get(membership)
        if ring is None:
            building = self._building.get(membership)
            if building is None:
                building = asyncio.ensure_future(self._build(membership))
                self._building[membership] = building
            # Several may wait for one; the first to give up must not take it from the others.
            return await asyncio.shield(building)
        self._rings.move_to_end(membership)
        return ring

    async def _build(self, membership: Membership) -> Ring:
        try:
            loop = asyncio.get_running_loop()
            ring = await loop.run_in_executor(self._workers, self._build_ring, membership)
            self._rings[membership] = ring
            while len(self._rings) > CACHE_LIMIT:
                self._rings.popitem(last=False)
            return ring
        finally:
            del self._building[membership]
