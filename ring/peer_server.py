"""The peer's side of the ring's HTTP: this node's chunks, for the other nodes of the cluster.

Nobody is answered who has not proven to belong to the cluster: by a certificate where TLS is on, by
a signature elsewhere. A write is taken only at the epoch this node is at, and only if that epoch's
ring gives this node a part in it (rule D1). Serving a peer never calls a peer, so nodes can't wait
for each other in a circle; its buffers come from a pool of its own for the same reason. All that a
peer may send is bounded in size, in time and in number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor

from aiohttp import web
from blake3 import blake3

from ring.buffers import LEASE_WAIT_SECONDS, BufferPool, size_class
from ring.byte_gate import ByteGate
from ring.errors import OverloadedError, RingError
from ring.filesystem import Buffer
from ring.identity import ClusterIdentity
from ring.interfaces import (
    CHUNK_SIZE_LIMIT,
    ChunkStore,
    ClusterView,
    Encoded,
    PutOutcome,
)
from ring.members import NodeId
from ring.peer_answers import (
    BODY_SECONDS,
    BodyPatience,
    RefusedError,
    answer_document,
    answer_refusal,
    code_of,
    refuse,
    send_chunk,
    small_chunks,
)
from ring.peer_digests import DigestAnswers
from ring.peer_wire import (
    BATCH_LIMIT,
    BODY_LIMIT,
    CLUSTER_HEADER,
    CODEC_HEADER,
    CREDENTIALS_HEADER,
    DIGEST_HEADER,
    GET_BATCH_LIMIT,
    IDS_LIMIT,
    PLAIN_LENGTH_HEADER,
    PREFIX,
    PUT_BATCH_BODY_LIMIT,
    ChunkState,
    MalformedError,
    PeerStatus,
    Purpose,
    PutAnswer,
    PutTarget,
    Refusal,
    ScrubAnswer,
    SmallPut,
    Welcome,
    decode_ids,
    decode_puts,
    decode_touches,
    encode_ids,
    parse_after,
    parse_chunk_id,
    parse_number,
    parse_partition,
    parse_slice,
)
from ring.placement import Ring
from ring.ring_cache import RingCache
from ring.signatures import (
    Credentials,
    RefusedSignatureError,
    RequestVerifier,
    sign_welcome,
)
from ring.tls import peer_node_id

REQUEST_LIMIT = 512
"""Requests in progress; a node's peers have a few hundred under way at most, so more means that
this node has fallen behind, and waiting in line would only make it worse."""

SENDER_SHARE = 2
"""Half of the buffers at most hold what one node sends in requests of their own; a node whose
uploads all go here needs no more to keep the disk busy."""

SENDERS_LIMIT = 1024
"""Nodes that are told apart: more than a cluster has. Shares in use live on when forgotten."""

READ_BUFFER_SIZE = 512 * 1024
"""What a connection reads ahead: large bodies come in few pieces, idle ones hold nothing."""

KEEPALIVE_SECONDS = 75.0
"""Longer than a client keeps a connection, so that it is never closed under a new request."""

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_peer_application(
    store: ChunkStore,
    view: ClusterView,
    identity: ClusterIdentity,
    *,
    rings: RingCache,
    pool: BufferPool,
    workers: Executor,
    signed: bool,
    settled: Callable[[], bool] = lambda: False,
    figures: Callable[[], Mapping[str, float]] = dict,
    scrub: Callable[[], int] | None = None,
    clients_active: Callable[[], bool] = lambda: False,
) -> web.Application:
    """Build the application for the peer port; serve it with `peer_runner`.

    `pool` must be used for nothing else. `signed` asks for signatures: set it wherever the listener
    is not one with `ring.tls.server_context`. `settled`, `clients_active` and `figures` are what
    this node says of itself; `scrub` begins one, and tells its number.
    """
    server = _PeerServer(
        store,
        view,
        identity,
        rings=rings,
        pool=pool,
        workers=workers,
        signed=signed,
        settled=settled,
        figures=figures,
        scrub=scrub,
        clients_active=clients_active,
    )
    application = web.Application(client_max_size=BODY_LIMIT)
    application.router.add_routes(server.routes())
    return application


def peer_runner(application: web.Application) -> web.AppRunner:
    """A runner with the connection settings that this protocol wants."""
    return web.AppRunner(
        application,
        access_log=None,
        auto_decompress=False,
        keepalive_timeout=KEEPALIVE_SECONDS,
        read_bufsize=READ_BUFFER_SIZE,
    )


class _PeerServer:
    def __init__(
        self,
        store: ChunkStore,
        view: ClusterView,
        identity: ClusterIdentity,
        *,
        rings: RingCache,
        pool: BufferPool,
        workers: Executor,
        signed: bool,
        settled: Callable[[], bool],
        figures: Callable[[], Mapping[str, float]],
        scrub: Callable[[], int] | None,
        clients_active: Callable[[], bool],
    ) -> None:
        self._settled = settled
        self._figures = figures
        self._begin_scrub = scrub
        self._clients_active = clients_active
        self._store = store
        self._view = view
        self._rings = rings
        self._identity = identity
        self._pool = pool
        self._workers = workers
        self._key = identity.request_key()
        self._verifier = RequestVerifier(self._key, identity.node_id) if signed else None
        self._digest_answers = DigestAnswers(identity.node_id, store, workers)
        self._shares: dict[NodeId, ByteGate] = {}
        self._active = 0

    def routes(self) -> list[web.RouteDef]:
        identifier = "{id}"
        return [
            web.post(f"{PREFIX}/sessions", self._guard(self._open_session, admit=False)),
            web.put(f"{PREFIX}/chunks/{{target:.*}}", self._guard(self._put)),
            web.post(f"{PREFIX}/puts", self._guard(self._put_several, admit=False)),
            web.get(f"{PREFIX}/chunks/{identifier}", self._guard(self._get), allow_head=False),
            web.post(f"{PREFIX}/gets", self._guard(self._get_several, admit=False)),
            web.get(
                f"{PREFIX}/ranges/{identifier}/{{start}}/{{end}}",
                self._guard(self._get_range),
                allow_head=False,
            ),
            web.post(f"{PREFIX}/stat", self._guard(self._stat, admit=False)),
            web.post(f"{PREFIX}/touch/{{epoch}}/{{touch}}", self._guard(self._touch, admit=False)),
            web.post(f"{PREFIX}/confirm/{{epoch}}", self._guard(self._confirm, admit=False)),
            web.get(f"{PREFIX}/ids/{{after}}/{{limit}}", self._guard(self._ids)),
            web.get(f"{PREFIX}/digests/{{epoch}}/{{asking}}", self._guard(self._digests)),
            web.get(
                f"{PREFIX}/slice-digests/{{epoch}}/{{partition}}",
                self._guard(self._slice_digests),
            ),
            web.get(
                f"{PREFIX}/partition-ids/{{epoch}}/{{partition}}/{{slice}}/{{after}}",
                self._guard(self._partition_ids),
            ),
            web.get(f"{PREFIX}/node", self._guard(self._node)),
            web.post(f"{PREFIX}/scrub", self._guard(self._scrub)),
        ]

    # --- who is let in -----------------------------------------------------------------------

    def _guard(self, handler: _Handler, *, admit: bool = True) -> _Handler:
        """Wrap a handler: count it, check its sender, and answer errors as a Refusal.

        With `admit` false the handler checks the sender itself, once it has read the body.
        """

        async def guarded(request: web.Request) -> web.StreamResponse:
            if self._active >= REQUEST_LIMIT:
                return refuse("overloaded", f"{REQUEST_LIMIT} requests are under way")
            self._active += 1
            try:
                if admit:
                    self._admit(request, b"")
                return await handler(request)
            except RefusedError as error:
                return answer_refusal(error.refusal)
            except RefusedSignatureError as error:
                return refuse(error.code, str(error))
            except MalformedError as error:
                return refuse("malformed", str(error))
            except RingError as error:
                return refuse(code_of(error), str(error))
            except TimeoutError:
                return refuse("body_timeout", "the body did not come in time")
            finally:
                self._active -= 1

        return guarded

    def _admit(self, request: web.Request, body: Buffer) -> None:
        """Raises RefusedSignatureError unless a node of this cluster sent the request."""
        # A certificate, too, is the same in every incarnation.
        self._same_cluster(request)
        if self._verifier is None:
            return
        self._verifier.verify(
            Credentials.parse(request.headers.get(CREDENTIALS_HEADER, "")),
            method=request.method,
            target=request.raw_path,
            body_digest=blake3(body).digest() if body else b"",
        )

    def _same_cluster(self, request: web.Request) -> None:
        name = self._identity.cluster_name()
        if request.headers.get(CLUSTER_HEADER) != name:
            raise RefusedSignatureError(
                "wrong_cluster", f"this is a node of cluster {name} (id and incarnation)"
            )

    async def _body(self, request: web.Request) -> bytes:
        """Read a body that is no chunk, and check the sender."""
        length = request.content_length
        if length is None or length > BODY_LIMIT:
            raise RefusedError(
                Refusal(code="body_too_large", detail=f"at most {BODY_LIMIT} bytes, length told")
            )
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.read()
        self._admit(request, body)
        return body

    async def _open_session(self, request: web.Request) -> web.StreamResponse:
        """Give out a session; who does not have the key can do nothing with it."""
        if self._verifier is None:
            raise MalformedError("this listener identifies peers by their certificates")
        self._same_cluster(request)
        async with asyncio.timeout(BODY_SECONDS):
            challenge = await request.content.readexactly(_challenge_length(request))
        session = self._verifier.open_session()
        proof = sign_welcome(
            self._key, receiver=self._identity.node_id, challenge=challenge, session=session
        )
        return answer_document(
            Welcome(boot_nonce=session.boot_nonce, number=session.number, proof=proof)
        )

    # --- writes ------------------------------------------------------------------------------

    async def _put(self, request: web.Request) -> web.StreamResponse:
        target = PutTarget.parse(request.match_info["target"].split("/"))
        length = request.content_length
        if length is None or not 0 < length <= CHUNK_SIZE_LIMIT:
            raise RefusedError(
                Refusal(code="body_too_large", detail=f"a chunk has 1 to {CHUNK_SIZE_LIMIT} bytes")
            )
        await self._fence(target.epoch, target.chunk_id, target.purpose)
        share, size = self._share_of(request), size_class(length)
        try:
            async with asyncio.timeout(LEASE_WAIT_SECONDS):
                await share.enter(size)
        except TimeoutError:
            raise OverloadedError("what its sender has sent before holds its buffers") from None
        try:
            lease = await self._pool.lease(length)
            try:
                await self._receive(request, lease.view[:length])
                outcome = await self._take(target, lease.view[:length])
            finally:
                lease.release()
        finally:
            share.leave(size)
        return web.Response(status=201 if outcome is PutOutcome.WRITTEN else 200)

    def _share_of(self, request: web.Request) -> ByteGate:
        """Bounds the buffers that what one node sends takes: it may hang in the middle of it."""
        if self._verifier is None:
            certificate = request.transport.get_extra_info("peercert") if request.transport else {}
            sender = peer_node_id(certificate) or ""
        else:
            sender = request.headers.get(CREDENTIALS_HEADER, "").partition(" ")[0]
        share = self._shares.get(sender)
        if share is None:
            if len(self._shares) >= SENDERS_LIMIT:
                self._shares.clear()
            share = self._shares[sender] = ByteGate(self._pool.budget_bytes // SENDER_SHARE)
        return share

    async def _put_several(self, request: web.Request) -> web.StreamResponse:
        length = request.content_length
        if length is None or not 0 < length <= PUT_BATCH_BODY_LIMIT:
            raise RefusedError(
                Refusal(
                    code="body_too_large",
                    detail=f"chunks that share a request have at most {PUT_BATCH_BODY_LIMIT} bytes",
                )
            )
        lease = await self._pool.lease(length)
        try:
            body = lease.view[:length]
            await self._receive(request, body)
            self._admit(request, body)
            # All have ended when this returns, also where it is cancelled: they read the buffer.
            answers = await asyncio.gather(
                *(self._take_one(put) for put in decode_puts(body)), return_exceptions=True
            )
        finally:
            lease.release()
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answer_document(answers)

    async def _take_one(self, put: SmallPut) -> PutAnswer:
        try:
            outcome = await self._take(put.target, put.payload)
        except RefusedError as error:
            return PutAnswer(refusal=error.refusal)
        except RingError as error:
            return PutAnswer(refusal=Refusal(code=code_of(error), detail=str(error)))
        return PutAnswer(existed=outcome is PutOutcome.EXISTED)

    async def _take(self, target: PutTarget, payload: memoryview) -> PutOutcome:
        """Store a chunk whose bytes are all here, and confirm it for the epoch it came with."""
        # The ring may have changed while the body came.
        await self._fence(target.epoch, target.chunk_id, target.purpose)
        touch = target.touch
        if target.purpose is not Purpose.REPAIR:
            touch = max(touch, self._view.generation())
        content = Encoded(payload, target.codec, target.plain_length)
        outcome = await self._store.put(target.chunk_id, content, touch=touch)
        # Or while the disk was busy: what is confirmed for an epoch was durable while it lasted.
        await self._ring_at(target.epoch)
        return outcome

    async def _receive(self, request: web.Request, view: memoryview) -> None:
        content = request.content
        filled = 0
        async with BodyPatience(len(view)) as patience:
            while piece := await content.readany():
                end = filled + len(piece)
                if end > len(view):
                    raise MalformedError("the body is longer than announced")
                view[filled:end] = piece
                filled = end
                patience.moved()
        if filled < len(view):
            raise MalformedError("the body is shorter than announced")

    async def _ring_at(self, epoch: int) -> Ring:
        """The current ring, if `epoch` is its epoch (rule D1)."""
        ring = self._rings.ready()
        if ring is None:
            ring = await self._rings.current()
        if epoch != ring.epoch:
            raise RefusedError(
                Refusal(
                    code="stale_epoch",
                    detail=f"this node is at epoch {ring.epoch}, the request at {epoch}",
                    epoch=ring.epoch,
                )
            )
        return ring

    async def _fence(self, epoch: int, chunk_id: bytes, purpose: Purpose) -> None:
        """Take a chunk only at this node's epoch, and only with a part in it (rule D1)."""
        ring = await self._ring_at(epoch)
        handoff = purpose is Purpose.HANDOFF
        nodes = ring.handoffs(chunk_id) if handoff else ring.owners(chunk_id)
        if self._identity.node_id not in nodes:
            part = "a handoff" if handoff else "an owner"
            raise RefusedError(
                Refusal(
                    code="not_owner",
                    detail=f"this node is not {part} of chunk {chunk_id.hex()} in epoch {epoch}",
                )
            )

    async def _touch(self, request: web.Request) -> web.StreamResponse:
        chunk_ids = decode_ids(await self._body(request), BATCH_LIMIT)
        epoch = parse_number(request.match_info["epoch"])
        touch = parse_number(request.match_info["touch"])
        generation = self._view.generation()
        asked = [(chunk_id, max(touch, generation)) for chunk_id in chunk_ids]
        return answer_document(await self._confirmed(epoch, asked))

    async def _confirm(self, request: web.Request) -> web.StreamResponse:
        """Unlike a client's, this touch is taken as it comes: a move renews nothing (rule D10)."""
        touches = decode_touches(await self._body(request), BATCH_LIMIT)
        epoch = parse_number(request.match_info["epoch"])
        return answer_document(await self._confirmed(epoch, touches))

    async def _confirmed(self, epoch: int, touches: Sequence[tuple[bytes, int]]) -> list[bool]:
        """Which of the chunks this node owns and has at `epoch`, their touches raised (D1, D5)."""
        ring = await self._ring_at(epoch)
        owned = [self._identity.node_id in ring.owners(chunk_id) for chunk_id, _ in touches]
        asked = [touch for touch, own in zip(touches, owned, strict=True) if own]
        flags = iter(await self._store.confirm(asked))
        # As for writes: what is confirmed for an epoch was durable while it lasted.
        await self._ring_at(epoch)
        return [next(flags) if own else False for own in owned]

    # --- reads -------------------------------------------------------------------------------

    async def _get(self, request: web.Request) -> web.StreamResponse:
        chunk_id = parse_chunk_id(request.match_info["id"])
        content = await self._store.get_encoded(chunk_id, pool=self._pool)
        headers = {
            CODEC_HEADER: str(content.codec.value),
            PLAIN_LENGTH_HEADER: str(content.plain_length),
        }
        return await send_chunk(request, memoryview(content.payload), headers)

    async def _get_several(self, request: web.Request) -> web.StreamResponse:
        chunk_ids = decode_ids(await self._body(request), GET_BATCH_LIMIT)
        return answer_document(await small_chunks(self._store, chunk_ids, self._pool))

    async def _get_range(self, request: web.Request) -> web.StreamResponse:
        chunk_id = parse_chunk_id(request.match_info["id"])
        start = parse_number(request.match_info["start"])
        end = parse_number(request.match_info["end"])
        if not start < end <= CHUNK_SIZE_LIMIT:
            raise MalformedError(f"no range of a chunk: {start} to {end}")
        content = await self._store.get(chunk_id, start=start, end=end, pool=self._pool)
        if len(content.data) != end - start:
            raise MalformedError(f"the chunk has {content.plain_length} bytes")
        digest = blake3(content.data).hexdigest()
        headers = {DIGEST_HEADER: digest, PLAIN_LENGTH_HEADER: str(content.plain_length)}
        return await send_chunk(request, content.data, headers)

    async def _stat(self, request: web.Request) -> web.StreamResponse:
        chunk_ids = decode_ids(await self._body(request), BATCH_LIMIT)
        states = [
            None
            if stat is None
            else ChunkState(stat.plain_length, not stat.quarantined, stat.touch)
            for stat in await self._store.stat(chunk_ids)
        ]
        return answer_document(states)

    async def _ids(self, request: web.Request) -> web.StreamResponse:
        after = parse_after(request.match_info["after"])
        limit = min(parse_number(request.match_info["limit"]), IDS_LIMIT)
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._workers, self._store.ids, after, limit)
        return web.Response(body=encode_ids(found))

    # --- anti-entropy ------------------------------------------------------------------------

    async def _digests(self, request: web.Request) -> web.StreamResponse:
        ring = await self._ring_at(parse_number(request.match_info["epoch"]))
        asking = request.match_info["asking"]
        found, _ = await self._digest_answers.shared(ring, asking)
        return web.Response(body=found)

    async def _slice_digests(self, request: web.Request) -> web.StreamResponse:
        partition = await self._owned_partition(request)
        return web.Response(body=await self._digest_answers.slices(partition))

    async def _partition_ids(self, request: web.Request) -> web.StreamResponse:
        partition = await self._owned_partition(request)
        number = parse_slice(request.match_info["slice"])
        after = parse_after(request.match_info["after"])
        found = await self._digest_answers.ids(partition, number, after, IDS_LIMIT)
        return web.Response(body=encode_ids(found))

    async def _owned_partition(self, request: web.Request) -> int:
        ring = await self._ring_at(parse_number(request.match_info["epoch"]))
        partition = parse_partition(request.match_info["partition"])
        if self._identity.node_id not in ring.partition_owners(partition):
            detail = f"this node is not an owner of partition {partition} in epoch {ring.epoch}"
            raise RefusedError(Refusal(code="not_owner", detail=detail))
        return partition

    async def _node(self, request: web.Request) -> web.StreamResponse:  # noqa: ARG002 # a handler.
        statistics = self._store.statistics()
        return answer_document(
            PeerStatus(
                node_id=self._identity.node_id,
                epoch=self._view.membership().epoch,
                generation=self._view.generation(),
                chunks=statistics.chunks,
                stored_bytes=statistics.stored_bytes,
                writable=statistics.writable and not statistics.full,
                requests_active=self._active,
                settled=self._settled(),
                figures=dict(self._figures()),
                clients_active=self._clients_active(),
            )
        )

    async def _scrub(self, request: web.Request) -> web.StreamResponse:  # noqa: ARG002 # a handler.
        if self._begin_scrub is None:
            raise MalformedError("this node does not scrub")
        return answer_document(ScrubAnswer(passes=self._begin_scrub()))


def _challenge_length(request: web.Request) -> int:
    length = request.content_length
    if length is None or not 16 <= length <= 64:
        raise MalformedError("a challenge has 16 to 64 bytes")
    return length
