"""Many long transfers at once share a node's buffers without standing in each other's way."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from loadtests.contents import Contents
from tests.end_to_end.cluster import running_cluster
from tests.end_to_end.traffic import MIB, Traffic

pytestmark = [pytest.mark.processes, pytest.mark.slow]

FILE_SIZE = 44 * MIB
"""Five whole chunks and a part: longer than what a download reads ahead."""

FILES = 6
DOWNLOADS = 16
"""At once through each of two nodes: with three chunks each, three times a node's buffers."""

UPLOADS = 4


async def test_downloads_and_uploads_at_once_all_end(tmp_path: Path) -> None:
    """Sixteen downloads through each of two nodes and four uploads: none fails, none starves.

    Each of them gives a buffer back as soon as it is sent, and nothing that is read for a peer
    waits for buffers that clients hold; otherwise they wait for each other until they time out.
    """
    traffic = Traffic(seed=5)
    try:
        async with running_cluster(tmp_path, 3) as cluster:
            traffic.gateways.extend(cluster.nodes)
            for number in range(FILES):
                contents = Contents(seed=number, size=FILE_SIZE, compressible=number == 0)
                await traffic.store(f"read/{number}", contents)
            paths = list(traffic.stored)
            async with asyncio.TaskGroup() as group:
                for node in cluster.nodes[:2]:
                    group.create_task(traffic.read_all(node, paths * 4, at_once=DOWNLOADS))
                for number in range(UPLOADS):
                    contents = Contents(seed=100 + number, size=FILE_SIZE)
                    group.create_task(traffic.store(f"write/{number}", contents))
            assert traffic.counts.reads == 2 * 4 * FILES
            assert traffic.counts.repeated_stores == 0
    finally:
        await traffic.close()
