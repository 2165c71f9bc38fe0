"""The recipe for moving to new machines, both ways."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from tests.end_to_end.cluster import OPEN_BUCKET, Cluster, NodeProcess, running_cluster
from tests.end_to_end.recipes import recipe

pytestmark = [
    pytest.mark.processes,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
]

CONTENT = bytes(range(256)) * 4000
PATIENCE_SECONDS = 120.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with running_cluster(tmp_path_factory.mktemp("recipes"), 3) as made:
        async with (
            aiohttp.ClientSession() as session,
            session.put(_url(made.nodes[0]), data=CONTENT) as response,
        ):
            assert response.status == 201
        yield made


def _url(node: NodeProcess) -> str:
    return f"{node.url}/api/v1/files/{OPEN_BUCKET}/kept"


async def assert_kept(node: NodeProcess) -> None:
    async with aiohttp.ClientSession() as session, session.get(_url(node)) as response:
        assert response.status == 200
        assert await response.read() == CONTENT


async def node_id(cluster: Cluster, node: NodeProcess) -> str:
    members = (await cluster.status())["members"]
    return next(str(each["node_id"]) for each in members if each["client_url"] == node.url)


async def test_moving_to_new_machines(cluster: Cluster) -> None:
    """One node is replaced by a new one, another takes its directory to another address."""
    first, second, third = cluster.nodes
    async with recipe("moving.md", cluster) as page:
        new = cluster.add_process()
        await page.run("token", on=new, asking=first)
        await page.run("join", on=new)
        await cluster.wait_ring(4)
        await page.run("leave", on=first, fill={"NODE": third.url})
        assert await third.wait_exit(timeout_seconds=PATIENCE_SECONDS) == 0
        await cluster.wait_ring(3)

        moved_id = await node_id(cluster, second)
        await page.run("stop", on=second)
        moved = cluster.add_process()
        shutil.copytree(second.data, moved.data, ignore=shutil.ignore_patterns("*.sock"))
        await page.run("start", on=moved)
    assert await node_id(cluster, moved) == moved_id
    await assert_kept(moved)
    await assert_kept(new)
