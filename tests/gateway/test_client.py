"""The client against a real gateway: verified both ways, and its errors say what happened."""

from __future__ import annotations

import asyncio
import errno
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from blake3 import blake3

from gateway.client import (
    AccessError,
    GatewayClient,
    IntegrityError,
    NotFoundError,
    PreconditionError,
    RefusedError,
    Source,
    SourceError,
    TryAgainError,
    UnreachableError,
)
from gateway.documents import BucketChange
from metadata_raft.errors import NoQuorumError, OutcomeUnknownError
from tests.gateway.serving import Serving, contents, serving


@pytest.fixture
async def client(gateway: Serving) -> AsyncIterator[GatewayClient]:
    async with gateway.client() as client:
        yield client


@pytest.mark.parametrize("size", [0, 10, 5000, 3_000_000])
async def test_every_kind_of_source_arrives(tmp_path: Path, size: int) -> None:
    """Bytes, an open file, a file that can't seek, and a stream give the same file."""
    data = contents(size)
    (tmp_path / "f").write_bytes(data)

    async def stream() -> AsyncIterator[bytes]:
        for start in range(0, size, 70_000):
            yield data[start : start + 70_000]

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    async with (
        serving(str(tmp_path), chunk_size_bytes=1 << 20) as gateway,
        gateway.client() as client,
    ):
        with (tmp_path / "f").open("rb") as file:
            sources: list[Source] = [data, file, Pipe(data), stream()]
            for number, source in enumerate(sources):
                sent: list[int] = []
                receipt = await client.put("box", f"f{number}", source, progress=sent.append)
                assert receipt.etag == blake3(data).hexdigest()
                assert sum(sent) == size
                async with client.get("box", f"f{number}") as download:
                    assert download.size_bytes == size
                    assert await download.read() == data


async def test_a_file_without_a_size_arrives(client: GatewayClient) -> None:
    """The kernel's files claim to be empty; what is in them is uploaded all the same."""
    with open("/proc/version", "rb") as file:  # noqa: ASYNC230 - a line of memory
        await client.put("box", "f", file)
    async with client.get("box", "f") as download:
        assert (await download.read()).startswith(b"Linux")


@pytest.mark.parametrize("size", [100_000, 5_000_000])
async def test_a_file_that_shrinks_while_it_is_sent_is_said_at_once(
    tmp_path: Path, client: GatewayClient, size: int
) -> None:
    """Nothing is stored, and nobody waits for the gateway to lose its patience with the rest."""
    path = tmp_path / "f"
    path.write_bytes(contents(size))

    class Shrinking(io.FileIO):
        def read(self, count: int | None = -1, /) -> bytes:
            os.truncate(path, 1)
            return super().read(count) or b""

    with Shrinking(path) as file, pytest.raises(SourceError, match=f"after 1 of {size} bytes"):
        await asyncio.wait_for(client.put("box", "f", cast("BinaryIO", file)), 10)
    with pytest.raises(NotFoundError):
        await client.metadata("box", "f")


async def test_a_source_that_cannot_be_read_is_said(client: GatewayClient) -> None:
    """The disk of the one who uploads is at fault, not the node."""

    class Broken(io.BytesIO):
        def read(self, count: int | None = -1, /) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(SourceError, match="can't be read: Input/output error"):
        await asyncio.wait_for(client.put("box", "f", Broken(b"x")), 10)


async def test_a_download_may_be_a_part(client: GatewayClient) -> None:
    """Start and end are those of a slice."""
    data = contents(5000)
    await client.put("box", "f", data)
    for start, end in ((0, 1), (1000, 3000), (4999, None)):
        async with client.get("box", "f", start=start, end=end) as download:
            assert await download.read() == data[start:end]


async def test_what_was_said_about_a_file_is_read_back(client: GatewayClient) -> None:
    """Metadata and tags survive the way through headers."""
    await client.put(
        "box",
        "a b/ü",
        b"x",
        content_type="text/plain",
        user_metadata={"title": "Grüße, 100 %"},
        tags=["eins", "zwei, drei"],
    )
    document = await client.metadata("box", "a b/ü")
    assert document.user_metadata == {"title": "Grüße, 100 %"}
    assert document.tags == ["eins", "zwei, drei"]
    head = await client.head("box", "a b/ü")
    assert head["Content-Type"] == "text/plain"
    await client.delete("box", "a b/ü")
    with pytest.raises(NotFoundError):
        await client.head("box", "a b/ü")


async def test_listings_are_walked(client: GatewayClient) -> None:
    """`list_all` gives every page."""
    for number in range(5):
        await client.put("box", f"{number}", b"x")
    page = await client.list("box", limit=2)
    assert [file.path for file in page.files] == ["0", "1"]
    assert page.next_cursor is not None
    everything = [file.path async for page in client.list_all("box") for file in page.files]
    assert everything == ["0", "1", "2", "3", "4"]


async def test_buckets_keys_and_the_cluster(gateway: Serving, client: GatewayClient) -> None:
    """Every call of the client meets its route."""
    made = await client.create_bucket("new-one", visibility="public-read", quota_bytes=5)
    assert made == await client.bucket("new-one")
    changed = await client.change_bucket("new-one", BucketChange(quota_bytes=None))
    assert changed.quota_bytes is None
    assert [bucket.name for bucket in (await client.buckets()).buckets] == ["box", "new-one"]
    await client.delete_bucket("new-one", cascade=True)
    key = await client.create_key(role="reader", description="for the test")
    assert key.key_id in [known.key_id for known in await client.keys()]
    async with gateway.client(key.key) as reader:
        with pytest.raises(AccessError) as refused:
            await reader.put("box", "f", b"x")
        assert refused.value.status == 403
    await client.revoke_key(key.key_id)
    assert (await client.cluster()).raft.role == "leader"
    assert (await client.ring()).partitions == 4096
    assert (await client.create_token(lifetime_seconds=60)).lifetime_seconds == 60
    assert await client.join(b"sealed") == b"sealed answer"
    assert gateway.cluster.joins == [b"sealed"]
    with pytest.raises(AccessError):
        await client.join(b"wrong")
    for aspect in ("live", "ready", "cluster"):
        assert (await client.health(aspect)).status == "ok"


async def test_refusals_have_their_types(gateway: Serving, client: GatewayClient) -> None:
    """What a program does differently is a type of its own; the problem's fields are on it."""
    with pytest.raises(NotFoundError) as missing:
        async with client.get("box", "f"):
            pass
    assert (missing.value.status, missing.value.code) == (404, "no_such_file")
    await client.put("box", "f", b"x", if_none_match="*")
    with pytest.raises(PreconditionError):
        await client.put("box", "f", b"y", if_none_match="*")
    with pytest.raises(PreconditionError):
        await client.delete("box", "f", if_match="other")
    async with gateway.client(None) as stranger:
        with pytest.raises(AccessError) as denied:
            await stranger.put("box", "f", b"x" * 2_000_000)
        assert denied.value.status == 401
    with pytest.raises(RefusedError) as invalid:
        await client.put("box", "a/../b", b"x")
    assert invalid.value.code == "invalid_path"
    gateway.metadata.fail_next = [NoQuorumError("no leader")]
    with pytest.raises(TryAgainError):
        await client.metadata("box", "f")
    gateway.metadata.fail_next = [OutcomeUnknownError(bytes(16), "gone")]
    with pytest.raises(TryAgainError) as unknown:
        await client.put("box", "f", b"z")
    assert unknown.value.code == "outcome_unknown"


async def test_a_wrong_address_does_not_mean_that_a_file_is_missing(gateway: Serving) -> None:
    """`rm -f` and the like take "not found" for an answer; only Holdfast can give that one."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        for wrong in (f"http://127.0.0.1:{port}", f"{gateway.url}/elsewhere"):
            async with GatewayClient(wrong) as client:
                with pytest.raises(RefusedError) as raised:
                    await client.delete("box", "f")
                assert not isinstance(raised.value, NotFoundError)


async def test_nobody_there_is_an_error_of_its_own() -> None:
    """A refused connection is UnreachableError, as is an answer that isn't Holdfast's."""
    async with GatewayClient("http://127.0.0.1:9") as client:
        with pytest.raises(UnreachableError):
            await client.cluster()

    async def other(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        writer.close()

    server = await asyncio.start_server(other, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with GatewayClient(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(UnreachableError):
            await client.cluster()
    server.close()
    await server.wait_closed()


async def test_a_node_without_tls_is_told_from_a_forbidden_one(gateway: Serving) -> None:
    """OpenSSL's numbers are not the system's, whose first means "Operation not permitted"."""
    async with GatewayClient(gateway.url.replace("http://", "https://")) as client:
        with pytest.raises(UnreachableError, match=r"TLS fails \(.*\)") as caught:
            await client.cluster()
    assert "not permitted" not in str(caught.value)


async def test_wrong_bytes_are_never_taken_for_right(
    gateway: Serving, client: GatewayClient
) -> None:
    """A download whose digest differs from the announced one raises at its end."""
    data = contents(9000)
    await client.put("box", "f", data)
    chunk_id = blake3(data[3000:4000]).digest()
    gateway.chunks.contents[chunk_id] = b"x" * 1000
    async with client.get("box", "f") as download:
        with pytest.raises(IntegrityError):
            await download.read()


async def test_a_download_that_breaks_off_raises(gateway: Serving, client: GatewayClient) -> None:
    """Contents that end early are UnreachableError, never a short file."""
    data = contents(60_000)
    await client.put("box", "f", data)
    del gateway.chunks.contents[blake3(data[50_000:51_000]).digest()]
    async with client.get("box", "f") as download:
        with pytest.raises(UnreachableError):
            await download.read()


async def test_an_upload_is_compared_with_what_was_stored(
    gateway: Serving, client: GatewayClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the gateway stored other bytes than were sent, the client says so."""
    monkeypatch.setattr("gateway.chunk_writer.blake3", lambda data: blake3(data + b"flip"))
    with pytest.raises(IntegrityError):
        await client.put("box", "f", b"right")
