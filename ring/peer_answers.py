"""How a peer is answered: documents, refusals, and the bytes of chunks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import msgspec
from aiohttp import web

from ring.buffers import BufferPool
from ring.errors import (
    ChunkDamagedError,
    ChunkNotFoundError,
    ChunkRejectedError,
    OverloadedError,
    RingError,
    StoreFullError,
    StoreOverloadedError,
)
from ring.interfaces import ChunkStore
from ring.peer_wire import (
    GET_BATCH_SIZE_LIMIT,
    SLICE_SIZE,
    SMALL_PUT_LIMIT,
    STATUS_OF_CODE,
    Refusal,
    SmallGet,
)

BODY_SECONDS = 15.0
BODY_RATE_MIN = 256 * 1024
"""A body may take this long plus its size at this rate (bytes per second), in either direction."""

BODY_SILENCE_SECONDS = 5.0
"""How long a body may stand still, in either direction: half of what others wait for the buffer
that it holds. A peer that was stopped in the middle must not keep it for longer."""

WHOLE_ANSWER_LIMIT = 64 * 1024
"""Bytes of a chunk that are handed to the connection as they are, without watching it: it takes
them at once, also where the peer does not read."""

_log = logging.getLogger(__name__)
_encode = msgspec.msgpack.encode


class RefusedError(Exception):
    """Ends a request with a Refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal


def answer_document(document: object) -> web.Response:
    return web.Response(body=_encode(document))


def answer_refusal(refusal: Refusal) -> web.Response:
    return web.Response(status=STATUS_OF_CODE[refusal.code], body=_encode(refusal))


def refuse(code: str, detail: str) -> web.Response:
    return answer_refusal(Refusal(code=code, detail=detail))


async def send_chunk(
    request: web.Request, data: memoryview, headers: dict[str, str]
) -> web.StreamResponse:
    """Send a chunk or a part of one, no faster than the peer takes it."""
    if len(data) <= WHOLE_ANSWER_LIMIT:
        return web.Response(body=data, headers=headers)
    response = web.StreamResponse(headers=headers)
    response.content_length = len(data)
    await response.prepare(request)
    try:
        async with BodyPatience(len(data)) as patience:
            for start in range(0, len(data), SLICE_SIZE):
                await response.write(data[start : start + SLICE_SIZE])
                patience.moved()
            await response.write_eof()
    except TimeoutError:
        # What the connection has not sent yet is a view on the buffer still.
        if request.transport is not None:
            request.transport.abort()
        raise
    return response


class BodyPatience:
    """A time limit on a body of `length` bytes, and on each time that it stands still."""

    def __init__(self, length: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + BODY_SECONDS + length / BODY_RATE_MIN
        self._timeout = asyncio.timeout_at(self._deadline())

    def _deadline(self) -> float:
        return min(self._end, self._loop.time() + BODY_SILENCE_SECONDS)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._timeout.__aexit__(kind, error, trace)

    def moved(self) -> None:
        """Some of the body has come, or has been taken."""
        self._timeout.reschedule(self._deadline())


def code_of(error: RingError) -> str:
    """The code that tells a peer what the store or a pool has raised."""
    match error:
        case ChunkNotFoundError():
            return "chunk_not_found"
        case ChunkDamagedError():
            return "chunk_damaged"
        case ChunkRejectedError():
            return "chunk_rejected"
        case StoreFullError():
            return "store_full"
        case StoreOverloadedError() | OverloadedError():
            return "overloaded"
    _log.error("a peer's request failed: %s", error)
    return "store_failed"


async def small_chunks(
    store: ChunkStore, chunk_ids: Sequence[bytes], pool: BufferPool
) -> list[SmallGet | None]:
    """Read those of the chunks that are small, and fit into one answer together.

    One after the other: this is never urgent, and the worker threads serve clients too.
    """
    room = GET_BATCH_SIZE_LIMIT
    found: list[SmallGet | None] = []
    for chunk_id, stat in zip(chunk_ids, await store.stat(chunk_ids), strict=True):
        small: SmallGet | None = None
        if stat is not None and stat.stored_length <= min(SMALL_PUT_LIMIT, room):
            try:
                content = await store.get_encoded(chunk_id, pool=pool)
            except (ChunkNotFoundError, ChunkDamagedError):
                pass
            else:
                # Copied, so that the answer does not hold a buffer for each chunk.
                payload = memoryview(bytes(content.payload))
                small = SmallGet(content.codec, content.plain_length, payload)
                room -= len(payload)
        found.append(small)
    return found
