"""What goes wrong leaves nothing visible, no buffer behind, and an answer with a code."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from metadata_raft.commands import AdvanceGeneration
from metadata_raft.errors import NoQuorumError, OutcomeUnknownError, OverloadedError
from ring.buffers import BufferPool
from ring.errors import ChunkNotFoundError, RingError, StoreFullError
from tests.gateway.serving import Answer, Serving, contents, eventually, serving


class NoCopiesError(RingError):
    retryable = True


async def nothing_is_visible(gateway: Serving) -> None:
    assert (await gateway.file("GET", "box")).json["files"] == []


def upload_head(gateway: Serving, *lines: str) -> bytes:
    """The head of an upload to box/f, for raw connections."""
    head = [
        "PUT /api/v1/files/box/f HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {gateway.admin_key}",
        *lines,
    ]
    return "\r\n".join((*head, "", "")).encode()


@pytest.mark.parametrize("size", [10, 5000])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("error", [-1, 1])
async def test_a_wrong_size_stores_nothing(
    gateway: Serving, size: int, chunked: bool, error: int
) -> None:
    """X-File-Size one off is refused, whether the body's length is announced or not."""

    async def stream() -> object:
        yield contents(size)

    answer = await gateway.file(
        "PUT",
        "box/f",
        data=stream() if chunked else contents(size),
        headers={"X-File-Size": str(size + error)},
    )
    assert (answer.status, answer.code) == (400, "size_mismatch")
    await nothing_is_visible(gateway)


@pytest.mark.parametrize("size", [10, 1000, 5000])
async def test_a_wrong_digest_stores_nothing(gateway: Serving, size: int) -> None:
    """X-Content-BLAKE3 is compared with what arrived."""
    answer = await gateway.file(
        "PUT", "box/f", data=contents(size), headers={"X-Content-BLAKE3": "0" * 64}
    )
    assert (answer.status, answer.code) == (400, "digest_mismatch")
    await nothing_is_visible(gateway)
    assert (
        await gateway.file("PUT", "box/f", data=b"x", headers={"X-Content-BLAKE3": "zz"})
    ).code == "invalid_header"


@pytest.mark.parametrize("sent", [0, 10, 6000])
async def test_a_client_that_vanishes_leaves_nothing(gateway: Serving, sent: int) -> None:
    """A connection that ends before the body does makes no file and gives every buffer back."""
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(upload_head(gateway, "Content-Length: 100000") + b"x" * sent)
    await writer.drain()
    await eventually(lambda: gateway.in_progress == 1)
    await eventually(lambda: sent < 6000 or len(gateway.chunks.contents) > 0)
    writer.transport.abort()
    await eventually(lambda: gateway.in_progress == 0)
    assert gateway.buffers.leased_bytes == 0
    await nothing_is_visible(gateway)


@pytest.mark.parametrize("lines", [["Content-Length: 100"], ["Transfer-Encoding: chunked"]])
async def test_a_body_that_stops_is_timed_out(tmp_path: Path, lines: list[str]) -> None:
    """408 after the silence allowed, and nothing is stored."""
    async with serving(str(tmp_path), body_silence_seconds=0.05) as gateway:
        answer = await gateway.raw(upload_head(gateway, *lines) + b"5\r\nhello\r\n")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"body_timeout" in answer
        await nothing_is_visible(gateway)


async def test_a_body_that_trickles_is_timed_out(tmp_path: Path) -> None:
    """Pauses that are each allowed don't add up to holding buffers for ever."""
    async with serving(
        str(tmp_path), body_silence_seconds=0.2, body_rate_bytes_min=1000
    ) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(upload_head(gateway, "Content-Length: 1000"))

        async def trickle() -> None:
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        async with asyncio.timeout(5):
            answer = await reader.readuntil(b"\r\n\r\n")
        trickling.cancel()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 408 ")
        await nothing_is_visible(gateway)


async def test_a_broken_chunked_body_stores_nothing(gateway: Serving) -> None:
    """A chunk size that is none ends the upload with 400."""
    answer = await gateway.raw(
        upload_head(gateway, "Transfer-Encoding: chunked") + b"5\r\nhello\r\nzz\r\nworld\r\n"
    )
    assert answer.split(b" ", 2)[1] == b"400", answer
    await nothing_is_visible(gateway)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NoCopiesError("1 of 2 copies"), 503, "chunks_unavailable"),
        (StoreFullError("no space"), 507, "storage_full"),
        (RuntimeError("a bug"), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("size", [1000, 5000, 20_000])
async def test_chunks_that_cannot_be_written(
    gateway: Serving, error: Exception, status: int, code: str, size: int
) -> None:
    """An upload whose chunks find no quorum is refused; its other chunks' buffers come back."""
    data = contents(max(size, 4097))
    gateway.chunks.fail_writes = [error]
    answer = await gateway.file("PUT", "box/f", data=data)
    assert (answer.status, answer.code) == (status, code)
    assert ("Retry-After" in answer.headers) == (status == 503)
    assert answer.json["retryable"] == (status == 503)
    await nothing_is_visible(gateway)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NoQuorumError("no leader"), 503, "no_quorum"),
        (OverloadedError("queue full"), 503, "overloaded"),
        (OutcomeUnknownError(bytes(16), "connection lost"), 504, "outcome_unknown"),
    ],
)
async def test_metadata_that_cannot_be_changed(
    gateway: Serving, error: Exception, status: int, code: str
) -> None:
    """What did not happen is 503, what may have happened is 504."""
    for size in (10, 5000):
        gateway.metadata.fail_next = [error]
        answer = await gateway.file("PUT", "box/f", data=contents(size))
        assert (answer.status, answer.code) == (status, code)
        assert answer.json["retryable"]
    await nothing_is_visible(gateway)


async def test_reads_without_a_quorum(gateway: Serving) -> None:
    """503 without a quorum, unless the client takes what this node has."""
    await gateway.file("PUT", "box/f", data=b"x")
    for path in ("files/box/f", "files/box", "metadata/box/f", "buckets", "buckets/box"):
        gateway.metadata.fail_next = [NoQuorumError("no majority answers")]
        refused = await gateway.request("GET", f"/api/v1/{path}")
        assert (refused.status, refused.code) == (503, "no_quorum")
        assert refused.headers["Retry-After"] == "1"
        gateway.metadata.fail_next = [NoQuorumError("no majority answers")]
        local = await gateway.request("GET", f"/api/v1/{path}", headers={"X-Consistency": "local"})
        assert local.status == 200
        gateway.metadata.fail_next = []
    strange = await gateway.file("GET", "box/f", headers={"X-Consistency": "eventual"})
    assert strange.code == "invalid_header"


async def test_buffers_run_out(tmp_path: Path) -> None:
    """Uploads wait for a buffer, then are told to come back; the others are not disturbed."""
    pool = BufferPool(8 * 1024 * 1024, wait_seconds=0.1)
    async with serving(str(tmp_path), buffers=pool, chunk_size_bytes=8 << 20) as gateway:
        gateway.chunks.gate = asyncio.Event()
        slow = asyncio.create_task(gateway.file("PUT", "box/slow", data=contents(1 << 20)))
        await eventually(lambda: gateway.chunks.writes_now == 1)
        refused = await gateway.file("PUT", "box/late", data=contents(1 << 20))
        assert (refused.status, refused.code) == (503, "overloaded")
        assert refused.headers["Retry-After"] == "1"
        gateway.chunks.gate.set()
        assert (await slow).status == 201
        assert (await gateway.file("PUT", "box/late", data=contents(1 << 20))).status == 201


async def test_too_many_requests_are_told_so(tmp_path: Path) -> None:
    """Beyond the bound 503 comes at once, but the node still shows that it lives."""
    async with serving(str(tmp_path), requests_max=3) as gateway:
        gateway.chunks.gate = asyncio.Event()
        uploads = [
            asyncio.create_task(gateway.file("PUT", f"box/{number}", data=contents(5000)))
            for number in range(3)
        ]
        await eventually(lambda: gateway.in_progress == 3)
        assert (await gateway.file("GET", "box/f")).code == "overloaded"
        assert (await gateway.request("GET", "/health/live")).status == 200
        gateway.chunks.gate.set()
        assert [(await upload).status for upload in uploads] == [201, 201, 201]


async def test_chunks_that_were_collected_are_not_referenced(gateway: Serving) -> None:
    """Two generations after its chunks were written they may be gone: then the client must send
    them again, and nothing is visible."""
    gateway.chunks.gate = asyncio.Event()
    upload = asyncio.create_task(gateway.file("PUT", "box/f", data=contents(4500)))
    await eventually(lambda: gateway.chunks.writes_now > 0)
    start = gateway.metadata.applied().generation
    for generation in (start, start + 1):
        await gateway.metadata.submit(AdvanceGeneration(expected=generation))
    gateway.chunks.forgets = True
    gateway.chunks.gate.set()
    answer: Answer = await upload
    assert (answer.status, answer.code) == (503, "restage")
    await nothing_is_visible(gateway)


async def test_an_idempotency_key_makes_one_upload_of_two(gateway: Serving) -> None:
    """A repetition is answered as the first time; with other contents the key is refused."""
    headers = {"Idempotency-Key": "k1", "If-None-Match": "*"}
    for size in (10, 5000):
        path = f"box/f{size}"
        headers["Idempotency-Key"] = f"k{size}"
        first = await gateway.file("PUT", path, data=contents(size), headers=headers)
        again = await gateway.file("PUT", path, data=contents(size), headers=headers)
        assert (first.status, first.json) == (201, again.json)
        other = await gateway.file("PUT", path, data=contents(size, seed=1), headers=headers)
        assert (other.status, other.code) == (422, "idempotency_key_reused")
        assert (await gateway.file("GET", path)).body == contents(size)
        assert (await gateway.file("DELETE", path, headers={"Idempotency-Key": path})).status == 204
        assert (await gateway.file("DELETE", path, headers={"Idempotency-Key": path})).status == 204
    strange = await gateway.file("PUT", "box/f", data=b"", headers={"Idempotency-Key": "a b"})
    assert strange.code == "invalid_header"


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Range": "bytes 0-1/2"},
        {"X-File-Size": "-1"},
        {"X-Meta-a!b": "x"},
        {"X-Meta-a": "%FF"},
        {"X-Meta-a": "%00"},
        {"X-Tags": "a,,b"},
        {"If-Match": "x"},
    ],
)
async def test_a_wrong_header_is_refused(gateway: Serving, headers: dict[str, str]) -> None:
    """400 before the body is read."""
    answer = await gateway.file("PUT", "box/f", data=b"x", headers=headers)
    assert (answer.status, answer.code) == (400, "invalid_header")
    await nothing_is_visible(gateway)


async def test_too_much_user_metadata_is_refused(gateway: Serving) -> None:
    """431 beyond 8 KiB together."""
    headers = {f"X-Meta-{number}": "x" * 3000 for number in range(3)}
    answer = await gateway.file("PUT", "box/f", data=b"x", headers=headers)
    assert (answer.status, answer.code) == (431, "header_too_large")


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Big: " + b"x" * 20_000 + b"\r\n\r\n", 431, None),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431, None),
        (b"nonsense\r\n\r\n", 400, b"invalid_request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: x\r\n\r\n", 400, b"invalid_request"),
        (
            b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            b"invalid_request",
        ),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, b"invalid_request"),
        (
            b"GET / HTTP/1.1\r\n" + b"".join(b"h%d: x\r\n" % n for n in range(500)) + b"\r\n",
            400,
            b"invalid_request",
        ),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400, b"invalid_path"),
        (
            b"TRACE /api/v1/buckets HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            405,
            b"method_not_allowed",
        ),
    ],
)
async def test_what_is_no_request_is_a_problem_too(
    gateway: Serving, request_bytes: bytes, status: int, code: bytes | None
) -> None:
    """What the parser refuses is answered with a problem document, then the connection closes."""
    answer = await gateway.raw(request_bytes)
    assert answer.split(b" ", 2)[1] == b"%d" % status, answer
    assert b"application/problem+json" in answer
    assert (code or b"header_too_large") in answer
    assert b"nosniff" in answer


async def test_a_missing_route_and_a_wrong_method(gateway: Serving) -> None:
    """404 and 405 are problems as well, the latter with the methods there are."""
    assert (await gateway.request("GET", "/api/v2/files")).code == "no_such_route"
    wrong = await gateway.request("PATCH", "/api/v1/files/box/f", data=b"x")
    assert wrong.code == "method_not_allowed"
    assert wrong.headers["Allow"] == "DELETE, GET, HEAD, POST, PUT"


async def test_a_bug_is_answered_without_its_details(
    gateway: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    """500 tells the client nothing of the inside, and the log everything."""
    gateway.metadata.fail_next = [ValueError("inner secret")]
    answer = await gateway.file("GET", "box/f")
    assert answer.code == "internal_error"
    assert b"inner secret" not in answer.body
    assert "inner secret" in caplog.text


async def test_a_failed_read_before_the_first_byte_is_told(gateway: Serving) -> None:
    """While nothing was sent yet, missing contents are an error document."""
    await gateway.file("PUT", "box/f", data=contents(5000))
    gateway.chunks.fail_reads = [NoCopiesError("no copy answers")]
    assert (await gateway.file("GET", "box/f")).code == "chunks_unavailable"
    gateway.chunks.fail_reads = [ChunkNotFoundError(bytes(32))]
    assert (await gateway.file("GET", "box/f")).code == "content_damaged"


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
async def test_an_upgrade_is_declined_and_the_body_kept(gateway: Serving, protocol: str) -> None:
    """A client that offers another protocol along with its upload still uploads all of it."""
    head = upload_head(gateway, "Connection: Upgrade", f"Upgrade: {protocol}", "Content-Length: 5")
    answer = await gateway.raw(head + b"hello")
    assert answer.split(b" ", 2)[1] in {b"201", b"400"}, answer
    stored = await gateway.file("GET", "box/f")
    assert stored.body == b"hello" or stored.status == 404
