"""The promise of a cluster that changes under load: nodes come and go, and nobody notices.

While files are stored, removed and read without a pause, a fourth node joins, one is drained and
leaves, one is killed and removed, a new one takes its place, and one loses its disk. At the end
every referenced chunk lies on exactly the nodes that own it, and nothing else lies anywhere.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from loadtests.contents import Contents
from metadata_raft.raft_thread import STATE_NAME
from tests.end_to_end.cluster import Cluster, NodeProcess, running_cluster, wait_until
from tests.end_to_end.copies import misplaced_copies, table_digests
from tests.end_to_end.traffic import MIB, Traffic

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(900)]

SEED = 30
WRITERS = 2
READERS = 2
SIZES = (0, 1000, 4096, 4097, 100_000, MIB, 3 * MIB, 9 * MIB)
PAUSE_SECONDS = 0.15
"""Between two files of a writer: the load never stops, and the disk does not fill."""

PRELOADED = 60
STEP_SECONDS = 240.0
"""Limit for one step of the story; each takes a few seconds on a quiet machine."""

GENERATION_SECONDS = 3.0


class _Story:
    """The cluster, its clients, and the steps in which its nodes change."""

    def __init__(self, cluster: Cluster, traffic: Traffic) -> None:
        self.cluster = cluster
        self.traffic = traffic
        self.living = list(cluster.nodes)
        """Nodes that belong to the cluster, in the order in which they came."""

    # --- the load ----------------------------------------------------------------------------

    async def keep_writing(self, writer: int, until: asyncio.Event) -> None:
        """Store files until told to stop; every third is removed again."""
        source = random.Random(SEED + writer)
        number = 0
        while not until.is_set():
            number += 1
            contents = Contents(seed=writer * 1_000_000 + number, size=source.choice(SIZES))
            if number % 3 == 0:
                await self.traffic.store_and_remove(f"gone/{writer}/{number:05}", contents)
            else:
                await self.traffic.store(f"kept/{writer}/{number:05}", contents)
            await asyncio.sleep(PAUSE_SECONDS)

    async def more_is_stored(self, count: int = 8) -> None:
        """Wait until the load has gone on by some files: nothing stands still."""
        wanted = self.traffic.counts.stored_files + count

        async def stored() -> bool:
            return self.traffic.counts.stored_files >= wanted

        await wait_until(stored, timeout_seconds=STEP_SECONDS, what="the load goes on")

    # --- the steps ---------------------------------------------------------------------------

    async def join(self) -> NodeProcess:
        node = await self.cluster.add_node(settle=False)
        self.living.append(node)
        await self.in_ring(len(self.living))
        self.traffic.gateways.append(node)
        return node

    async def drain(self, node: NodeProcess) -> None:
        await self._command("drain", node.url)
        await self.in_ring(len(self.living) - 1)
        await self.settled()

    async def leave(self, node: NodeProcess) -> None:
        """The node leaves in order, and its process ends by itself with success."""
        self.traffic.retire(node)
        self.living.remove(node)
        await self._command("leave", node.url)
        assert await node.wait_exit(timeout_seconds=STEP_SECONDS) == 0, node.log()

    async def lose(self, node: NodeProcess) -> None:
        """The node dies with all it had."""
        self.traffic.kill(node)
        self.living.remove(node)
        await self.more_is_stored()

    async def remove(self, node: NodeProcess) -> None:
        await self._command("remove", node.url)
        await self.in_ring(len(self.living))

    async def lose_disk(self, node: NodeProcess) -> NodeProcess:
        """The node comes back with a wiped metadata directory, is refused, and joins anew."""
        await self.lose(node)
        shutil.rmtree(node.data / "raft")
        node.start()
        assert await node.wait_exit(timeout_seconds=STEP_SECONDS) != 0
        assert "forgotten what it promised" in node.log()
        await self.remove(node)
        shutil.rmtree(node.data)
        return await self.join()

    async def settled(self) -> None:
        """Wait until every living node says that all copies are where they belong."""

        async def said() -> bool:
            statuses = [await self._status(node) for node in self.living]
            return all(status is not None and status["settled"] is True for status in statuses)

        await wait_until(said, timeout_seconds=STEP_SECONDS, what="all copies are in place")

    async def in_ring(self, count: int) -> None:
        async def complete() -> bool:
            statuses = [await self._status(node) for node in self.living]
            return all(
                status is not None
                and sum(member["in_ring"] for member in status["members"]) == count
                for status in statuses
            )

        await wait_until(complete, timeout_seconds=STEP_SECONDS, what=f"{count} nodes in the ring")

    async def nothing_is_left_over(self) -> None:
        """Wait until the nodes hold as many chunks as three copies of what is referenced."""

        async def exact() -> bool:
            counts = [_counts(node.data) for node in self.living]
            statuses = [await self._status(node) for node in self.living]
            held = [status["load"]["chunks"] if status else -1 for status in statuses]
            return all(queued == 0 for _, queued in counts) and all(
                chunks == counts[0][0] for chunks in held
            )

        await wait_until(exact, timeout_seconds=STEP_SECONDS, what="all other space is back")

    async def at_one_index(self) -> None:
        async def alike() -> bool:
            statuses = [await self._status(node) for node in self.living]
            indexes = {status["raft"]["applied_index"] for status in statuses if status}
            return None not in statuses and len(indexes) == 1

        await wait_until(alike, timeout_seconds=STEP_SECONDS, what="all nodes at one index")

    async def _status(self, node: NodeProcess) -> dict[str, Any] | None:
        try:
            return await self.cluster.status(node)
        except (aiohttp.ClientError, TimeoutError):
            return None

    async def _command(self, *arguments: str) -> None:
        done = await self.cluster.command(*arguments, node=self.living[0])
        assert done.returncode == 0, f"holdfast {' '.join(arguments)}: {done.stderr}{done.stdout}"


def _counts(data: Path) -> tuple[int, int]:
    """How many chunks the state of a running node refers to, and how much waits to be reclaimed."""
    uri = f"file:{data / 'raft' / STATE_NAME}?mode=ro"
    connection = sqlite3.connect(uri, uri=True)
    try:
        return (
            int(connection.execute("SELECT count(*) FROM chunks").fetchone()[0]),
            int(connection.execute("SELECT count(*) FROM reclaim").fetchone()[0]),
        )
    finally:
        connection.close()


def _remove_data(folder: Path) -> None:
    """Remove the copies, which pytest would keep for three runs. The logs stay."""
    for data in folder.glob("node-?"):
        shutil.rmtree(data)


async def _come_and_go(story: _Story) -> None:
    first, second, third = story.cluster.nodes
    await story.more_is_stored(PRELOADED)

    fourth = await story.join()
    await story.settled()

    await story.drain(second)
    await story.leave(second)
    await story.more_is_stored()

    await story.lose(third)
    await story.remove(third)
    fifth = await story.join()
    await story.settled()

    await story.lose_disk(fourth)
    await story.settled()
    assert first in story.living
    assert fifth in story.living


async def test_nodes_come_and_go_under_load(tmp_path: Path) -> None:
    """Join, drain, leave, kill, remove, replace, lose a disk: not one read fails, not one
    acknowledged write is lost, and at the end every chunk is where it belongs and nowhere else."""
    traffic = Traffic(SEED)
    writers_end, readers_end = asyncio.Event(), asyncio.Event()
    try:
        async with running_cluster(
            tmp_path,
            3,
            generation_interval_seconds=GENERATION_SECONDS,
            reclaim_grace_seconds=0,
        ) as cluster:
            traffic.gateways.extend(cluster.nodes)
            story = _Story(cluster, traffic)
            async with asyncio.TaskGroup() as readers:
                for _ in range(READERS):
                    readers.create_task(traffic.keep_reading(readers_end))
                async with asyncio.TaskGroup() as writers:
                    for writer in range(WRITERS):
                        writers.create_task(story.keep_writing(writer, writers_end))
                    await _come_and_go(story)
                    writers_end.set()
                await story.settled()
                await story.nothing_is_left_over()
                for node in story.living:
                    await traffic.read_all(node, traffic.stored)
                readers_end.set()
            await story.at_one_index()
            cluster.close()
            states = [table_digests(node.data) for node in story.living]
            assert len(states) == 3
            assert states[0] == states[1] == states[2]
            for node in story.living:
                assert await misplaced_copies(node.data) == []
    finally:
        await traffic.close()
        _remove_data(tmp_path)
