"""A node that is stopped in its tracks: connections stay open, and nothing is answered any more."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import aiohttp
import pytest

from tests.end_to_end.cluster import NodeProcess, running_cluster

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

FILES = 40
SIZE = 300_000


async def test_readers_and_writers_go_on_beside_a_node_that_hangs(tmp_path: Path) -> None:
    """With one of four nodes stopped, every file is read whole through every other node and new
    ones are stored; when it goes on, it ends with all that it should have."""
    async with running_cluster(tmp_path, 4) as cluster:
        contents = {
            f"f{number}": random.Random(number).randbytes(SIZE) for number in range(2 * FILES)
        }
        leader = await cluster.leader()
        hanging = next(node for node in cluster.nodes if node is not leader)
        others = [node for node in cluster.nodes if node is not hanging]
        headers = {"Authorization": f"Bearer {cluster.admin_key}"}
        async with aiohttp.ClientSession(headers=headers) as session:

            async def store(node: NodeProcess, name: str) -> None:
                url = f"{node.url}/api/v1/files/box/{name}"
                async with session.put(url, data=contents[name]) as response:
                    assert response.status in {200, 201}, await response.text()

            async def read(node: NodeProcess, name: str) -> None:
                async with session.get(f"{node.url}/api/v1/files/box/{name}") as response:
                    assert response.status == 200, await response.text()
                    assert await response.read() == contents[name]

            made = await cluster.command("bucket", "create", "box")
            assert made.returncode == 0, made.stderr
            names = sorted(contents)
            for name in names[:FILES]:
                await store(leader, name)
            hanging.pause()
            try:
                for node in others:
                    for name in names[:FILES]:
                        await read(node, name)
                await asyncio.gather(
                    *(store(others[at % 3], name) for at, name in enumerate(names[FILES:]))
                )
                for name in names[FILES:]:
                    await read(leader, name)
            finally:
                hanging.resume()
            await hanging.wait_ready()
            for name in names:
                await read(hanging, name)
