"""What three durable copies cost: a cluster of three nodes against a bare aiohttp handler.

Both on this machine, driven by the same generators, one after the other in every repetition, so
that a ratio of neighbours is left of a noisy machine. The cluster is three ordinary processes with
every sync on; requests carry an API key and spread over all nodes. The parts:

    memory      resident memory idle and during eight uploads of 1 GiB through the leader, and
                whether Raft changed its leader meanwhile
    requests    small PUTs and GETs at concurrency 32, by wrk
    streams     one upload and one download of 1 GiB, by sendfile and recv_into
    first-byte  the time to the first byte of a body, one request at a time
    rebalance   a fourth node joins: how fast it gets its copies, and what readers notice of it
    four-nodes  streams and requests again, where each gateway owns three quarters of the chunks
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from loadtests.cluster_rig import (
    GIB,
    KIB,
    MIB,
    PRELOADED,
    STREAM_SIZE,
    Rig,
    Workload,
    say,
    yardstick,
)
from loadtests.comparisons import compare_requests, compare_streams
from loadtests.growth_benchmark import Growth
from loadtests.measurements import Bar, Measurement, percentile
from loadtests.stream_client import connect, download_over
from tests.end_to_end.cluster import running_cluster

PARTS = ("memory", "requests", "streams", "first-byte", "rebalance", "four-nodes")
NODES = 3
UPLOADS_AT_ONCE = 8
FREE_BYTES_NEEDED = 62 * GIB
"""Three copies of all uploads, what moves to a fourth node, and what is deleted but not yet given
back."""

_IDLE_SECONDS = 5.0
"""How long the fresh cluster is left alone before its memory is read."""
_SAMPLE_SECONDS = 0.05
_FIRST_BYTE_REQUESTS = 1000

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


class ClusterBenchmark:
    """One run against a fresh cluster. Not reusable."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._growth = Growth(rig)

    async def run(self, part: str) -> AsyncIterator[Measurement]:
        """Yield the measurements of a part as they are made.

        Raises GeneratorError, TransferError, or AssertionError where contents are wrong.
        """
        async for measurement in self._part(part):
            yield measurement

    def _part(self, part: str) -> AsyncIterator[Measurement]:
        match part:
            case "memory":
                return self._memory()
            case "requests":
                return self._requests()
            case "streams":
                return self._streams()
            case "first-byte":
                return self._first_bytes()
            case "rebalance":
                return self._growth.rebalance()
            case "four-nodes":
                return self._growth.four_nodes()
        raise AssertionError(f"no part is called {part}")

    async def _requests(self) -> AsyncIterator[Measurement]:
        await asyncio.to_thread(self._rig.preload)
        for measurement in await asyncio.to_thread(compare_requests, self._rig, WORKLOADS):
            yield measurement

    async def _streams(self) -> AsyncIterator[Measurement]:
        for measurement in await asyncio.to_thread(
            compare_streams, self._rig, upload_bar=UPLOAD_BAR, download_bar=DOWNLOAD_BAR
        ):
            yield measurement

    async def _first_bytes(self) -> AsyncIterator[Measurement]:
        await asyncio.to_thread(self._rig.preload)
        say(f"first byte of {_FIRST_BYTE_REQUESTS} downloads ...")
        yield await asyncio.to_thread(self._first_byte)

    def _first_byte(self) -> Measurement:
        """Time the first bytes of whole bodies of all sizes, over kept connections to all nodes."""
        rig = self._rig
        connections = [connect(rig.target(node, "")) for node in rig.nodes]
        sizes = list(PRELOADED)
        weights = [45, 45, 10]
        samples = []
        for _ in range(_FIRST_BYTE_REQUESTS):
            which = rig.random.randrange(len(rig.nodes))
            size = rig.random.choices(sizes, weights)[0]
            path = f"get-{size}/{rig.random.randrange(PRELOADED[size])}"
            transfer = download_over(connections[which], rig.target(rig.nodes[which], path))
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

    async def _memory(self) -> AsyncIterator[Measurement]:
        rig = self._rig
        await asyncio.sleep(_IDLE_SECONDS)
        idle = [node.resident_bytes() / MIB for node in rig.nodes]
        yield Measurement(
            name="resident memory of a node, idle",
            value=max(idle),
            unit="MiB",
            bar=IDLE_BAR,
            detail="the largest of three",
        )
        say(f"{UPLOADS_AT_ONCE} uploads of 1 GiB at once through the leader ...")
        leader = await rig.cluster.leader()
        term = (await rig.cluster.status(leader))["raft"]["term"]
        began = time.perf_counter()
        with ThreadPoolExecutor(UPLOADS_AT_ONCE) as threads:
            uploads = [
                threads.submit(rig.upload, leader, f"at-once/{number}", STREAM_SIZE)
                for number in range(UPLOADS_AT_ONCE)
            ]
            peak = idle
            while not all(upload.done() for upload in uploads):
                now = [node.resident_bytes() / MIB for node in rig.nodes]
                peak = [max(pair) for pair in zip(peak, now, strict=True)]
                await asyncio.sleep(_SAMPLE_SECONDS)
            for upload in uploads:
                upload.result()
        seconds = time.perf_counter() - began
        terms = [(await rig.cluster.status(node))["raft"]["term"] for node in rig.nodes]
        together = UPLOADS_AT_ONCE * STREAM_SIZE / seconds / 1e6
        yield Measurement(
            name="resident memory of a node, eight uploads",
            value=max(peak),
            unit="MiB",
            bar=UPLOADS_BAR,
            detail=f"the largest of three; {together:,.0f} MB/s together",
        )
        yield Measurement(
            name="elections during eight uploads",
            value=max(terms) - term,
            unit="terms",
            bar=ELECTIONS_BAR,
        )


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
    say("starting three nodes ...")
    with yardstick() as bare:
        async with running_cluster(folder, NODES) as cluster:
            rig = Rig(cluster, bare, repetitions=repetitions, seconds=seconds)
            yield ClusterBenchmark(rig)
            rig.close()
