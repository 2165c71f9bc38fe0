"""The connections between Raft peers: authenticated, bounded, and dialled again when they close.

Each node dials every member it knows an address of and sends over that connection only; what
others send comes over the connections they dialled. So there is never a question which of two
connections counts, and `can_send` says exactly whether this node's own one is up. A newer
connection from a peer replaces its older one.

Everything runs on the raft thread's loop. A peer that doesn't take its data in time is cut off:
what it missed, Raft sends again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Mapping
from typing import NoReturn, Protocol, cast

import msgspec

from metadata_raft.errors import FrameError, HandshakeError, PeerError
from metadata_raft.frames import (
    NONCE_SIZE,
    PROTOCOL_VERSION,
    REASON_INCARNATION,
    REASON_REMOVED,
    REASON_RESTORED,
    Challenge,
    FrameReader,
    FrameSealer,
    Hello,
    Identity,
    Proof,
    Transcript,
    check_hello,
    check_proof,
    decode_handshake,
    parse_refusal,
    plain_frame,
    refusal_of,
)
from metadata_raft.messages import MESSAGE_SIZE_LIMIT, Message, decode_message, encode_message
from metadata_raft.settings import RaftTiming
from ring.members import NodeId

CONGESTED_SIZE = 2 * MESSAGE_SIZE_LIMIT
"""Bytes queued to a peer from which on no more log is offered to it."""

QUEUE_SIZE_LIMIT = 8 * MESSAGE_SIZE_LIMIT
"""Bytes queued to a peer at which its connection is dropped: it does not read."""

UNACKNOWLEDGED_MS_LIMIT = 5000
"""After this long without a word from the other machine's kernel a connection is given up. It may
have lost its power: TCP itself would repeat ever more rarely, for a quarter of an hour, and leave
the machine deaf when it is back."""

INBOUND_LIMIT = 256
"""Connections accepted at once, proven or not."""

WILDCARD_HOSTS = frozenset({"", "0.0.0.0", "::"})
"""Where a node listens on every interface; no address anybody could dial."""

CLOSING_ROUNDS = 3
"""Turns of the loop from accepting a connection to having closed it."""

_logger = logging.getLogger(__name__)


class TransportHost(Protocol):
    """What the transport tells, on its loop."""

    def received(self, sender: NodeId, message: Message) -> None:
        """A message; may raise, which ends the node."""

    def peer_connected(self, node_id: NodeId) -> None:
        """This node can send to a peer from now on."""

    def peer_lost(self, node_id: NodeId) -> None:
        """A connection *from* a peer closed: it may be dead."""

    def is_removed_peer(self, node_id: NodeId) -> bool:
        """Whether a node was removed from the cluster for good."""

    def was_removed(self) -> None:
        """A member says that this node was removed for good."""

    def recorded_boot(self, node_id: NodeId) -> int:
        """The last boot of a node that the cluster knows, 0 where it knows none."""

    def was_restored(self, recorded_boot: int) -> None:
        """A member says that the cluster knows this later boot of this node (rule M7)."""

    def other_incarnation(self, incarnation: int) -> None:
        """A node of this cluster says that it is of this other incarnation."""

    def peer_address(self, node_id: NodeId, address: str) -> None:
        """A peer that connected says where it can be reached."""

    def failed(self, error: BaseException) -> None:
        """Taking a message failed in a way that must end the node."""


class Transport:
    """Raft's connections. `send` queues, `flush` writes; both are cheap and never block."""

    def __init__(
        self,
        identity: Identity,
        host: TransportHost,
        *,
        timing: RaftTiming,
        server_tls: ssl.SSLContext | None = None,
        client_tls: ssl.SSLContext | None = None,
        tls_server_name: str | None = None,
        advertise_address: str | None = None,
    ) -> None:
        self.identity = identity
        self.host = host
        self.timing = timing
        self._server_tls = server_tls
        self._client_tls = client_tls
        self._tls_server_name = tls_server_name
        self._advertise_address = advertise_address
        self._addresses: dict[NodeId, str] = {}
        self._diallers: dict[NodeId, asyncio.Task[None]] = {}
        self._outbound: dict[NodeId, _Outbound] = {}
        self._inbound: dict[NodeId, _Inbound] = {}
        self._accepted: set[_Inbound] = set()
        self._server: asyncio.Server | None = None
        self._encoded: tuple[Message, bytes] | None = None

    async def start(self, listen_host: str, listen_port: int) -> str:
        """Listen; returns the address as `host:port`. Raises OSError where it is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Inbound(self), listen_host, listen_port, ssl=self._server_tls
        )
        port = self._server.sockets[0].getsockname()[1]
        if self._advertise_address is None and listen_host not in WILDCARD_HOSTS:
            self._advertise_address = f"{listen_host}:{port}"
        return f"{listen_host}:{port}"

    async def stop(self) -> None:
        """Close everything; nothing is told to the host any more."""
        diallers = list(self._diallers.values())
        self._diallers.clear()
        for task in diallers:
            task.cancel()
        await asyncio.gather(*diallers, return_exceptions=True)
        for outbound in list(self._outbound.values()):
            outbound.close()
        self._outbound.clear()
        self._inbound.clear()
        if self._server is not None:
            # asyncio takes a connection in two turns, and trips over a server that closes between.
            for listening in self._server.sockets:
                asyncio.get_running_loop().remove_reader(listening.fileno())
            await _turns(CLOSING_ROUNDS)
            self._server.close()
            await self._server.wait_closed()
            self._server = None
        for inbound in list(self._accepted):
            inbound.abort()
        # Let the loop deliver the closings.
        await _turns(CLOSING_ROUNDS)

    def set_peers(self, addresses: Mapping[NodeId, str]) -> None:
        """Keep a connection to each of these nodes, and to nobody else."""
        for node_id in list(self._addresses):
            if addresses.get(node_id) != self._addresses[node_id]:
                self._hang_up(node_id)
        for node_id, address in addresses.items():
            if node_id not in self._addresses and node_id != self.identity.node_id:
                self._addresses[node_id] = address
                self._diallers[node_id] = asyncio.ensure_future(self._keep_dialled(node_id))

    def close_older_boots(self, recorded: Mapping[NodeId, int]) -> None:
        """Close what nodes dialled before boots of them that are known now (rule M7)."""
        for node_id, inbound in list(self._inbound.items()):
            if inbound.boot_counter < recorded.get(node_id, 0):
                inbound.abort()

    def close_inbound(self, node_id: NodeId) -> None:
        """Close the connection a peer has dialled; where it dials again it is judged anew."""
        inbound = self._inbound.get(node_id)
        if inbound is not None:
            inbound.abort()

    def send(self, node_id: NodeId, message: Message) -> None:
        """Queue for `flush`; lost where there is no connection. Encoded once for many peers."""
        outbound = self._outbound.get(node_id)
        if outbound is None:
            return
        if self._encoded is None or self._encoded[0] is not message:
            self._encoded = (message, encode_message(message))
        outbound.queue(self._encoded[1])

    def can_send(self, node_id: NodeId) -> bool:
        outbound = self._outbound.get(node_id)
        return outbound is not None and outbound.queued_size() < CONGESTED_SIZE

    def flush(self) -> None:
        """Write what is queued, with one system call for each peer."""
        self._encoded = None
        for outbound in list(self._outbound.values()):
            outbound.flush()

    # --- inside -------------------------------------------------------------------------------

    def _hang_up(self, node_id: NodeId) -> None:
        del self._addresses[node_id]
        self._diallers.pop(node_id).cancel()
        outbound = self._outbound.pop(node_id, None)
        if outbound is not None:
            outbound.close()

    async def _keep_dialled(self, node_id: NodeId) -> None:
        reported = ""
        while True:
            try:
                outbound = await self._dial(node_id)
            except (OSError, PeerError, ValueError) as error:  # A ValueError: no address at all.
                if str(error) != reported and isinstance(error, HandshakeError):
                    reported = str(error)
                    _logger.warning("raft peer %s: %s", node_id, error)
                await asyncio.sleep(self.timing.connect_retry)
                continue
            reported = ""
            self._outbound[node_id] = outbound
            self.host.peer_connected(node_id)
            await outbound.closed.wait()
            if self._outbound.get(node_id) is outbound:
                del self._outbound[node_id]
            await asyncio.sleep(self.timing.connect_retry)

    async def _dial(self, node_id: NodeId) -> _Outbound:
        """Connect and prove each to each. Raises OSError, TimeoutError, HandshakeError."""
        host, _, port = self._addresses[node_id].rpartition(":")
        loop = asyncio.get_running_loop()
        server_name = self._tls_server_name if self._client_tls else None
        async with asyncio.timeout(self.timing.connect_timeout):
            transport, outbound = await loop.create_connection(
                _Outbound,
                host.strip("[]"),
                int(port),
                ssl=self._client_tls,
                server_hostname=server_name,
            )
            try:
                await self._shake_hands(node_id, outbound)
            except BaseException:
                transport.abort()
                raise
        return outbound

    async def _shake_hands(self, node_id: NodeId, outbound: _Outbound) -> None:
        identity = self.identity
        hello = Hello(
            PROTOCOL_VERSION,
            identity.cluster_id,
            identity.incarnation,
            identity.node_id,
            node_id,
            self._advertise_address or "",
            os.urandom(NONCE_SIZE),
            identity.boot_counter,
        )
        transcript = Transcript(identity, hello)
        outbound.write_plain(msgspec.msgpack.encode(hello))
        answer = await outbound.answer
        challenge = decode_handshake(answer, Challenge)
        check_proof(challenge.proof, transcript.acceptor_proof(challenge.nonce, challenge.refusal))
        if challenge.refusal:
            self._refused(node_id, challenge.refusal)
        outbound.write_plain(
            msgspec.msgpack.encode(Proof(transcript.dialler_proof(challenge.nonce)))
        )
        outbound.sealer = FrameSealer(transcript.connection_key(challenge.nonce))

    def _refused(self, node_id: NodeId, refusal: str) -> NoReturn:
        """Another node of the cluster has proven who it is, and does not listen to this one."""
        reason, number = parse_refusal(refusal)
        if reason == REASON_REMOVED:
            self.host.was_removed()
        elif reason == REASON_RESTORED:
            self.host.was_restored(number)
        elif reason == REASON_INCARNATION:
            self.host.other_incarnation(number)
            raise HandshakeError(
                f"it is of incarnation {number} of the cluster, this node of "
                f"{self.identity.incarnation}: metadata were restored on one of them only"
            )
        raise HandshakeError(f"{node_id} refuses this node: {refusal}")

    # --- what an inbound connection asks ------------------------------------------------------

    def accepted(self, inbound: _Inbound) -> bool:
        """Whether one more connection may be had."""
        if self._server is None or len(self._accepted) >= INBOUND_LIMIT:
            return False
        self._accepted.add(inbound)
        return True

    def connected_boot(self, node_id: NodeId) -> int:
        """Of the node that is connected under this id now, which has proven itself; else 0.

        It may be later than what is recorded here: a copy must not take its place meanwhile.
        """
        inbound = self._inbound.get(node_id)
        return inbound.boot_counter if inbound is not None else 0

    def proven(self, inbound: _Inbound, hello: Hello) -> None:
        """A dialler has proven who it is; an earlier connection of it is superseded."""
        before = self._inbound.get(hello.node_id)
        self._inbound[hello.node_id] = inbound
        if before is not None:
            before.abort()
        self.host.peer_address(hello.node_id, hello.address)

    def closed(self, inbound: _Inbound, node_id: NodeId | None) -> None:
        self._accepted.discard(inbound)
        if node_id is not None and self._inbound.get(node_id) is inbound:
            del self._inbound[node_id]
            self.host.peer_lost(node_id)


async def _turns(count: int) -> None:
    """Let the loop do what is due, so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


class _Outbound(asyncio.Protocol):
    """A connection this node dialled: only the handshake's answer comes back on it."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[bytes] = loop.create_future()
        self.closed = asyncio.Event()
        self.sealer: FrameSealer | None = None
        self._reader = FrameReader()
        self._pieces: list[bytes] = []
        self._pieces_size = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the interface without the base class.
        self._transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS_LIMIT
        )

    def data_received(self, data: bytes) -> None:
        if self.answer.done():
            self.close()
            return
        try:
            self._reader.feed(data)
            payload = self._reader.next()
        except FrameError as error:
            self.answer.set_exception(HandshakeError(str(error)))
            return
        if payload is not None:
            self.answer.set_result(payload)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        self._pieces.clear()
        if not self.answer.done():
            reason = f": {exc}" if exc else ""
            self.answer.set_exception(HandshakeError(f"closed during the handshake{reason}"))
            # Whoever waits for it may have been cancelled; then nobody retrieves it.
            self.answer.exception()

    def write_plain(self, payload: bytes) -> None:
        assert self._transport is not None
        self._transport.write(plain_frame(payload))

    def queue(self, payload: bytes) -> None:
        assert self.sealer is not None
        head, body = self.sealer.seal(payload)
        self._pieces += (head, body)
        self._pieces_size += len(head) + len(body)

    def queued_size(self) -> int:
        assert self._transport is not None
        return self._pieces_size + self._transport.get_write_buffer_size()

    def flush(self) -> None:
        if not self._pieces:
            return
        assert self._transport is not None
        if self.closed.is_set() or self._transport.is_closing():
            self._pieces.clear()
        elif self.queued_size() > QUEUE_SIZE_LIMIT:
            self.close()
        else:
            self._transport.write(b"".join(self._pieces))
            self._pieces.clear()
        self._pieces_size = 0

    def close(self) -> None:
        self._pieces.clear()
        self._pieces_size = 0
        if self._transport is not None:
            self._transport.abort()


class _Inbound(asyncio.Protocol):
    """A connection a peer dialled: handshake, then its messages."""

    def __init__(self, owner: Transport) -> None:
        self._owner = owner
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._hello: Hello | None = None
        self._nonce = b""
        self._node_id: NodeId | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the interface without the base class.
        self._transport = cast(asyncio.Transport, transport)
        if not self._owner.accepted(self):
            self.abort()
            return
        self._deadline = asyncio.get_running_loop().call_later(
            self._owner.timing.connect_timeout, self.abort
        )

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (payload := self._reader.next()) is not None:
                if self._node_id is not None:
                    self._owner.host.received(self._node_id, decode_message(payload))
                elif self._hello is None:
                    self._answer_hello(payload)
                else:
                    self._check_proof(self._hello, payload)
        except (PeerError, msgspec.DecodeError) as error:
            _logger.info("a raft connection was closed: %s", error)
            self.abort()
        except Exception as error:
            self.abort()
            self._owner.host.failed(error)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self._deadline is not None:
            self._deadline.cancel()
        self._owner.closed(self, self._node_id)

    @property
    def boot_counter(self) -> int:
        """Of the node that dialled, as it said."""
        return self._hello.boot_counter if self._hello is not None else 0

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _answer_hello(self, payload: bytes) -> None:
        hello = decode_handshake(payload, Hello)
        check_hello(hello, self._owner.identity)
        host = self._owner.host
        refusal = refusal_of(
            hello,
            self._owner.identity,
            is_removed=host.is_removed_peer(hello.node_id),
            recorded_boot=max(
                host.recorded_boot(hello.node_id), self._owner.connected_boot(hello.node_id)
            ),
        )
        self._nonce = os.urandom(NONCE_SIZE)
        proof = Transcript(self._owner.identity, hello).acceptor_proof(self._nonce, refusal)
        assert self._transport is not None
        self._transport.write(
            plain_frame(msgspec.msgpack.encode(Challenge(self._nonce, proof, refusal)))
        )
        if refusal:
            self._transport.close()
        self._hello = hello

    def _check_proof(self, hello: Hello, payload: bytes) -> None:
        transcript = Transcript(self._owner.identity, hello)
        proof = decode_handshake(payload, Proof)
        check_proof(proof.proof, transcript.dialler_proof(self._nonce))
        self._reader.authenticate(transcript.connection_key(self._nonce))
        if self._deadline is not None:
            self._deadline.cancel()
        self._node_id = hello.node_id
        self._owner.proven(self, hello)
