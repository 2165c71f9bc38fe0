"""Takes copies away from where the ring does not want them any more (rule D5).

After a new epoch, after a start, and whenever this node has stood in for an owner, chunks lie here
whose partitions belong to others. Such a copy goes only when every owner of the current epoch has
confirmed that very chunk, at that same epoch and with a touch at least as high as this copy's; and
only if, when the store's writer thread comes to it, epoch and touch are as they were and nobody has
been told meanwhile that the chunk is here. What an owner lacks stays; owners fetch what they lack
by themselves (`ring/repair.py`), and this asks again, after ever longer pauses. What nothing refers
to is not asked about: nobody fetches it, and it stays until something does or it is collected.

Looking costs nothing while all is in place: the store counts its chunks by partition, so only
partitions that hold something misplaced are gone through. A crash loses nothing but the place in
the pass.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial

from ring.errors import RingError, StaleEpochError
from ring.interfaces import ChunkRow, ChunkStore, ClusterView, LiveChunks
from ring.members import NodeId, partition_of
from ring.peer_client import PeerClient
from ring.placement import Ring
from ring.ring_cache import RingCache

PAGE_SIZE = 256
"""Chunks in one unit: their look-up takes the event loop some 2 ms, their owners one request each
and a read of as many record headers."""

PARTITIONS_PER_UNIT = 64
"""Queries of the index in one unit, where partitions hold few chunks."""

QUARANTINED_LIMIT = 16_384
"""Damaged copies gone through for misplaced ones in one look, some 20 ms of a worker thread. That
many at once are of a lost volume, are here to be healed, and get fewer."""

DROPS_AT_ONCE = 64
"""Deletions in one group of the writer; clients' writes wait behind one group at most."""

LOOK_SECONDS = 1.0
"""Between two looks at the counts of partitions: half a millisecond each."""

PAUSE_SECONDS = 0.01
BUSY_PAUSE_SECONDS = 0.25
"""Between two units of a pass; the longer one while clients are served. A move gets along with
1,000 chunks a second: what they occupy is not needed at once."""

AGAIN_SECONDS_MIN = 1.0
AGAIN_SECONDS_MAX = 15.0
"""Between two passes while owners lack what is here; it doubles as long as nothing could go."""

REST_FACTOR = 1
"""The pause after a pass is at least so many times as long as that took: garbage of a large node
that waits for its collection is not gone through all the time."""

PAGES_IN_VAIN = 8
"""Pages of which nothing could go, though it should, one behind the other, after which a pass ends:
owners fetch in the order of the ids too, so what follows is most likely lacking as well. The next
pass goes on from there, so each copy gets its turn, and an attempt costs the same however much is
misplaced."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MoverStatus:
    """How much lies on this node that the current epoch wants elsewhere."""

    misplaced: int
    """Copies here that are not wanted here, at the latest look."""
    dropped: int
    """Copies dropped since the start, all confirmed by their owners."""
    settled: bool
    """Whether no file refers to any misplaced copy, as the latest pass of the current epoch found.
    What nothing refers to stays until it is collected, and moves nowhere."""


@dataclass(slots=True)
class _Pass:
    """One way through the partitions that hold something misplaced."""

    epoch: int
    began_at: float
    partitions: list[int]
    """Still to be gone through, the next one last."""
    quarantined: list[bytes]
    """Misplaced copies that are damaged: they go by the same rule."""
    cursor: bytes = b""
    """The last id seen in the next partition."""
    dropped: int = 0
    wanted: int = 0
    """Copies that stay, and that some file refers to."""
    in_vain: int = 0
    """Pages with what files refer to, since one of which something could go."""
    silent: set[NodeId] = field(default_factory=set)
    """Owners that could not be asked: not asked again in this pass."""
    lacking: dict[NodeId, int] = field(default_factory=lambda: defaultdict(int))
    """How many of the copies that it was asked for an owner had not. Such are asked first, for
    what one lacks the others need not be asked about."""


class Mover:
    """A `ring.worker.Job`. `busy` tells whether clients are being served."""

    def __init__(
        self,
        node_id: NodeId,
        *,
        store: ChunkStore,
        view: ClusterView,
        live: LiveChunks,
        rings: RingCache,
        client: PeerClient,
        workers: Executor,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._node_id = node_id
        self._store = store
        self._view = view
        self._live = live
        self._rings = rings
        self._client = client
        self._workers = workers
        self._busy = busy
        self._pass: _Pass | None = None
        self._passed_epoch: int | None = None
        self._next_partition = 0
        """Where the next pass begins."""
        self._again_at = 0.0
        self._again_pause = AGAIN_SECONDS_MIN
        self._settled_epoch: int | None = None
        self._misplaced = 0
        self._dropped = 0

    def status(self) -> MoverStatus:
        return MoverStatus(
            misplaced=self._misplaced,
            dropped=self._dropped,
            settled=self._settled_epoch == self._view.membership().epoch,
        )

    async def work(self) -> float:
        """One page of a pass, or a look whether one is needed."""
        ring = await self._rings.current()
        if not ring.copies:
            return LOOK_SECONDS
        if self._pass is not None and self._pass.epoch != ring.epoch:
            self._pass = None
        if self._pass is None:
            self._pass = await self._look(ring)
        if self._pass is None:
            return LOOK_SECONDS
        try:
            await self._work_pass(ring, self._pass)
        except Exception:
            # Or its page would count as looked through.
            self._pass = None
            raise
        return BUSY_PAUSE_SECONDS if self._busy() else PAUSE_SECONDS

    # --- where to look -----------------------------------------------------------------------

    async def _look(self, ring: Ring) -> _Pass | None:
        """Count what is misplaced; a pass if there is anything and it is time for one."""
        counts = self._store.partition_counts()
        partitions = [
            partition
            for partition, count in enumerate(counts)
            if count and self._node_id not in ring.partition_owners(partition)
        ]
        quarantined = await self._misplaced_quarantined(ring)
        self._misplaced = sum(counts[partition] for partition in partitions) + len(quarantined)
        if not self._misplaced:
            self._settled_epoch = ring.epoch
            self._again_pause = AGAIN_SECONDS_MIN
            return None
        now = asyncio.get_running_loop().time()
        if self._passed_epoch == ring.epoch and now < self._again_at:
            return None
        if self._store.statistics().touch_floor is None:
            # No touch is known yet, and without one nothing may go.
            return None
        ahead = [each for each in partitions if each >= self._next_partition]
        partitions = [*ahead, *(each for each in partitions if each < self._next_partition)]
        partitions.reverse()
        return _Pass(ring.epoch, now, partitions, quarantined)

    async def _misplaced_quarantined(self, ring: Ring) -> list[bytes]:
        if not self._store.statistics().quarantined:
            return []
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, self._find_quarantined, ring)

    def _find_quarantined(self, ring: Ring) -> list[bytes]:
        """Worker thread: a page of misplaced ones, which may stand behind many that are not."""
        misplaced: list[bytes] = []
        after = b""
        for _ in range(QUARANTINED_LIMIT // PAGE_SIZE):
            found = self._store.quarantined(PAGE_SIZE, after=after)
            misplaced += [each for each in found if self._node_id not in ring.owners(each)]
            if len(found) < PAGE_SIZE or len(misplaced) >= PAGE_SIZE:
                break
            after = found[-1]
        return misplaced[:PAGE_SIZE]

    def _page(self, current: _Pass) -> list[bytes]:
        """Worker thread: the next misplaced ids of a pass; empty at the end."""
        page: list[bytes] = []
        for _ in range(PARTITIONS_PER_UNIT):
            if not current.partitions or len(page) == PAGE_SIZE:
                break
            partition = current.partitions[-1]
            room = PAGE_SIZE - len(page)
            found = self._store.ids(current.cursor or _before(partition), room)
            here = [chunk_id for chunk_id in found if partition_of(chunk_id) == partition]
            page += here
            if len(here) == room:
                current.cursor = here[-1]
            else:
                current.partitions.pop()
                current.cursor = b""
        return page

    # --- one page ----------------------------------------------------------------------------

    async def _work_pass(self, ring: Ring, current: _Pass) -> None:
        loop = asyncio.get_running_loop()
        page, current.quarantined = current.quarantined, []
        if not page:
            page = await loop.run_in_executor(self._workers, self._page, current)
        if not page and not current.partitions:
            self._end_pass(current)
            return
        wanted = await loop.run_in_executor(self._workers, self._live.referenced, page)
        page = [chunk_id for chunk_id in page if chunk_id in wanted]
        touches = {
            chunk_id: stat.touch
            for chunk_id, stat in zip(page, await self._store.stat(page), strict=True)
            if stat is not None and stat.touch is not None
        }
        confirmed = await self._confirmed(ring, current, touches)
        dropped: set[bytes] = set()
        for start in range(0, len(confirmed), DROPS_AT_ONCE):
            batch = confirmed[start : start + DROPS_AT_ONCE]
            dropped |= await self._drop(ring.epoch, {each: touches[each] for each in batch})
        current.dropped += len(dropped)
        self._dropped += len(dropped)
        kept = len(touches) - len(dropped)
        current.wanted += kept
        current.in_vain = 0 if dropped else current.in_vain + bool(kept)
        if current.in_vain >= PAGES_IN_VAIN:
            self._end_pass(current)

    def _end_pass(self, current: _Pass) -> None:
        self._pass = None
        self._passed_epoch = current.epoch
        self._next_partition = 0
        if current.partitions:
            # A partition in the middle of which it ended waits until the others had their turn.
            self._next_partition = current.partitions[-1] + bool(current.cursor)
        self._settled_epoch = None if current.wanted else current.epoch
        if current.dropped:
            self._again_pause = AGAIN_SECONDS_MIN
        now = asyncio.get_running_loop().time()
        self._again_at = now + max(self._again_pause, REST_FACTOR * (now - current.began_at))
        self._again_pause = min(self._again_pause * 2, AGAIN_SECONDS_MAX)

    async def _confirmed(
        self, ring: Ring, current: _Pass, touches: dict[bytes, int]
    ) -> list[bytes]:
        """Those that every owner of the ring's epoch has, and has confirmed at it."""
        order = {
            chunk_id: sorted(ring.owners(chunk_id), key=lambda each: -current.lacking[each])
            for chunk_id in touches
        }
        rest = list(touches)
        for turn in range(ring.copies):
            by_node: dict[NodeId, list[tuple[bytes, int]]] = defaultdict(list)
            for chunk_id in rest:
                if current.silent.isdisjoint(order[chunk_id]):
                    by_node[order[chunk_id][turn]].append((chunk_id, touches[chunk_id]))
            answers = await asyncio.gather(
                *(self._ask(ring, current, node, asked) for node, asked in by_node.items())
            )
            rest = [chunk_id for confirmed in answers for chunk_id in confirmed]
        return rest

    async def _ask(
        self, ring: Ring, current: _Pass, node: NodeId, asked: Sequence[tuple[bytes, int]]
    ) -> list[bytes]:
        try:
            flags = await self._client.confirm(ring.members[node], asked, epoch=ring.epoch)
        except StaleEpochError as error:
            current.silent.add(node)
            if error.epoch > ring.epoch:
                await self._catch_up()
            return []
        except RingError as error:
            current.silent.add(node)
            _log.info("node %s can't confirm what has moved to it now: %s", node, error)
            return []
        confirmed = [chunk_id for (chunk_id, _), flag in zip(asked, flags, strict=True) if flag]
        current.lacking[node] += len(asked) - len(confirmed)
        return confirmed

    async def _catch_up(self) -> None:
        try:
            await self._view.refresh()
        except Exception as error:  # Whatever keeps the layer above from telling.
            _log.info("there is a newer ring that this node can't learn of now: %s", error)

    async def _drop(self, epoch: int, touches: dict[bytes, int]) -> set[bytes]:
        """Delete copies that have been confirmed; returns those that are gone."""
        outcomes = await asyncio.gather(
            *(
                self._store.delete(chunk_id, unless=partial(self._stays, epoch, touch))
                for chunk_id, touch in touches.items()
            ),
            return_exceptions=True,
        )
        gone: set[bytes] = set()
        for chunk_id, outcome in zip(touches, outcomes, strict=True):
            if isinstance(outcome, RingError):
                _log.info("chunk %s stays for now: %s", chunk_id.hex(), outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
            elif outcome:
                gone.add(chunk_id)
        return gone

    def _stays(self, epoch: int, touch: int, row: ChunkRow) -> bool:
        """Writer thread: whether anything is not as it was when the owners were asked."""
        return self._view.membership().epoch != epoch or row.touch != touch


def _before(partition: int) -> bytes:
    """The prefix that all ids of a partition, and of no earlier one, are greater than."""
    return (partition << 4).to_bytes(2, "big")
