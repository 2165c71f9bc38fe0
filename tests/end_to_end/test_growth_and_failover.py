"""The promise of Holdfast in one piece: grow under load, lose the leader, and lose nothing.

One node becomes three while files are stored and read; its leader is killed amid uploads; and from
the first minute to the last, readers find every acknowledged byte at every node they ask.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path

import pytest

from loadtests.contents import Contents
from tests.end_to_end.cluster import Cluster, NodeProcess, running_cluster, wait_until
from tests.end_to_end.copies import bad_copies, referenced_chunks, table_digests
from tests.end_to_end.traffic import MIB, Traffic, file_sizes

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(900)]

SEED = 20
FILES = 300
TOTAL_BYTES = 3_000_000_000
UPLOADERS = 3
READERS = 3
SECOND_NODE_AFTER = 40
THIRD_NODE_AFTER = 120
"""Files that are stored when the next node begins to join; more are on their way meanwhile."""

FILES_AROUND_THE_KILL = 12
"""Further files stored before the leader is killed, and again after, without a pause between."""

FIRST_STORE_SECONDS = 10.0
"""Limit for the first file stored after the kill: an election and the repetition of requests."""


class _Growth:
    """The three hundred files on their way into a cluster that grows meanwhile."""

    def __init__(self, cluster: Cluster, traffic: Traffic) -> None:
        self._cluster = cluster
        self._traffic = traffic
        self._source = random.Random(SEED)
        sizes = file_sizes(self._source, count=FILES, total=TOTAL_BYTES)
        self._left = [
            (f"growth/{number:03}", Contents(seed=number, size=size, compressible=number % 4 == 0))
            for number, size in enumerate(sizes)
        ]

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(UPLOADERS):
                group.create_task(self._upload())
            group.create_task(self._join_two())

    async def _upload(self) -> None:
        while self._left:
            await self._traffic.store(*self._left.pop())

    async def _join_two(self) -> None:
        for threshold in (SECOND_NODE_AFTER, THIRD_NODE_AFTER):
            await wait_until(
                lambda threshold=threshold: self._stored_at_least(threshold),  # type: ignore[misc]
                timeout_seconds=120,
                what=f"{threshold} files stored",
            )
            self._traffic.gateways.append(await self._cluster.add_node())
            assert self._left, "the node joined after the load had ended, which shows nothing"

    async def _stored_at_least(self, count: int) -> bool:
        return self._traffic.counts.stored_files >= count


async def _settled(cluster: Cluster, nodes: list[NodeProcess]) -> bool:
    """Whether every node says that all copies are where the current epoch wants them."""
    statuses = [await cluster.status(node) for node in nodes]
    return all(status["settled"] for status in statuses)


async def _wait_settled(cluster: Cluster, nodes: list[NodeProcess]) -> None:
    await wait_until(
        lambda: _settled(cluster, nodes), timeout_seconds=120, what="all copies are in place"
    )


async def _keep_storing(traffic: Traffic, until: asyncio.Event) -> None:
    source = random.Random(SEED + 1)
    number = 0
    while not until.is_set():
        number += 1
        size = source.choice([1000, 4096, 100_000, 3 * MIB, 20 * MIB])
        await traffic.store(f"failover/{number:04}", Contents(seed=10_000 + number, size=size))


async def _kill_the_leader(cluster: Cluster, traffic: Traffic) -> NodeProcess:
    """Kill the leader amid a continuous upload; return it once as much is stored again."""
    enough = asyncio.Event()

    async def stored(count: int) -> bool:
        return traffic.counts.stored_files >= count

    async with asyncio.TaskGroup() as group:
        group.create_task(_keep_storing(traffic, enough))
        before = traffic.counts.stored_files + FILES_AROUND_THE_KILL
        await wait_until(lambda: stored(before), timeout_seconds=60, what="uploads before")
        leader = await cluster.leader()
        traffic.kill(leader)
        after = traffic.counts.stored_files
        await wait_until(
            lambda: stored(after + 1),
            timeout_seconds=FIRST_STORE_SECONDS,
            what="the first file stored after the leader was killed",
        )
        await wait_until(
            lambda: stored(after + FILES_AROUND_THE_KILL), timeout_seconds=60, what="uploads after"
        )
        enough.set()
    return leader


def _remove_data(folder: Path) -> None:
    """Remove nine gigabytes of copies, which pytest would keep for three runs. The logs stay."""
    for data in folder.glob("node-?"):
        shutil.rmtree(data)


async def _use_three_nodes(cluster: Cluster, traffic: Traffic) -> None:
    await _Growth(cluster, traffic).run()
    assert traffic.counts.stored_files == FILES
    await _wait_settled(cluster, cluster.nodes)

    killed = await _kill_the_leader(cluster, traffic)
    survivors = [node for node in cluster.nodes if node is not killed]
    async with asyncio.TaskGroup() as group:
        for node in survivors:
            group.create_task(traffic.read_all(node, traffic.stored))

    killed.start()
    await killed.wait_ready()
    traffic.forgive_no_longer(killed)
    await traffic.read_all(killed, traffic.stored)
    await _wait_settled(cluster, cluster.nodes)


async def _stop_and_compare(cluster: Cluster) -> None:
    """End all nodes and look at their disks: equal states, three good copies of every chunk.

    They are killed, because a leader that stops in order hands over, which is one more entry that
    the others may or may not have applied before they stop.
    """
    await wait_until(
        lambda: _applied_alike(cluster), timeout_seconds=30, what="all nodes at one index"
    )
    cluster.close()
    states = [table_digests(node.data) for node in cluster.nodes]
    assert len(states[0]) > 5
    assert states[0] == states[1] == states[2]
    chunk_ids = referenced_chunks(cluster.nodes[0].data)
    assert len(chunk_ids) > TOTAL_BYTES / (8 * MIB)
    for node in cluster.nodes:
        assert await bad_copies(node.data, chunk_ids) == []


async def _applied_alike(cluster: Cluster) -> bool:
    statuses = [await cluster.status(node) for node in cluster.nodes]
    return len({status["raft"]["applied_index"] for status in statuses}) == 1


async def test_nothing_acknowledged_is_lost_while_growing_and_losing_the_leader(
    tmp_path: Path,
) -> None:
    """300 files through a cluster that grows from one node to three; the leader killed amid more.

    Readers run throughout without one failure. All that was acknowledged is readable through both
    survivors at once and through the third after its restart; then the states of all three are
    equal, table by table, and every referenced chunk is whole on three nodes.
    """
    traffic = Traffic(SEED)
    finished = asyncio.Event()
    try:
        async with running_cluster(tmp_path, 1) as cluster:
            traffic.gateways.extend(cluster.nodes)
            async with asyncio.TaskGroup() as group:
                for _ in range(READERS):
                    group.create_task(traffic.keep_reading(finished))
                await _use_three_nodes(cluster, traffic)
                finished.set()
            assert traffic.counts.reads > FILES
            await _stop_and_compare(cluster)
    finally:
        await traffic.close()
        _remove_data(tmp_path)
