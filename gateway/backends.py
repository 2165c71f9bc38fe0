"""What every handler works with, and the few things they all do with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from gateway.authentication import (
    PresentedKey,
    Principal,
    denied,
    presented_key,
    require_administrator,
    verify,
)
from gateway.budget import ByteBudget
from gateway.errors import PROTECTIVE_HEADERS, ApiError, from_failure
from gateway.interfaces import Buffers, Chunks, Cluster, GatewaySettings, Metadata, Snapshot
from gateway.json_documents import encode_document
from gateway.metrics import Metrics
from gateway.paths import Target
from metadata_raft.commands import Command, Failure, IdempotencyKey, Result
from metadata_raft.errors import NotSubmittedError, OutcomeUnknownError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

BULK_PATIENCE_SECONDS = 10.0
"""How long the commit of a large upload is repeated while there is no leader: longer than a
fail-over, so that gigabytes already stored are not sent again for the sake of one second."""

_RETRY_PAUSE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way through a handler."""

    request: web.BaseRequest
    target: Target

    def key(self) -> PresentedKey | None:
        return presented_key(self.request.headers)


class Background:
    """Tasks that go on after their request was answered; kept alive, their errors logged."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        self.adopt(asyncio.create_task(work))

    def adopt(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def settle(self, timeout_seconds: float) -> None:
        """Wait for what is still running; cancel what takes longer."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_seconds)
            for task in late:
                task.cancel()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.info("work left over from a request failed: %s", error)


@dataclass(frozen=True, slots=True)
class Backends:
    metadata: Metadata
    chunks: Chunks
    buffers: Buffers
    cluster: Cluster
    settings: GatewaySettings
    workers: Executor
    metrics: Metrics
    read_budget: ByteBudget
    background: Background = field(default_factory=Background)

    async def current(self, request: web.BaseRequest) -> None:
        """Return once this node's state is linearizable (rule M3), or the client asked not to wait.

        Raises ApiError(invalid_header), NoQuorumError.
        """
        consistency = request.headers.get("X-Consistency")
        if consistency is None:
            await self.metadata.barrier()
        elif consistency != "local":
            raise ApiError("invalid_header", "X-Consistency can only be: local")

    async def decided(self, decide: Callable[[Snapshot], _T]) -> _T:
        """Decide on this node's state; a refusal is decided again on the cluster's current one.

        So writes need no round trip before they are submitted (the state machine checks them once
        more), and yet nobody is refused because of what this node has not heard yet.
        """
        try:
            with self.metadata.snapshot() as snapshot:
                return decide(snapshot)
        except ApiError:
            await self.metadata.barrier()
            with self.metadata.snapshot() as snapshot:
                return decide(snapshot)

    async def principal(self, call: Call) -> Principal:
        """Who asks, verified. Raises ApiError(unauthenticated)."""
        presented = call.key()
        return await self.decided(lambda snapshot: verify(snapshot, presented))

    async def administrator(self, call: Call, deed: str) -> Principal:
        """Who asks, if it is an administrator. Raises ApiError(unauthenticated, forbidden)."""
        presented = call.key()

        def admit(snapshot: Snapshot) -> Principal:
            principal = verify(snapshot, presented)
            require_administrator(principal, deed)
            return principal

        return await self.decided(admit)

    async def reader(self, call: Call, deed: str) -> None:
        """Check that who asks has any key. Raises ApiError(unauthenticated, forbidden)."""
        principal = await self.principal(call)
        if principal.role is None:
            raise denied(principal, deed)

    async def in_worker(self, query: Callable[[Snapshot], _T]) -> _T:
        """Run a query that may take milliseconds on a snapshot in a worker thread."""

        def run() -> _T:
            with self.metadata.snapshot() as snapshot:
                return query(snapshot)

        return await asyncio.get_running_loop().run_in_executor(self.workers, run)

    async def submit(
        self,
        command: Command,
        *,
        request_id: bytes | None = None,
        idempotency: IdempotencyKey | None = None,
    ) -> Result:
        """Submit once; a Failure is raised as ApiError."""
        result = await self.metadata.submit(command, request_id=request_id, idempotency=idempotency)
        if isinstance(result, Failure):
            raise from_failure(result)
        return result

    async def submit_patiently(
        self,
        command: Command,
        *,
        request_id: bytes,
        idempotency: IdempotencyKey | None = None,
    ) -> Result:
        """Submit under one request id until there is an answer, for `BULK_PATIENCE_SECONDS`.

        The state machine applies a request id once (rule M1), so a repetition is safe.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + BULK_PATIENCE_SECONDS
        while True:
            try:
                return await self.submit(command, request_id=request_id, idempotency=idempotency)
            except (NotSubmittedError, OutcomeUnknownError) as error:
                if not error.retryable or loop.time() >= deadline:
                    raise
            await asyncio.sleep(_RETRY_PAUSE_SECONDS)


def document_response(
    document: msgspec.Struct, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """A JSON answer."""
    return web.Response(
        status=status,
        body=encode_document(document),
        headers={
            **PROTECTIVE_HEADERS,
            "Content-Type": "application/json",
            "Cache-Control": "no-store",
            **(headers or {}),
        },
    )


def empty_response(status: int = 204) -> web.Response:
    return web.Response(status=status, headers=PROTECTIVE_HEADERS)
