"""The recipes for disks: damaged, full, lost. On one cluster, one after the other."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from tests.end_to_end.cluster import OPEN_BUCKET, Cluster, NodeProcess, running_cluster, wait_until
from tests.end_to_end.recipes import recipe
from tests.end_to_end.test_scrub import flip, records

pytestmark = [
    pytest.mark.processes,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
]

MIB = 1024 * 1024
KEPT = os.urandom(3 * MIB)
LARGE_BYTES = 8 * MIB
ROOM_BYTES = 3 * LARGE_BYTES
PATIENCE_SECONDS = 120.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Deleted space comes back within seconds here, not within two half hours."""
    folder = tmp_path_factory.mktemp("recipes")
    fast = {"generation_interval_seconds": 0.5, "reclaim_grace_seconds": 0}
    async with running_cluster(folder, 3, **fast) as made:
        assert await put(made.nodes[0], "kept", KEPT) == 201
        yield made


async def put(node: NodeProcess, name: str, content: bytes) -> int:
    url = f"{node.url}/api/v1/files/{OPEN_BUCKET}/{name}"
    async with (
        aiohttp.ClientSession() as session,
        session.put(url, data=io.BytesIO(content)) as response,
    ):
        await response.read()
        return response.status


async def assert_kept(node: NodeProcess) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{node.url}/api/v1/files/{OPEN_BUCKET}/kept") as response,
    ):
        assert response.status == 200
        assert await response.read() == KEPT


async def node_id(cluster: Cluster, node: NodeProcess) -> str:
    members = (await cluster.status())["members"]
    return next(str(each["node_id"]) for each in members if each["client_url"] == node.url)


async def test_damaged_files(cluster: Cluster) -> None:
    """What a scrub finds is healed when it returns, and the status says that there was damage."""
    first, second, _ = cluster.nodes

    async def copied() -> bool:
        return bool(records(second))

    await wait_until(copied, timeout_seconds=PATIENCE_SECONDS, what="the last copy")
    (record, *_) = records(second)
    flip(record, record.length // 2)
    async with recipe("damaged-files.md", cluster) as page:
        await page.run("fast", on=first)
        await page.run("scrub", on=first)
        assert "has met 1 damaged copy" in await page.run("look", on=second)
    await assert_kept(second)


async def test_a_disk_is_full(cluster: Cluster) -> None:
    """Two of three nodes have no room: 507, until files are deleted or the quota is raised."""
    first, *limited = cluster.nodes
    for node in limited:
        used = int((await cluster.status(node))["load"]["disk_allocated_bytes"])
        (node.data / "holdfast.toml").write_text(f"chunk_quota_bytes = {used + ROOM_BYTES}\n")
        assert await node.stop() == 0
        node.start()
        await node.wait_ready()
    async with recipe("disk-full.md", cluster) as page:
        stored = await fill(first, "old")
        assert stored >= 2
        assert "is full" in await page.run("look", on=limited[0])
        await page.run("delete", on=first)

        async def room_again() -> bool:
            return await put(first, "new", os.urandom(LARGE_BYTES)) in (200, 201)

        await wait_until(room_again, timeout_seconds=PATIENCE_SECONDS, what="room after deleting")
        await fill(first, "more")
        for node in limited:
            await page.run("quota", on=node)

    # A node counts as full until it is heard again, some seconds later.
    await wait_until(room_again, timeout_seconds=PATIENCE_SECONDS, what="room by a larger quota")
    await assert_kept(limited[1])


async def fill(node: NodeProcess, name: str) -> int:
    """Store large files until there is no room for one more; returns how many were stored."""
    for count in range(1, 20):
        status = await put(node, f"{name}-{count}", os.urandom(LARGE_BYTES))
        if status == 507:
            return count - 1
        assert status == 201
    raise AssertionError("the quota does not hold")


async def test_a_disk_died(cluster: Cluster) -> None:
    """A node whose directory is gone comes back on its address as a new one, with its copies."""
    first, _, third = cluster.nodes
    lost = await node_id(cluster, third)
    third.kill()
    shutil.rmtree(third.data)

    async def noticed() -> bool:
        members = (await cluster.status(first))["members"]
        return [each["reachable"] for each in members if each["node_id"] == lost] == [False]

    await wait_until(noticed, timeout_seconds=PATIENCE_SECONDS, what="the node is missed")
    async with recipe("disk-died.md", cluster) as page:
        await page.run("remove", on=third, asking=first, fill={"NODE": lost[:8]})
        await page.run("join", on=third, asking=first)
        await page.run("wait", on=third)
    await cluster.wait_ring(3)
    assert await node_id(cluster, third) != lost
    assert records(third)
    await assert_kept(third)
