"""The thinnest path through everything, on real processes: store, fetch, kill, go on, restart."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blake3 import blake3

from gateway.client import GatewayClient
from tests.end_to_end.cluster import OPEN_BUCKET, running_cluster

pytestmark = pytest.mark.processes

MIB = 1024 * 1024
SIZES = (0, 1, 4096, 4097, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 30 * MIB)


async def stored(client: GatewayClient, name: str, size: int, seed: int) -> str:
    """Store seeded bytes; returns their digest."""
    contents = random.Random(seed).randbytes(size)
    await client.put(OPEN_BUCKET, name, contents)
    return blake3(contents).hexdigest()


async def fetched(client: GatewayClient, name: str) -> str:
    async with client.get(OPEN_BUCKET, name) as download:
        return blake3(await download.read()).hexdigest()


async def test_files_survive_the_loss_and_return_of_a_node(tmp_path: Path) -> None:
    """What any gateway acknowledged is the same through every other, before, during and after."""
    async with running_cluster(tmp_path, 3) as cluster:
        clients = [GatewayClient(node.url) for node in cluster.nodes]
        try:
            digests: dict[str, str] = {}
            for number, size in enumerate(SIZES):
                name = f"before/{number}"
                digests[name] = await stored(clients[number % 3], name, size, number)
            for number, name in enumerate(digests):
                assert await fetched(clients[(number + 1) % 3], name) == digests[name]

            killed = await cluster.leader()
            index = cluster.nodes.index(killed)
            killed.kill()
            survivors = [client for at, client in enumerate(clients) if at != index]
            for number, size in enumerate(SIZES):
                name = f"during/{number}"
                digests[name] = await stored(survivors[number % 2], name, size, 100 + number)
            for name, digest in digests.items():
                for client in survivors:
                    assert await fetched(client, name) == digest

            killed.start()
            await killed.wait_ready()
            for name, digest in digests.items():
                assert await fetched(clients[index], name) == digest
        finally:
            for client in clients:
                await client.close()


async def test_a_cluster_that_lost_its_power_has_everything_after_the_restart(
    tmp_path: Path,
) -> None:
    """All nodes killed at once and started again: the same bytes, the same cluster."""
    async with running_cluster(tmp_path, 3) as cluster:
        async with GatewayClient(cluster.nodes[0].url) as client:
            digest = await stored(client, "file", 20 * MIB, 1)
        before = await cluster.status()
        for node in cluster.nodes:
            node.kill()
        for node in cluster.nodes:
            node.start()
        for node in cluster.nodes:
            await node.wait_ready()
            async with GatewayClient(node.url) as client:
                assert await fetched(client, "file") == digest
        after = await cluster.status()
        assert after["cluster_id"] == before["cluster_id"]
        assert {member["node_id"] for member in after["members"]} == {
            member["node_id"] for member in before["members"]
        }


async def test_a_stopped_node_finishes_its_requests_and_exits_with_0(tmp_path: Path) -> None:
    """SIGTERM amid an upload: the upload is acknowledged, and then the node ends."""
    async with running_cluster(tmp_path, 1) as cluster:
        node = cluster.nodes[0]
        contents = os.urandom(4 * MIB)
        stopping = False

        async def slowly() -> AsyncIterator[bytes]:
            nonlocal stopping
            for start in range(0, len(contents), MIB):
                yield contents[start : start + MIB]
                if not stopping:
                    assert node.process is not None
                    node.process.terminate()
                    stopping = True

        async with GatewayClient(node.url) as client:
            receipt = await client.put(OPEN_BUCKET, "last", slowly())
        assert receipt.etag == blake3(contents).hexdigest()
        assert await node.wait_exit(timeout_seconds=30) == 0
        node.start()
        await node.wait_ready()
        async with GatewayClient(node.url) as client:
            assert await fetched(client, "last") == receipt.etag
