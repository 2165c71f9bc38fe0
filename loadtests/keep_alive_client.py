"""Many short verified requests over kept connections: a client that costs less than a server.

It speaks just the HTTP/1.1 that Holdfast's gateway answers with: a status line, headers with a
Content-Length, a body. One connection carries one request at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

RESPONSE_SECONDS = 60.0
_HEAD_LIMIT = 64 * 1024


class RequestFailedError(Exception):
    """A request that was not answered as it should be; names method, path and answer."""


class Connection:
    """A kept connection to one node."""

    def __init__(self, host: str, port: int, headers: Mapping[str, str]) -> None:
        self._host = host
        self._port = port
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, method: str, path: str, body: bytes = b"", *, expect: Iterable[int] = (200,)
    ) -> bytes:
        """Return the body of the answer. Raises RequestFailedError, OSError, TimeoutError."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, limit=_HEAD_LIMIT)
        reader, writer = self._streams
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n{self._headers}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        async with asyncio.timeout(RESPONSE_SECONDS):
            answer = await reader.readuntil(b"\r\n\r\n")
            status, length = int(answer[9:12]), _length(answer)
            received = await reader.readexactly(length)
        if status not in expect:
            raise RequestFailedError(f"{method} {path}: {status} {received[:300]!r}")
        return received

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


async def for_each(
    numbers: Iterable[int],
    connections: Iterable[Connection],
    do: Callable[[Connection, int], Awaitable[None]],
) -> None:
    """Do something for every number, one at a time on each connection; the first error ends it."""
    waiting = iter(numbers)

    async def work(connection: Connection) -> None:
        for number in waiting:
            await do(connection, number)

    async with asyncio.TaskGroup() as group:
        for connection in connections:
            group.create_task(work(connection))
