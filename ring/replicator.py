"""Chunks in and out of the ring: written at quorum, read verified (rules D2, D3).

A write returns when a quorum of distinct nodes have the chunk on disk; the remaining copies go on
in the background, a bounded number of bytes of them. An owner that took no copy is reported, to be
repaired, and a handoff takes one in its place. A read is served from this node's own copy or, where
that is absent or bad, from the others by `ring/fetching.py`. This node's store is called directly.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from ring.buffers import DEFAULT_BUDGET_BYTES, Lease
from ring.codec import encode
from ring.errors import (
    ChunkDamagedError,
    ChunkMissingError,
    ChunkNotFoundError,
    QuorumFailedError,
    RingError,
    StaleEpochError,
    StoreFullError,
)
from ring.fetching import ChunkFetcher, Lacking
from ring.interfaces import ChunkStore, ClusterView, Codec, Encoded
from ring.members import NodeId
from ring.peer_client import PeerClient
from ring.peer_health import FAILURE_SECONDS
from ring.peer_wire import BATCH_LIMIT, Purpose, PutTarget
from ring.placement import Ring
from ring.ring_cache import RingCache
from ring.write_plan import Target, WritePlan

INLINE_LIMIT = 16 * 1024
"""Plain bytes encoded on the event loop: some 40 microseconds, as much as a thread's round trip."""

EPOCH_ATTEMPTS = 5
"""How often a write starts anew because the ring has changed; each change is a joined or left
node, so more in one write means something else is wrong."""

LAGGING_PAUSES_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.4)
"""How long to wait for a peer that has not heard of this node's epoch yet: Raft tells it within
milliseconds, unless it is cut off."""

BACKGROUND_LIMIT_BYTES = 64 * 1024 * 1024
"""Buffers held for copies beyond the quorum, and at most half of all there are. Beyond it, writes
wait for the slowest node."""

ROOM_SECONDS = 2.0
"""How long a write waits for that. Then the oldest copies are given up, and repaired later: one
hanging node must not use up the memory of all uploads."""

CLOSE_SECONDS = 5.0
"""How long a stopping node waits for copies beyond the quorum; a hanging peer must not keep it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChunkWritten:
    """An acknowledged chunk. `epoch` is the ring's at which its copies were taken (rule D6)."""

    chunk_id: bytes
    length: int
    epoch: int


@dataclass(frozen=True, slots=True)
class ChunksTouched:
    """Which chunks a quorum of their owners has confirmed, at the ring's `epoch`."""

    epoch: int
    confirmed: list[bool]


class Replicator:
    """Reads and writes replicated chunks through one node. Belongs to one event loop."""

    def __init__(
        self,
        node_id: NodeId,
        *,
        store: ChunkStore,
        view: ClusterView,
        rings: RingCache,
        client: PeerClient,
        fetcher: ChunkFetcher,
        workers: Executor,
        on_lacking: Lacking,
        buffers_bytes: int = DEFAULT_BUDGET_BYTES,
        on_client: Callable[[], None] = lambda: None,
    ) -> None:
        """`buffers_bytes` is the budget of the pool that leases come from; `on_client` is called
        whenever something is done for a client."""
        self._node_id = node_id
        self._store = store
        self._view = view
        self._rings = rings
        self._client = client
        self._fetcher = fetcher
        self._workers = workers
        self._on_lacking = on_lacking
        self._on_client = on_client
        self._writes: set[asyncio.Task[ChunkWritten]] = set()
        self._jobs: set[_WriteJob] = set()
        self._background: deque[_WriteJob] = deque()
        self._background_bytes = 0
        self._buffers_bytes = buffers_bytes

    async def close(self) -> None:
        """Wait a while for the copies under way, then give them up; start no write after this."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._wait_ended()
        except TimeoutError:
            for job in self._jobs:
                job.give_up()
            await self._wait_ended()

    async def _wait_ended(self) -> None:
        while self._writes or self._jobs:
            tasks = [*self._writes, *(task for job in self._jobs for task in job.tasks)]
            await asyncio.wait(tasks)
            # Their callbacks run now.
            await asyncio.sleep(0)

    # --- writes ------------------------------------------------------------------------------

    async def write(self, lease: Lease, length: int, *, generation: int) -> ChunkWritten:
        """Store the first `length` bytes of a lease; durable on a quorum of nodes on return.

        Takes over the caller's hold on the lease, also where it raises or is cancelled. Raises
        QuorumFailedError; StoreFullError where only full disks stood in the way.
        """
        self._on_client()
        # A copy under way can't be called back, so a cancelled caller leaves the write to itself.
        write = asyncio.ensure_future(self._write(lease, length, generation))
        self._writes.add(write)
        write.add_done_callback(self._forget)
        return await asyncio.shield(write)

    def _forget(self, write: asyncio.Task[ChunkWritten]) -> None:
        self._writes.discard(write)
        if not write.cancelled():
            write.exception()

    async def _write(self, lease: Lease, length: int, generation: int) -> ChunkWritten:
        try:
            content = await self._encode(lease.view[:length])
            assert content.checksums is not None
            chunk_id = content.checksums.chunk_id
            for _ in range(EPOCH_ATTEMPTS):
                ring = self._rings.ready()
                if ring is None:
                    ring = await self._rings.current()
                job = _WriteJob(self, ring, content, generation=generation, lease=lease)
                self._jobs.add(job)
                try:
                    await job.run()
                except StaleEpochError:
                    await self._view.refresh()
                    continue
                return ChunkWritten(chunk_id, length, ring.epoch)
            membership = self._view.membership()
            causes = {self._node_id: f"the ring kept changing, up to epoch {membership.epoch}"}
            raise QuorumFailedError(chunk_id, 0, membership.quorum(), causes)
        finally:
            lease.release()

    async def _encode(self, plaintext: memoryview) -> Encoded:
        if len(plaintext) <= INLINE_LIMIT:
            return encode(plaintext)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, encode, plaintext)

    async def put_copy(self, job: _WriteJob, node: NodeId, purpose: Purpose) -> None:
        """Make one copy durable on one node. For `_WriteJob`."""
        ring, content = job.ring, job.content
        if node == self._node_id:
            self._fence(ring)
            touch = max(job.generation, self._view.generation())
            await self._store.put(job.chunk_id, content, touch=touch)
            # As a peer does: what counts for an epoch was durable while it lasted.
            self._fence(ring)
            return
        target = PutTarget(
            chunk_id=job.chunk_id,
            epoch=ring.epoch,
            purpose=purpose,
            touch=job.generation,
            codec=content.codec,
            plain_length=content.plain_length,
        )
        payload = memoryview(content.payload)
        for pause in (*LAGGING_PAUSES_SECONDS, None):
            try:
                await self._client.put(ring.members[node], target, payload)
                return
            except StaleEpochError as error:
                if error.epoch > ring.epoch or pause is None:
                    raise
                await asyncio.sleep(pause)

    def _fence(self, ring: Ring) -> None:
        """Raises StaleEpochError once this node has heard of another ring (rule D1)."""
        epoch = self._view.membership().epoch
        if epoch != ring.epoch:
            raise StaleEpochError(self._node_id, epoch)

    async def make_room(self, job: _WriteJob) -> None:
        """A job is acknowledged and has copies under way still: bound what such jobs hold."""
        self._background.append(job)
        self._background_bytes += job.held_bytes
        deadline = self._client.now() + ROOM_SECONDS
        limit = min(BACKGROUND_LIMIT_BYTES, self._buffers_bytes // 2)
        while self._background_bytes > limit:
            oldest = self._background[0]
            seconds = deadline - self._client.now()
            if seconds > 0 and not self._hangs(oldest):
                if oldest.tasks:
                    await asyncio.wait(oldest.tasks, timeout=seconds)
                # Lets the callbacks of what has ended run.
                await asyncio.sleep(0)
                continue
            self._background.popleft()
            self._background_bytes -= oldest.held_bytes
            for node in oldest.under_way():
                self._client.health(node).failed(self._client.now())
            oldest.give_up()

    def _hangs(self, job: _WriteJob) -> bool:
        """Whether a copy is on its way to a node that has failed and not answered since."""
        return any(
            self._client.health(node).latency_seconds >= FAILURE_SECONDS for node in job.under_way()
        )

    def ended(self, job: _WriteJob) -> None:
        """No copy of a job is under way any more."""
        self._jobs.discard(job)
        if job in self._background:
            self._background.remove(job)
            self._background_bytes -= job.held_bytes

    def lacks(self, chunk_id: bytes, node: NodeId, cause: str) -> None:
        _log.warning("node %s has no copy of chunk %s yet: %s", node, chunk_id.hex(), cause)
        self._on_lacking(chunk_id, node)

    # --- reads -------------------------------------------------------------------------------

    async def read(
        self, chunk_id: bytes, *, length: int, start: int = 0, end: int | None = None
    ) -> memoryview:
        """Return verified plaintext from `start` up to `end` of a chunk that has `length` bytes.

        The view may be on a pooled buffer, which goes back with the last view on it. Raises
        ChunkMissingError where every node says that it has none, else ChunkUnavailableError.
        """
        self._on_client()
        end = length if end is None else min(end, length)
        own_failure: str | None = None
        try:
            content = await self._store.get(chunk_id, start=start, end=end)
            return content.data
        except ChunkNotFoundError:
            pass
        except ChunkDamagedError as error:
            own_failure = str(error)
            _log.warning("the copy on this node is bad and is replaced: %s", error)
        except RingError as error:
            own_failure = str(error)
            _log.warning("the copy on this node can't be read: %s", error)
        try:
            data = await self._fetcher.read(
                chunk_id, length=length, start=start, end=end, own_failure=own_failure
            )
        except ChunkMissingError:
            # Its copy may have come here while the others were asked, and have gone there since.
            try:
                return (await self._store.get(chunk_id, start=start, end=end)).data
            except ChunkNotFoundError:
                pass
            raise
        ring = self._rings.ready()
        if ring is not None and self._node_id in ring.owners(chunk_id):
            # The last copy of an upload may have come meanwhile; what is noted costs a sweep.
            (stat,) = await self._store.stat([chunk_id])
            if stat is None or stat.quarantined:
                self._on_lacking(chunk_id, self._node_id)
        return data

    # --- confirmations -----------------------------------------------------------------------

    async def touch(self, chunk_ids: Sequence[bytes], *, generation: int) -> ChunksTouched:
        """Confirm chunks that may be there already: True where a quorum of owners has one durable
        and has raised its touch, all at one epoch (rules D1, D2). It is worth as much as a write
        that returned that epoch. Nodes that can't be asked confirm nothing."""
        for _ in range(EPOCH_ATTEMPTS):
            ring = await self._rings.current()
            try:
                return await self._touch_at(ring, chunk_ids, generation)
            except StaleEpochError:
                await self._view.refresh()
        return ChunksTouched(ring.epoch, [False] * len(chunk_ids))

    async def _touch_at(
        self, ring: Ring, chunk_ids: Sequence[bytes], generation: int
    ) -> ChunksTouched:
        """Raises StaleEpochError once anybody is found to be at a newer epoch."""
        by_node: dict[NodeId, list[bytes]] = defaultdict(list)
        for chunk_id in dict.fromkeys(chunk_ids):
            for node in ring.owners(chunk_id):
                by_node[node].append(chunk_id)
        confirmed: dict[bytes, int] = dict.fromkeys(chunk_ids, 0)
        answers = await asyncio.gather(
            *(self._touch_on(ring, node, ids, generation) for node, ids in by_node.items()),
            return_exceptions=True,
        )
        for holding in answers:
            if isinstance(holding, BaseException):
                raise holding
            for chunk_id in holding:
                confirmed[chunk_id] += 1
        # Answers of peers are for the epoch that they were asked at; this node's are so until now.
        self._fence(ring)
        flags = [confirmed[chunk_id] >= ring.quorum for chunk_id in chunk_ids]
        return ChunksTouched(ring.epoch, flags)

    async def _touch_on(
        self, ring: Ring, node: NodeId, chunk_ids: list[bytes], generation: int
    ) -> list[bytes]:
        holding: list[bytes] = []
        try:
            for at in range(0, len(chunk_ids), BATCH_LIMIT):
                batch = chunk_ids[at : at + BATCH_LIMIT]
                if node == self._node_id:
                    touch = max(generation, self._view.generation())
                    flags = await self._store.touch(batch, touch=touch)
                else:
                    member = ring.members[node]
                    flags = await self._client.touch(
                        member, batch, epoch=ring.epoch, touch=generation
                    )
                holding += [chunk_id for chunk_id, flag in zip(batch, flags, strict=True) if flag]
        except StaleEpochError as error:
            if error.epoch > ring.epoch:
                raise
            _log.info("node %s confirms no chunks yet: %s", node, error)
        except RingError as error:
            _log.info("node %s confirms no chunks now: %s", node, error)
        return holding


class _WriteJob:
    """The copies of one chunk under one ring. Holds the buffer until the last of them has ended."""

    def __init__(
        self,
        replicator: Replicator,
        ring: Ring,
        content: Encoded,
        *,
        generation: int,
        lease: Lease,
    ) -> None:
        assert content.checksums is not None
        chunk_id = content.checksums.chunk_id
        self.ring = ring
        self.chunk_id = chunk_id
        self.content = content
        self.generation = generation
        # The whole buffer, however little of it is used, and what compression made beside it.
        self.held_bytes = len(lease.view)
        if content.codec is not Codec.RAW:
            self.held_bytes += len(content.payload)
        self.tasks: set[asyncio.Task[None]] = set()
        self._replicator = replicator
        self._lease = lease
        self._plan = WritePlan(ring.owners(chunk_id), ring.handoffs(chunk_id), ring.quorum)
        self._full: set[NodeId] = set()
        self._given_up = False
        self._verdict: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lease.retain()

    async def run(self) -> None:
        """Return once acknowledged. Raises QuorumFailedError, StoreFullError, StaleEpochError."""
        for target in self._plan.start():
            self._begin(target)
        if not self.tasks:
            self._verdict.set_exception(self._failure())
            self._finish()
        await self._verdict
        if not self._plan.ended:
            await self._replicator.make_room(self)

    def under_way(self) -> frozenset[NodeId]:
        """The nodes whose copies have not ended."""
        return self._plan.under_way

    def give_up(self) -> None:
        """Stop what is under way still; repair will see to it."""
        self._given_up = True
        for task in self.tasks:
            task.cancel()

    def _begin(self, target: Target) -> None:
        task = asyncio.ensure_future(self._copy(*target))
        self.tasks.add(task)
        task.add_done_callback(self._copied)

    async def _copy(self, node: NodeId, purpose: Purpose) -> None:
        try:
            await self._replicator.put_copy(self, node, purpose)
        except StaleEpochError as error:
            if error.epoch > self.ring.epoch and not self._verdict.done():
                self._verdict.set_exception(error)
            self._lost(node, str(error))
        except StoreFullError as error:
            self._full.add(node)
            self._lost(node, str(error))
        except RingError as error:
            self._lost(node, str(error))
        except asyncio.CancelledError:
            self._lost(node, "it took too long")
        else:
            self._plan.succeeded(node)
            if self._plan.acknowledged and not self._verdict.done():
                self._verdict.set_result(None)

    def _lost(self, node: NodeId, cause: str) -> None:
        substitute = self._plan.failed(node, cause, replace=not self._given_up)
        if substitute is not None:
            self._begin(substitute)
        if self._plan.hopeless and not self._verdict.done():
            self._verdict.set_exception(self._failure())

    def _failure(self) -> RingError:
        plan = self._plan
        error = QuorumFailedError(self.chunk_id, plan.durable, plan.quorum, plan.causes)
        if self._full and self._full == plan.causes.keys():
            return StoreFullError(str(error))
        return error

    def _copied(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Nobody foresaw this: the write must not hang on it.
            _log.error("a copy of chunk %s failed", self.chunk_id.hex(), exc_info=error)
            if not self._verdict.done():
                self._verdict.set_exception(error)
        if not self.tasks:
            self._finish()

    def _finish(self) -> None:
        self._lease.release()
        self._replicator.ended(self)
        verdict = self._verdict
        if verdict.done() and not verdict.cancelled() and verdict.exception() is None:
            for node in self._plan.lacking:
                self._replicator.lacks(self.chunk_id, node, self._plan.causes[node])
