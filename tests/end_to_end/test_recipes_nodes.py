"""The recipes for nodes that stop: on purpose, by a power cut, for good. On one cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from tests.end_to_end.cluster import OPEN_BUCKET, Cluster, NodeProcess, running_cluster, wait_until
from tests.end_to_end.recipes import recipe

pytestmark = [
    pytest.mark.processes,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
]

CONTENT = bytes(range(256)) * 4096


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with running_cluster(tmp_path_factory.mktemp("recipes"), 3) as made:
        await put(made.nodes[0], "first", CONTENT)
        yield made


async def put(node: NodeProcess, name: str, content: bytes) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.put(f"{node.url}/api/v1/files/{OPEN_BUCKET}/{name}", data=content) as response,
    ):
        assert response.status in (200, 201), await response.text()


async def get(node: NodeProcess, name: str) -> bytes:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{node.url}/api/v1/files/{OPEN_BUCKET}/{name}") as response,
    ):
        assert response.status == 200, await response.text()
        return await response.read()


async def maintenance(node: NodeProcess) -> tuple[int, str]:
    """What the node says when it is asked whether it may stop."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{node.url}/health/ready?maintenance=true") as response,
    ):
        document = await response.json()
        return response.status, document["detail"]


async def test_upgrade_one_node_at_a_time(cluster: Cluster) -> None:
    """Each says that it may stop once the one before is back, and files are there all the time."""
    async with recipe("upgrade.md", cluster) as page:
        for node in cluster.nodes:
            await page.run("check", on=node)
            before = node.pid
            await page.run("restart", on=node)
            assert node.pid != before
            await page.run("wait", on=node)
            assert await get(node, "first") == CONTENT
        assert "No warnings." in await page.run("look", on=cluster.nodes[-1])


async def test_while_a_node_is_down_no_other_may_stop(cluster: Cluster) -> None:
    """412 with the reasons in words on each of the others; 200 when it is back and settled."""
    down, *others = cluster.nodes
    down.kill()
    for node in others:
        status, detail = await maintenance(node)
        assert status == 412
        assert "does not answer" in detail
        assert "1 of 3 voters would be left, and 2 are needed" in detail
        assert "copy would answer" in detail
    down.start()

    async def healed() -> bool:
        return [(await maintenance(node))[0] for node in others] == [200, 200]

    await wait_until(healed, timeout_seconds=120, what="nodes may be stopped again")


async def test_power_was_lost(cluster: Cluster) -> None:
    """All nodes lose their power at once; started again they have every file."""
    await put(cluster.nodes[0], "second", CONTENT[::-1])
    for node in cluster.nodes:
        node.kill()
    async with recipe("power-lost.md", cluster) as page:
        for node in cluster.nodes:
            await page.run("start", on=node)
        await page.run("wait", on=cluster.nodes[1])
        assert "No warnings." in await page.run("look", on=cluster.nodes[1])
    assert await get(cluster.nodes[2], "second") == CONTENT[::-1]


async def test_a_node_died(cluster: Cluster) -> None:
    """It is started again; it dies for good, is removed, and another one takes its place."""
    first, _, third = cluster.nodes
    async with recipe("node-died.md", cluster) as page:
        third.kill()

        async def missed() -> bool:
            return "does not answer" in await page.run("look", on=third, asking=first)

        await wait_until(missed, timeout_seconds=120, what="the status names the node that died")
        await page.run("start", on=third)
        await page.run("wait", on=third, asking=first)
        gone = next(
            member["node_id"]
            for member in (await cluster.status(first))["members"]
            if member["client_url"] == third.url
        )
        third.kill()

        async def noticed() -> bool:
            members = (await cluster.status(first))["members"]
            return [m["reachable"] for m in members if m["node_id"] == gone] == [False]

        await wait_until(noticed, timeout_seconds=60, what="the status shows that it is gone")
        await page.run("remove", on=third, asking=first, fill={"NODE": gone[:8]})
        new = cluster.add_process()
        await page.run("token", on=new, asking=first)
        await page.run("join", on=new, asking=first)
        await page.run("joined", on=new)

    async def forgotten() -> bool:
        members = (await cluster.status(first))["members"]
        return gone not in {member["node_id"] for member in members}

    await wait_until(forgotten, timeout_seconds=60, what="the removed node is gone for good")
    await cluster.wait_ring(3)
    assert await get(new, "first") == CONTENT


async def test_a_slow_node(cluster: Cluster) -> None:
    """Repair is held back and let go; a fourth node lets one of them be drained and used again."""
    await cluster.add_node(settle=False)
    await cluster.wait_ring(4)
    first, second, *_ = cluster.nodes
    slow = next(
        member["node_id"]
        for member in (await cluster.status(first))["members"]
        if member["client_url"] == second.url
    )
    async with recipe("slow-node.md", cluster) as page:
        await page.run("look", on=first)
        await page.run("throttle", on=first)
        assert (await cluster.status(first))["settings"]["repair_bytes_per_second"] == 20_000_000
        await page.run("unthrottle", on=first)
        await page.run("drain", on=first, fill={"NODE": slow[:8]})
        members = (await cluster.status(first))["members"]
        assert [each["in_ring"] for each in members if each["node_id"] == slow] == [False]
        await page.run("undrain", on=first, fill={"NODE": slow[:8]})
    await cluster.wait_ring(4)
    assert await get(second, "first") == CONTENT
