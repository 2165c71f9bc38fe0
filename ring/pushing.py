"""Sends copies to other nodes that are known to lack them.

Only what a writer or a reader knows and the receiver can't is sent: a copy that failed while a
chunk was written, a bad one that was come across. All else nodes fetch for themselves
(`ring/pulling.py`). So a receiver is asked first, once for all copies of a unit, what it lacks: it
may have been down and have caught up by itself since. One that hangs costs that question, and not
as long for each copy.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from ring.buffers import BufferPool
from ring.errors import (
    ChunkMissingError,
    ChunkNotFoundError,
    RingError,
    StoreFullError,
    StoreOverloadedError,
)
from ring.fetching import ChunkFetcher
from ring.full_nodes import FullNodes
from ring.interfaces import ChunkStat, ChunkStore, ClusterView, Encoded, LiveChunks
from ring.members import NodeId
from ring.peer_client import PeerClient
from ring.peer_wire import ChunkState, Purpose, PutTarget
from ring.placement import Ring
from ring.pulling import Puller
from ring.throttle import Throttle

PUSHES_AT_ONCE = 4
"""Copies sent at once; with 8 MiB each a part of the buffers of repair."""

Task = tuple[bytes, NodeId]
"""A chunk, and the node that should have a copy of it."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Pushed:
    """What became of the copies of one unit."""

    failed: list[Task] = field(default_factory=list)
    """Still lacking; may be sent later."""
    missing: set[bytes] = field(default_factory=set)
    """Chunks that no node has."""


class Pusher:
    """Belongs to one event loop. `pool` lends the buffers, and is used by no client; `on_copied` is
    told the bytes of each copy that is durable where it was sent."""

    def __init__(
        self,
        *,
        store: ChunkStore,
        view: ClusterView,
        live: LiveChunks,
        client: PeerClient,
        fetcher: ChunkFetcher,
        puller: Puller,
        workers: Executor,
        throttle: Throttle,
        pool: BufferPool,
        full: FullNodes,
        on_copied: Callable[[int], None],
    ) -> None:
        self._store = store
        self._view = view
        self._live = live
        self._client = client
        self._fetcher = fetcher
        self._puller = puller
        self._workers = workers
        self._throttle = throttle
        self._pool = pool
        self._full = full
        self._on_copied = on_copied

    async def push(self, ring: Ring, tasks: Sequence[Task]) -> Pushed:
        """Send copies, a few at a time; returns early where the ring changes."""
        pushed = Pushed()
        lacking = await self._lacking(ring, tasks, pushed)
        waiting = iter(lacking)

        async def push_some() -> None:
            for chunk_id, node in waiting:
                if self._view.membership().epoch != ring.epoch or not self._full.may_try(node):
                    pushed.failed.append((chunk_id, node))
                    continue
                try:
                    copied = await self._push(ring, chunk_id, node)
                except RingError as error:
                    if isinstance(error, StoreFullError):
                        self._full.had_none(node)
                    _note_failure((chunk_id, node), error, pushed)
                else:
                    self._full.has_room(node)
                    self._on_copied(copied)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(PUSHES_AT_ONCE, len(lacking))):
                group.create_task(push_some())
        return pushed

    async def _lacking(self, ring: Ring, tasks: Sequence[Task], pushed: Pushed) -> list[Task]:
        """Those of the copies that their nodes have not got by now."""
        by_node: dict[NodeId, list[bytes]] = defaultdict(list)
        for chunk_id, node in tasks:
            by_node[node].append(chunk_id)
        answers = await asyncio.gather(
            *(self._lacking_on(ring, node, asked, pushed) for node, asked in by_node.items())
        )
        return [task for answer in answers for task in answer]

    async def _lacking_on(
        self, ring: Ring, node: NodeId, chunk_ids: Sequence[bytes], pushed: Pushed
    ) -> list[Task]:
        tasks = [(chunk_id, node) for chunk_id in chunk_ids]
        try:
            theirs = await self._client.stat(ring.members[node], chunk_ids)
        except RingError as error:
            _log.info("%d copies for node %s have to wait: %s", len(tasks), node, error)
            pushed.failed += tasks
            return []
        ours = await self._store.stat(chunk_ids)
        return [
            task
            for task, their, our in zip(tasks, theirs, ours, strict=True)
            if not _is_as_good(their, our)
        ]

    async def _push(self, ring: Ring, chunk_id: bytes, node: NodeId) -> int:
        """Send this node's copy, or one fetched for it, to another owner; returns its bytes."""
        (stat,) = await self._store.stat([chunk_id])
        await self._throttle.wait(stat.stored_length if stat is not None else 0)
        try:
            content = await self._store.get_encoded(chunk_id, pool=self._pool)
        except ChunkNotFoundError:
            sources = await self._puller.sources(ring, [chunk_id])
            fetched = await self._fetcher.fetch(chunk_id)
            try:
                await self._throttle.wait(len(fetched.content.payload))
                touch = sources[chunk_id].touch
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


def _is_as_good(theirs: ChunkState | None, ours: ChunkStat | None) -> bool:
    """Whether a node has a chunk already, and would keep it for as long as this one."""
    if theirs is None or not theirs.healthy:
        return False
    if ours is None or ours.touch is None:
        return True
    return theirs.touch is not None and theirs.touch >= ours.touch


def _note_failure(task: Task, error: RingError, pushed: Pushed) -> None:
    chunk_id, node = task
    pushed.failed.append(task)
    match error:
        case ChunkMissingError():
            _log.error("a referenced chunk can't be repaired: %s", error)
            pushed.missing.add(chunk_id)
        case StoreFullError():
            _log.warning("no room for a copy of chunk %s: %s", chunk_id.hex(), error)
        case _:
            _log.info("no copy of chunk %s on node %s yet: %s", chunk_id.hex(), node, error)
