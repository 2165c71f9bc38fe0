"""A good copy of a chunk from some other node, for readers and for repair (rule D3).

Owners are asked first, the quickest of them before the others, then whoever else may have a copy,
at last every member of any epoch. Who takes much longer than usual is raced by the next
(`ring/racing.py`), so that a hanging node costs a reader tens of milliseconds. What is returned has
been verified here: a whole chunk against its id; a part of a large one was verified by its sender
against the chunk's block checksums, and against the sender's digest on arrival
(docs/decisions/0042-verified-ranges.md). Owners found to lack a good copy are reported, so that
they are healed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import TypeVar

from blake3 import blake3

from ring.buffers import BufferPool, size_class
from ring.byte_gate import ByteGate
from ring.codec import decode, verify
from ring.errors import (
    ChunkDamagedError,
    ChunkMissingError,
    ChunkNotFoundError,
    ChunkRejectedError,
    ChunkUnavailableError,
    RingError,
)
from ring.interfaces import CHUNK_SIZE_LIMIT, ClusterView, Codec, Encoded
from ring.members import Member, NodeId
from ring.peer_client import FetchedContent, PeerClient
from ring.placement import Ring
from ring.racing import Candidates, Race
from ring.read_plan import ReadTally, everyone_else, owners_first
from ring.ring_cache import RingCache

WHOLE_LIMIT = 1024 * 1024
"""Chunks up to this many bytes are fetched whole, whatever part of them is wanted."""

FORMER_RINGS = 4
"""Former epochs whose owners are asked first, the newest ones'. That is order alone: members of all
epochs are asked after them, and a ring takes a tenth of a second to compute and is kept."""

RACE_BYTES_LIMIT = 32 * 1024 * 1024
"""Buffers of nodes that are asked beside others, all reads together: a quarter of a pool, so that
racing can't use up what reading needs. Beyond it a race waits."""

INLINE_LIMIT = 64 * 1024
"""Plain bytes hashed on the event loop: ten microseconds, less than a thread's round trip."""

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")

Lacking = Callable[[bytes, NodeId], None]
"""Called with a chunk and an owner that has no good copy of it."""


class ChunkFetcher:
    """Fetches chunks from other nodes; counts what it comes across."""

    def __init__(
        self,
        node_id: NodeId,
        *,
        view: ClusterView,
        rings: RingCache,
        client: PeerClient,
        workers: Executor,
        on_lacking: Lacking,
        pool: BufferPool | None = None,
        race_bytes: int = RACE_BYTES_LIMIT,
    ) -> None:
        self._node_id = node_id
        self._view = view
        self._rings = rings
        self._client = client
        self._workers = workers
        self._on_lacking = on_lacking
        self._pool = pool
        """For whole chunks that `fetch` and `fetch_from` bring; None: the client's own."""
        self._gate = ByteGate(race_bytes)
        self.overtaken = 0
        """Questions to a node that another one answered first."""
        self.damage_found = 0
        """Bad copies that other nodes have sent, or said to have."""

    async def read(
        self,
        chunk_id: bytes,
        *,
        length: int,
        start: int,
        end: int,
        own_failure: str | None = None,
    ) -> memoryview:
        """Return plaintext of a chunk of `length` bytes.

        `own_failure` says why this node's own copy can't be read, where it has one: then the chunk
        is not missing, whatever the others say. Raises ChunkMissingError, ChunkUnavailableError.
        """
        size = length
        if length > WHOLE_LIMIT and (end - start) * 2 < length:
            size = end - start

            async def ask(member: Member) -> memoryview:
                return await self._client.get_range(member, chunk_id, start, end)
        else:

            async def ask(member: Member) -> memoryview:
                return await self._read_whole(member, chunk_id, length, start, end)

        return await self._from_anybody(
            chunk_id, ask, size=size_class(size), own_failure=own_failure
        )

    async def fetch(self, chunk_id: bytes) -> FetchedContent:
        """Return a whole chunk in its stored form, with checksums. The caller releases the lease.

        Raises as `read`.
        """

        async def ask(member: Member) -> FetchedContent:
            return await self.fetch_from(member, chunk_id)

        return await self._from_anybody(
            chunk_id,
            ask,
            size=CHUNK_SIZE_LIMIT,
            pool=self._pool,
            discard=lambda fetched: fetched.lease.release(),
        )

    async def fetch_from(
        self, member: Member, chunk_id: bytes, *, length_limit: int = CHUNK_SIZE_LIMIT
    ) -> FetchedContent:
        """The same from one node; raises what `PeerClient.get` does, and ChunkRejectedError."""
        fetched = await self._client.get(
            member, chunk_id, length_limit=length_limit, pool=self._pool
        )
        content = fetched.content
        try:
            sums = await self._in_worker(verify, chunk_id, content)
        except BaseException:
            fetched.lease.release()
            raise
        fetched.content = Encoded(content.payload, content.codec, content.plain_length, sums)
        return fetched

    async def _read_whole(
        self, member: Member, chunk_id: bytes, length: int, start: int, end: int
    ) -> memoryview:
        fetched = await self._client.get(member, chunk_id, length_limit=length)
        content = fetched.content
        try:
            if content.codec is Codec.RAW and content.plain_length <= INLINE_LIMIT:
                plaintext = _verified(chunk_id, content)
            else:
                plaintext = await self._in_worker(_verified, chunk_id, content)
        except BaseException:
            fetched.lease.release()
            raise
        if content.codec is Codec.RAW:
            return fetched.lease.lend(start, end)
        fetched.lease.release()
        return plaintext[start:end].toreadonly()

    async def _from_anybody(
        self,
        chunk_id: bytes,
        ask: Callable[[Member], Awaitable[_Answer]],
        *,
        size: int,
        own_failure: str | None = None,
        pool: BufferPool | None = None,
        discard: Callable[[_Answer], None] = lambda _: None,
    ) -> _Answer:
        """`size`: of the buffer of `pool` that an answer takes, in bytes."""
        tally = ReadTally()
        if own_failure is not None:
            tally.failed[self._node_id] = own_failure
        ring = await self._rings.current()
        health, now = self._client.health, self._client.now()
        order = owners_first(
            ring.owners(chunk_id), self._node_id, lambda node: health(node).rank(now)
        )

        async def more() -> list[Member]:
            return await self._everybody_else(chunk_id, order, tally)

        async def attempt(member: Member) -> _Answer | None:
            return await self._try(member, ask, tally, size)

        answer = await Race(
            Candidates([ring.members[node] for node in order], more),
            ask=attempt,
            delay=lambda member: health(member.node_id).race_seconds(size),
            gate=self._gate,
            size=size,
            is_short=lambda: self._client.is_short(pool),
            beaten=self._overtaken,
            discard=discard,
        ).run()
        if answer is None and not tally.failed:
            answer = await self._ask_again(chunk_id, attempt, tally)
        if answer is not None:
            self._report(chunk_id, ring, tally)
            return answer
        others = self._members().keys() - {self._node_id}
        if tally.is_missing(others):
            _log.error("chunk %s is on none of the nodes asked", chunk_id.hex())
            raise ChunkMissingError(chunk_id, len(others))
        raise ChunkUnavailableError(
            chunk_id, {**dict.fromkeys(tally.absent, "it has no copy"), **tally.failed}
        )

    def _overtaken(self, member: Member, seconds: float) -> None:
        self.overtaken += 1
        self._client.health(member.node_id).beaten(seconds)

    async def _everybody_else(
        self, chunk_id: bytes, asked: list[NodeId], tally: ReadTally
    ) -> list[Member]:
        """Who comes after the owners, by a membership that a majority has confirmed."""
        # Somebody may know of members that this node has not heard of yet.
        await self._confirm(tally)
        ring = await self._rings.current()
        members = self._members()
        return [members[node] for node in await self._rest(chunk_id, ring, members, asked)]

    async def _confirm(self, tally: ReadTally) -> None:
        try:
            await self._view.refresh()
        except Exception as error:  # Whatever keeps the layer above from telling.
            tally.failed[self._node_id] = f"the membership can't be confirmed: {error}"

    async def _ask_again(
        self,
        chunk_id: bytes,
        attempt: Callable[[Member], Awaitable[_Answer | None]],
        tally: ReadTally,
    ) -> _Answer | None:
        """Everybody had no copy when asked; that is no proof yet that there is none.

        While copies move, an owner may have answered before its copy came, and a former one after
        its own had gone. Within an epoch every owner has a copy before another node drops its, so
        the others are asked first and the owners then; if the epoch is the same after that, a copy
        can't have slipped through.
        """
        ring = await self._rings.current()
        members = self._members()
        owners = [node for node in ring.owners(chunk_id) if node != self._node_id]
        others = sorted(members.keys() - {self._node_id, *owners})
        for node in (*others, *owners):
            answer = await attempt(members[node])
            if answer is not None:
                return answer
        await self._confirm(tally)
        if self._view.membership().epoch != ring.epoch:
            tally.failed[self._node_id] = "the ring has changed meanwhile"
        return None

    async def _try(
        self,
        member: Member,
        ask: Callable[[Member], Awaitable[_Answer]],
        tally: ReadTally,
        size: int,
    ) -> _Answer | None:
        node = member.node_id
        started = self._client.now()
        try:
            answer = await ask(member)
        except ChunkNotFoundError:
            tally.absent.append(node)
        except (ChunkDamagedError, ChunkRejectedError) as error:
            self.damage_found += 1
            _log.warning("node %s has a bad copy: %s", node, error)
            tally.damaged.append(node)
            tally.failed[node] = str(error)
        except RingError as error:
            tally.failed[node] = str(error)
        else:
            self._client.health(node).has_read(size, self._client.now() - started)
            return answer
        return None

    async def _rest(
        self, chunk_id: bytes, ring: Ring, members: dict[NodeId, Member], asked: list[NodeId]
    ) -> list[NodeId]:
        former = [
            (await self._rings.of(membership)).owners(chunk_id)
            for membership in self._view.former()[:FORMER_RINGS]
        ]
        candidates = [ring.owners(chunk_id), *former]
        asked = [*asked, self._node_id]
        return everyone_else(asked, candidates, ring.handoffs(chunk_id), members)

    def _members(self) -> dict[NodeId, Member]:
        """Every member of any epoch, at its newest address."""
        members: dict[NodeId, Member] = {}
        for membership in (self._view.membership(), *self._view.former()):
            for member in membership.members:
                members.setdefault(member.node_id, member)
        return members

    def _report(self, chunk_id: bytes, ring: Ring, tally: ReadTally) -> None:
        for node in tally.lacking(ring.owners(chunk_id)):
            self._on_lacking(chunk_id, node)

    async def _in_worker(
        self, function: Callable[[bytes, Encoded], _Answer], chunk_id: bytes, content: Encoded
    ) -> _Answer:
        """Run in a worker thread; returns only when that has ended with the buffer."""
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._workers, function, chunk_id, content)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            raise


def _verified(chunk_id: bytes, content: Encoded) -> memoryview:
    """Return the plaintext. Raises ChunkRejectedError unless it is this very chunk."""
    try:
        plaintext = decode(content.payload, content.codec, content.plain_length)
    except ValueError as error:
        raise ChunkRejectedError(chunk_id, str(error)) from error
    if blake3(plaintext).digest() != chunk_id:
        raise ChunkRejectedError(chunk_id, "the contents are another chunk's")
    return memoryview(plaintext)
