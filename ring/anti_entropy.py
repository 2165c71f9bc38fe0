"""Finds out, without looking at every chunk, what other owners hold and this node lacks.

Two nodes that own a partition at the same epoch should hold the same chunks of it. They compare a
fingerprint of each partition they share, 16 bytes, and list ids only where these differ; large
partitions are split once more first (`ring/digests.py`). Each node asks for itself and fetches what
it lacks (docs/decisions/0043-every-node-fetches.md), so nobody has to agree on who sends what. What
is found goes to the repair queue.

A chunk on its way here, such as the last copy of an upload, looks lacking for a moment: what was
found is looked at once more a little later. And what nobody refers to and may be collected is left
alone, or a chunk that one node has collected already would come back from one that has not (D10).

Compared is whenever there is a reason: a new epoch, a node that is back, a bad or failed copy; and
every few minutes. Besides, the digests themselves are counted anew from the rows, all of them about
once a day.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from ring.digests import LISTED_WHOLE_LIMIT, SLICE_COUNT, differing
from ring.errors import RingError
from ring.fetching import Lacking
from ring.interfaces import ChunkStat, ChunkStore, ClusterView, LiveChunks
from ring.members import PARTITION_COUNT, Member, NodeId
from ring.peer_client import PeerClient
from ring.peer_digests import DigestAnswers
from ring.peer_wire import IDS_LIMIT
from ring.placement import Ring
from ring.ring_cache import RingCache
from ring.touches import COLLECTABLE_AFTER

INTERVAL_SECONDS = 300.0
"""Between two comparisons with a node while nothing happens: some 70 KB each."""

SOON_SECONDS = 30.0
"""Between two comparisons at least, however many copies fail."""

AGAIN_SECONDS = 15.0
"""After a comparison that failed: the node is down, or at another epoch for a moment."""

GRACE_SECONDS = 5.0
"""How long a chunk may be lacking here before it counts: an upload's last copy is on its way for
so long at most while nothing is wrong."""

CANDIDATE_LIMIT = 16_384
"""Chunks found lacking and not yet looked at again, some 3 MB. Then listing waits for them."""

LOOK_LIMIT = 1024
"""Chunks looked at again in one unit of work: a few milliseconds of a worker thread."""

PARTITIONS_PER_UNIT = 16
"""Partitions listed in one unit: about as many requests, one after the other."""

PAUSE_SECONDS = 0.02
"""Between two units of listing: clients first."""

ROUND_SECONDS = 1.0
"""Between two looks whether there is a reason to compare."""

RECOUNT_SECONDS = 20.0
"""Between two partitions whose digest is counted anew: all 4,096 in some 23 hours."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AntiEntropyStatus:
    """Counters since the start, except where said otherwise."""

    age_seconds: float
    """Since the comparison with the node whose comparison is longest ago, or since this node knows
    of that one; nought where it shares partitions with nobody."""
    partitions_differing: int
    """In the latest comparison with each node, all together."""
    bytes_exchanged: int
    """Fingerprints and ids received, without what HTTP adds."""
    chunks_lacking: int
    """Handed to repair."""
    digests_repaired: int


class AntiEntropy:
    """A `ring.worker.Job`. `note_lacking` is told of what this node lacks.

    `reachable` tells whether a node answered when it was last asked, None where it was not.
    `settled` tells whether repair is done with the present epoch: what a new epoch moves repair
    fetches anyway, and listing it all as differences would be dear.
    """

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
        note_lacking: Lacking,
        reachable: Callable[[NodeId], bool | None] = lambda _: None,
        settled: Callable[[], bool] = lambda: True,
    ) -> None:
        self._node_id = node_id
        self._store = store
        self._view = view
        self._live = live
        self._rings = rings
        self._client = client
        self._workers = workers
        self._note_lacking = note_lacking
        self._reachable = reachable
        self._settled = settled
        self._digests = DigestAnswers(node_id, store, workers)
        self._epoch = -1
        self._peers: dict[NodeId, _Peer] = {}
        """The other nodes of the ring that share partitions with this one."""
        self._awaits_repair = False
        """The epoch is new, and repair is not done with it."""
        self._comparison: _Comparison | None = None
        self._candidates: OrderedDict[bytes, _Candidate] = OrderedDict()
        """Chunks that looked lacking, the first found first."""
        self._next_recount_at = 0.0
        self._next_recount = 0
        self._bytes_exchanged = 0
        self._chunks_lacking = 0
        self._digests_repaired = 0

    def run_soon(self) -> None:
        """Something went wrong with a copy: compare with everybody before long."""
        for peer in self._peers.values():
            peer.due_at = min(peer.due_at, peer.compared_at + SOON_SECONDS)

    def status(self) -> AntiEntropyStatus:
        peers = self._peers.values()
        return AntiEntropyStatus(
            age_seconds=(
                self._client.now() - min(peer.compared_at for peer in peers) if peers else 0.0
            ),
            partitions_differing=sum(peer.differing for peer in peers),
            bytes_exchanged=self._bytes_exchanged,
            chunks_lacking=self._chunks_lacking,
            digests_repaired=self._digests_repaired,
        )

    async def work(self) -> float:
        """One step of a comparison, or of what follows from it; returns the pause after it."""
        ring = await self._rings.current()
        now = self._client.now()
        if ring.epoch != self._epoch:
            self._begin_epoch(ring, now)
        self._look_for_reasons(now)
        first = next(iter(self._candidates.values()), None)
        if first is not None and now >= first.found_at + GRACE_SECONDS:
            await self._look_again(ring, now)
            return PAUSE_SECONDS
        if self._comparison is not None:
            if len(self._candidates) >= CANDIDATE_LIMIT:
                return ROUND_SECONDS
            await self._attempt(self._comparison, self._list_some(ring, self._comparison))
            return PAUSE_SECONDS
        due = [(peer.due_at, node) for node, peer in self._peers.items() if peer.due_at <= now]
        if due:
            await self._begin(ring, min(due)[1])
            return PAUSE_SECONDS
        if now >= self._next_recount_at:
            await self._recount_next(now)
        return ROUND_SECONDS

    # --- when --------------------------------------------------------------------------------

    def _begin_epoch(self, ring: Ring, now: float) -> None:
        self._epoch = ring.epoch
        self._comparison = None
        self._candidates.clear()
        self._awaits_repair = True
        known, self._peers = self._peers, {}
        for node in ring.members:
            partitions = ring.shared(self._node_id, node) if node != self._node_id else []
            if partitions:
                compared_at = known[node].compared_at if node in known else now
                self._peers[node] = _Peer(partitions, now + INTERVAL_SECONDS, compared_at)

    def _look_for_reasons(self, now: float) -> None:
        if self._awaits_repair and self._settled():
            self._awaits_repair = False
            for peer in self._peers.values():
                peer.due_at = now
        for node, peer in self._peers.items():
            reachable = self._reachable(node)
            if reachable and peer.was_reachable is False and not self._awaits_repair:
                peer.due_at = now
            peer.was_reachable = reachable

    # --- comparing ---------------------------------------------------------------------------

    async def _attempt(self, comparison: _Comparison, step: Awaitable[None]) -> None:
        """Await a step; where the other node fails, the comparison is left for later."""
        try:
            await step
        except RingError as error:
            node = comparison.member.node_id
            _log.info("node %s can't be compared with now: %s", node, error)
            self._comparison = None
            if node in self._peers:
                self._peers[node].due_at = self._client.now() + AGAIN_SECONDS

    async def _begin(self, ring: Ring, node: NodeId) -> None:
        self._comparison = _Comparison(ring.members[node], ring.epoch)
        await self._attempt(self._comparison, self._compare(ring, self._comparison))

    async def _compare(self, ring: Ring, comparison: _Comparison) -> None:
        member = comparison.member
        peer = self._peers[member.node_id]
        theirs = await self._client.digests(member, ring.epoch, len(peer.partitions))
        self._bytes_exchanged += len(theirs)
        ours, counts = await self._digests.shared(ring, member.node_id)
        comparison.partitions.extend(differing(peer.partitions, ours, theirs))
        comparison.counts = dict(zip(peer.partitions, counts, strict=True))
        peer.differing = len(comparison.partitions)
        peer.compared_at = self._client.now()
        peer.due_at = peer.compared_at + INTERVAL_SECONDS
        if not comparison.partitions:
            self._comparison = None

    async def _list_some(self, ring: Ring, comparison: _Comparison) -> None:
        for _ in range(PARTITIONS_PER_UNIT):
            if not comparison.partitions or len(self._candidates) >= CANDIDATE_LIMIT:
                break
            partition = comparison.partitions.popleft()
            is_large = comparison.counts[partition] > LISTED_WHOLE_LIMIT
            await self._list(ring, comparison.member, partition, is_large=is_large)
        if not comparison.partitions:
            self._comparison = None

    async def _list(self, ring: Ring, member: Member, partition: int, *, is_large: bool) -> None:
        """Find what of a partition the other node holds and this one does not."""
        parts: Sequence[int | None] = [None]
        if is_large:
            theirs = await self._client.slice_digests(member, ring.epoch, partition)
            self._bytes_exchanged += len(theirs)
            parts = differing(range(SLICE_COUNT), await self._digests.slices(partition), theirs)
        is_same = True
        for part in parts:
            is_same &= await self._list_part(ring, member, partition, part)
        if is_same:
            # Then one of the two digests is wrong, or both were changing.
            await self._recount(partition)

    async def _list_part(
        self, ring: Ring, member: Member, partition: int, part: int | None
    ) -> bool:
        """Returns whether both nodes hold the same there."""
        ours = await self._digests.all_ids(partition, part)
        theirs: set[bytes] = set()
        after = b""
        while len(self._candidates) < CANDIDATE_LIMIT:
            page = await self._client.partition_ids(member, ring.epoch, partition, part, after)
            self._bytes_exchanged += sum(map(len, page))
            theirs.update(page)
            now = self._client.now()
            for chunk_id in page:
                if chunk_id not in ours:
                    self._candidates.setdefault(chunk_id, _Candidate(member.node_id, now))
            if len(page) < IDS_LIMIT:
                break
            after = page[-1]
        return ours == theirs

    # --- what was found ----------------------------------------------------------------------

    async def _look_again(self, ring: Ring, now: float) -> None:
        """Hand on what is lacking still, and is no rubbish."""
        found: dict[bytes, _Candidate] = {}
        while self._candidates and len(found) < LOOK_LIMIT:
            chunk_id, candidate = self._candidates.popitem(last=False)
            if candidate.found_at + GRACE_SECONDS > now:
                self._candidates[chunk_id] = candidate
                self._candidates.move_to_end(chunk_id, last=False)
                break
            found[chunk_id] = candidate
        stats = await self._store.stat(list(found))
        lacking = [
            chunk_id for chunk_id, stat in zip(found, stats, strict=True) if _is_lacking(stat)
        ]
        loop = asyncio.get_running_loop()
        referenced = await loop.run_in_executor(self._workers, self._live.referenced, lacking)
        by_node: dict[NodeId, list[bytes]] = defaultdict(list)
        for chunk_id in lacking:
            if chunk_id not in referenced:
                by_node[found[chunk_id].node_id].append(chunk_id)
        wanted = set(referenced)
        for node, chunk_ids in by_node.items():
            wanted |= await self._too_young(ring, node, chunk_ids)
        if self._view.membership().epoch != ring.epoch:
            return
        for chunk_id in lacking:
            if chunk_id in wanted:
                self._chunks_lacking += 1
                self._note_lacking(chunk_id, self._node_id)

    async def _too_young(self, ring: Ring, node: NodeId, chunk_ids: list[bytes]) -> set[bytes]:
        """Those that may not be collected by the touch that the other node's copies have."""
        try:
            states = await self._client.stat(ring.members[node], chunk_ids)
        except RingError as error:
            _log.info("node %s does not tell the touches of its chunks: %s", node, error)
            return set()
        generation = self._view.generation()
        return {
            chunk_id
            for chunk_id, state in zip(chunk_ids, states, strict=True)
            if state is not None
            and state.healthy
            and state.touch is not None
            and generation < state.touch + COLLECTABLE_AFTER
        }

    # --- the digests themselves --------------------------------------------------------------

    async def _recount_next(self, now: float) -> None:
        partition = self._next_recount
        self._next_recount = (partition + 1) % PARTITION_COUNT
        self._next_recount_at = now + RECOUNT_SECONDS
        await self._recount(partition)

    async def _recount(self, partition: int) -> None:
        try:
            self._digests_repaired += await self._store.recount(partition)
        except RingError as error:
            _log.info("the digest of partition %d can't be put right: %s", partition, error)


def _is_lacking(stat: ChunkStat | None) -> bool:
    return stat is None or stat.quarantined


@dataclass(slots=True)
class _Peer:
    partitions: list[int]
    """Those that both own."""
    due_at: float
    compared_at: float
    """When it was last compared with, or first known."""
    differing: int = 0
    was_reachable: bool | None = None


class _Comparison:
    """With one node, at one epoch: the partitions that differ and are not listed yet."""

    def __init__(self, member: Member, epoch: int) -> None:
        self.member = member
        self.epoch = epoch
        self.partitions: deque[int] = deque()
        self.counts: dict[int, int] = {}
        """Chunks of each partition here when the comparison began."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    node_id: NodeId
    """Who has it."""
    found_at: float
