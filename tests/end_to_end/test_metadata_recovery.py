"""Backups, and the ways out of a lost majority, on real processes (rules M6, M7, D10)."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.end_to_end.cluster import (
    OPEN_BUCKET,
    Cluster,
    NodeProcess,
    running_cluster,
    wait_until,
)
from tests.end_to_end.recipes import recipe

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

WAIT_SECONDS = 120.0
LARGE = 300_000
"""So large that a file has chunks; they are cut at 64 KiB here."""

SETTINGS = {"chunk_size_bytes": 65_536}


async def put(node: NodeProcess, path: str, content: bytes) -> int:
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session,
        session.put(f"{node.url}/api/v1/files/{OPEN_BUCKET}/{path}", data=content) as response,
    ):
        return response.status


async def get(node: NodeProcess, path: str) -> bytes | int:
    """The contents, or the status of a refusal."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session,
        session.get(f"{node.url}/api/v1/files/{OPEN_BUCKET}/{path}") as response,
    ):
        return await response.read() if response.status == 200 else response.status


async def put_files(node: NodeProcess, name: str, seed: int) -> dict[str, bytes]:
    """Some files of both kinds, acknowledged."""
    generator = random.Random(seed)
    files = {
        f"{name}/{number}": generator.randbytes(size)
        for number, size in enumerate((LARGE, 500, LARGE, 3000, LARGE))
    }
    for path, content in files.items():
        assert await put(node, path, content) == 201
    return files


async def wait_readable(node: NodeProcess, files: dict[str, bytes]) -> None:
    """Every file arrives with its bytes, at the latest after a while."""

    async def all_there() -> bool:
        for path, content in files.items():
            try:
                found = await get(node, path)
            except (aiohttp.ClientError, TimeoutError):
                return False
            assert found == content or isinstance(found, int), path
            if found != content:
                return False
        return True

    await wait_until(all_there, timeout_seconds=WAIT_SECONDS, what="all files readable")


async def wait_stored(node: NodeProcess, path: str, content: bytes) -> None:
    """A write is taken, at the latest after a while."""

    async def stored() -> bool:
        try:
            return await put(node, path, content) in (200, 201)
        except (aiohttp.ClientError, TimeoutError):
            return False

    await wait_until(stored, timeout_seconds=WAIT_SECONDS, what=f"{path} written")


async def wait_settled(cluster: Cluster) -> None:
    async def settled() -> bool:
        for node in cluster.nodes:
            if node.running and not (await cluster.status(node))["settled"]:
                return False
        return True

    await wait_until(settled, timeout_seconds=WAIT_SECONDS, what="a settled cluster")


async def node_id(cluster: Cluster, node: NodeProcess) -> str:
    return str((await cluster.status(node))["node_id"])


async def token(cluster: Cluster, node: NodeProcess, name: str) -> Path:
    made = await cluster.command("token", "--data", str(node.data), node=node)
    assert made.returncode == 0, made.stderr
    path = cluster.folder / name
    path.write_text(made.stdout)
    return path


async def restore(cluster: Cluster, node: NodeProcess, *backup: str) -> dict[str, Any]:
    done = await cluster.command(
        "meta", "restore", "--data", str(node.data), "--yes", "--json", *backup
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def test_m7_two_of_three_nodes_are_lost_for_good(tmp_path: Path) -> None:
    """The third, with what it has, becomes the cluster: everything acknowledged is readable, writes
    go on, the lost ones are removed, and two new nodes make it three again."""
    async with running_cluster(tmp_path, 3, **SETTINGS) as cluster:
        first, second, third = cluster.nodes
        files = await put_files(first, "before", 1)
        await wait_settled(cluster)
        lost = [await node_id(cluster, first), await node_id(cluster, second)]
        for node in (first, second):
            node.kill()
            shutil.rmtree(node.data)
        busy = await cluster.command("meta", "restore", "--data", str(third.data), "--yes")
        assert busy.returncode == 1
        assert "another node is running on it" in busy.stderr
        third.kill()
        restored = await restore(cluster, third)
        assert restored["incarnation"] > 1
        third.start()
        await third.wait_ready()
        await wait_readable(third, files)
        await wait_stored(third, "small", b"few bytes")
        for gone in lost:
            removed = await cluster.command("remove", gone, "--force", node=third)
            assert removed.returncode == 0, removed.stderr
        files["large"] = random.Random(2).randbytes(LARGE)
        await wait_stored(third, "large", files["large"])

        for _ in range(2):
            await cluster.add_node(settle=False)
        await cluster.wait_ring(3, timeout_seconds=WAIT_SECONDS)
        for node in cluster.nodes[3:]:
            await wait_readable(node, files)
        status = await cluster.status(third)
        assert status["collection_held"]
        resumed = await cluster.command("cluster", "resume-collection", node=third)
        assert resumed.returncode == 0, resumed.stderr
        assert not (await cluster.status(third))["collection_held"]


async def test_m7_lost_nodes_that_have_their_disks_come_back_with_their_chunks(
    tmp_path: Path,
) -> None:
    """Nodes of the old incarnation are refused and told why; with a token of the new one, and no
    other, they rejoin as who they were, once; and what they hold is served again."""
    async with running_cluster(tmp_path, 3, **SETTINGS) as cluster:
        first, second, third = cluster.nodes
        files = await put_files(second, "before", 3)
        ids = [await node_id(cluster, node) for node in cluster.nodes]
        old_token = await token(cluster, first, "old-token")
        async with recipe("majority-lost.md", cluster) as page:
            for node in cluster.nodes:
                node.kill()
            for node in cluster.nodes:
                await page.run("start", on=node)
            await page.run("wait", on=second)
            for node in (first, second):
                node.kill()
            await page.run("restore", on=third)
            await third.wait_ready()

            first.start()

            async def told() -> bool:
                return "of a former incarnation" in await why_unready(first)

            await wait_until(told, timeout_seconds=WAIT_SECONDS, what="the old node to be told why")
            assert "metadata were restored on one of them only" in first.log()
            first.kill()
            refused = await rejoin(cluster, first, old_token)
            assert refused.returncode == 1
            assert "can only come back to a later one" in refused.stderr

            for node in (first, second):
                await page.run("token", on=third)
                await page.run("rejoin", on=node)
            again = await rejoin(cluster, third, page.folder / "token")
            assert again.returncode == 1
            assert "another node is running on it" in again.stderr
            for node in (first, second):
                await node.wait_ready(timeout_seconds=WAIT_SECONDS)
            await cluster.wait_ring(3, timeout_seconds=WAIT_SECONDS)
            assert (await cluster.status(third))["collection_held"]
            await page.run("resume", on=third)
            assert not (await cluster.status(third))["collection_held"]
        assert [await node_id(cluster, node) for node in cluster.nodes] == ids
        files |= await put_files(first, "after", 4)
        # Only they can serve now what the third would have to.
        third.kill()
        for node in (first, second):
            await wait_readable(node, files)
        await wait_stored(first, "more", bytes(LARGE))


async def why_unready(node: NodeProcess) -> str:
    """What the node says against being used; empty where it says nothing."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session,
            session.get(f"{node.url}/health/ready") as response,
        ):
            assert response.status == 503
            return str((await response.json(content_type=None))["detail"])
    except (aiohttp.ClientError, TimeoutError):
        return ""


async def rejoin(cluster: Cluster, node: NodeProcess, token_path: Path) -> Any:
    return await cluster.command(
        "meta", "rejoin", "--data", str(node.data), "--yes", token_path=token_path
    )


async def test_a_backup_made_under_load_is_restored_elsewhere(tmp_path: Path) -> None:
    """The new node has exactly what the backup's index says, and goes on from there."""
    async with running_cluster(tmp_path, 1) as cluster:
        (node,) = cluster.nodes
        stop = asyncio.Event()
        written: list[str] = []

        async def write() -> None:
            while not stop.is_set():
                path = f"small/{len(written):06}"
                assert await put(node, path, path.encode()) == 201
                written.append(path)

        writing = asyncio.create_task(write())
        before = await put_files_small(node)
        async with recipe("metadata-backup.md", cluster) as page:
            assert "whole" in await page.run("backup", on=node)
            backup = page.folder / "metadata.backup"
            by_socket = tmp_path / "by-socket.backup"
            told = await cluster.command("meta", "backup", str(by_socket), "--data", str(node.data))
            assert told.returncode == 0, told.stderr
            stop.set()
            await writing
            assert backup.stat().st_mode & 0o777 == 0o600
            node.kill()

            new = cluster.add_process()
            damaged = tmp_path / "damaged.backup"
            damaged.write_bytes(backup.read_bytes()[:-1])
            refused = await cluster.command(
                "meta", "restore", "--data", str(new.data), "--yes", str(damaged)
            )
            assert refused.returncode == 1
            assert "is cut off" in refused.stderr
            await page.run("restore", on=new)
        await new.wait_ready()
        await wait_readable(new, before)
        found = [await get(new, path) == path.encode() for path in written]
        # What was written later than the backup is not there, and nothing of before is missing.
        assert found == sorted(found, reverse=True)
        await wait_stored(new, "afterwards", b"few bytes")


async def put_files_small(node: NodeProcess) -> dict[str, bytes]:
    files = {f"known/{number}": bytes([number]) * 900 for number in range(10)}
    for path, content in files.items():
        assert await put(node, path, content) == 201
    return files
