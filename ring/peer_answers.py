"""How a peer is answered: documents, refusals, and the bytes of chunks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

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
    if len(data) <= SLICE_SIZE:
        return web.Response(body=data, headers=headers)
    response = web.StreamResponse(headers=headers)
    response.content_length = len(data)
    await response.prepare(request)
    async with asyncio.timeout(BODY_SECONDS + len(data) / BODY_RATE_MIN):
        for start in range(0, len(data), SLICE_SIZE):
            await response.write(data[start : start + SLICE_SIZE])
        await response.write_eof()
    return response


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
