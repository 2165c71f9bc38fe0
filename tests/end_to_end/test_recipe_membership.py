"""The recipe for nodes that come and go, run as an operator would, on one cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.client import GatewayClient
from tests.end_to_end.cluster import OPEN_BUCKET, running_cluster
from tests.end_to_end.membership import PATIENCE_SECONDS, node_id, wait_members, wait_ring_of
from tests.end_to_end.recipes import recipe

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(600)]

CONTENT = bytes(range(256)) * 4096


async def test_nodes_come_and_go_as_the_guide_says(tmp_path: Path) -> None:
    """Two new machines take the place of two old ones, and what was stored before is there after
    it; a node is emptied and used again; settings change and change back."""
    async with running_cluster(tmp_path, 3) as cluster:
        first, second, third = cluster.nodes
        async with GatewayClient(first.url) as client:
            await client.put(OPEN_BUCKET, "file", CONTENT)
        async with recipe("membership.md", cluster) as page:
            assert second.url in await page.run("list", on=first)
            shown = await page.run("preview", on=first, fill={"NODE": second.url})
            assert "a new node joins" in shown
            assert f"node {node_id(second)} leaves" in shown
            before = (await cluster.status(first))["settings"]
            await page.run("settings", on=first)
            assert (await cluster.status(first))["settings"] == before

            fourth = cluster.add_process()
            await page.run("token", on=fourth, asking=first)
            await page.run("join", on=fourth, asking=first)
            await page.run("joined", on=fourth)
            name = node_id(fourth)[:8]
            await page.run("drain", on=first, fill={"NODE": name})
            await wait_ring_of(cluster, first, second, third)
            await page.run("undrain", on=first, fill={"NODE": name})
            await wait_ring_of(cluster, *cluster.nodes)

            await page.run("leave", on=first, fill={"NODE": node_id(second)[:13]})
            assert await second.wait_exit(timeout_seconds=PATIENCE_SECONDS) == 0
            fifth = cluster.add_process()
            await page.run("token", on=fifth, asking=first)
            await page.run("join", on=fifth, asking=first)
            await page.run("joined", on=fifth)
            await page.run("leave-here", on=first)
            assert await first.wait_exit(timeout_seconds=PATIENCE_SECONDS) == 0
        await wait_members(cluster, third, fourth, fifth)
        for node in (third, fourth, fifth):
            async with (
                GatewayClient(node.url) as client,
                client.get(OPEN_BUCKET, "file") as download,
            ):
                assert await download.read() == CONTENT
