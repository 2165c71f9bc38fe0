"""How Raft peers prove who they are, and how each frame proves whence it comes: pure byte work.

A connection carries messages in one direction, from the node that dialled. Both sides prove with
fresh nonces that they know the cluster key, bound to both node ids, the cluster id and its
incarnation; from the same values comes a key for this connection alone, and every frame carries a
tag made with it over its number and its bytes. So a frame cannot be forged, replayed, reordered,
left out, or carried over to another connection. There is no secrecy here: that is TLS's part.

Layout: docs/format.md, "Raft connections". Keyed BLAKE3 throughout.
"""

from __future__ import annotations

import hmac
import struct
from typing import TypeVar

import msgspec
from blake3 import blake3

from metadata_raft.errors import FrameError, HandshakeError
from metadata_raft.messages import MESSAGE_SIZE_LIMIT
from ring.members import NodeId

PROTOCOL_VERSION = 2
KEY_SIZE = 32
NONCE_SIZE = 32
TAG_SIZE = 16
HANDSHAKE_SIZE_LIMIT = 4096
"""Bytes of one frame before its sender is known."""

_LENGTH = struct.Struct("<I")
_NUMBER = struct.Struct("<Q")


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """Dialler to acceptor: who I am, whom I want."""

    version: int
    cluster_id: str
    incarnation: int
    node_id: NodeId
    wanted_id: NodeId
    address: str
    """Where the dialler itself accepts connections, `host:port`."""
    nonce: bytes
    boot_counter: int = 0
    """Of the dialler's disk: one that was restored from an older copy is behind (rule M7)."""


class Challenge(msgspec.Struct, frozen=True, array_like=True):
    """Acceptor to dialler: my proof, and a nonce for yours; or why I refuse."""

    nonce: bytes
    proof: bytes
    refusal: str
    """Empty, or the reason; the connection ends then. Covered by the proof."""


class Proof(msgspec.Struct, frozen=True, array_like=True):
    """Dialler to acceptor; messages follow."""

    proof: bytes


Said = TypeVar("Said", Hello, Challenge, Proof)

REASON_REMOVED = "removed"
"""The dialler was removed from the cluster for good (rule M7)."""

REASON_RESTORED = "restored"
"""The cluster knows a later boot of the dialler, the number behind it: its disk is an old copy."""

REASON_INCARNATION = "incarnation"
"""The acceptor is of another incarnation of the cluster, the number behind it."""


class Identity(msgspec.Struct, frozen=True):
    """What a node says of itself in the handshake, and the key it proves it with."""

    node_id: NodeId
    cluster_id: str
    incarnation: int
    key: bytes
    boot_counter: int = 0

    def __post_init__(self) -> None:
        if len(self.key) != KEY_SIZE:
            raise ValueError(f"the cluster key has {len(self.key)} bytes, not {KEY_SIZE}")


class Transcript:
    """What both sides have said; proofs and the connection's key are made over it."""

    def __init__(self, identity: Identity, hello: Hello) -> None:
        self._key = identity.key
        self._said = msgspec.msgpack.encode(hello)

    def acceptor_proof(self, nonce: bytes, refusal: str) -> bytes:
        return self._derive(b"holdfast raft acceptor 1", nonce, refusal.encode())

    def dialler_proof(self, nonce: bytes) -> bytes:
        return self._derive(b"holdfast raft dialler 1", nonce)

    def connection_key(self, nonce: bytes) -> bytes:
        return self._derive(b"holdfast raft frames 1", nonce)

    def _derive(self, *parts: bytes) -> bytes:
        return blake3(msgspec.msgpack.encode((self._said, *parts)), key=self._key).digest()


def decode_handshake(payload: bytes, kind: type[Said]) -> Said:
    """What a stranger sent, who may send anything. Raises HandshakeError."""
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise HandshakeError(f"no {kind.__name__}: {error}") from error


def check_hello(hello: Hello, identity: Identity) -> None:
    """Raises HandshakeError where the dialler wants somebody else."""
    if hello.version != PROTOCOL_VERSION:
        raise HandshakeError(f"protocol version {hello.version}, this node has {PROTOCOL_VERSION}")
    if hello.cluster_id != identity.cluster_id:
        raise HandshakeError(
            f"{hello.node_id} is of cluster {hello.cluster_id}, this node of {identity.cluster_id}"
        )
    if hello.wanted_id != identity.node_id:
        raise HandshakeError(f"{hello.node_id} looks for {hello.wanted_id} here")
    if hello.node_id == identity.node_id:
        raise HandshakeError("another node has this node's id")
    if len(hello.nonce) != NONCE_SIZE:
        raise HandshakeError(f"a nonce of {len(hello.nonce)} bytes")


def refusal_of(hello: Hello, identity: Identity, *, is_removed: bool, recorded_boot: int) -> str:
    """Why a node of this cluster is not listened to; empty where nothing speaks against it.

    `is_removed` and `recorded_boot` are what the cluster knows of it.
    """
    if hello.incarnation != identity.incarnation:
        return f"{REASON_INCARNATION} {identity.incarnation}"
    if is_removed:
        return REASON_REMOVED
    if hello.boot_counter < recorded_boot:
        return f"{REASON_RESTORED} {recorded_boot}"
    return ""


def parse_refusal(refusal: str) -> tuple[str, int]:
    """The reason, and the number behind it or 0."""
    reason, _, number = refusal.partition(" ")
    return reason, int(number) if number.isdecimal() else 0


def check_proof(given: bytes, expected: bytes) -> None:
    """Raises HandshakeError where the other side does not know the cluster key."""
    if not hmac.compare_digest(given, expected):
        raise HandshakeError("the other side does not know this cluster's key")


def plain_frame(payload: bytes) -> bytes:
    """A frame of the handshake: length and payload."""
    return _LENGTH.pack(len(payload)) + payload


class FrameSealer:
    """Makes the frames of one connection; each gets the next number."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._number = 0

    def seal(self, payload: bytes) -> tuple[bytes, bytes]:
        """Return what goes on the wire as two pieces, so that the payload is not copied."""
        tag = _tag(self._key, self._number, payload)
        self._number += 1
        return _LENGTH.pack(len(payload)) + tag, payload


class FrameReader:
    """Cuts a stream of bytes into frames; authenticates them once it has a key."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._key: bytes | None = None
        self._number = 0

    def authenticate(self, key: bytes) -> None:
        """From the next frame on each must carry a tag."""
        self._key = key

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> bytes | None:
        """Return the next whole payload, None until it is there. Raises FrameError."""
        buffer = self._buffer
        if len(buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(buffer)
        tag_size = 0 if self._key is None else TAG_SIZE
        limit = HANDSHAKE_SIZE_LIMIT if self._key is None else MESSAGE_SIZE_LIMIT
        if length > limit:
            raise FrameError(f"a frame of {length} bytes, the bound is {limit}")
        start = _LENGTH.size + tag_size
        if len(buffer) < start + length:
            return None
        payload = bytes(memoryview(buffer)[start : start + length])
        if self._key is not None:
            tag = bytes(buffer[_LENGTH.size : start])
            if not hmac.compare_digest(tag, _tag(self._key, self._number, payload)):
                raise FrameError(f"frame {self._number} is not authentic")
            self._number += 1
        del buffer[: start + length]
        return payload


def _tag(key: bytes, number: int, payload: bytes) -> bytes:
    return blake3(_NUMBER.pack(number) + payload, key=key).digest(TAG_SIZE)
