"""Brings copies to where the ring wants them.

Two sources of work. A bounded queue holds copies known to be lacking: an owner that took none while
a chunk was written, a bad or absent copy that a reader came across. And a sweep goes through all
referenced chunks, in order, for those that this node should have and has not, and fetches them from
whoever has a good copy. Every node sweeps for itself, after its start, at each new epoch and every
few minutes, so that each lacking copy moves once: copies follow when nodes join, and a node that
was down catches up. What the queue forgets or can't hold, the next sweep finds.

Repair never brings a chunk back to life (rule D10): a copy gets the touch that its source has, and
chunks that nothing refers to and that may be collected are left alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from ring.errors import (
    ChunkMissingError,
    ChunkNotFoundError,
    RingError,
    StoreFullError,
    StoreOverloadedError,
)
from ring.fetching import ChunkFetcher
from ring.interfaces import ChunkStore, ClusterView, Encoded, LiveChunks
from ring.members import NodeId
from ring.peer_client import PeerClient
from ring.peer_wire import Purpose, PutTarget
from ring.placement import Ring
from ring.ring_cache import RingCache

QUEUE_LIMIT = 65_536
"""Lacking copies remembered, some 20 MB; more are left to the next sweep."""

PAGE_SIZE = 1024
"""Referenced chunks looked at in one unit of the sweep: a few milliseconds."""

COPIES_AT_ONCE = 4
"""Copies under way at once; with 8 MiB each a small part of a node's buffers."""

COPIES_PER_UNIT = 32
"""Copies in one unit of work, so that stopping and pacing come often."""

RATE_BYTES_MAX = 100 * 1024 * 1024
"""Bytes per second of repair on this node: below what a disk does, for clients come first."""

SWEEP_SECONDS_MIN = 5.0
SWEEP_SECONDS_MAX = 300.0
"""Pause between sweeps that found nothing to do; it doubles from one to the other. Short at first:
an upload that began at an old epoch may commit chunks behind a sweep of the new one."""

AGAIN_SECONDS = 5.0
"""Pause before what could not be done is tried again: a node that restarts is back by then."""

MISSING_SECONDS = 60.0
"""The same where nobody has what is lacking: only a node that comes back from afar helps."""

FULL_SECONDS = 10.0
"""How long a node that had no room for a copy is offered none: each try moves a whole chunk for
nothing, so there is one at a time, until one fits."""

LOOKED_THROUGH = 4096
"""Of the queue in one unit of work, where most of it is for nodes that are full: a millisecond."""

ROUND_SECONDS = 1.0
"""Pause between two looks at an empty queue and an unchanged epoch."""

COLLECTABLE_AGE = 2
"""Generations after its last touch from which an unreferenced chunk may be collected (rule D4)."""

Task = tuple[bytes, NodeId]
"""A chunk, and the node that should have a copy of it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RepairStatus:
    """How far repair on this node is.

    `settled`: nothing is queued, and the latest sweep, at the current epoch, found every referenced
    chunk that belongs here.
    """

    epoch: int
    settled: bool
    remaining: int
    """Copies known to be lacking."""
    swept_fraction: float
    """Part of the present sweep that is done, 0 to 1."""
    copies_made: int
    bytes_copied: int
    copies_failed: int
    unrecoverable: int
    """Referenced chunks that no node had when they were last looked for."""


class Repairer:
    """A `ring.worker.Job`. `note_lacking` may be called at any time on the event loop."""

    def __init__(
        self,
        node_id: NodeId,
        *,
        store: ChunkStore,
        view: ClusterView,
        live: LiveChunks,
        rings: RingCache,
        client: PeerClient,
        fetcher: ChunkFetcher,
        workers: Executor,
    ) -> None:
        self._node_id = node_id
        self._store = store
        self._view = view
        self._live = live
        self._rings = rings
        self._client = client
        self._fetcher = fetcher
        self._workers = workers
        self._queue: OrderedDict[Task, int] = OrderedDict()
        """Lacking copies, and the generation at which each became known."""
        self._retry_at: float = 0.0
        self._full: dict[NodeId, float] = {}
        """Nodes that had no room, and when each may be tried again."""
        self._waits_for_room = False
        """A sweep could not bring all because this node is full."""
        self._sweep: _Sweep | None = None
        self._next_sweep_at: float = 0.0
        self._sweep_pause = SWEEP_SECONDS_MIN
        self._missing: set[bytes] = set()
        """Found on no node since the present or latest sweep began."""
        self._clean_epoch: int | None = None
        """The epoch of the latest whole sweep that found nothing lacking."""
        self._lacking_found = 0
        self._copies_made = 0
        self._bytes_copied = 0
        self._copies_failed = 0

    def note_lacking(self, chunk_id: bytes, node_id: NodeId) -> None:
        """Remember that a node should have a copy of a chunk and has no good one."""
        if len(self._queue) < QUEUE_LIMIT:
            self._queue[chunk_id, node_id] = self._view.generation()
        if node_id == self._node_id:
            self._clean_epoch = None

    def sweep_soon(self) -> None:
        """Begin a sweep with the next unit of work."""
        self._next_sweep_at = 0.0
        self._clean_epoch = None

    def status(self) -> RepairStatus:
        epoch = self._view.membership().epoch
        return RepairStatus(
            epoch=epoch,
            settled=self._clean_epoch == epoch and not self._queue,
            remaining=max(len(self._queue), self._lacking_found),
            swept_fraction=self._sweep.fraction() if self._sweep is not None else 1.0,
            copies_made=self._copies_made,
            bytes_copied=self._bytes_copied,
            copies_failed=self._copies_failed,
            unrecoverable=len(self._missing),
        )

    async def work(self) -> float:
        """Some copies from the queue if it is due, else a page of the sweep if that is due."""
        ring = await self._rings.current()
        now = asyncio.get_running_loop().time()
        if not ring.copies:
            return ROUND_SECONDS
        if self._waits_for_room and not self._store.statistics().full:
            self._waits_for_room = False
            self._full.pop(self._node_id, None)
            self._next_sweep_at = now
        if self._queue and now >= self._retry_at:
            return await self._work_queue(ring)
        if self._sweep is not None and self._sweep.epoch != ring.epoch:
            self._sweep = None
        if self._sweep is None:
            if self._clean_epoch == ring.epoch and now < self._next_sweep_at:
                return ROUND_SECONDS
            if now < self._next_sweep_at and self._lacking_found:
                return ROUND_SECONDS
            self._missing.clear()
            self._sweep = _Sweep(ring.epoch)
        return await self._work_sweep(ring, self._sweep)

    # --- the queue ---------------------------------------------------------------------------

    async def _work_queue(self, ring: Ring) -> float:
        batch = self._next_batch()
        if not batch:
            # All that was looked at is for full nodes.
            self._retry_at = asyncio.get_running_loop().time() + ROUND_SECONDS
            return ROUND_SECONDS
        wanted = await self._wanted(batch)
        tasks = [task for task in wanted if task[1] in ring.owners(task[0])]
        before = self._bytes_copied
        failed = await self._copy_all(ring, tasks)
        for task in failed:
            if task[0] not in self._missing:
                self._queue.setdefault(task, batch[task])
        if failed and len(failed) == len(tasks):
            # Nothing went: don't turn round and round while a node is down.
            self._retry_at = asyncio.get_running_loop().time() + AGAIN_SECONDS
        return (self._bytes_copied - before) / RATE_BYTES_MAX

    def _next_batch(self) -> dict[Task, int]:
        """Take the next tasks off the queue; those of full nodes go to its end."""
        batch: dict[Task, int] = {}
        for _ in range(min(len(self._queue), LOOKED_THROUGH)):
            task, generation = self._queue.popitem(last=False)
            if self._is_full(task[1]):
                self._queue[task] = generation
                continue
            batch[task] = generation
            if len(batch) == COPIES_PER_UNIT:
                break
        return batch

    def _is_full(self, node: NodeId) -> bool:
        """Whether a node is to be left alone for now because it has no room."""
        return asyncio.get_running_loop().time() < self._full.get(node, 0.0)

    async def _wanted(self, batch: Mapping[Task, int]) -> list[Task]:
        """Those whose chunk is referenced, or too new to be collected if it never is (D10)."""
        loop = asyncio.get_running_loop()
        chunk_ids = list({chunk_id for chunk_id, _ in batch})
        referenced = await loop.run_in_executor(self._workers, self._live.referenced, chunk_ids)
        generation = self._view.generation()
        return [
            task
            for task, noted in batch.items()
            if task[0] in referenced or generation < noted + COLLECTABLE_AGE
        ]

    # --- the sweep ---------------------------------------------------------------------------

    async def _work_sweep(self, ring: Ring, sweep: _Sweep) -> float:
        if sweep.lacking:
            batch = [sweep.lacking.pop() for _ in range(_limit(sweep.lacking))]
            before = self._bytes_copied
            failed = await self._copy_all(ring, [(chunk_id, self._node_id) for chunk_id in batch])
            sweep.failed += len(failed)
            self._lacking_found = sweep.failed + len(sweep.lacking)
            return (self._bytes_copied - before) / RATE_BYTES_MAX
        loop = asyncio.get_running_loop()
        page = await loop.run_in_executor(self._workers, self._live.page, sweep.cursor, PAGE_SIZE)
        if not page:
            return self._end_sweep(sweep, loop.time())
        owned = [chunk_id for chunk_id in page if self._node_id in ring.owners(chunk_id)]
        stats = await self._store.stat(owned)
        sweep.lacking = [
            chunk_id
            for chunk_id, stat in zip(owned, stats, strict=True)
            if stat is None or stat.quarantined
        ]
        sweep.found += len(sweep.lacking)
        sweep.cursor = page[-1]
        self._lacking_found = sweep.failed + len(sweep.lacking)
        return 0.0

    def _end_sweep(self, sweep: _Sweep, now: float) -> float:
        self._sweep = None
        self._lacking_found = sweep.failed
        if not sweep.found:
            self._clean_epoch = sweep.epoch
            self._next_sweep_at = now + self._sweep_pause
            self._sweep_pause = min(self._sweep_pause * 2, SWEEP_SECONDS_MAX)
            return 0.0
        self._sweep_pause = SWEEP_SECONDS_MIN
        if sweep.failed and self._node_id in self._full:
            # The next one begins as soon as there is room, and would find the same until then.
            self._waits_for_room = True
            self._next_sweep_at = now + SWEEP_SECONDS_MAX
        elif sweep.failed:
            alone = sweep.failed <= len(self._missing)
            self._next_sweep_at = now + (MISSING_SECONDS if alone else AGAIN_SECONDS)
        else:
            # What was referenced behind the cursor meanwhile shows in another one.
            self._next_sweep_at = now
        return 0.0

    # --- copies ------------------------------------------------------------------------------

    async def _copy_all(self, ring: Ring, tasks: Sequence[Task]) -> list[Task]:
        """Make copies, a few at a time; return those that could not be made and may be later."""
        failed: list[Task] = []
        waiting = iter(tasks)

        async def copy_some() -> None:
            for chunk_id, node in waiting:
                if not await self._copy(ring, chunk_id, node):
                    failed.append((chunk_id, node))

        async with asyncio.TaskGroup() as group:
            for _ in range(min(COPIES_AT_ONCE, len(tasks))):
                group.create_task(copy_some())
        return failed

    async def _copy(self, ring: Ring, chunk_id: bytes, node: NodeId) -> bool:
        """Returns whether there is nothing more to do about it."""
        if self._is_full(node):
            self._copies_failed += 1
            return False
        if node in self._full:
            # One try for all: its time is over, but whether there is room now shows only so.
            self._full[node] = asyncio.get_running_loop().time() + FULL_SECONDS
        try:
            if node == self._node_id:
                copied = await self._pull(ring, chunk_id)
            else:
                copied = await self._push(ring, chunk_id, node)
        except ChunkMissingError as error:
            _log.error("a referenced chunk can't be repaired: %s", error)
            self._missing.add(chunk_id)
        except StoreFullError as error:
            self._full[node] = asyncio.get_running_loop().time() + FULL_SECONDS
            _log.warning("no room on node %s for chunk %s: %s", node, chunk_id.hex(), error)
        except RingError as error:
            _log.info("no copy of chunk %s on node %s yet: %s", chunk_id.hex(), node, error)
        else:
            self._full.pop(node, None)
            self._copies_made += 1
            self._bytes_copied += copied
            return True
        self._copies_failed += 1
        return False

    async def _pull(self, ring: Ring, chunk_id: bytes) -> int:
        """Fetch a copy for this node's store; returns its bytes."""
        (stat,) = await self._store.stat([chunk_id])
        if stat is not None and not stat.quarantined:
            return 0
        if self._store.statistics().full:
            raise StoreFullError("this node has no room for a whole chunk")
        fetched = await self._fetcher.fetch(chunk_id)
        try:
            touch = await self._touch_elsewhere(ring, chunk_id)
            await self._store.put(chunk_id, fetched.content, touch=touch)
            return len(fetched.content.payload)
        finally:
            fetched.lease.release()

    async def _push(self, ring: Ring, chunk_id: bytes, node: NodeId) -> int:
        """Send this node's copy, or one fetched for it, to another owner; returns its bytes."""
        try:
            content = await self._store.get_encoded(chunk_id)
        except ChunkNotFoundError:
            fetched = await self._fetcher.fetch(chunk_id)
            try:
                touch = await self._touch_elsewhere(ring, chunk_id)
                return await self._send(ring, chunk_id, node, fetched.content, touch)
            finally:
                fetched.lease.release()
        return await self._send(ring, chunk_id, node, content, await self._touch_here(chunk_id))

    async def _send(
        self, ring: Ring, chunk_id: bytes, node: NodeId, content: Encoded, touch: int
    ) -> int:
        target = PutTarget(
            chunk_id=chunk_id,
            epoch=ring.epoch,
            purpose=Purpose.REPAIR,
            touch=touch,
            codec=content.codec,
            plain_length=content.plain_length,
        )
        payload = memoryview(content.payload)
        await self._client.put(ring.members[node], target, payload)
        return len(payload)

    async def _touch_here(self, chunk_id: bytes) -> int:
        """The touch of this node's copy; where it is not known yet, nought for what is referenced.

        Raises StoreOverloadedError for a chunk that needs a touch to live and has none to tell.
        """
        (stat,) = await self._store.stat([chunk_id])
        if stat is not None and stat.touch is not None:
            return stat.touch
        loop = asyncio.get_running_loop()
        if await loop.run_in_executor(self._workers, self._live.referenced, [chunk_id]):
            return 0
        raise StoreOverloadedError("no touches are known yet after the start")

    async def _touch_elsewhere(self, ring: Ring, chunk_id: bytes) -> int:
        """The highest touch that another owner has for a chunk; nought where none tells."""
        touches = [0]
        for node in ring.owners(chunk_id):
            if node == self._node_id:
                continue
            try:
                (state,) = await self._client.stat(ring.members[node], [chunk_id])
            except RingError:
                continue
            if state is not None and state.touch is not None:
                touches.append(state.touch)
        return max(touches)


class _Sweep:
    """One pass over the referenced chunks at one epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.cursor = b""
        self.lacking: list[bytes] = []
        """Of the present page: still to be fetched."""
        self.found = 0
        self.failed = 0

    def fraction(self) -> float:
        """Ids are spread evenly, so the leading bytes of the cursor tell how far it is."""
        return int.from_bytes(self.cursor[:4].ljust(4, b"\0"), "big") / 2**32


def _limit(waiting: OrderedDict[Task, int] | list[bytes]) -> int:
    return min(len(waiting), COPIES_PER_UNIT)
