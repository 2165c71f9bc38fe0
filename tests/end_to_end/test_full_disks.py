"""Disks that fill up under real nodes: nothing acknowledged is lost, space that comes is used."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path
from typing import Any

import pytest

from gateway.client import ClientError, GatewayClient, RefusedError, TryAgainError
from tests.end_to_end.cluster import (
    OPEN_BUCKET,
    Cluster,
    NodeProcess,
    running_cluster,
    wait_until,
)
from tests.end_to_end.copies import bad_copies, referenced_chunks
from tests.end_to_end.small_disk import free_bytes, small_disk, use_up

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(900)]

MIB = 1024 * 1024
RESERVE_BYTES = 64 * MIB
RAFT_RESERVE_BYTES = 32 * MIB
DISK_MIB = 152
"""Raft takes 40 (its reserve and a segment of the log), chunks leave 64 free: some 40 for them."""

SETTINGS = {
    "chunk_size_bytes": 512 * 1024,
    "disk_reserve_bytes": RESERVE_BYTES,
    "generation_interval_seconds": 0.3,
    "reclaim_grace_seconds": 0.1,
}
FILE_BYTES = 3 * MIB
FILES_MAX = 60
"""Far more than fit: a store that is never full fails the test instead of going on for ever."""

PATIENCE_SECONDS = 120.0


def contents_of(number: int) -> bytes:
    return random.Random(number).randbytes(FILE_BYTES)


async def load(cluster: Cluster, node: NodeProcess) -> dict[str, Any]:
    figures: dict[str, Any] = (await cluster.status(node))["load"]
    return figures


async def fill(client: GatewayClient) -> tuple[list[int], RefusedError]:
    """Store files until one is refused; returns those that were stored, and the refusal."""
    stored: list[int] = []
    for number in range(FILES_MAX):
        try:
            await client.put(OPEN_BUCKET, f"file-{number:03}", contents_of(number))
        except RefusedError as error:
            return stored, error
        stored.append(number)
    raise AssertionError(f"{FILES_MAX} files of {FILE_BYTES} bytes fit into a small disk")


async def assert_readable(nodes: list[NodeProcess], numbers: list[int]) -> None:
    for node in nodes:
        async with GatewayClient(node.url) as client:
            for number in numbers:
                async with client.get(OPEN_BUCKET, f"file-{number:03}") as download:
                    assert await download.read() == contents_of(number)


async def settled(cluster: Cluster) -> bool:
    return all([(await cluster.status(node))["settled"] for node in cluster.nodes])


async def stop_and_compare(cluster: Cluster) -> None:
    """Every node that is asked to end does, all refer to the same, and every copy is good."""
    for node in cluster.nodes:
        assert "Traceback" not in node.log(2000), node.log(200)
        assert await node.stop() == 0
    referenced = referenced_chunks(cluster.nodes[0].data)
    for node in cluster.nodes:
        assert referenced_chunks(node.data) == referenced
        assert await bad_copies(node.data, referenced) == []


async def test_a_cluster_that_is_full_of_chunks(tmp_path: Path) -> None:
    """Uploads end with 507 and leave nothing; what is stored reads on; deletions, generations and
    collection go on, and as soon as there is space the same upload succeeds."""
    with contextlib.ExitStack() as disks:
        for number in (1, 2, 3):
            disks.enter_context(small_disk(tmp_path / f"node-{number}", DISK_MIB))
        async with running_cluster(tmp_path, 3, **SETTINGS) as cluster:
            pids = [node.pid for node in cluster.nodes]
            async with GatewayClient(cluster.nodes[0].url) as client:
                stored, refusal = await fill(client)
                assert refusal.code == "storage_full", refusal
                assert len(stored) >= 5
                for node in cluster.nodes:
                    assert (await load(cluster, node))["store_full"] == 1
                    assert free_bytes(node.data) >= RESERVE_BYTES - 2 * MIB
                await assert_readable(cluster.nodes, stored)
                # What lives in the metadata alone has room still.
                await client.put(OPEN_BUCKET, "small", b"x" * 100)

                refusals: set[str] = set()
                gone, kept = stored[::2], stored[1::2]
                for number in gone:
                    await client.delete(OPEN_BUCKET, f"file-{number:03}")

                async def fits() -> bool:
                    try:
                        await client.put(OPEN_BUCKET, "file-000", contents_of(0))
                    except RefusedError as error:
                        refusals.add(error.code)
                        return False
                    return True

                await wait_until(fits, timeout_seconds=PATIENCE_SECONDS, what="space is back")
            assert refusals <= {"storage_full"}
            assert [node.pid for node in cluster.nodes] == pids
            await wait_until(
                lambda: settled(cluster), timeout_seconds=PATIENCE_SECONDS, what="it is settled"
            )
            await assert_readable(cluster.nodes, [0, *kept])
            await stop_and_compare(cluster)


async def test_a_full_node_among_others(tmp_path: Path) -> None:
    """Of four nodes one is full: uploads go on, others stand in for it; when it has space again it
    gets what belongs to it, and the cluster is settled."""
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(small_disk(tmp_path / "node-4", DISK_MIB))
        cluster = await stack.enter_async_context(running_cluster(tmp_path, 4, **SETTINGS))
        full = cluster.nodes[3]
        async with GatewayClient(cluster.nodes[0].url) as client:
            stored = list(range(30))
            for number in stored:
                await client.put(OPEN_BUCKET, f"file-{number:03}", contents_of(number))
            assert (await load(cluster, full))["store_full"] == 1
            await assert_readable([cluster.nodes[0], full], stored)
            assert not await settled(cluster)
            gone, kept = stored[:20], stored[20:]
            for number in gone:
                await client.delete(OPEN_BUCKET, f"file-{number:03}")
        await wait_until(
            lambda: settled(cluster), timeout_seconds=PATIENCE_SECONDS, what="it is settled"
        )
        assert (await load(cluster, full))["store_full"] == 0
        await assert_readable(cluster.nodes, kept)
        for node in cluster.nodes:
            assert await node.stop() == 0
        referenced = referenced_chunks(full.data)
        lacking = [len(await bad_copies(node.data, referenced)) for node in cluster.nodes]
        # Three copies of each: each chunk is absent from one node at most.
        assert sum(lacking) <= len(referenced)


async def test_a_quota(tmp_path: Path) -> None:
    """A node takes no more chunks than its setting allows, whatever its disk has."""
    quota = 12 * MIB
    settings = {**SETTINGS, "chunk_quota_bytes": quota}
    async with running_cluster(tmp_path, 1, **settings) as cluster:
        (node,) = cluster.nodes
        async with GatewayClient(node.url) as client:
            stored, refusal = await fill(client)
            assert refusal.code == "storage_full"
            assert stored == [0, 1, 2]
            figures = await load(cluster, node)
            assert figures["chunk_quota_bytes"] == quota
            assert figures["store_full"] == 1
            assert figures["disk_allocated_bytes"] <= quota
            await assert_readable([node], stored)


async def assert_nothing_fits(client: GatewayClient) -> None:
    """Neither contents nor what would live in the metadata alone is taken."""
    for body in (contents_of(9), b"small"):
        with pytest.raises((RefusedError, TryAgainError)) as refused:
            await client.put(OPEN_BUCKET, "refused", body)
        assert refused.value.code in ("storage_full", "overloaded"), refused.value


async def test_a_disk_without_a_byte(tmp_path: Path) -> None:
    """Somebody else fills the disk that holds the log, the state, the index and the chunks. The
    node refuses what it can't keep, reads, deletes by its reserve, and goes on by itself when there
    is space: the same process, with all that it had acknowledged."""
    with small_disk(tmp_path / "node-1", DISK_MIB):
        async with running_cluster(tmp_path, 1, **SETTINGS) as cluster:
            (node,) = cluster.nodes
            pid = node.pid
            stored = [0, 1, 2]
            async with GatewayClient(node.url) as client:
                for number in stored:
                    await client.put(OPEN_BUCKET, f"file-{number:03}", contents_of(number))
                fillers = [use_up(node.data, "filler")]

                async def reserve_in_use() -> bool:
                    return (
                        not (node.data / "raft" / "reserve").exists()
                        and free_bytes(node.data) < RAFT_RESERVE_BYTES
                    )

                # By the next generation at the latest: it goes on whatever the disk has.
                await wait_until(
                    reserve_in_use, timeout_seconds=PATIENCE_SECONDS, what="the reserve is used"
                )
                await assert_nothing_fits(client)
                await assert_readable([node], stored)

                async def deleted() -> bool:
                    try:
                        await client.delete(OPEN_BUCKET, "file-000")
                    except TryAgainError:
                        return False
                    return True

                await wait_until(deleted, timeout_seconds=PATIENCE_SECONDS, what="a deletion")
                await assert_readable([node], stored[1:])
                # Now what the reserve had is gone too.
                fillers.append(use_up(node.data, "second-filler"))
                await assert_nothing_fits(client)
                await assert_readable([node], stored[1:])
                for filler in fillers:
                    filler.unlink()

                async def stores() -> bool:
                    try:
                        await client.put(OPEN_BUCKET, "file-009", contents_of(9))
                    except ClientError:
                        return False
                    return True

                await wait_until(stores, timeout_seconds=PATIENCE_SECONDS, what="it stores again")
                assert node.pid == pid
                assert node.running
            await assert_readable([node], [1, 2, 9])

            async def reserved() -> bool:
                return (node.data / "raft" / "reserve").exists()

            await wait_until(reserved, timeout_seconds=PATIENCE_SECONDS, what="a reserve again")
            await stop_and_compare(cluster)


async def test_a_start_on_a_full_disk(tmp_path: Path) -> None:
    """Without room for a page it is one sentence, and nothing is harmed; with a mebibyte the node
    is ready, for it gives up its reserve, and has all that it had."""
    with small_disk(tmp_path / "node-1", DISK_MIB):
        async with running_cluster(tmp_path, 1, **SETTINGS) as cluster:
            (node,) = cluster.nodes
            async with GatewayClient(node.url) as client:
                await client.put(OPEN_BUCKET, "file-000", contents_of(0))
            assert await node.stop() == 0
            filler = use_up(node.data, "filler")
            node.start()
            assert await node.wait_exit(timeout_seconds=PATIENCE_SECONDS) == 1
            said = [line for line in node.log().splitlines() if line.startswith("holdfast: ")]
            assert len(said) == 1, node.log()
            assert "space" in said[0]
            assert "Traceback" not in node.log(200)
            with filler.open("r+b") as file:
                file.truncate(file.seek(0, os.SEEK_END) - MIB)
            node.start()
            await node.wait_ready()
            await assert_readable([node], [0])
            async with GatewayClient(node.url) as client:
                await client.delete(OPEN_BUCKET, "file-000")
