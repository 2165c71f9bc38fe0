"""Long uploads and downloads on raw sockets, as cheap for the client as the kernel allows.

Uploads go out by sendfile from memory, downloads come in by recv_into to one reused buffer, so that
on a machine shared with the servers nearly all of the time is theirs. An upload's contents are one
random base, repeated, with a stamp at the head of each stretch that makes every stretch of every
upload unlike any other; the hash of the whole is computed apart from the timing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping

import msgspec
from blake3 import blake3

from loadtests.contents import Contents

STRETCH_SIZE = 1 << 20
"""Bytes between two stamps; divides every sensible chunk size, so no two chunks are equal."""

BASE_STRETCHES = 64
_STAMP_SIZE = 32
_RECEIVE_SIZE = 256 * 1024
_HEAD_LIMIT = 64 * 1024
_TIMEOUT_SECONDS = 120.0
"""A stalled transfer is an error of the run, not something to wait for."""


class TransferError(Exception):
    """A transfer that ended early or with an unexpected status; names address, target, cause."""


class Target(msgspec.Struct, frozen=True):
    """Where a request goes: host and port, the path as it stands on the wire, and headers."""

    host: str
    port: int
    path: str
    headers: Mapping[str, str] = {}


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """How one transfer went. Times run from the first byte sent."""

    status: int
    size: int
    seconds: float
    first_byte_seconds: float
    """Until the first byte of the body of the response (of the head, where there is no body)."""
    checksum: str = ""
    """BLAKE3-256 in hexadecimal of a downloaded body, where it was asked for."""
    head: str = ""
    body: bytes = b""
    """The body of an upload's response."""


class UploadSource:
    """The base in memory that all uploads of a run are cut from. Usable from several threads."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("holdfast-upload-base")
        contents = Contents(seed=0x5EED, size=BASE_STRETCHES * STRETCH_SIZE)
        for piece in contents.pieces():
            os.write(self._descriptor, piece)

    def close(self) -> None:
        os.close(self._descriptor)

    def checksum(self, identity: int, size: int) -> str:
        """Return the BLAKE3-256 in hexadecimal of the upload `identity` of `size` bytes."""
        hasher = blake3()
        for stamp, offset, length in _stretches(identity, size):
            hasher.update(stamp)
            hasher.update(os.pread(self._descriptor, length, offset))
        return hasher.hexdigest()

    def upload(self, target: Target, *, identity: int, size: int, method: str = "PUT") -> Transfer:
        """Send one body of known length; return when the response has arrived.

        Raises TransferError on a status other than 200 or 201, OSError of the connection.
        """
        with _connect(target) as connection:
            began = time.perf_counter()
            connection.sendall(_request_head(method, target, size))
            for stamp, offset, length in _stretches(identity, size):
                connection.sendall(stamp, socket.MSG_MORE if length else 0)
                self._send_base(connection, offset, length)
            status, head, body = _receive_response(connection, target)
            seconds = time.perf_counter() - began
        if status not in (200, 201):
            raise TransferError(f"{method} {target.path}: {status} {body[:900]!r}")
        return Transfer(
            status=status,
            size=size,
            seconds=seconds,
            first_byte_seconds=seconds,
            head=head,
            body=body,
        )

    def _send_base(self, connection: socket.socket, offset: int, length: int) -> None:
        while length:
            sent = os.sendfile(connection.fileno(), self._descriptor, offset, length)
            if sent == 0:
                raise TransferError("the connection took no more bytes")
            offset, length = offset + sent, length - sent


def download(target: Target, *, verify: bool = False, into: int | None = None) -> Transfer:
    """Receive one body of known length; hash it where `verify` says so, and write it to the
    descriptor `into`.

    Raises TransferError on a status other than 200 or 206, or a body that ends early.
    """
    with _connect(target) as connection:
        return download_over(connection, target, verify=verify, into=into)


def connect(target: Target) -> socket.socket:
    """Return a connection for several requests by `download_over`."""
    return _connect(target)


def download_over(
    connection: socket.socket, target: Target, *, verify: bool = False, into: int | None = None
) -> Transfer:
    """As `download`, over a connection that is kept."""
    began = time.perf_counter()
    connection.sendall(_request_head("GET", target, None))
    head, rest = _receive_head(connection, target)
    status, length = _status(head), _content_length(head)
    if status not in (200, 206):
        raise TransferError(f"GET {target.path}: {status} {rest[:300]!r}")
    hasher = blake3() if verify else None
    first_byte = time.perf_counter() - began if rest or length == 0 else None
    if hasher is not None:
        hasher.update(rest)
    if into is not None:
        os.write(into, rest)
    received = len(rest)
    buffer = memoryview(bytearray(_RECEIVE_SIZE))
    while received < length:
        count = connection.recv_into(buffer, min(_RECEIVE_SIZE, length - received))
        if count == 0:
            raise TransferError(f"GET {target.path}: ended after {received} of {length} bytes")
        if first_byte is None:
            first_byte = time.perf_counter() - began
        if hasher is not None:
            hasher.update(buffer[:count])
        if into is not None:
            os.write(into, buffer[:count])
        received += count
    seconds = time.perf_counter() - began
    return Transfer(
        status=status,
        size=received,
        seconds=seconds,
        first_byte_seconds=seconds if first_byte is None else first_byte,
        checksum="" if hasher is None else hasher.hexdigest(),
        head=head,
    )


def _stretches(identity: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the stamp of each stretch, and which range of the base follows it."""
    for number, start in enumerate(range(0, size, STRETCH_SIZE)):
        length = min(STRETCH_SIZE, size - start)
        stamp = b"%016x%016x" % (identity, number)
        base = (number % BASE_STRETCHES) * STRETCH_SIZE
        yield stamp[:length], base + _STAMP_SIZE, max(0, length - _STAMP_SIZE)


def _connect(target: Target) -> socket.socket:
    connection = socket.create_connection((target.host, target.port), timeout=_TIMEOUT_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A blocking descriptor with time-outs in the kernel: sendfile bypasses the ones of Python.
    connection.settimeout(None)
    limit = int(_TIMEOUT_SECONDS).to_bytes(8, "little") + bytes(8)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    return connection


def _request_head(method: str, target: Target, size: int | None) -> bytes:
    lines = [f"{method} {target.path} HTTP/1.1", f"Host: {target.host}:{target.port}"]
    lines += [f"{name}: {value}" for name, value in target.headers.items()]
    if size is not None:
        lines.append(f"Content-Length: {size}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _receive_head(connection: socket.socket, target: Target) -> tuple[str, bytes]:
    """Return the head of the response and what came of the body with it."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(_HEAD_LIMIT)
        if not piece or len(received) > _HEAD_LIMIT:
            raise TransferError(f"{target.path}: no response head, only {received[:100]!r}")
        received += piece
    head, _, rest = received.partition(b"\r\n\r\n")
    return head.decode("latin-1"), rest


def _receive_response(connection: socket.socket, target: Target) -> tuple[int, str, bytes]:
    head, body = _receive_head(connection, target)
    length = _content_length(head)
    while len(body) < length:
        piece = connection.recv(_HEAD_LIMIT)
        if not piece:
            raise TransferError(f"{target.path}: the response ended early")
        body += piece
    return _status(head), head, body


def _status(head: str) -> int:
    return int(head.split(" ", 2)[1])


def _content_length(head: str) -> int:
    """Return the announced length; 0 without one (the servers measured here always announce)."""
    for line in head.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            return int(value)
    return 0
