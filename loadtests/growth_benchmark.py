"""What it costs when a fourth node joins three: for the copies that move, and for who reads.

`rebalance` stores enough that some 10 GB belong on the joining node, lets it join without a limit
on the rate, and compares the time until it has them with the time in which as many streams copy as
many bytes from the bare handler to the same disk, synced as ours are. Meanwhile 64 KiB GETs go on
at all nodes; their p99 is compared with what it was just before. `four-nodes` repeats streams and
requests on the four.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from loadtests.cluster_rig import GIB, KIB, MIB, STREAM_SIZE, Rig, Workload, say
from loadtests.comparisons import compare_requests, compare_streams
from loadtests.measurements import Bar, Measurement, median_of
from loadtests.request_generator import Outcome, generate
from loadtests.stream_client import Target, TransferError, download
from ring.pulling import FETCHES_AT_ONCE
from tests.end_to_end.cluster import HOST, NodeProcess, wait_until

NODES = 4
STORED_SIZE = 13 * GIB
"""Stored before the node joins, by the parts before and by this one; three quarters of it belong
on the joining node."""

CHUNK_SIZE = 8 * MIB
SETTLE_SECONDS = 600.0

READS = Workload("GET", 64 * KIB)
_UPLOADS_AT_ONCE = 2
READ_RUNS = 10
"""Runs of reads during the move, which takes longer: it gives way to them."""

_READ_CONCURRENCY = 16
"""Half of what `requests` uses: latency under load is asked for, not the most that goes."""

REBALANCE_BAR = Bar(at_most=2.5)
READS_BAR = Bar(at_most=2.0)
UPLOAD_BAR = Bar(at_least=0.12)
DOWNLOAD_BAR = Bar(at_least=0.25)
WORKLOADS = (Workload("PUT", 64 * KIB), Workload("GET", 64 * KIB))
_FIRST_RUN = 100
"""Numbers of runs on four nodes; those on three are below."""


class Growth:
    """The parts that need a fourth node, on the rig of a cluster that has three."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    async def rebalance(self) -> AsyncIterator[Measurement]:
        """Let the fourth node join; needs a cluster of three."""
        rig = self._rig
        await asyncio.to_thread(rig.preload)
        say(f"storing up to {STORED_SIZE // GIB} GiB ...")
        await asyncio.to_thread(self._store)
        await self._unlimited()
        await self._wait_settled()
        nodes = list(rig.nodes)
        idle = await asyncio.to_thread(self._read, nodes, 0)
        reads: list[Outcome] = []
        arrived = asyncio.Event()

        async def keep_reading() -> None:
            for run in range(1, READ_RUNS + 1):
                reads.append(await asyncio.to_thread(self._read, nodes, run))
                if arrived.is_set():
                    return

        say("the fourth node joins, while readers go on ...")
        reading = asyncio.create_task(keep_reading())
        try:
            joined = await rig.cluster.add_node()
            await self._wait_settled()
        finally:
            arrived.set()
            await reading
        # A run that the end of the move came into may have seen a quiet cluster.
        during = [each.p99_ms for each in reads]
        yield median_of(
            "64 KiB GET p99 while a node joins",
            [each / idle.p99_ms for each in during],
            "of idle",
            bar=READS_BAR,
            detail=f"{max(during):.1f} ms at most, {idle.p99_ms:.1f} ms before",
        )
        async for measurement in self._again_without_readers(joined):
            yield measurement

    async def four_nodes(self) -> AsyncIterator[Measurement]:
        """Streams and requests on four nodes; lets the fourth join if it has not."""
        rig = self._rig
        await asyncio.to_thread(rig.preload)
        if len(rig.nodes) < NODES:
            await rig.cluster.add_node()
        await self._wait_settled()
        for measurement in await asyncio.to_thread(
            compare_streams,
            rig,
            upload_bar=UPLOAD_BAR,
            download_bar=DOWNLOAD_BAR,
            suffix=", four nodes",
        ):
            yield measurement
        for measurement in await asyncio.to_thread(
            compare_requests, rig, WORKLOADS, suffix=", four nodes", first_run=_FIRST_RUN
        ):
            yield measurement

    # --- steps -------------------------------------------------------------------------------

    async def _again_without_readers(self, node: NodeProcess) -> AsyncIterator[Measurement]:
        """Drain the node and take it back, timing the latter alone against the bare handler.

        What it drained it has dropped, so that all of it has to come again.
        """
        cluster = self._rig.cluster
        say("the fourth node is drained, and comes back with nobody reading ...")
        await self._command("drain", node.url)
        await self._wait_in_ring(NODES - 1)
        await self._wait_settled()
        before = await self._held_bytes(node)
        began = time.perf_counter()
        await self._command("undrain", node.url)
        await self._wait_in_ring(NODES)
        await self._wait_settled()
        seconds = time.perf_counter() - began
        moved = await self._held_bytes(node) - before
        if moved < GIB:
            raise AssertionError(f"only {moved} bytes have moved onto the joining node")
        bare = await asyncio.to_thread(self._copy_bare, moved)
        status = await cluster.status(node)
        yield Measurement(
            name=f"{moved / 1e9:.1f} GB onto a joining node",
            value=seconds / bare,
            unit="x bare",
            bar=REBALANCE_BAR,
            detail=(
                f"{seconds:.1f} s, {moved / seconds / 1e6:,.0f} MB/s; bare {bare:.1f} s with "
                f"{FETCHES_AT_ONCE} streams; epoch {status['epoch']}"
            ),
        )

    def _store(self) -> None:
        rig = self._rig
        with ThreadPoolExecutor(_UPLOADS_AT_ONCE) as threads:
            for each in [
                threads.submit(rig.upload, rig.any_node(), f"moved/{number}", STREAM_SIZE)
                for number in range(max(0, STORED_SIZE - rig.uploaded_bytes) // STREAM_SIZE)
            ]:
                each.result()

    def _read(self, nodes: Sequence[NodeProcess], run: int) -> Outcome:
        """Requests at these nodes: one that is just joining does not listen yet."""
        rig = self._rig
        return generate(
            msgspec.structs.replace(
                rig.our_requests(READS, run),
                addresses=[f"{HOST}:{node.port}" for node in nodes],
                concurrency=_READ_CONCURRENCY,
                seconds=max(2, rig.seconds // 2),
            )
        )

    def _copy_bare(self, size: int) -> float:
        """Copy `size` bytes from the bare handler to files, in chunks and by as many streams as
        repair uses, each chunk synced before the next; returns the seconds."""
        target = self._rig.bare_target(f"/source/{CHUNK_SIZE}/chunk")
        left = [target] * -(-size // CHUNK_SIZE)

        def copy() -> None:
            with tempfile.TemporaryFile(dir=self._rig.cluster.folder, buffering=0) as file:
                while left:
                    try:
                        each: Target = left.pop()
                    except IndexError:
                        return
                    got = download(each, into=file.fileno())
                    if got.size != CHUNK_SIZE:
                        raise TransferError(f"{each.path}: too short")
                    os.fdatasync(file.fileno())

        began = time.perf_counter()
        with ThreadPoolExecutor(FETCHES_AT_ONCE) as threads:
            for stream in [threads.submit(copy) for _ in range(FETCHES_AT_ONCE)]:
                stream.result()
        return time.perf_counter() - began

    async def _unlimited(self) -> None:
        await self._command("cluster", "settings", "--set", "repair_bytes_per_second=0")

    async def _command(self, *arguments: str) -> None:
        done = await self._rig.cluster.command(*arguments)
        if done.returncode != 0:
            raise AssertionError(f"holdfast {' '.join(arguments)}: {done.stderr}")

    async def _held_bytes(self, node: NodeProcess) -> int:
        load = (await self._rig.cluster.status(node))["load"]
        return int(load["chunks_stored_bytes"])

    async def _wait_in_ring(self, count: int) -> None:
        async def reached() -> bool:
            members = (await self._rig.cluster.status())["members"]
            return bool(sum(member["in_ring"] for member in members) == count)

        await wait_until(reached, timeout_seconds=60, what=f"{count} nodes in the ring")

    async def _wait_settled(self) -> None:
        async def settled() -> bool:
            statuses = [await self._rig.cluster.status(node) for node in self._rig.nodes]
            return all(status["settled"] is True for status in statuses)

        await wait_until(settled, timeout_seconds=SETTLE_SECONDS, what="all copies are in place")
