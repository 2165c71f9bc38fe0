"""Downloads: read ahead within bounds, and never ended short."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
from blake3 import blake3

from gateway.downloads import READ_AHEAD_PIECES, SEGMENTS_AT_ONCE
from metadata_raft.commands import SEGMENT_CHUNK_LIMIT, ReclaimStep
from ring.buffers import BufferPool
from tests.gateway.serving import TINY_CHUNK, Serving, contents, eventually, serving


async def test_a_missing_chunk_aborts_the_connection(gateway: Serving) -> None:
    """When later contents can't be had, the client sees a broken transfer, never a short file."""
    data = contents(60_000)
    await gateway.file("PUT", "box/f", data=data)
    del gateway.chunks.contents[blake3(data[40_000:41_000]).digest()]
    with pytest.raises(aiohttp.ClientPayloadError):
        await gateway.file("GET", "box/f")
    assert (
        b"holdfast_aborted_downloads_total 1.0" in (await gateway.request("GET", "/metrics")).body
    )
    part = await gateway.file("GET", "box/f", headers={"Range": "bytes=0-39999"})
    assert part.body == data[:40_000]


async def test_damaged_inline_contents_are_not_served(
    gateway: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contents in the metadata are verified as well before they leave."""
    await gateway.file("PUT", "box/f", data=b"right")
    monkeypatch.setattr("gateway.downloads.blake3", lambda data: blake3(data + b"flip"))
    answer = await gateway.file("GET", "box/f")
    assert (answer.status, answer.code) == (500, "content_damaged")


async def test_chunks_are_read_ahead_within_bounds(gateway: Serving) -> None:
    """Several reads overlap, and a client that has not begun to read is not read for further."""
    await gateway.file("PUT", "box/f", data=contents(100_000))
    gateway.chunks.gate = asyncio.Event()
    download = asyncio.create_task(gateway.file("GET", "box/f"))
    await eventually(lambda: gateway.chunks.reads_now == READ_AHEAD_PIECES)
    gateway.chunks.gate.set()
    assert (await download).body == contents(100_000)
    assert max(gateway.chunks.reads.values()) == 1


async def test_downloads_share_a_budget(tmp_path: Path) -> None:
    """With the budget taken, others wait for it, and all of them come through."""
    async with serving(str(tmp_path), read_budget_bytes=3 * TINY_CHUNK) as gateway:
        await gateway.file("PUT", "box/f", data=contents(30_000))
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, gateway.server.backends.read_budget.taken_bytes)
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        answers = await asyncio.gather(*(gateway.file("GET", "box/f") for _ in range(10)))
        watching.cancel()
        assert all(answer.body == contents(30_000) for answer in answers)
        assert 0 < most <= 3 * TINY_CHUNK


async def test_a_download_does_not_stand_in_its_own_way(tmp_path: Path) -> None:
    """With a single buffer for all reads a long file still comes through: what was sent lets go."""
    pool = BufferPool(8 * 1024 * 1024, wait_seconds=1.0)
    async with serving(str(tmp_path), buffers=pool, chunk_size_bytes=5 << 20) as gateway:
        data = contents(20 << 20)
        await gateway.file("PUT", "box/f", data=data)
        gateway.chunks.pool = pool
        assert (await gateway.file("GET", "box/f")).body == data


async def test_a_vanished_reader_stops_the_reads(gateway: Serving) -> None:
    """When the client is gone the reads ahead end and the budget is whole again."""
    await gateway.file("PUT", "box/f", data=contents(100_000))
    gateway.chunks.gate = asyncio.Event()
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(
        b"GET /api/v1/files/box/f HTTP/1.1\r\nHost: x\r\n"
        b"Authorization: Bearer " + gateway.admin_key.encode() + b"\r\n\r\n"
    )
    await eventually(lambda: gateway.chunks.reads_now == READ_AHEAD_PIECES)
    writer.transport.abort()
    gateway.chunks.gate.set()
    await eventually(lambda: gateway.in_progress == 0)
    assert gateway.server.backends.read_budget.taken_bytes == 0
    assert sum(gateway.chunks.reads.values()) < 100


async def test_a_reader_that_stalls_is_cut_off(tmp_path: Path) -> None:
    """A client that takes nothing for the time allowed doesn't hold memory for ever."""
    async with serving(
        str(tmp_path), body_silence_seconds=0.2, chunk_size_bytes=1 << 20
    ) as gateway:
        await gateway.file("PUT", "box/f", data=contents(24 << 20))
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1)
        writer.write(
            b"GET /api/v1/files/box/f HTTP/1.1\r\nHost: x\r\n"
            b"Authorization: Bearer " + gateway.admin_key.encode() + b"\r\n\r\n"
        )
        await eventually(lambda: gateway.in_progress == 1)
        await eventually(lambda: gateway.in_progress == 0)
        writer.transport.abort()


async def test_a_file_overwritten_while_it_is_read_stays_itself(gateway: Serving) -> None:
    """A download that has begun gives the version it began with, though that is replaced."""
    old = contents(50_000)
    await gateway.file("PUT", "box/f", data=old)
    gateway.chunks.gate = asyncio.Event()
    download = asyncio.create_task(gateway.file("GET", "box/f"))
    await eventually(lambda: gateway.chunks.reads_now > 0)
    gate, gateway.chunks.gate = gateway.chunks.gate, None
    await gateway.file("PUT", "box/f", data=contents(50_000, seed=1))
    await gateway.metadata.submit(ReclaimStep())
    gate.set()
    assert (await download).body == old


async def test_a_version_reclaimed_under_a_long_download_breaks_it(gateway: Serving) -> None:
    """Where even the list of chunks is gone, the transfer is aborted, not ended."""
    segments = SEGMENTS_AT_ONCE + 1
    data = contents(1024) * (segments * SEGMENT_CHUNK_LIMIT * TINY_CHUNK // 1024 + 1)
    await gateway.file("PUT", "box/f", data=data)
    async with gateway.client() as client, client.get("box", "f") as download:
        pieces = aiter(download)
        await anext(pieces)
        await gateway.file("DELETE", "box/f")
        for _ in range(40):
            await gateway.metadata.submit(ReclaimStep(row_limit=1000))
        with pytest.raises(Exception, match=r"not completed|broke off"):
            async for _ in pieces:
                pass
