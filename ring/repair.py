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

from ring.buffers import BufferPool
from ring.fetching import ChunkFetcher
from ring.full_nodes import FullNodes
from ring.interfaces import ChunkStore, ClusterView, LiveChunks
from ring.members import NodeId
from ring.peer_client import PeerClient
from ring.placement import Ring
from ring.pulling import Pulled, Puller
from ring.pushing import Pusher, Task
from ring.ring_cache import RingCache
from ring.throttle import SpeedMeter, Throttle
from ring.touches import COLLECTABLE_AFTER

QUEUE_LIMIT = 65_536
"""Lacking copies remembered, some 20 MB; more are left to the next sweep."""

PAGE_SIZE = 1024
"""Referenced chunks looked at in one unit of the sweep: a few milliseconds in a worker thread."""

COPIES_PER_UNIT = 256
"""Copies fetched in one unit of work: enough that owners are asked seldom and requests are full."""

PAGE_PAUSE_SECONDS = 0.05
"""Between two pages of a sweep while clients are served."""

SWEEP_SECONDS_MIN = 5.0
SWEEP_SECONDS_MAX = 300.0
"""Pause between sweeps that found nothing to do; it doubles from one to the other. Short at first:
an upload that began at an old epoch may commit chunks behind a sweep of the new one."""

AGAIN_SECONDS = 5.0
"""Pause before what could not be done is tried again: a node that restarts is back by then."""

MISSING_SECONDS = 60.0
"""The same where nobody has what is lacking: only a node that comes back from afar helps."""

LOOKED_THROUGH = 4096
"""Of the queue in one unit of work, where most of it is for nodes that are full: a millisecond."""

ROUND_SECONDS = 1.0
"""Pause between two looks at an empty queue and an unchanged epoch."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RepairStatus:
    """How far repair on this node is.

    `settled`: nothing is queued or under way, and the latest sweep, at the current epoch, has left
    every referenced chunk that belongs here on this node.
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
    bytes_left: int
    """An estimate: the copies known to be lacking, and as many more in the part of the sweep still
    ahead as its part so far had, times the average length of chunks. Ids are spread evenly, so it
    is good to a few percent once a hundredth is swept."""
    bytes_per_second: float
    """Copied here over the last seconds."""
    eta_seconds: float | None
    """`bytes_left` at that speed; 0 where nothing is left, None while nothing moves."""


class Repairer:
    """A `ring.worker.Job`. `note_lacking` may be called at any time on the event loop.

    `pool` lends buffers, and is used by no client."""

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
        throttle: Throttle,
        pool: BufferPool,
    ) -> None:
        self._node_id = node_id
        self._store = store
        self._view = view
        self._live = live
        self._rings = rings
        self._workers = workers
        self._throttle = throttle
        self._full = FullNodes()
        self._puller = Puller(
            node_id,
            store=store,
            view=view,
            rings=rings,
            client=client,
            fetcher=fetcher,
            throttle=throttle,
            pool=pool,
            full=self._full,
            on_copied=self._copied,
        )
        self._pusher = Pusher(
            store=store,
            view=view,
            live=live,
            client=client,
            fetcher=fetcher,
            puller=self._puller,
            workers=workers,
            throttle=throttle,
            pool=pool,
            full=self._full,
            on_copied=self._copied,
        )
        self._queue: OrderedDict[Task, int] = OrderedDict()
        """Lacking copies, and the generation at which each became known."""
        self._taken = 0
        """Off the queue and under way."""
        self._retry_at: float = 0.0
        self._waits_for_room = False
        """A sweep could not bring all because this node is full."""
        self._sweep: _Sweep | None = None
        self._sweeps_next = False
        """The queue had its turn: now it is the sweep's, if one is due."""
        self._swept_epoch: int | None = None
        """The epoch of the latest sweep that ended."""
        self._next_sweep_at: float = 0.0
        self._begin_at: float = 0.0
        """When a sweep may be begun after one that could not."""
        self._sweep_pause = SWEEP_SECONDS_MIN
        self._missing: set[bytes] = set()
        """Found on no node since the present or latest sweep began."""
        self._clean_epoch: int | None = None
        """The epoch of the latest whole sweep that left nothing lacking."""
        self._failed = 0
        """Chunks that the latest sweep could not bring."""
        self._copies_made = 0
        self._bytes_copied = 0
        self._copies_failed = 0
        self._speed = SpeedMeter()

    def note_lacking(self, chunk_id: bytes, node_id: NodeId) -> None:
        """Remember that a node should have a copy of a chunk and has no good one."""
        if len(self._queue) < QUEUE_LIMIT:
            self._queue[chunk_id, node_id] = self._view.generation()
        if node_id != self._node_id:
            return
        # A sweep makes sure of it, also where the queue gives it up or has no room for it.
        sweep = self._sweep
        if sweep is not None and (sweep.is_looking or chunk_id <= sweep.cursor):
            sweep.lost_behind = True
        if self._clean_epoch is not None:
            self._clean_epoch = None
            self._sweep_within(SWEEP_SECONDS_MIN)

    def sweep_soon(self) -> None:
        """Begin a sweep with the next unit of work."""
        self._next_sweep_at = 0.0
        self._clean_epoch = None

    def settled_epoch(self) -> int | None:
        """The current epoch, where all that it wants of this node is here.

        What is queued for other nodes does not count: they report for themselves.
        """
        epoch = self._view.membership().epoch
        return epoch if self._clean_epoch == epoch else None

    def status(self) -> RepairStatus:
        epoch, sweep = self._view.membership().epoch, self._sweep
        lacking = self._failed if sweep is None else sweep.failed + len(sweep.lacking)
        bytes_left = self._bytes_left(sweep, lacking + len(self._queue))
        speed = self._speed.bytes_per_second()
        return RepairStatus(
            epoch=epoch,
            settled=self._clean_epoch == epoch and not self._queue and not self._taken,
            remaining=max(len(self._queue) + self._taken, lacking),
            swept_fraction=sweep.fraction() if sweep is not None else 1.0,
            copies_made=self._copies_made,
            bytes_copied=self._bytes_copied,
            copies_failed=self._copies_failed,
            unrecoverable=len(self._missing),
            bytes_left=bytes_left,
            bytes_per_second=speed,
            eta_seconds=0.0 if not bytes_left else bytes_left / speed if speed >= 1 else None,
        )

    def _bytes_left(self, sweep: _Sweep | None, lacking: int) -> int:
        if sweep is not None and sweep.cursor:
            swept = sweep.fraction()
            lacking += round(sweep.found * (1 - swept) / swept) if swept else 0
        if not lacking:
            return 0
        if self._copies_made:
            return round(lacking * self._bytes_copied / self._copies_made)
        statistics = self._store.statistics()
        return round(lacking * statistics.stored_bytes / max(1, statistics.chunks))

    async def work(self) -> float:
        """Some copies from the queue and a part of the sweep in turn, as far as they are due."""
        ring = await self._rings.current()
        now = asyncio.get_running_loop().time()
        if not ring.copies:
            return ROUND_SECONDS
        if self._waits_for_room and not self._store.statistics().full:
            self._waits_for_room = False
            self._full.has_room(self._node_id)
            self._next_sweep_at = now
        if self._sweep is not None and self._sweep.epoch != ring.epoch:
            self._sweep = None
        is_sweep_due = self._is_sweep_due(ring, now)
        if self._queue and now >= self._retry_at and not (self._sweeps_next and is_sweep_due):
            self._sweeps_next = True
            await self._work_queue(ring)
            return 0.0
        self._sweeps_next = False
        if not is_sweep_due:
            return ROUND_SECONDS
        if self._sweep is None:
            if not await self._begin_sweep():
                self._begin_at = now + AGAIN_SECONDS
            return 0.0
        return await self._work_sweep(ring, self._sweep)

    def _is_sweep_due(self, ring: Ring, now: float) -> bool:
        if self._sweep is not None:
            return True
        if self._swept_epoch == ring.epoch and now < self._next_sweep_at:
            return False
        return now >= self._begin_at

    def _sweep_within(self, seconds: float) -> None:
        at = asyncio.get_running_loop().time() + seconds
        self._next_sweep_at = min(self._next_sweep_at, at)

    # --- the queue ---------------------------------------------------------------------------

    async def _work_queue(self, ring: Ring) -> None:
        batch = self._next_batch()
        if not batch:
            # All that was looked at is for full nodes.
            self._retry_at = asyncio.get_running_loop().time() + ROUND_SECONDS
            return
        self._taken = len(batch)
        try:
            await self._work_batch(ring, batch)
        finally:
            self._taken = 0

    async def _work_batch(self, ring: Ring, batch: Mapping[Task, int]) -> None:
        wanted = await self._wanted(batch)
        tasks = [task for task in wanted if task[1] in ring.owners(task[0])]
        pulled = await self._pull(ring, [each for each, node in tasks if node == self._node_id])
        failed = [(chunk_id, self._node_id) for chunk_id in pulled.failed]
        pushes = [task for task in tasks if task[1] != self._node_id]
        pushed = await self._pusher.push(ring, pushes)
        self._copies_failed += len(pushed.failed)
        self._missing |= pushed.missing
        failed += pushed.failed
        for task in failed:
            if task[0] not in self._missing:
                self._queue.setdefault(task, batch[task])
        if failed and len(failed) == len(tasks):
            # Nothing went: don't turn round and round while a node is down.
            self._retry_at = asyncio.get_running_loop().time() + AGAIN_SECONDS

    def _next_batch(self) -> dict[Task, int]:
        """Take the next tasks off the queue; those of full nodes go to its end."""
        batch: dict[Task, int] = {}
        for _ in range(min(len(self._queue), LOOKED_THROUGH)):
            task, generation = self._queue.popitem(last=False)
            if self._full.is_left_alone(task[1]):
                self._queue[task] = generation
                continue
            batch[task] = generation
            if len(batch) == COPIES_PER_UNIT:
                break
        return batch

    async def _wanted(self, batch: Mapping[Task, int]) -> list[Task]:
        """Those whose chunk is referenced, or too new to be collected if it never is (D10)."""
        loop = asyncio.get_running_loop()
        chunk_ids = list({chunk_id for chunk_id, _ in batch})
        referenced = await loop.run_in_executor(self._workers, self._live.referenced, chunk_ids)
        generation = self._view.generation()
        return [
            task
            for task, noted in batch.items()
            if task[0] in referenced or generation < noted + COLLECTABLE_AFTER
        ]

    # --- the sweep ---------------------------------------------------------------------------

    async def _begin_sweep(self) -> bool:
        """Make sure that what the sweep will see is so, and begin one; False if that can't be now.

        The references are at least as new as the cluster's are at this moment, and the store holds
        behind it whatever deletion was decided on at an older epoch: what the sweep finds here is
        here to stay.
        """
        try:
            await self._view.refresh()
            ring = await self._rings.current()
            await self._store.wait_indexed()
        except Exception as error:  # Whatever keeps the layer above, or the disk, from it.
            _log.info("no sweep of the chunks now: %s", error)
            return False
        self._missing.clear()
        self._sweep = _Sweep(ring.epoch)
        return True

    async def _work_sweep(self, ring: Ring, sweep: _Sweep) -> float:
        if sweep.lacking:
            size = min(len(sweep.lacking), COPIES_PER_UNIT)
            batch = [sweep.lacking.pop() for _ in range(size)]
            # Until they are here they are not, also where an error that nobody foresaw ends this.
            sweep.failed += size
            pulled = await self._pull(ring, batch)
            sweep.failed -= size - len(pulled.failed)
            return 0.0
        page = None
        if self._node_id in ring.members:
            loop = asyncio.get_running_loop()
            sweep.is_looking = True
            page = await loop.run_in_executor(self._workers, self._look, ring, sweep.cursor)
            sweep.is_looking = False
        if page is None:
            self._end_sweep(sweep)
            return 0.0
        sweep.cursor, sweep.lacking = page
        sweep.found += len(sweep.lacking)
        return PAGE_PAUSE_SECONDS if self._throttle.serves_clients() else 0.0

    def _look(self, ring: Ring, after: bytes) -> tuple[bytes, list[bytes]] | None:
        """Worker thread: the last id of a page of referenced chunks, and those that this node
        should have and, as far as its index reflects it, has not. None at the end."""
        page = self._live.page(after, PAGE_SIZE)
        if not page:
            return None
        lacking = {each for each in page if self._node_id in ring.owners(each)}
        cursor = after
        while lacking and cursor < page[-1]:
            here = self._store.ids(cursor, PAGE_SIZE)
            lacking.difference_update(here)
            if len(here) < PAGE_SIZE:
                break
            cursor = here[-1]
        return page[-1], sorted(lacking, reverse=True)

    def _end_sweep(self, sweep: _Sweep) -> None:
        self._sweep = None
        self._swept_epoch = sweep.epoch
        self._failed = sweep.failed
        now = asyncio.get_running_loop().time()
        if sweep.failed:
            self._clean_epoch = None
            self._sweep_pause = SWEEP_SECONDS_MIN
            if self._node_id in self._full and self._store.statistics().full:
                # The next one begins as soon as there is room, and would find the same until then.
                self._waits_for_room = True
                self._next_sweep_at = now + SWEEP_SECONDS_MAX
                return
            alone = sweep.failed <= len(self._missing)
            self._next_sweep_at = now + (MISSING_SECONDS if alone else AGAIN_SECONDS)
            return
        if sweep.lost_behind:
            # It was here when the sweep came by, and is not any more.
            self._clean_epoch = None
            self._sweep_pause = SWEEP_SECONDS_MIN
            self._next_sweep_at = now + SWEEP_SECONDS_MIN
            return
        # What was referenced before the sweep began is here. What came behind its cursor since is
        # on owners of an older epoch, and shows in the next one.
        self._clean_epoch = sweep.epoch
        self._next_sweep_at = now + self._sweep_pause
        longer = min(self._sweep_pause * 2, SWEEP_SECONDS_MAX)
        self._sweep_pause = SWEEP_SECONDS_MIN if sweep.found else longer

    # --- copies ------------------------------------------------------------------------------

    async def _pull(self, ring: Ring, chunk_ids: Sequence[bytes]) -> Pulled:
        """Fetch those of the chunks that are not here."""
        stats = await self._store.stat(chunk_ids)
        lacking = [
            chunk_id
            for chunk_id, stat in zip(chunk_ids, stats, strict=True)
            if stat is None or stat.quarantined
        ]
        if not lacking:
            return Pulled()
        sources = await self._puller.sources(ring, lacking)
        pulled = await self._puller.pull(ring, sources)
        self._copies_failed += len(pulled.failed)
        self._missing |= pulled.missing
        return pulled

    def _copied(self, size: int) -> None:
        self._copies_made += 1
        self._bytes_copied += size
        self._speed.add(size)


class _Sweep:
    """One pass over the referenced chunks at one epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.cursor = b""
        self.lacking: list[bytes] = []
        """Of the present page: still to be fetched."""
        self.found = 0
        self.failed = 0
        """Could not be brought, or are on their way."""
        self.lost_behind = False
        """Something that it may have seen here was found lacking afterwards."""
        self.is_looking = False
        """At a page whose end is not known yet."""

    def fraction(self) -> float:
        """Ids are spread evenly, so the leading bytes of the cursor tell how far it is."""
        return int.from_bytes(self.cursor[:4].ljust(4, b"\0"), "big") / 2**32
