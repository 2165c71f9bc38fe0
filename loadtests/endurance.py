"""One very large file and very many small ones, from the first byte to the space given back.

    scripts/endurance                          # 8 GiB, then 1,000,000 files
    scripts/endurance --only small --files 20000

Three ordinary nodes on this machine with every sync on. Each part stores, reads back and compares
every byte, deletes, and waits until nothing of it is left on any disk; told are seconds, the
largest resident memory of a node, and bytes on disk. Generations advance every few seconds, or
nothing would come back for an hour. Any wrong byte, name or status ends the run with 1.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import uvloop

from loadtests.contents import Contents
from loadtests.keep_alive_client import Connection, RequestFailedError, for_each
from loadtests.machine import facts
from loadtests.stream_client import Target, UploadSource, download
from metadata_raft.raft_thread import STATE_NAME
from tests.end_to_end.cluster import HOST, Cluster, running_cluster, wait_until

GIB, MIB = 1 << 30, 1 << 20
NODES = 3
BUCKET = "endurance"
LARGE_SIZE = 8 * GIB
SMALL_FILES = 1_000_000
SMALL_SIZES = (100, 300, 500, 700, 1000, 1500, 2000, 3000, 4096, 8192)
"""Nine of ten live inside the metadata, as most small files do; the tenth is a chunk."""

CONNECTIONS = 48
PAGE = 1000
GENERATION_SECONDS = 5.0
RECLAIM_SECONDS = 3600.0
FREE_BYTES_NEEDED = 30 * GIB
SAMPLE_SECONDS = 0.25
_DISK = "/var/tmp"
"""On a disk by convention, where /tmp may be memory."""


class Phase(msgspec.Struct, frozen=True):
    """One line of the report."""

    name: str
    seconds: float
    detail: str


class Endurance:
    """The parts, on a running cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._headers = {"Authorization": f"Bearer {cluster.admin_key}"}
        self._peak = 0
        self.phases: list[Phase] = []

    async def large(self, size: int) -> None:
        """One file of `size` bytes."""
        source = UploadSource()
        path = f"/api/v1/files/{BUCKET}/large"
        async with self._bucket():
            async with self._phase(f"one file of {size / GIB:,.3g} GiB stored") as told:
                node = self._cluster.nodes[0]
                target = Target(HOST, node.port, path, self._headers)
                done = await asyncio.to_thread(source.upload, target, identity=1, size=size)
                told.append(f"{size / done.seconds / 1e6:,.0f} MB/s; {self._disk()}")
            async with self._phase("it read back and compared") as told:
                target = Target(HOST, self._cluster.nodes[1].port, path, self._headers)
                got = await asyncio.to_thread(download, target, verify=True)
                expected = await asyncio.to_thread(source.checksum, 1, size)
                if got.checksum != expected:
                    raise RequestFailedError(f"{path} came back with other contents")
                told.append(f"{size / got.seconds / 1e6:,.0f} MB/s of it the download")
        source.close()
        await self._wait_space_back()

    async def small(self, count: int) -> None:
        """`count` files of up to 8 KiB."""
        connections = [
            Connection(HOST, self._cluster.nodes[number % NODES].port, self._headers)
            for number in range(CONNECTIONS)
        ]

        async def store(connection: Connection, number: int) -> None:
            await connection.ask("PUT", _path(number), _small(number), expect=(201,))

        async def read(connection: Connection, number: int) -> None:
            if await connection.ask("GET", _path(number)) != _small(number):
                raise RequestFailedError(f"{_path(number)} came back with other contents")

        async with self._bucket():
            async with self._phase(f"{count:,} files stored") as told:
                began = time.perf_counter()
                await for_each(range(count), connections, store)
                each = count / (time.perf_counter() - began)
                told.append(f"{each:,.0f}/s; {self._disk()}")
            async with self._phase("listed") as told:
                names = await self._list(connections[0])
                if names != sorted(_name(number) for number in range(count)):
                    raise RequestFailedError(f"a listing of {len(names)} names, not {count}")
                told.append(f"{-(-count // PAGE):,} pages")
            async with self._phase("read back and compared") as told:
                began = time.perf_counter()
                await for_each(range(count), connections, read)
                told.append(f"{count / (time.perf_counter() - began):,.0f}/s")
        for connection in connections:
            connection.close()
        await self._wait_space_back()

    async def _list(self, connection: Connection) -> list[str]:
        names: list[str] = []
        cursor = ""
        while True:
            page = msgspec.json.decode(
                await connection.ask("GET", f"/api/v1/files/{BUCKET}?limit={PAGE}{cursor}")
            )
            names += [file["path"] for file in page["files"]]
            if page["next_cursor"] is None:
                return names
            cursor = f"&cursor={page['next_cursor']}"

    @asynccontextmanager
    async def _bucket(self) -> AsyncIterator[None]:
        """A bucket around what is done in it; removed with everything at the end."""
        connection = Connection(HOST, self._cluster.nodes[0].port, self._headers)
        body = msgspec.json.encode({"name": BUCKET})
        await connection.ask("POST", "/api/v1/buckets", body, expect=(200, 201))
        # The node hangs up on a connection that nobody uses for as long as this takes.
        connection.close()
        yield
        async with self._phase("deleted, with its bucket"):
            path = f"/api/v1/buckets/{BUCKET}?cascade=true"
            await connection.ask("DELETE", path, expect=(200, 204))
        connection.close()

    async def _wait_space_back(self) -> None:
        async with self._phase("rows and chunks gone on every node") as told:
            await wait_until(
                self._nothing_left, timeout_seconds=RECLAIM_SECONDS, what="all space back"
            )
            told.append(self._disk())

    async def _nothing_left(self) -> bool:
        await asyncio.sleep(1.0)
        for node in self._cluster.nodes:
            if _rows(node.data):
                return False
            load = (await self._cluster.status(node))["load"]
            if load["chunks"] or load["disk_allocated_bytes"]:
                return False
        return True

    @asynccontextmanager
    async def _phase(self, name: str) -> AsyncIterator[list[str]]:
        """Time a phase and watch the nodes' memory in it; says it when it has ended."""
        print(f"{name} ...", file=sys.stderr, flush=True)
        self._peak = 0
        watching = asyncio.create_task(self._watch())
        told: list[str] = []
        began = time.perf_counter()
        try:
            yield told
        finally:
            watching.cancel()
        seconds = time.perf_counter() - began
        told.append(f"{self._peak / MIB:,.0f} MiB resident at most")
        self.phases.append(Phase(name, seconds, "; ".join(told)))
        print(f"  {seconds:,.1f} s; {'; '.join(told)}", file=sys.stderr, flush=True)

    async def _watch(self) -> None:
        while True:
            self._peak = max(self._peak, *(node.resident_bytes() for node in self._cluster.nodes))
            await asyncio.sleep(SAMPLE_SECONDS)

    def _disk(self) -> str:
        chunks = sum(_allocated(node.data / "chunks") for node in self._cluster.nodes)
        metadata = sum(_allocated(node.data / "raft") for node in self._cluster.nodes)
        return f"on three disks {chunks / 1e6:,.0f} MB chunks, {metadata / 1e6:,.0f} MB metadata"


def _small(number: int) -> bytes:
    size = SMALL_SIZES[number % len(SMALL_SIZES)]
    return Contents(seed=number, size=size).read(0, size)


def _name(number: int) -> str:
    return f"small/{number % 1000:03}/{number:07}"


def _path(number: int) -> str:
    return f"/api/v1/files/{BUCKET}/{_name(number)}"


def _rows(data: Path) -> int:
    """Rows that files leave behind in a running node's state."""
    uri = f"file:{data / 'raft' / STATE_NAME}?mode=ro"
    connection = sqlite3.connect(uri, uri=True)
    try:
        return sum(
            int(connection.execute(f"SELECT EXISTS (SELECT 1 FROM {table})").fetchone()[0])
            for table in ("files", "versions", "segments", "chunks", "reclaim")
        )
    finally:
        connection.close()


def _allocated(directory: Path) -> int:
    """Bytes on disk, by allocated blocks."""
    return sum(path.stat().st_blocks * 512 for path in _files(directory))


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file())


async def _run(options: argparse.Namespace, folder: Path) -> list[Phase]:
    async with running_cluster(
        folder,
        NODES,
        generation_interval_seconds=GENERATION_SECONDS,
        reclaim_grace_seconds=0,
    ) as cluster:
        endurance = Endurance(cluster)
        if options.only in (None, "large"):
            await endurance.large(options.size)
        if options.only in (None, "small"):
            await endurance.small(options.files)
        return endurance.phases


def main() -> None:
    """Run what the arguments say; exit code 1 on anything wrong."""
    parser = argparse.ArgumentParser(prog="scripts/endurance", description=__doc__)
    parser.add_argument("--only", choices=["large", "small"])
    parser.add_argument("--size", type=int, default=LARGE_SIZE, help="bytes of the large file")
    parser.add_argument("--files", type=int, default=SMALL_FILES, help="how many small files")
    parser.add_argument("--directory", default=_DISK, help=f"where the data go ({_DISK})")
    options = parser.parse_args()
    free = shutil.disk_usage(options.directory).free
    if free < FREE_BYTES_NEEDED:
        sys.exit(
            f"{options.directory} has {free / GIB:.0f} GiB free, not {FREE_BYTES_NEEDED // GIB}"
        )
    with tempfile.TemporaryDirectory(prefix="holdfast-", dir=options.directory) as folder:
        machine = facts(folder)
        try:
            phases = uvloop.run(_run(options, Path(folder)))
        except* (RequestFailedError, OSError, AssertionError) as errors:
            sys.exit(f"FAILED: {errors.exceptions[0]}")
    print("\n".join(f"{name}: {fact}" for name, fact in machine.items()), end="\n\n")
    for phase in phases:
        print(f"{phase.name:<40} {phase.seconds:>9,.1f} s  {phase.detail}")


if __name__ == "__main__":
    main()
