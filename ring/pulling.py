"""Fetches copies for this node's own store, many at a time.

Owners are asked once for all chunks of a unit: who has which, of what length, with which touch.
Small chunks then share requests, large ones are fetched several at once, and both are spread over
the nodes that have them. Whatever does not come that way is looked for everywhere
(`ring/fetching.py`). A copy gets the highest touch that its sources told, and never a newer one
(rule D10).
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ring.buffers import BufferPool
from ring.errors import ChunkMissingError, RingError, StoreFullError
from ring.fetching import FORMER_RINGS, ChunkFetcher
from ring.full_nodes import FullNodes
from ring.interfaces import ChunkStore, ClusterView, Encoded
from ring.members import Member, NodeId
from ring.peer_client import PeerClient
from ring.peer_wire import GET_BATCH_LIMIT, GET_BATCH_SIZE_LIMIT, SMALL_PUT_LIMIT
from ring.placement import Ring
from ring.ring_cache import RingCache
from ring.throttle import Throttle

FETCHES_AT_ONCE = 4
"""Requests under way at once: enough to keep disk, network and processors busy together, and with
8 MiB each, 32 MiB of buffers."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Source:
    """What other nodes have told about a chunk."""

    holders: list[Member] = field(default_factory=list)
    """Those with a good copy."""
    length: int = 0
    """Plain bytes; nought where nobody told."""
    touch: int = 0


@dataclass(slots=True)
class Pulled:
    """What became of the chunks of one unit."""

    failed: list[bytes] = field(default_factory=list)
    """Still lacking; may be had later."""
    missing: set[bytes] = field(default_factory=set)
    """Of the failed ones, those that no node has."""


@dataclass(slots=True)
class _Job:
    """One request: a single chunk, or several small ones of one node."""

    chunk_ids: list[bytes]
    member: Member | None
    """None: whoever has it."""
    size: int


class Puller:
    """Belongs to one event loop. `pool` lends the buffers, and is used by no client; `on_copied`
    is told the bytes of each copy that is durable here."""

    def __init__(
        self,
        node_id: NodeId,
        *,
        store: ChunkStore,
        view: ClusterView,
        rings: RingCache,
        client: PeerClient,
        fetcher: ChunkFetcher,
        throttle: Throttle,
        pool: BufferPool,
        full: FullNodes,
        on_copied: Callable[[int], None],
    ) -> None:
        self._node_id = node_id
        self._store = store
        self._view = view
        self._rings = rings
        self._client = client
        self._fetcher = fetcher
        self._throttle = throttle
        self._pool = pool
        self._full = full
        self._on_copied = on_copied

    # --- who has what ------------------------------------------------------------------------

    async def sources(self, ring: Ring, chunk_ids: Sequence[bytes]) -> dict[bytes, Source]:
        """Ask the owners of the ring; for what they all lack, those of former rings too."""
        found = {chunk_id: Source() for chunk_id in chunk_ids}
        await self._ask(ring, found, chunk_ids)
        for membership in self._view.former()[:FORMER_RINGS]:
            rest = [chunk_id for chunk_id in chunk_ids if not found[chunk_id].holders]
            if not rest:
                break
            await self._ask(await self._rings.of(membership), found, rest)
        return found

    async def _ask(
        self, ring: Ring, found: Mapping[bytes, Source], chunk_ids: Sequence[bytes]
    ) -> None:
        by_node: dict[NodeId, list[bytes]] = defaultdict(list)
        now = self._client.now()
        for chunk_id in chunk_ids:
            for node in ring.owners(chunk_id):
                # Each unit would wait for one that hangs. What only that one has is looked for
                # there at last.
                if node != self._node_id and not self._client.health(node).has_just_failed(now):
                    by_node[node].append(chunk_id)
        await asyncio.gather(
            *(self._ask_one(ring.members[node], found, asked) for node, asked in by_node.items())
        )

    async def _ask_one(
        self, member: Member, found: Mapping[bytes, Source], chunk_ids: Sequence[bytes]
    ) -> None:
        try:
            states = await self._client.stat(member, chunk_ids)
        except RingError as error:
            _log.info("node %s can't tell which chunks it has now: %s", member.node_id, error)
            return
        for chunk_id, state in zip(chunk_ids, states, strict=True):
            if state is None:
                continue
            source = found[chunk_id]
            source.touch = max(source.touch, state.touch or 0)
            if state.healthy:
                source.holders.append(member)
                source.length = state.plain_length

    # --- fetching ----------------------------------------------------------------------------

    async def pull(self, ring: Ring, sources: Mapping[bytes, Source]) -> Pulled:
        """Fetch chunks that are not here; returns early where the ring changes."""
        pulled = Pulled()
        jobs = iter(_jobs(sources))

        async def work() -> None:
            for job in jobs:
                if not self._is_at(ring) or not self._has_room():
                    pulled.failed += job.chunk_ids
                    continue
                # Nothing is taken of the rate for what is not fetched: the next epoch needs it.
                await self._throttle.wait(job.size)
                if self._is_at(ring):
                    await self._do(job, sources, pulled)
                else:
                    pulled.failed += job.chunk_ids

        async with asyncio.TaskGroup() as group:
            for _ in range(FETCHES_AT_ONCE):
                group.create_task(work())
        return pulled

    def _is_at(self, ring: Ring) -> bool:
        return self._view.membership().epoch == ring.epoch

    def _has_room(self) -> bool:
        if self._store.statistics().full:
            self._full.had_none(self._node_id)
            return False
        return self._full.may_try(self._node_id)

    async def _do(self, job: _Job, sources: Mapping[bytes, Source], pulled: Pulled) -> None:
        rest = job.chunk_ids
        if job.member is not None:
            if len(rest) > 1:
                rest = await self._take_several(job.member, rest, sources)
            elif await self._take_one(job.member, rest[0], sources[rest[0]], pulled):
                return
        for chunk_id in rest:
            await self._take_anywhere(chunk_id, sources[chunk_id], pulled)

    async def _take_several(
        self,
        member: Member,
        chunk_ids: list[bytes],
        sources: Mapping[bytes, Source],
    ) -> list[bytes]:
        """Fetch small chunks with one request; returns those that have to be had otherwise."""
        try:
            lease, contents = await self._client.get_several(member, chunk_ids, pool=self._pool)
        except RingError as error:
            _log.info("node %s gives no chunks now: %s", member.node_id, error)
            return chunk_ids
        try:
            outcomes = await asyncio.gather(
                *(
                    self._put(chunk_id, content, sources[chunk_id])
                    for chunk_id, content in zip(chunk_ids, contents, strict=True)
                    if content is not None
                ),
                return_exceptions=True,
            )
        finally:
            lease.release()
        came = [each for each, content in zip(chunk_ids, contents, strict=True) if content]
        rest = [each for each, content in zip(chunk_ids, contents, strict=True) if not content]
        for chunk_id, outcome in zip(came, outcomes, strict=True):
            if isinstance(outcome, RingError):
                # A bad copy, or no room: the other way finds out what to do about it.
                rest.append(chunk_id)
            elif isinstance(outcome, BaseException):
                raise outcome
        return rest

    async def _take_one(
        self, member: Member, chunk_id: bytes, source: Source, pulled: Pulled
    ) -> bool:
        try:
            fetched = await self._fetcher.fetch_from(member, chunk_id, length_limit=source.length)
        except RingError as error:
            _log.info("node %s gives no copy of %s: %s", member.node_id, chunk_id.hex(), error)
            return False
        try:
            await self._put(chunk_id, fetched.content, source)
        except RingError as error:
            self._failed(chunk_id, error, pulled)
        finally:
            fetched.lease.release()
        return True

    async def _take_anywhere(self, chunk_id: bytes, source: Source, pulled: Pulled) -> None:
        try:
            fetched = await self._fetcher.fetch(chunk_id)
            try:
                if not source.length:
                    # Nobody had told how large it is.
                    await self._throttle.wait(len(fetched.content.payload))
                await self._put(chunk_id, fetched.content, source)
            finally:
                fetched.lease.release()
        except RingError as error:
            self._failed(chunk_id, error, pulled)

    async def _put(self, chunk_id: bytes, content: Encoded, source: Source) -> None:
        await self._store.put(chunk_id, content, touch=source.touch)
        self._full.has_room(self._node_id)
        self._on_copied(len(content.payload))

    def _failed(self, chunk_id: bytes, error: RingError, pulled: Pulled) -> None:
        pulled.failed.append(chunk_id)
        match error:
            case ChunkMissingError():
                _log.error("a referenced chunk can't be repaired: %s", error)
                pulled.missing.add(chunk_id)
            case StoreFullError():
                self._full.had_none(self._node_id)
                _log.warning("no room for a copy of chunk %s: %s", chunk_id.hex(), error)
            case _:
                _log.info("no copy of chunk %s here yet: %s", chunk_id.hex(), error)


def _jobs(sources: Mapping[bytes, Source]) -> list[_Job]:
    """Spread chunks over those that have them, small ones of one node together. Pure."""
    load: dict[NodeId, int] = defaultdict(int)
    jobs: list[_Job] = []
    batches: dict[NodeId, _Job] = {}
    for chunk_id, source in sources.items():
        if not source.holders:
            jobs.append(_Job([chunk_id], None, 0))
            continue
        member = min(source.holders, key=lambda each: load[each.node_id])
        length = source.length
        load[member.node_id] += length
        if length > SMALL_PUT_LIMIT:
            jobs.append(_Job([chunk_id], member, length))
            continue
        batch = batches.get(member.node_id)
        if (
            batch is None
            or len(batch.chunk_ids) == GET_BATCH_LIMIT
            or batch.size + length > GET_BATCH_SIZE_LIMIT
        ):
            batch = batches[member.node_id] = _Job([], member, 0)
            jobs.append(batch)
        batch.chunk_ids.append(chunk_id)
        batch.size += length
    return jobs
