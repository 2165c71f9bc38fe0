"""The asking side of the ring's HTTP: one method for each thing a peer can be asked.

What comes back has been checked as far as the protocol goes; that a chunk is the chunk is for the
caller to verify (`ring/fetching.py`).
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import TypeVar

import aiohttp
import msgspec
from blake3 import blake3

from ring.buffers import BufferPool, Lease, size_class
from ring.byte_gate import ByteGate
from ring.digests import FINGERPRINT_SIZE, SLICE_COUNT
from ring.errors import PeerUnreachableError
from ring.identity import ClusterIdentity
from ring.interfaces import CHUNK_SIZE_LIMIT, Codec, Encoded, PutOutcome
from ring.members import Member, NodeId
from ring.peer_health import PeerHealth
from ring.peer_transport import READ_SECONDS, WRITE_SECONDS, PeerTransport, translated
from ring.peer_wire import (
    CODEC_HEADER,
    DIGEST_HEADER,
    GET_BATCH_BODY_LIMIT,
    IDS_LIMIT,
    PLAIN_LENGTH_HEADER,
    PREFIX,
    SMALL_PUT_LIMIT,
    ChunkState,
    PeerStatus,
    PutAnswer,
    PutTarget,
    ScrubAnswer,
    SmallPut,
    chunk_path,
    confirm_path,
    decode_gets,
    decode_ids,
    digests_path,
    encode_ids,
    encode_touches,
    ids_path,
    partition_ids_path,
    range_path,
    slice_digests_path,
    touch_path,
)
from ring.put_batches import PutBatches

PEER_SHARE = 4
"""A quarter of the buffers at most wait for the answers of one peer, so that one which hangs leaves
most of them to the others. 32 MiB of the usual 128 are several times what is under way at full
speed."""

_Document = TypeVar("_Document")


class FetchedContent:
    """A payload in a leased buffer, not yet verified. Release it, or take the lease over."""

    __slots__ = ("content", "lease")

    def __init__(self, lease: Lease, content: Encoded) -> None:
        self.lease = lease
        self.content = content


class PeerClient:
    """Asks other nodes. Start it on the loop that uses it; `tls` is `ring.tls.client_context`, and
    None where requests are signed instead. `pool` lends the buffers for what is fetched.

    Raises PeerUnreachableError, StaleEpochError and PeerRefusedError; and what a store would raise:
    ChunkNotFoundError, ChunkDamagedError, StoreFullError.
    """

    def __init__(
        self, identity: ClusterIdentity, *, pool: BufferPool, tls: ssl.SSLContext | None
    ) -> None:
        self._node_id = identity.node_id
        self._pool = pool
        self._reads: dict[NodeId, ByteGate] = {}
        self._transport = PeerTransport(identity, tls=tls)
        self._batches = PutBatches(self._put_several)

    async def start(self) -> None:
        await self._transport.start()

    async def close(self) -> None:
        await self._transport.close()

    def health(self, node_id: NodeId) -> PeerHealth:
        return self._transport.health(node_id)

    def is_short(self, pool: BufferPool | None = None) -> bool:
        """Whether somebody waits for one of the buffers that fetching needs."""
        return (pool or self._pool).waiting > 0

    def now(self) -> float:
        """The time that `PeerHealth.rank` asks for."""
        return self._transport.now()

    async def put(self, member: Member, target: PutTarget, payload: memoryview) -> PutOutcome:
        """Send a chunk; it is durable there on return. Small ones share requests."""
        if len(payload) <= SMALL_PUT_LIMIT:
            answer = await self._batches.put(member, target, payload)
            if answer.refusal is not None:
                raise translated(answer.refusal, member.node_id, target.chunk_id)
            return PutOutcome.EXISTED if answer.existed else PutOutcome.WRITTEN
        async with self._transport.request(
            member, "PUT", target.path(), payload, seconds=WRITE_SECONDS, named=True
        ) as response:
            return PutOutcome.WRITTEN if response.status == 201 else PutOutcome.EXISTED

    async def _put_several(self, member: Member, puts: list[SmallPut]) -> list[PutAnswer]:
        body = msgspec.msgpack.encode(puts)
        answers = await self._ask(
            member, "POST", f"{PREFIX}/puts", body, list[PutAnswer], seconds=WRITE_SECONDS
        )
        return _as_many(answers, puts, member)

    async def get(
        self,
        member: Member,
        chunk_id: bytes,
        *,
        length_limit: int = CHUNK_SIZE_LIMIT,
        pool: BufferPool | None = None,
    ) -> FetchedContent:
        """Fetch a whole chunk in its stored form, unverified; at most `length_limit` bytes.

        The buffer is of `pool`, the clients' where none is given.
        """
        if pool is not None:
            return await self._get(member, chunk_id, length_limit, pool)
        gate, size = self._reads_of(member), size_class(length_limit)
        await gate.enter(size)
        try:
            return await self._get(member, chunk_id, length_limit, self._pool)
        finally:
            gate.leave(size)

    async def _get(
        self, member: Member, chunk_id: bytes, length_limit: int, pool: BufferPool
    ) -> FetchedContent:
        # Taken before asking: a peer that has begun to answer must not have to wait for it.
        lease = await pool.lease(length_limit)
        try:
            async with self._transport.request(
                member, "GET", chunk_path(chunk_id), seconds=READ_SECONDS, chunk_id=chunk_id
            ) as response:
                codec, plain_length = _form(response, member)
                view = await _receive(response, member, lease.view[:length_limit])
        except BaseException:
            lease.release()
            raise
        return FetchedContent(lease, Encoded(view, codec, plain_length))

    async def get_several(
        self, member: Member, chunk_ids: Sequence[bytes], *, pool: BufferPool
    ) -> tuple[Lease, list[Encoded | None]]:
        """Fetch small chunks in their stored form, unverified; at most `GET_BATCH_LIMIT`.

        None for those that the peer has not, that are damaged, too large, or did not fit. All lie
        in the one lease, which the caller releases.
        """
        lease = await pool.lease(GET_BATCH_BODY_LIMIT)
        try:
            async with self._transport.request(
                member,
                "POST",
                f"{PREFIX}/gets",
                memoryview(encode_ids(chunk_ids)),
                seconds=READ_SECONDS,
            ) as response:
                body = await _receive(response, member, lease.view[:GET_BATCH_BODY_LIMIT])
                found = _as_many(decode_gets(body), chunk_ids, member)
        except BaseException:
            lease.release()
            raise
        return lease, [
            None if each is None else Encoded(each.payload, each.codec, each.plain_length)
            for each in found
        ]

    async def get_range(self, member: Member, chunk_id: bytes, start: int, end: int) -> memoryview:
        """Fetch plaintext that the peer has verified; a damaged transfer is refused here.

        The buffer goes back to the pool with the last view on it.
        """
        path = range_path(chunk_id, start, end)
        gate, size = self._reads_of(member), size_class(end - start)
        await gate.enter(size)
        try:
            lease = await self._pool.lease(end - start)
            try:
                async with self._transport.request(
                    member, "GET", path, seconds=READ_SECONDS, chunk_id=chunk_id
                ) as response:
                    digest = response.headers.get(DIGEST_HEADER, "")
                    view = await _receive(response, member, lease.view[: end - start])
            except BaseException:
                lease.release()
                raise
        finally:
            gate.leave(size)
        if len(view) != end - start or blake3(view).hexdigest() != digest:
            lease.release()
            raise PeerUnreachableError(member.node_id, "a range was damaged on its way")
        return lease.lend(0, end - start)

    def _reads_of(self, member: Member) -> ByteGate:
        """Bounds the buffers that wait for one peer: it may hang."""
        gate = self._reads.get(member.node_id)
        if gate is None:
            gate = ByteGate(self._pool.budget_bytes // PEER_SHARE)
            self._reads[member.node_id] = gate
        return gate

    async def stat(self, member: Member, chunk_ids: Sequence[bytes]) -> list[ChunkState | None]:
        body = encode_ids(chunk_ids)
        path = f"{PREFIX}/stat"
        states = await self._ask(member, "POST", path, body, list[ChunkState | None])
        return _as_many(states, chunk_ids, member)

    async def touch(
        self, member: Member, chunk_ids: Sequence[bytes], *, epoch: int, touch: int
    ) -> list[bool]:
        """Confirm chunks: True where the peer owns and has it, its touch raised (rules D1, D2)."""
        path = touch_path(epoch, touch)
        flags = await self._ask(member, "POST", path, encode_ids(chunk_ids), list[bool])
        return _as_many(flags, chunk_ids, member)

    async def confirm(
        self, member: Member, touches: Sequence[tuple[bytes, int]], *, epoch: int
    ) -> list[bool]:
        """Have chunks confirmed for the drop of another copy: True where the peer owns and has it
        at this epoch, its touch raised to the one given and no further (rules D5, D10)."""
        body = encode_touches(touches)
        # It reads a record header for each, and nobody waits for it.
        flags = await self._ask(
            member, "POST", confirm_path(epoch), body, list[bool], seconds=WRITE_SECONDS
        )
        return _as_many(flags, touches, member)

    async def ids(self, member: Member, after: bytes, limit: int) -> list[bytes]:
        """Up to `limit` ids the peer holds, greater than `after`, in order."""
        path = ids_path(after, limit)
        async with self._transport.request(member, "GET", path, seconds=READ_SECONDS) as response:
            return decode_ids(await response.read(), limit)

    async def digests(self, member: Member, epoch: int, count: int) -> bytes:
        """The fingerprints of the `count` partitions that the peer and this node own."""
        path = digests_path(epoch, self._node_id)
        return await self._fingerprints(member, path, count)

    async def slice_digests(self, member: Member, epoch: int, partition: int) -> bytes:
        """The fingerprints of the slices of a partition that the peer owns."""
        path = slice_digests_path(epoch, partition)
        return await self._fingerprints(member, path, SLICE_COUNT)

    async def partition_ids(
        self, member: Member, epoch: int, partition: int, number: int | None, after: bytes
    ) -> list[bytes]:
        """Up to `IDS_LIMIT` ids greater than `after` that the peer holds of a partition it owns,
        or of one slice of it, in order."""
        path = partition_ids_path(epoch, partition, number, after)
        async with self._transport.request(member, "GET", path, seconds=READ_SECONDS) as response:
            return decode_ids(await response.read(), IDS_LIMIT)

    async def _fingerprints(self, member: Member, path: str, count: int) -> bytes:
        async with self._transport.request(member, "GET", path, seconds=READ_SECONDS) as response:
            found = await response.read()
        if len(found) != count * FINGERPRINT_SIZE:
            raise PeerUnreachableError(
                member.node_id, f"{len(found)} bytes of fingerprints for {count}"
            )
        return found

    async def status(self, member: Member) -> PeerStatus:
        return await self._ask(member, "GET", f"{PREFIX}/node", b"", PeerStatus)

    async def scrub(self, member: Member) -> int:
        """Let a peer begin a scrub; returns the passes it will have ended by then."""
        answer = await self._ask(member, "POST", f"{PREFIX}/scrub", b"", ScrubAnswer)
        return answer.passes

    async def _ask(
        self,
        member: Member,
        method: str,
        path: str,
        body: bytes,
        kind: type[_Document],
        *,
        seconds: float = READ_SECONDS,
    ) -> _Document:
        async with self._transport.request(
            member, method, path, memoryview(body), seconds=seconds
        ) as response:
            return msgspec.msgpack.decode(await response.read(), type=kind)


async def _receive(
    response: aiohttp.ClientResponse, member: Member, room: memoryview
) -> memoryview:
    """Read the body into `room`; returns the part of it that was filled."""
    length = response.content_length
    if length is None or not 0 < length <= len(room):
        raise PeerUnreachableError(
            member.node_id, f"{length} bytes were announced, at most {len(room)} expected"
        )
    filled, content = 0, response.content
    while piece := await content.readany():
        end = filled + len(piece)
        room[filled:end] = piece
        filled = end
    if filled < length:
        raise PeerUnreachableError(member.node_id, f"{filled} bytes came of {length}")
    return room[:length]


def _form(response: aiohttp.ClientResponse, member: Member) -> tuple[Codec, int]:
    try:
        codec = Codec(int(response.headers.get(CODEC_HEADER, "")))
        return codec, int(response.headers.get(PLAIN_LENGTH_HEADER, ""))
    except ValueError as error:
        raise PeerUnreachableError(member.node_id, f"no form of a chunk: {error}") from error


def _as_many(
    answers: list[_Document], questions: Sequence[object], member: Member
) -> list[_Document]:
    if len(answers) != len(questions):
        raise PeerUnreachableError(
            member.node_id, f"{len(answers)} answers to {len(questions)} questions"
        )
    return answers
