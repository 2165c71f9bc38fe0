"""Gives back the space of chunks that nothing refers to any more (rule D4).

After each new generation this node's chunks are gone through once, the healthy and then the
quarantined ones, whether the ring wants them here or not. A chunk is deleted when the
generation this node has applied is two above the chunk's touch and, in the state that has that
generation, nothing refers to it; both are asked last in the store's writer thread, in this order,
and the store deletes only if the touch has not risen meanwhile. So no clock decides, an upload in
progress is never collected, and a node that lags only collects later.

While the state holds collection, as one restored from a backup does, nothing is deleted (D10).
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor

from ring.errors import RingError
from ring.interfaces import ChunkRow, ChunkStore, ClusterView, LiveChunks
from ring.touches import COLLECTABLE_AFTER

PAGE_SIZE = 1024
"""Chunks looked at in one unit: a few milliseconds in a worker thread."""

DELETIONS_AT_ONCE = 64
"""Deletions in one group of the writer; clients' writes wait behind one group at most."""

PAUSE_SECONDS = 0.01
"""Between two units of a pass: clients first."""

IDLE_SECONDS = 1.0
"""Between two looks at an unchanged generation."""

_log = logging.getLogger(__name__)


class Collector:
    """A `ring.worker.Job`, on the event loop of its store."""

    def __init__(
        self, *, store: ChunkStore, view: ClusterView, live: LiveChunks, workers: Executor
    ) -> None:
        self._store = store
        self._view = view
        self._live = live
        self._workers = workers
        self._passed = -1
        """The generation of the last pass that was begun."""
        self._cursor: bytes | None = None
        """Where the present pass is; None between two."""
        self._is_among_damaged = False
        """Whether it has come to the quarantined chunks, which are listed apart."""
        self.chunks_collected = 0

    async def work(self) -> float:
        """Look at one page of chunks, and delete what may go; returns seconds until the next."""
        if self._view.collection_held():
            # Once it goes on, everything is to be looked at anew.
            self._passed, self._cursor = -1, None
            return IDLE_SECONDS
        if self._cursor is None:
            generation = self._view.generation()
            if generation == self._passed or self._store.statistics().touch_floor is None:
                return IDLE_SECONDS
            self._passed, self._cursor = generation, b""
            self._is_among_damaged = False
        page, unreferenced = await asyncio.get_running_loop().run_in_executor(
            self._workers, self._look, self._cursor
        )
        for start in range(0, len(unreferenced), DELETIONS_AT_ONCE):
            await self._delete(unreferenced[start : start + DELETIONS_AT_ONCE])
        if page:
            self._cursor = page[-1]
        elif self._is_among_damaged:
            self._cursor = None
        else:
            self._cursor, self._is_among_damaged = b"", True
        return PAUSE_SECONDS

    def _look(self, after: bytes) -> tuple[list[bytes], list[bytes]]:
        """Worker thread: a page of ids, and those of them that nothing refers to."""
        if self._is_among_damaged:
            page = self._store.quarantined(PAGE_SIZE, after=after)
        else:
            page = self._store.ids(after, PAGE_SIZE)
        referenced = self._live.referenced(page)
        return page, [chunk_id for chunk_id in page if chunk_id not in referenced]

    async def _delete(self, chunk_ids: list[bytes]) -> None:
        outcomes = await asyncio.gather(
            *(self._store.delete(chunk_id, unless=self._is_wanted) for chunk_id in chunk_ids),
            return_exceptions=True,
        )
        for chunk_id, outcome in zip(chunk_ids, outcomes, strict=True):
            if isinstance(outcome, RingError):
                _log.info("chunk %s is not collected now: %s", chunk_id.hex(), outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                self.chunks_collected += outcome

    def _is_wanted(self, row: ChunkRow) -> bool:
        """Writer thread: the generation first, so that the references are at least as new."""
        if self._view.collection_held():
            return True
        if self._view.generation() < row.touch + COLLECTABLE_AFTER:
            return True
        return row.chunk_id in self._live.referenced([row.chunk_id])
