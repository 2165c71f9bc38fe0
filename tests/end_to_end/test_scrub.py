"""Damage on the disks of running nodes is found and healed, whatever of them is damaged."""

from __future__ import annotations

import json
import os
import random
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gateway.client import GatewayClient
from tests.end_to_end.cluster import (
    OPEN_BUCKET,
    Cluster,
    NodeProcess,
    running_cluster,
    wait_until,
)
from tests.end_to_end.copies import bad_copies, referenced_chunks

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(900)]

CHUNK_BYTES = 64 * 1024
SIZES = (5_000, 70_000, 300_000, 700_000)
FILES = 16
PATIENCE_SECONDS = 120.0


class Record(NamedTuple):
    chunk_id: bytes
    path: Path
    offset: int
    length: int
    """Without the padding behind it."""


def records(node: NodeProcess) -> list[Record]:
    """Where the healthy chunks of a running node lie."""
    index = node.data / "chunks" / "index.db"
    with sqlite3.connect(f"file:{index}?mode=ro", uri=True) as connection:
        rows = connection.execute(
            "SELECT chunk_id, volume, start, payload_start + payload_length FROM chunks"
            " WHERE NOT quarantined ORDER BY volume, start"
        ).fetchall()
    connection.close()
    return [
        Record(chunk_id, node.data / "chunks" / f"{volume:010d}.volume", start, length)
        for chunk_id, volume, start, length in rows
    ]


def flip(record: Record, at: int) -> None:
    with record.path.open("r+b") as file:
        file.seek(record.offset + at)
        byte = file.read(1)[0]
        file.seek(record.offset + at)
        file.write(bytes([byte ^ 0x10]))


async def load(cluster: Cluster, node: NodeProcess) -> dict[str, Any]:
    figures: dict[str, Any] = (await cluster.status(node))["load"]
    return figures


async def wait_healed(cluster: Cluster, node: NodeProcess, *, chunks: int, found: int) -> None:
    """Wait until the node has met this much damage, and has all its chunks in good health again."""

    async def healed() -> bool:
        figures = await load(cluster, node)
        return bool(
            figures["damage_found"] >= found
            and figures["quarantined_chunks"] == 0
            and figures["chunks"] == chunks
            and figures["repair_remaining_copies"] == 0
        )

    await wait_until(healed, timeout_seconds=PATIENCE_SECONDS, what=f"node {node.number} healed")


async def test_all_kinds_of_damage_are_healed_from_the_other_nodes(tmp_path: Path) -> None:
    """Flipped bits by a scrub on request; a volume cut or removed under a running node by itself;
    a removed index with the next start. No file ever reads otherwise than it was stored, and at the
    end every chunk has three good copies."""
    source = random.Random(5)
    files = {f"file-{n}": source.randbytes(SIZES[n % len(SIZES)]) for n in range(FILES)}
    async with running_cluster(tmp_path, 3, chunk_size_bytes=CHUNK_BYTES) as cluster:
        async with GatewayClient(cluster.nodes[0].url) as client:
            for name, contents in files.items():
                await client.put(OPEN_BUCKET, name, contents)
        chunks = len(records(cluster.nodes[0]))
        for node in cluster.nodes:
            await wait_healed(cluster, node, chunks=chunks, found=0)

        async def all_read() -> None:
            for node in cluster.nodes:
                async with GatewayClient(node.url) as client:
                    for name, contents in files.items():
                        async with client.get(OPEN_BUCKET, name) as download:
                            assert await download.read() == contents

        flipped = source.sample(records(cluster.nodes[0]), 6)
        for number, record in enumerate(flipped):
            # A header, whose first bytes are its magic, and contents, by turns.
            flip(record, 48 + number if number % 2 else record.length - 1 - number)
        scrubbed = await cluster.command("scrub", "--json", node=cluster.nodes[1])
        assert scrubbed.returncode == 0, scrubbed.stderr
        report = json.loads(scrubbed.stdout)
        assert sorted(each["damage_found"] for each in report["nodes"]) == [0, 0, 6]
        await wait_healed(cluster, cluster.nodes[0], chunks=chunks, found=6)
        await all_read()

        cut = cluster.nodes[1]
        volume = records(cut)[0].path
        os.truncate(volume, records(cut)[chunks // 2].offset)
        await wait_healed(cluster, cut, chunks=chunks, found=chunks // 2)
        await all_read()

        emptied = cluster.nodes[2]
        records(emptied)[0].path.unlink()
        await wait_healed(cluster, emptied, chunks=chunks, found=chunks)
        assert all(record.path.exists() for record in records(emptied))
        await all_read()

        unindexed = cluster.nodes[0]
        (unindexed.data / "chunks" / "index.db").unlink()
        assert await unindexed.wait_exit(timeout_seconds=PATIENCE_SECONDS) == 1
        said = [line for line in unindexed.log().splitlines() if line.startswith("holdfast: ")]
        assert len(said) == 1, unindexed.log()
        assert "chunk index" in said[0]
        unindexed.start()
        await unindexed.wait_ready()

        async def scrubbed_again() -> bool:
            return bool((await load(cluster, unindexed))["scrub_passes"] == 2)

        # What had been found bad is not known to a new index.
        await wait_until(
            scrubbed_again, timeout_seconds=PATIENCE_SECONDS, what="a scrub behind the new index"
        )
        await wait_healed(cluster, unindexed, chunks=chunks, found=0)
        await all_read()

        for node in cluster.nodes:
            assert await node.stop() == 0
        referenced = referenced_chunks(cluster.nodes[0].data)
        assert len(referenced) == chunks
        for node in cluster.nodes:
            assert await bad_copies(node.data, referenced) == []


async def test_damage_that_nobody_can_heal_fails_the_command(tmp_path: Path) -> None:
    """With one copy of each chunk: what is bad is named, the rest reads on, nothing is thrown away
    and the bytes that are left of it stay on the disk."""
    async with running_cluster(tmp_path, 1, chunk_size_bytes=CHUNK_BYTES) as cluster:
        (node,) = cluster.nodes
        good, bad = os.urandom(50_000), os.urandom(50_000)
        async with GatewayClient(node.url) as client:
            await client.put(OPEN_BUCKET, "good", good)
            await client.put(OPEN_BUCKET, "bad", bad)
            record = records(node)[1]
            flip(record, record.length - 1)
            scrubbed = await cluster.command("scrub")
            assert scrubbed.returncode == 1, scrubbed.stdout
            assert "1 chunk has no good copy" in scrubbed.stdout
            async with client.get(OPEN_BUCKET, "good") as download:
                assert await download.read() == good
        with record.path.open("rb") as file:
            file.seek(record.offset + record.length - 50_000)
            assert file.read(49_000) == bad[:49_000]


async def test_a_scrub_goes_on_after_a_kill(tmp_path: Path) -> None:
    """It is a matter of the node: a slow pass is seen by `--watch` and outlives the process."""
    async with running_cluster(tmp_path, 1, chunk_size_bytes=CHUNK_BYTES) as cluster:
        (node,) = cluster.nodes
        async with GatewayClient(node.url) as client:
            for number in range(4):
                await client.put(OPEN_BUCKET, f"file-{number}", os.urandom(12 * 1024 * 1024))
        slow = await cluster.command("cluster", "settings", "--set", "scrub_bytes_per_second=1MiB")
        assert slow.returncode == 0, slow.stderr
        assert (await cluster.command("scrub", "--no-wait")).returncode == 0

        async def running() -> bool:
            return bool((await load(cluster, node))["scrub_running"])

        await wait_until(running, timeout_seconds=PATIENCE_SECONDS, what="a scrub runs")
        node.kill()
        node.start()
        await node.wait_ready()
        await wait_until(running, timeout_seconds=PATIENCE_SECONDS, what="the scrub goes on")
        fast = await cluster.command("cluster", "settings", "--set", "scrub_bytes_per_second=0")
        assert fast.returncode == 0, fast.stderr
        watched = await cluster.command("scrub", "--watch")
        assert watched.returncode == 0, watched.stderr
        assert (await load(cluster, node))["scrub_passes"] == 1
