"""Clients of a cluster under test, who remember every promise and hold the nodes to it.

A file counts as stored from the moment a node says so, and from that moment on every node must
give exactly its bytes. The one thing a client forgives is a broken connection to a process that the
test itself has killed; it then turns to another node, as a real client would.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NoReturn

import aiohttp
import msgspec
from blake3 import blake3

from loadtests.contents import Contents
from tests.end_to_end.cluster import OPEN_BUCKET, NodeProcess

MIB = 1 << 20
EDGE_SIZES = (0, 1, 4095, 4096, 4097, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1)
"""Where the store changes its ways: nothing, inside the metadata, one chunk, two."""

WHOLE_READ_LIMIT = 32 * MIB
"""Readers that run throughout read longer files by ranges, so that each gets around."""

_STORE_SECONDS = 120.0
"""How long one file may take to be stored, with all repetitions."""
_REQUEST_SECONDS = 60.0
_PAUSE_SECONDS = 0.1

_BROKEN_CONNECTION = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)


class ReadFailedError(AssertionError):
    """A stored file did not come back as it was; names file, node and what came instead."""


class Counts(msgspec.Struct):
    """What has gone over the wire."""

    stored_files: int = 0
    stored_bytes: int = 0
    repeated_stores: int = 0
    reads: int = 0
    read_bytes: int = 0
    broken_connections: int = 0


def file_sizes(
    source: random.Random, *, count: int, total: int, largest: int = 200 * MIB
) -> list[int]:
    """Return `count` sizes in bytes in random order that add up to about `total`.

    Two of every edge size and two of the largest; the others are logarithmically even, scaled to
    make up the total.
    """
    fixed = [*EDGE_SIZES, *EDGE_SIZES, largest, largest]
    drawn = [2 ** source.uniform(0, math.log2(largest)) for _ in range(count - len(fixed))]
    scale = (total - sum(fixed)) / sum(drawn)
    sizes = fixed + [min(largest, int(size * scale)) for size in drawn]
    source.shuffle(sizes)
    return sizes


class Traffic:
    """Stores and reads through the gateways of a cluster, chosen at random for every request."""

    def __init__(self, seed: int) -> None:
        self.gateways: list[NodeProcess] = []
        """Nodes that clients know of; the test adds one when it is ready."""
        self.stored: dict[str, Contents] = {}
        """Every file that some node has said is stored, from that moment on."""
        self.counts = Counts()
        self._random = random.Random(seed)
        self._checksums: dict[str, str] = {}
        self._killed: set[NodeProcess] = set()
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=_REQUEST_SECONDS, connect=5),
            connector=aiohttp.TCPConnector(limit=0),
            auto_decompress=False,
            read_bufsize=MIB,
        )

    async def close(self) -> None:
        await self._session.close()

    def kill(self, node: NodeProcess) -> None:
        """End a node with SIGKILL; broken connections to it are forgiven from now on."""
        self._killed.add(node)
        self.gateways.remove(node)
        node.kill()

    def forgive_no_longer(self, node: NodeProcess) -> None:
        """The node runs again: clients may use it, and every error of it counts."""
        self._killed.discard(node)
        self.gateways.append(node)

    def retire(self, node: NodeProcess) -> None:
        """The node is about to leave in order: clients ask it no more, what is under way ends."""
        self.gateways.remove(node)

    # --- storing -----------------------------------------------------------------------------

    async def store(self, path: str, contents: Contents) -> None:
        """Store a file, through one gateway after the other until one says that it is stored.

        Repetitions carry the same Idempotency-Key. Fails if a node refuses for good, breaks the
        connection without having been killed, or the file isn't stored within the limit.
        """
        await self._store(path, contents)
        self.stored[path] = contents

    async def store_and_remove(self, path: str, contents: Contents) -> None:
        """Store a file as `store` does, and remove it: no reader is told of it.

        What is there no more must be said to be gone, and leave nothing behind.
        """
        await self._store(path, contents)
        await self._insist(
            lambda node: self._try(node, "DELETE", path, allowed=(204, 404)), f"remove {path}"
        )

    async def _store(self, path: str, contents: Contents) -> None:
        announce = self._random.random() < 0.7
        headers = {"Idempotency-Key": path}
        if announce:
            headers["Content-Length"] = str(contents.size)
        await self._insist(
            lambda node: self._try(
                node, "PUT", path, allowed=(200, 201), headers=headers, contents=contents
            ),
            f"store {path}",
        )
        self.counts.stored_files += 1
        self.counts.stored_bytes += contents.size

    async def _insist(
        self, attempt: Callable[[NodeProcess], Awaitable[str | None]], what: str
    ) -> None:
        """Try through one gateway after the other until one says that it is done."""
        deadline = asyncio.get_running_loop().time() + _STORE_SECONDS
        while True:
            problem = await attempt(self._random.choice(self.gateways))
            if problem is None:
                return
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"could not {what}: {problem}")
            self.counts.repeated_stores += 1
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _try(
        self,
        node: NodeProcess,
        method: str,
        path: str,
        *,
        allowed: Sequence[int],
        headers: Mapping[str, str] | None = None,
        contents: Contents | None = None,
    ) -> str | None:
        """Return None once done, or why not where a repetition may help."""
        data = None if contents is None else _body(contents)
        try:
            async with self._session.request(
                method, self._url(node, path), data=data, headers=headers
            ) as response:
                text = await response.text()
        except _BROKEN_CONNECTION as error:
            if node not in self._killed:
                raise AssertionError(
                    f"{path} through node {node.number}: {error!r}\n{node.log()}"
                ) from error
            self.counts.broken_connections += 1
            return repr(error)
        except TimeoutError as error:
            if node not in self._killed:
                raise AssertionError(
                    f"{path} through node {node.number} took {_REQUEST_SECONDS} s"
                ) from error
            return repr(error)
        if response.status in allowed:
            return None
        if response.status in (503, 504):
            return f"{response.status} {text}"
        raise AssertionError(f"{path} through node {node.number}: {response.status} {text}")

    # --- reading -----------------------------------------------------------------------------

    async def keep_reading(self, until: asyncio.Event) -> None:
        """Read stored files through random gateways; the first failure is raised."""
        while not until.is_set():
            if not self.stored:
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            path = self._random.choice(list(self.stored))
            start, end = 0, self.stored[path].size
            if end > WHOLE_READ_LIMIT:
                start = self._random.randrange(end)
                end = min(end, start + self._random.randrange(1, WHOLE_READ_LIMIT))
            while not await self.read(self._random.choice(self.gateways), path, start, end):
                pass

    async def read_all(self, node: NodeProcess, paths: Iterable[str], *, at_once: int = 4) -> None:
        """Read every one of the files whole through one node."""
        left = list(paths)

        async def work() -> None:
            while left:
                path = left.pop()
                if not await self.read(node, path, 0, self.stored[path].size):
                    raise ReadFailedError(f"node {node.number} is not running")

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(work())

    async def read(self, node: NodeProcess, path: str, start: int, end: int) -> bool:
        """Read bytes `start` to `end` of a stored file and check each of them.

        Returns False where the connection broke because the node has been killed. Raises
        ReadFailedError on anything but the right bytes.
        """
        contents = self.stored[path]
        whole = (start, end) == (0, contents.size)
        headers = {} if whole else {"Range": f"bytes={start}-{end - 1}"}
        try:
            async with self._session.get(self._url(node, path), headers=headers) as response:
                if response.status != (200 if whole else 206):
                    text = (await response.text())[:500]
                    self._fail(node, path, f"{response.status} {text}")
                hasher, size = blake3(), 0
                async for piece in response.content.iter_any():
                    hasher.update(piece)
                    size += len(piece)
        except (*_BROKEN_CONNECTION, TimeoutError) as error:
            if node in self._killed:
                self.counts.broken_connections += 1
                return False
            self._fail(node, path, repr(error))
        if size != end - start:
            self._fail(node, path, f"{size} bytes of {end - start}")
        expected = self._checksum(path) if whole else blake3(contents.read(start, end)).hexdigest()
        if hasher.hexdigest() != expected:
            self._fail(node, path, f"wrong bytes between {start} and {end}")
        self.counts.reads += 1
        self.counts.read_bytes += size
        return True

    def _fail(self, node: NodeProcess, path: str, what: str) -> NoReturn:
        raise ReadFailedError(f"{path} through node {node.number}: {what}\n{node.log()}")

    def _checksum(self, path: str) -> str:
        if path not in self._checksums:
            self._checksums[path] = self.stored[path].checksum()
        return self._checksums[path]

    def _url(self, node: NodeProcess, path: str) -> str:
        return f"{node.url}/api/v1/files/{OPEN_BUCKET}/{path}"


async def _body(contents: Contents) -> AsyncIterator[bytes]:
    for piece in contents.pieces():
        yield piece
