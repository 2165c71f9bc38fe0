"""Requests between peers, as far as they are the same for everything that is asked.

Connections are kept and shared, their number per peer is bounded, bodies go out in slices with
back-pressure and straight from the caller's buffer. Where TLS is off, requests are signed within a
session that the peer has opened, and nothing is asked of a peer before it has proven to know the
secret. What fails is translated here; a peer that fails is remembered for a while as one to ask
last.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import ssl
import traceback
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
from aiohttp.abc import AbstractStreamWriter
from blake3 import blake3

from ring.errors import (
    ChunkDamagedError,
    ChunkNotFoundError,
    PeerRefusedError,
    PeerUnreachableError,
    RingError,
    StaleEpochError,
    StoreFullError,
)
from ring.identity import ClusterIdentity
from ring.members import Member, NodeId
from ring.peer_health import PeerHealth
from ring.peer_wire import (
    CLUSTER_HEADER,
    CREDENTIALS_HEADER,
    PREFIX,
    SLICE_SIZE,
    Refusal,
    Welcome,
)
from ring.signatures import BOOT_NONCE_SIZE, Session, equal, sign_request, sign_welcome

CONNECTIONS_PER_PEER = 128
"""Requests to one peer under way at once; more wait. Enough to fill a group commit of its disk."""

CONNECT_SECONDS = 1.0
"""A peer in the same network answers within milliseconds, or is down."""

READ_SECONDS = 3.0
"""Silence of a peer that is asked for a chunk or an index look-up: disks that are slower than this
are broken, and somebody else has a copy."""

WRITE_SECONDS = 20.0
"""The answer to a write waits for a sync, behind others; a busy disk may take seconds."""

TRANSFER_SECONDS = 15.0
"""On top of these, for the bytes of 8 MiB on their way: some 600 KB/s at least."""

_KEEPALIVE_SECONDS = 30.0
_READ_BUFFER_SIZE = 512 * 1024
_SMALL_BODY = 256 * 1024
"""Bodies up to this go to the connection in one piece."""


@dataclass(slots=True)
class _Peer:
    """What is remembered of a peer."""

    health: PeerHealth = field(default_factory=PeerHealth)
    session: Session | None = None
    counter: int = 0
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)


class PeerTransport:
    """The connections of a node to the others. Start it on the loop that uses it."""

    def __init__(self, identity: ClusterIdentity, *, tls: ssl.SSLContext | None) -> None:
        self._identity = identity
        self._tls = tls
        self._key = identity.request_key()
        self._peers: dict[NodeId, _Peer] = {}

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                limit_per_host=CONNECTIONS_PER_PEER,
                keepalive_timeout=_KEEPALIVE_SECONDS,
            ),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={CLUSTER_HEADER: self._identity.cluster_name()},
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            read_bufsize=_READ_BUFFER_SIZE,
        )

    async def close(self) -> None:
        await self._session.close()

    def health(self, node_id: NodeId) -> PeerHealth:
        return self._peer(node_id).health

    def now(self) -> float:
        return self._loop.time()

    def request(
        self,
        member: Member,
        method: str,
        path: str,
        body: memoryview | None = None,
        *,
        seconds: float,
        named: bool = False,
        chunk_id: bytes = b"",
    ) -> _Exchange:
        """A request, as a context whose value is an answer that is a success.

        `seconds` bounds the peer's silence. `named` says that the path names the body, so that its
        digest is not signed; `chunk_id` is the chunk that errors are about.
        """
        return _Exchange(self, member, method, path, body, seconds, named, chunk_id)

    def _peer(self, node_id: NodeId) -> _Peer:
        peer = self._peers.get(node_id)
        if peer is None:
            peer = self._peers[node_id] = _Peer()
        return peer

    async def send(self, exchange: _Exchange) -> aiohttp.ClientResponse:
        """Send a request and return an answer that is a success. For `_Exchange`."""
        member = exchange.member
        for attempt in (1, 2):
            response = await self._send_once(exchange)
            if response.status < 300:
                return response
            refusal = await _refusal(response)
            response.release()
            if refusal.code == "unknown_session" and attempt == 1:
                # The peer has restarted, or forgot us; another session is one round trip away.
                peer = self._peer(member.node_id)
                if peer.session is exchange.session:
                    peer.session = None
                continue
            break
        raise translated(refusal, member.node_id, exchange.chunk_id)

    async def _send_once(self, exchange: _Exchange) -> aiohttp.ClientResponse:
        body = exchange.body
        headers: dict[str, str] = {}
        if self._tls is None:
            headers[CREDENTIALS_HEADER] = await self._credentials(exchange)
        data: Any = body
        if body is not None and len(body) > _SMALL_BODY:
            data = _SlicedPayload(body)
        return await self._open(exchange, data, headers)

    async def _open(
        self, exchange: _Exchange, data: Any, headers: dict[str, str]
    ) -> aiohttp.ClientResponse:
        member = exchange.member
        scheme = "http" if self._tls is None else "https"
        return await self._session.request(
            exchange.method,
            f"{scheme}://{member.peer_address}{exchange.path}",
            data=data,
            headers=headers,
            allow_redirects=False,
            timeout=_timeout(exchange.seconds),
            ssl=self._tls if self._tls is not None else True,
            server_hostname=member.node_id if self._tls is not None else None,
        )

    async def _credentials(self, exchange: _Exchange) -> str:
        peer = self._peer(exchange.member.node_id)
        if peer.session is None:
            async with peer.opening:
                if peer.session is None:
                    peer.session, peer.counter = await self._open_session(exchange.member), 0
        exchange.session = peer.session
        peer.counter += 1
        body = exchange.body
        digest = b"" if exchange.named or not body else blake3(body).digest()
        return sign_request(
            self._key,
            sender=self._identity.node_id,
            receiver=exchange.member.node_id,
            session=peer.session,
            counter=peer.counter,
            method=exchange.method,
            target=exchange.path,
            body_digest=digest,
        ).text()

    async def _open_session(self, member: Member) -> Session:
        challenge = secrets.token_bytes(BOOT_NONCE_SIZE)
        exchange = self.request(member, "POST", f"{PREFIX}/sessions", seconds=READ_SECONDS)
        response = await self._open(exchange, challenge, {})
        async with response:
            if response.status >= 300:
                raise translated(await _refusal(response), member.node_id, b"")
            welcome = msgspec.msgpack.decode(await response.read(), type=Welcome)
        session = Session(welcome.boot_nonce, welcome.number)
        proof = sign_welcome(
            self._key, receiver=member.node_id, challenge=challenge, session=session
        )
        if not equal(proof, welcome.proof):
            raise PeerRefusedError(
                member.node_id,
                "bad_signature",
                f"{member.peer_address} is not node {member.node_id} of this cluster",
            )
        return session


@dataclass(slots=True)
class _Exchange:
    """One request and its answer, as a context: translates what fails, and keeps the time."""

    transport: PeerTransport
    member: Member
    method: str
    path: str
    body: memoryview | None
    seconds: float
    named: bool
    chunk_id: bytes
    session: Session | None = None
    """The one it was last signed in."""
    _response: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> aiohttp.ClientResponse:
        started = self.transport.now()
        health = self.transport.health(self.member.node_id)
        try:
            self._response = await self.transport.send(self)
        except _TRANSPORT_ERRORS as error:
            health.failed(self.transport.now())
            raise self._unreachable(error) from error
        health.answered(self.transport.now() - started)
        return self._response

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        assert self._response is not None
        if error is None:
            self._response.release()
            return
        # An answer that was not read to its end can't be followed by another.
        self._response.close()
        if isinstance(error, _TRANSPORT_ERRORS):
            self.transport.health(self.member.node_id).failed(self.transport.now())
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> PeerUnreachableError:
        told = _reason(error)
        self.body = None
        _let_go(error)
        return PeerUnreachableError(
            self.member.node_id, f"{self.member.peer_address} does not answer ({told})"
        )


def _reason(error: Exception) -> str:
    """The cause without the address, which is told already, and aiohttp's words around it."""
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        # The numbers of TLS errors are OpenSSL's own, not the system's.
        code = None if isinstance(cause, ssl.SSLError) else cause.errno
        if code is not None and code in errno.errorcode:
            return os.strerror(code)
        return str(cause) or type(cause).__name__
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _let_go(error: BaseException) -> None:
    """Empty the frames behind an error, which hold buffers that were to be sent or filled.

    aiohttp makes cycles of its errors, and what they hold would come back to the pool only with
    some later garbage collection; a peer that is down could so use up a node's buffers.
    """
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__


_TRANSPORT_ERRORS = (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError)

_TIMEOUTS: dict[float, aiohttp.ClientTimeout] = {}


def _timeout(seconds: float) -> aiohttp.ClientTimeout:
    timeout = _TIMEOUTS.get(seconds)
    if timeout is None:
        timeout = aiohttp.ClientTimeout(
            total=seconds + TRANSFER_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=seconds
        )
        _TIMEOUTS[seconds] = timeout
    return timeout


class _SlicedPayload(aiohttp.Payload):
    """A large body, sent from its buffer slice by slice; can be sent again, as a retry needs."""

    def __init__(self, body: memoryview) -> None:
        super().__init__(body, content_type="application/octet-stream")
        self._body = body
        self._size = len(body)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:  # noqa: ARG002
        raise TypeError("a chunk is no text")

    async def write(self, writer: AbstractStreamWriter) -> None:
        for start in range(0, len(self._body), SLICE_SIZE):
            await writer.write(self._body[start : start + SLICE_SIZE])

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        assert content_length in {None, len(self._body)}
        await self.write(writer)


async def _refusal(response: aiohttp.ClientResponse) -> Refusal:
    try:
        return msgspec.msgpack.decode(await response.read(), type=Refusal)
    except msgspec.DecodeError:
        return Refusal(code="unexpected", detail=f"HTTP status {response.status}")


def translated(refusal: Refusal, node_id: NodeId, chunk_id: bytes) -> RingError:
    """The error that a peer's refusal means here; `chunk_id` is the chunk that was asked about."""
    match refusal.code:
        case "stale_epoch":
            return StaleEpochError(node_id, refusal.epoch)
        case "chunk_not_found":
            return ChunkNotFoundError(chunk_id)
        case "chunk_damaged":
            return ChunkDamagedError(chunk_id, f"node {node_id}: {refusal.detail}")
        case "store_full":
            return StoreFullError(f"node {node_id}: {refusal.detail}")
    return PeerRefusedError(node_id, refusal.code, refusal.detail)
