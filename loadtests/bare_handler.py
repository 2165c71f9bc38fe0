"""The yardstick: what aiohttp and uvloop do on this machine with no file store behind them.

`PUT /sink/...` reads a body and forgets it, `GET /source/SIZE/...` sends that many bytes of memory.
Both in one process on one port, plainly written and with aiohttp's own defaults, so that a ratio to
them says what storing three durable copies costs and nothing about the client. Prints its port when
it listens, and lives until its standard input is closed.
"""

from __future__ import annotations

import asyncio
import os
import sys

import uvloop
from aiohttp import web

PIECE_SIZE = 256 * 1024
"""Bytes per write of a long body."""

_RANDOM_PIECE = memoryview(os.urandom(PIECE_SIZE))


async def sink(request: web.Request) -> web.Response:
    """Read the body to its end; answers 201 with the number of bytes."""
    size = 0
    async for piece in request.content.iter_any():
        size += len(piece)
    return web.Response(status=201, text=str(size))


async def source(request: web.Request) -> web.StreamResponse:
    """Send as many bytes as the path says."""
    size = int(request.match_info["size"])
    if size <= PIECE_SIZE:
        return web.Response(body=_RANDOM_PIECE[:size])
    response = web.StreamResponse()
    response.content_length = size
    await response.prepare(request)
    for start in range(0, size, PIECE_SIZE):
        await response.write(_RANDOM_PIECE[: min(PIECE_SIZE, size - start)])
    await response.write_eof()
    return response


async def serve() -> None:
    application = web.Application()
    application.router.add_put("/sink/{rest:.*}", sink)
    application.router.add_get("/source/{size}/{rest:.*}", source)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    # Its parent holds the other end, so that the process never outlives it.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(serve())
