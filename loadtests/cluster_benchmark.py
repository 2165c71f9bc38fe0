"""What three durable copies cost: a cluster of three nodes against a bare aiohttp handler.

Both on this machine, driven by the same generators, one after the other in every repetition, so
that a ratio of neighbours is left of a noisy machine. The cluster is three ordinary processes with
every sync on; requests carry an API key and spread over all three nodes. The parts:

    requests    small PUTs and GETs at concurrency 32, by wrk
    streams     one upload and one download of 1 GiB, by sendfile and recv_into
    first-byte  the time to the first byte of a body, one request at a time
    memory      resident memory idle and during eight uploads of 1 GiB through the leader, and
                whether Raft changed its leader meanwhile
"""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from loadtests.measurements import Bar, Measurement, median_of, percentile, ratio_of
from loadtests.request_generator import Outcome, Requests, generate
from loadtests.stream_client import Target, Transfer, UploadSource, connect, download, download_over
from tests.end_to_end.cluster import HOST, OPEN_BUCKET, Cluster, NodeProcess, running_cluster

PARTS = ("memory", "requests", "streams", "first-byte")
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
NODES = 3
CONCURRENCY = 32
STREAM_SIZE = GIB
UPLOADS_AT_ONCE = 8
FREE_BYTES_NEEDED = 40 * GIB
"""Three copies of eight uploads, of the requests, and of what is deleted but not yet given back."""

_IDLE_SECONDS = 5.0
"""How long the fresh cluster is left alone before its memory is read."""
_SAMPLE_SECONDS = 0.05
_PRELOADED = {4 * KIB: 2000, 64 * KIB: 600, 32 * MIB: 8}
"""How many files of which size the reads spread over."""
_FIRST_BYTE_REQUESTS = 1000


class Workload(msgspec.Struct, frozen=True):
    """Small requests of one kind, and the part of the bare handler's rate they have to reach."""

    method: str
    size: int
    bar: Bar

    def name(self) -> str:
        return f"{self.size // KIB} KiB {self.method}, {CONCURRENCY} at once"


WORKLOADS = (
    Workload("PUT", 4 * KIB, Bar(at_least=0.04)),
    Workload("PUT", 8 * KIB, Bar(at_least=0.02)),
    Workload("GET", 4 * KIB, Bar(at_least=0.15)),
    Workload("GET", 64 * KIB, Bar(at_least=0.08)),
)
UPLOAD_BAR = Bar(at_least=0.14)
DOWNLOAD_BAR = Bar(at_least=0.33)
FIRST_BYTE_BAR = Bar(at_most=10.0)
IDLE_BAR = Bar(at_most=120.0)
UPLOADS_BAR = Bar(at_most=500.0)
ELECTIONS_BAR = Bar(at_most=0)


class Yardstick:
    """The bare handler in its process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtests.bare_handler"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def close(self) -> None:
        """End the process by closing its standard input."""
        self._process.communicate()


class ClusterBenchmark:
    """One run against a fresh cluster. Not reusable."""

    def __init__(
        self, cluster: Cluster, yardstick: Yardstick, *, repetitions: int, seconds: int
    ) -> None:
        self._cluster = cluster
        self._nodes = cluster.nodes
        self._bare_port = yardstick.port
        self._repetitions = repetitions
        self._seconds = seconds
        self._headers = {"Authorization": f"Bearer {cluster.admin_key}"}
        self._source = UploadSource()
        self._identities = itertools.count(1)
        self._random = random.Random(1)
        self._preloaded = False

    async def run(self, part: str) -> AsyncIterator[Measurement]:
        """Yield the measurements of a part as they are made.

        Raises GeneratorError, TransferError, or AssertionError where contents are wrong.
        """
        match part:
            case "memory":
                async for measurement in self._memory():
                    yield measurement
            case "requests":
                await self._preload()
                for measurement in await asyncio.to_thread(self._requests):
                    yield measurement
            case "streams":
                for measurement in await asyncio.to_thread(self._streams):
                    yield measurement
            case "first-byte":
                await self._preload()
                _say(f"first byte of {_FIRST_BYTE_REQUESTS} downloads ...")
                yield await asyncio.to_thread(self._first_byte)

    def close(self) -> None:
        self._source.close()

    # --- requests ----------------------------------------------------------------------------

    def _requests(self) -> list[Measurement]:
        ours: dict[Workload, list[Outcome]] = {workload: [] for workload in WORKLOADS}
        bare: dict[Workload, list[Outcome]] = {workload: [] for workload in WORKLOADS}
        for repetition in range(self._repetitions):
            _say(f"requests, repetition {repetition + 1} of {self._repetitions} ...")
            for workload in WORKLOADS:
                bare[workload].append(generate(self._bare_requests(workload, repetition)))
                ours[workload].append(generate(self._our_requests(workload, repetition)))
        measured = []
        for workload in WORKLOADS:
            measured.append(
                ratio_of(
                    workload.name(),
                    [outcome.rate() for outcome in ours[workload]],
                    [outcome.rate() for outcome in bare[workload]],
                    "requests/s",
                    bar=workload.bar,
                )
            )
            measured.append(
                median_of(f"{workload.name()}, p99", [each.p99_ms for each in ours[workload]], "ms")
            )
        return measured

    def _bare_requests(self, workload: Workload, repetition: int) -> Requests:
        prefix = "/sink/" if workload.method == "PUT" else f"/source/{workload.size}/"
        return Requests(
            method=workload.method,
            addresses=[f"{HOST}:{self._bare_port}"],
            prefix=prefix,
            size=workload.size,
            files=_PRELOADED.get(workload.size, 1),
            run=repetition,
            concurrency=CONCURRENCY,
            seconds=self._seconds,
        )

    def _our_requests(self, workload: Workload, repetition: int) -> Requests:
        folder = f"put-{workload.size}" if workload.method == "PUT" else f"get-{workload.size}"
        return msgspec.structs.replace(
            self._bare_requests(workload, repetition),
            addresses=[f"{HOST}:{node.port}" for node in self._nodes],
            prefix=f"/api/v1/files/{OPEN_BUCKET}/{folder}/",
            key=self._cluster.admin_key,
        )

    async def _preload(self) -> None:
        """Store the files that are read, once."""
        if not self._preloaded:
            _say("storing the files that are read ...")
            await asyncio.to_thread(self._store_files)
            self._preloaded = True

    def _store_files(self) -> None:
        with ThreadPoolExecutor(8) as threads:
            for size, count in _PRELOADED.items():
                for each in [
                    threads.submit(self._upload, self._any_node(), f"get-{size}/{number}", size)
                    for number in range(count)
                ]:
                    each.result()

    # --- streams -----------------------------------------------------------------------------

    def _streams(self) -> list[Measurement]:
        up: list[float] = []
        up_bare: list[float] = []
        down: list[float] = []
        down_bare: list[float] = []
        for repetition in range(self._repetitions):
            _say(f"streams, repetition {repetition + 1} of {self._repetitions} ...")
            node = self._nodes[repetition % NODES]
            other = self._nodes[(repetition + 1) % NODES]
            path = f"stream/{repetition}"
            sink = Target(HOST, self._bare_port, "/sink/stream")
            spring = Target(HOST, self._bare_port, f"/source/{STREAM_SIZE}/stream")
            sunk = self._source.upload(sink, identity=0, size=STREAM_SIZE)
            identity = next(self._identities)
            stored = self._source.upload(
                self._target(node, path), identity=identity, size=STREAM_SIZE
            )
            up_bare.append(_rate(sunk))
            up.append(_rate(stored))
            down_bare.append(_rate(download(spring)))
            down.append(_rate(download(self._target(other, path))))
            checked = download(self._target(other, path), verify=True)
            if checked.checksum != self._source.checksum(identity, STREAM_SIZE):
                raise AssertionError(f"{path} came back with other contents")
        return [
            ratio_of("1 GiB upload", up, up_bare, "MB/s", bar=UPLOAD_BAR),
            ratio_of("1 GiB download", down, down_bare, "MB/s", bar=DOWNLOAD_BAR),
        ]

    # --- first byte --------------------------------------------------------------------------

    def _first_byte(self) -> Measurement:
        """Time the first bytes of whole bodies of all sizes, over kept connections to all nodes."""
        connections = [connect(self._target(node, "")) for node in self._nodes]
        sizes = list(_PRELOADED)
        weights = [45, 45, 10]
        samples = []
        for _ in range(_FIRST_BYTE_REQUESTS):
            which = self._random.randrange(NODES)
            size = self._random.choices(sizes, weights)[0]
            path = f"get-{size}/{self._random.randrange(_PRELOADED[size])}"
            transfer = download_over(connections[which], self._target(self._nodes[which], path))
            samples.append(transfer.first_byte_seconds * 1000)
        for connection in connections:
            connection.close()
        return Measurement(
            name="first byte, p99",
            value=percentile(samples, 0.99),
            unit="ms",
            bar=FIRST_BYTE_BAR,
            detail=f"median {percentile(samples, 0.5):.2f} ms; 4 KiB, 64 KiB and 32 MiB files",
        )

    # --- memory ------------------------------------------------------------------------------

    async def _memory(self) -> AsyncIterator[Measurement]:
        await asyncio.sleep(_IDLE_SECONDS)
        idle = [node.resident_bytes() / MIB for node in self._nodes]
        yield Measurement(
            name="resident memory of a node, idle",
            value=max(idle),
            unit="MiB",
            bar=IDLE_BAR,
            detail="the largest of three",
        )
        _say(f"{UPLOADS_AT_ONCE} uploads of 1 GiB at once through the leader ...")
        leader = await self._cluster.leader()
        term = (await self._cluster.status(leader))["raft"]["term"]
        began = time.perf_counter()
        with ThreadPoolExecutor(UPLOADS_AT_ONCE) as threads:
            uploads = [
                threads.submit(self._upload, leader, f"at-once/{number}", STREAM_SIZE)
                for number in range(UPLOADS_AT_ONCE)
            ]
            peak = idle
            while not all(upload.done() for upload in uploads):
                now = [node.resident_bytes() / MIB for node in self._nodes]
                peak = [max(pair) for pair in zip(peak, now, strict=True)]
                await asyncio.sleep(_SAMPLE_SECONDS)
            for upload in uploads:
                upload.result()
        seconds = time.perf_counter() - began
        terms = [(await self._cluster.status(node))["raft"]["term"] for node in self._nodes]
        rate = UPLOADS_AT_ONCE * STREAM_SIZE / seconds / 1e6
        yield Measurement(
            name="resident memory of a node, eight uploads",
            value=max(peak),
            unit="MiB",
            bar=UPLOADS_BAR,
            detail=f"the largest of three; {rate:,.0f} MB/s together",
        )
        yield Measurement(
            name="elections during eight uploads",
            value=max(terms) - term,
            unit="terms",
            bar=ELECTIONS_BAR,
        )

    # --- steps -------------------------------------------------------------------------------

    def _upload(self, node: NodeProcess, path: str, size: int) -> Transfer:
        """Upload contents that no other upload has; safe in several threads."""
        return self._source.upload(
            self._target(node, path), identity=next(self._identities), size=size
        )

    def _target(self, node: NodeProcess, path: str) -> Target:
        return Target(HOST, node.port, f"/api/v1/files/{OPEN_BUCKET}/{path}", self._headers)

    def _any_node(self) -> NodeProcess:
        return self._random.choice(self._nodes)


@asynccontextmanager
async def prepared(
    folder: Path, *, repetitions: int, seconds: int
) -> AsyncIterator[ClusterBenchmark]:
    """Start a cluster below `folder` and the bare handler; both end with the block."""
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES_NEEDED:
        sys.exit(
            f"{folder} has {free / GIB:.0f} GiB free, the benchmark needs "
            f"{FREE_BYTES_NEEDED / GIB:.0f}; name another place with --directory."
        )
    _say("starting three nodes ...")
    yardstick = Yardstick()
    try:
        async with running_cluster(folder, NODES) as cluster:
            benchmark = ClusterBenchmark(
                cluster, yardstick, repetitions=repetitions, seconds=seconds
            )
            yield benchmark
            benchmark.close()
    finally:
        yardstick.close()


def _rate(transfer: Transfer) -> float:
    """Megabytes per second."""
    return transfer.size / transfer.seconds / 1e6


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
