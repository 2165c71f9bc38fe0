"""A node's life on real processes: encrypted peers, crashes while joining, disks that fail."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.client import GatewayClient, UnreachableError
from tests.end_to_end.cluster import OPEN_BUCKET, NodeProcess, running_cluster, wait_until

pytestmark = pytest.mark.processes

MIB = 1024 * 1024


async def test_peers_talk_through_mutual_tls(tmp_path: Path) -> None:
    """Joining, Raft and chunks work with TLS on, as they do beyond loopback.

    Of four nodes the last only follows the log, and each lacks a quarter of the chunks, so reads
    through any of them need the others.
    """
    async with running_cluster(tmp_path, 4, peer_tls="on", chunk_size_bytes=65536) as cluster:
        contents = os.urandom(3 * MIB)
        async with GatewayClient(cluster.nodes[3].url) as client:
            await client.put(OPEN_BUCKET, "file", contents)
        cluster.nodes[0].kill()
        for node in cluster.nodes[1:]:
            async with (
                GatewayClient(node.url) as client,
                client.get(OPEN_BUCKET, "file") as download,
            ):
                assert await download.read() == contents


@pytest.mark.parametrize("milliseconds", [450, 600, 750, 900])
async def test_a_node_that_is_killed_while_joining_goes_on(
    tmp_path: Path, milliseconds: int
) -> None:
    """At whatever step: the same command finishes it, as one and the same member."""
    async with running_cluster(tmp_path, 1) as cluster:
        token_path = tmp_path / "token"
        made = await cluster.command("token", "--data", str(cluster.nodes[0].data))
        token_path.write_text(made.stdout)
        node = cluster.add_process()
        node.start(token_path=token_path)
        await asyncio.sleep(milliseconds / 1000)
        node.kill()
        node.start(token_path=token_path)
        await node.wait_ready()
        await cluster.wait_ring(2)
        assert len((await cluster.status())["members"]) == 2


async def test_a_token_admits_one_node(tmp_path: Path) -> None:
    """The second bearer is refused with a sentence, and the cluster stays as it is."""
    async with running_cluster(tmp_path, 1) as cluster:
        token_path = tmp_path / "token"
        made = await cluster.command("token", "--data", str(cluster.nodes[0].data))
        token_path.write_text(made.stdout)
        first, second = cluster.add_process(), cluster.add_process()
        first.start(token_path=token_path)
        await first.wait_ready()
        second.start(token_path=token_path)
        assert await second.wait_exit(timeout_seconds=30) == 1
        assert "does not admit this node: The join token has been used already" in second.log()


async def test_a_node_whose_log_was_wiped_does_not_vote_again(tmp_path: Path) -> None:
    """It has forgotten what it promised; starting would break Raft silently."""
    async with running_cluster(tmp_path, 1) as cluster:
        node = cluster.nodes[0]
        assert await node.stop() == 0
        shutil.rmtree(node.data / "raft")
        node.start()
        assert await node.wait_exit(timeout_seconds=30) == 1
        assert "this node has forgotten what it promised" in node.log()


@pytest.mark.parametrize("name", ["vote", "manifest"])
async def test_a_damaged_raft_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    """The node stops before anything is served, says what is damaged, and closes what is open."""
    async with running_cluster(tmp_path, 1) as cluster:
        node = cluster.nodes[0]
        assert await node.stop() == 0
        path = node.data / "raft" / name
        damaged = bytearray(path.read_bytes())
        damaged[-1] ^= 1
        path.write_bytes(damaged)
        node.start()
        assert await node.wait_exit(timeout_seconds=30) == 1
        said = [line for line in node.log().splitlines() if line.startswith("holdfast: ")]
        assert len(said) == 1, node.log()
        assert "Remove it from the cluster" in said[0]
        assert "Traceback" not in node.log()


async def test_a_failed_write_of_a_chunk_ends_the_node_with_a_sentence(tmp_path: Path) -> None:
    """What the disk holds is unknown then, so nothing more is acknowledged; others go on."""
    async with running_cluster(tmp_path, 3) as cluster:
        node = cluster.nodes[0]
        # Files of this process may not grow beyond a mebibyte: writes fail with EFBIG.
        resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (MIB, MIB))
        async with GatewayClient(cluster.nodes[1].url) as client:
            contents = os.urandom(4 * MIB)
            await client.put(OPEN_BUCKET, "file", contents)
            assert await node.wait_exit(timeout_seconds=30) == 1
            said = [line for line in node.log().splitlines() if line.startswith("holdfast: ")]
            assert len(said) == 1, node.log()
            assert "this node must end" in said[0]
            node.start()
            await node.wait_ready()
        async with GatewayClient(node.url) as client, client.get(OPEN_BUCKET, "file") as download:
            assert await download.read() == contents


async def test_space_comes_back_on_every_node(tmp_path: Path) -> None:
    """Of a deleted file, an overwritten one, and an upload whose client vanished; not of others."""
    settings = {"generation_interval_seconds": 0.3, "reclaim_grace_seconds": 0.1}
    async with running_cluster(tmp_path, 3, **settings) as cluster:
        kept = os.urandom(9 * MIB)
        async with GatewayClient(cluster.nodes[0].url) as client:
            for name in ("kept", "deleted", "overwritten"):
                await client.put(
                    OPEN_BUCKET, name, kept if name == "kept" else os.urandom(20 * MIB)
                )
            await client.delete(OPEN_BUCKET, "deleted")
            await client.put(OPEN_BUCKET, "overwritten", b"")
            with pytest.raises(UnreachableError):
                await client.put(OPEN_BUCKET, "vanished", _vanishing(os.urandom(20 * MIB)))

        async def only_kept() -> bool:
            loads = [(await cluster.status(node))["load"] for node in cluster.nodes]
            return all(
                load["chunks_plain_bytes"] == len(kept)
                and len(kept) <= _bytes_on_disk(node) < len(kept) + 2 * MIB
                for node, load in zip(cluster.nodes, loads, strict=True)
            )

        await wait_until(only_kept, timeout_seconds=60, what="the space is given back")
        for node in cluster.nodes:
            async with (
                GatewayClient(node.url) as client,
                client.get(OPEN_BUCKET, "kept") as download,
            ):
                assert await download.read() == kept


def _bytes_on_disk(node: NodeProcess) -> int:
    """What a node's volumes occupy, holes left out."""
    return sum(path.stat().st_blocks * 512 for path in (node.data / "chunks").glob("*.volume"))


async def _vanishing(contents: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(contents), MIB):
        yield contents[start : start + MIB]
    raise ConnectionAbortedError("the client is gone")
