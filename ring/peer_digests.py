"""This node's digests and ids of partitions, for comparing them with another owner's.

For both sides of anti-entropy: the answers to peers (`ring/peer_server.py`) and what they are
compared with (`ring/anti_entropy.py`). All of it is computed in worker threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from ring.digests import fingerprints, partition_range, slice_fingerprints, slice_range
from ring.interfaces import ChunkStore
from ring.members import NodeId
from ring.placement import Ring

PAGE_SIZE = 4096
"""Ids read from the index at a time: some milliseconds of a worker thread."""

_Result = TypeVar("_Result")


class DigestAnswers:
    """Of one node's store. Belongs to one event loop."""

    def __init__(self, node_id: NodeId, store: ChunkStore, workers: Executor) -> None:
        self._node_id = node_id
        self._store = store
        self._workers = workers

    async def shared(self, ring: Ring, other: NodeId) -> tuple[bytes, list[int]]:
        """Of the partitions that this node and `other` own, in order: fingerprints, and counts."""

        def compute() -> tuple[bytes, list[int]]:
            all_digests = self._store.partition_digests()
            digests = [all_digests[number] for number in ring.shared(self._node_id, other)]
            return fingerprints(digests), [digest.count for digest in digests]

        return await self._in_worker(compute)

    async def slices(self, partition: int) -> bytes:
        """The fingerprints of a partition's slices."""
        return await self._in_worker(lambda: slice_fingerprints(self._all(partition, None)))

    async def ids(
        self, partition: int, number: int | None, after: bytes, limit: int
    ) -> list[bytes]:
        """Up to `limit` ids greater than `after` of a partition, or of one of its slices."""
        bounds = partition_range(partition) if number is None else slice_range(partition, number)
        first = max(after, bounds.after)
        return await self._in_worker(lambda: self._store.ids(first, limit, below=bounds.below))

    async def all_ids(self, partition: int, number: int | None) -> set[bytes]:
        """All ids of a partition, or of one of its slices."""
        return await self._in_worker(lambda: set(self._all(partition, number)))

    def _all(self, partition: int, number: int | None) -> list[bytes]:
        after, below = (
            partition_range(partition) if number is None else slice_range(partition, number)
        )
        found: list[bytes] = []
        while page := self._store.ids(after, PAGE_SIZE, below=below):
            found += page
            after = page[-1]
        return found

    def _in_worker(self, function: Callable[[], _Result]) -> asyncio.Future[_Result]:
        return asyncio.get_running_loop().run_in_executor(self._workers, function)
