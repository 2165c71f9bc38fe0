"""The control socket: what whoever may read the data directory may ask of the running node.

A Unix socket in the data directory (mode 0700) with these calls. It needs no key, because who can
open it can read the cluster secret beside it as well; it is how access is recovered.

    POST /token       {"lifetime_seconds": n}  -> NewToken
    POST /reset-key                            -> NewKey, all other admin keys revoked
    POST /leave       {"reduce_copies": bool}  -> MemberDocument: this node is to leave its cluster
    POST /status                               -> ClusterDocument
    GET  /backup                               -> the metadata as a backup file
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import NoReturn, Protocol, TypeVar

import msgspec
from aiohttp import web

from gateway.administration import send_backup
from gateway.documents import (
    ClusterDocument,
    LeaveRequest,
    MemberDocument,
    NewKey,
    NewToken,
    Problem,
    TokenCreation,
)
from gateway.errors import ApiError, problem_response, translated
from gateway.json_documents import DocumentError, decode_document, encode_document
from metadata_raft.commands import SYSTEM
from node.data_directory import CONTROL_NAME
from node.errors import EXIT_FAILED, EXIT_TRY_AGAIN, NodeError

_TIMEOUT_SECONDS = 30.0
_STREAM_PIECE_SIZE = 1 << 18
_STREAM_TIMEOUT_SECONDS = 120.0
"""How long a stream may pause: the node copies its whole state before the first byte."""

_T = TypeVar("_T")


class Controlled(Protocol):
    """What the socket asks for."""

    async def create_token(self, *, actor: str, lifetime_seconds: int) -> NewToken: ...

    async def reset_admin_key(self) -> NewKey: ...

    async def leave(self, *, reduce_copies: bool) -> MemberDocument: ...

    def status(self) -> ClusterDocument: ...
    def backup(self) -> AbstractAsyncContextManager[AsyncIterable[bytes]]: ...


class ControlError(NodeError):
    """The node refused, or does not run."""

    def __init__(self, sentence: str, *, retryable: bool) -> None:
        super().__init__(sentence)
        self.exit_code = EXIT_TRY_AGAIN if retryable else EXIT_FAILED


class ControlServer:
    """Listens while a node runs; `directory` is its data directory."""

    def __init__(self, directory: str, controlled: Controlled) -> None:
        self._directory = directory
        self._controlled = controlled
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        application = web.Application()
        application.router.add_post("/token", self._answer(self._token))
        application.router.add_post("/reset-key", self._answer(self._reset_key))
        application.router.add_post("/leave", self._answer(self._leave))
        application.router.add_post("/status", self._answer(self._status))
        application.router.add_get("/backup", self._backup)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        await web.SockSite(self._runner, _listener(self._directory)).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _token(self, request: web.Request) -> NewToken:
        creation = decode_document(await request.read() or b"{}", TokenCreation)
        return await self._controlled.create_token(
            actor=SYSTEM, lifetime_seconds=creation.lifetime_seconds
        )

    async def _reset_key(self, _request: web.Request) -> NewKey:
        return await self._controlled.reset_admin_key()

    async def _leave(self, request: web.Request) -> MemberDocument:
        wanted = decode_document(await request.read() or b"{}", LeaveRequest)
        return await self._controlled.leave(reduce_copies=wanted.reduce_copies)

    async def _status(self, _request: web.Request) -> ClusterDocument:
        return self._controlled.status()

    async def _backup(self, request: web.Request) -> web.StreamResponse:
        try:
            async with self._controlled.backup() as pieces:
                return await send_backup(request, pieces, _TIMEOUT_SECONDS)
        except Exception as error:
            known = translated(error)
            if known is None:
                raise
            return problem_response(known)

    @staticmethod
    def _answer(
        handler: Callable[[web.Request], Awaitable[msgspec.Struct]],
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            try:
                document = await handler(request)
            except DocumentError as error:
                return problem_response(ApiError("invalid_document", str(error)))
            except Exception as error:
                known = translated(error)
                if known is None:
                    raise
                return problem_response(known)
            return web.Response(body=encode_document(document), content_type="application/json")

        return answer


def call(directory: str, path: str, kind: type[_T], document: msgspec.Struct | None = None) -> _T:
    """Ask the node that runs on a data directory. Raises ControlError with one sentence."""
    body = b"" if document is None else encode_document(document)
    with _answer_to(directory, "POST", path, body) as response, _reaching(directory):
        answer = response.read()
    return decode_document(answer, kind)


def stream(directory: str, path: str) -> Iterator[bytes]:
    """What the node that runs on a data directory streams. Raises ControlError, also in the
    middle, where it breaks off."""
    with _answer_to(directory, "GET", path, b"") as response:
        while True:
            with _reaching(directory):
                piece = response.read(_STREAM_PIECE_SIZE)
            if not piece:
                return
            yield piece


@contextlib.contextmanager
def _answer_to(
    directory: str, method: str, path: str, body: bytes
) -> Iterator[http.client.HTTPResponse]:
    seconds = _STREAM_TIMEOUT_SECONDS if method == "GET" else _TIMEOUT_SECONDS
    connection = _Connection(directory, seconds)
    try:
        with _reaching(directory):
            connection.request(method, path, body)
            response = connection.getresponse()
            refusal = b"" if response.status == http.client.OK else response.read()
        if response.status != http.client.OK:
            _raise_refusal(response.status, refusal)
        yield response
    finally:
        connection.close()


@contextlib.contextmanager
def _reaching(directory: str) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise ControlError(
            f"No node answers on the data directory {directory}: start it first.", retryable=True
        ) from error


def _raise_refusal(status: int, answer: bytes) -> NoReturn:
    try:
        problem = decode_document(answer, Problem)
    except DocumentError:
        raise ControlError(
            f"The node failed with status {status}; see its log.", retryable=False
        ) from None
    raise ControlError(f"The node refuses: {problem.detail}.", retryable=problem.retryable)


class _Connection(http.client.HTTPConnection):
    """HTTP over the Unix socket of a data directory."""

    def __init__(self, directory: str, timeout_seconds: float) -> None:
        super().__init__("localhost", timeout=timeout_seconds)
        self._directory = directory

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        with _short_path(self._directory) as short:
            self.sock.connect(short)


def _listener(directory: str) -> socket.socket:
    path = os.path.join(directory, CONTROL_NAME)
    if os.path.lexists(path):
        # The directory is locked, so this is what a killed node has left.
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with _short_path(directory) as short:
        listener.bind(short)
    os.chmod(path, 0o600)
    return listener


class _short_path:  # noqa: N801 - reads as a phrase: with _short_path(directory)
    """The socket's path by way of an open descriptor: a Unix address has room for 107 bytes."""

    def __init__(self, directory: str) -> None:
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> str:
        return f"/proc/self/fd/{self._descriptor}/{CONTROL_NAME}"

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
