"""Uploads and downloads through a real socket: what went in comes out."""

from __future__ import annotations

import pytest
from blake3 import blake3

from tests.gateway.serving import TINY_CHUNK, Serving, contents

SIZES = (0, 1, 4095, 4096, 4097, 5000, 5001, 64_000)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_file_comes_back_as_it_went_in(gateway: Serving, size: int, chunked: bool) -> None:
    """Every size, with its length announced or not, is stored and served byte for byte."""
    data = contents(size)

    async def stream() -> object:
        for start in range(0, size, 700):
            yield data[start : start + 700]

    body = stream() if chunked else data
    put = await gateway.file("PUT", "box/a/b.bin", data=body)
    assert put.status == 201, put.body
    digest = blake3(data).hexdigest()
    assert put.json["etag"] == digest
    assert put.headers["ETag"] == f'"{digest}"'
    got = await gateway.file("GET", "box/a/b.bin")
    assert (got.status, got.body) == (200, data)
    assert got.headers["Content-Length"] == str(size)
    assert got.headers["X-Content-BLAKE3"] == digest
    stored = sum(map(len, gateway.chunks.contents.values()))
    assert stored == (0 if size <= 4096 else size)
    assert all(len(chunk) <= TINY_CHUNK for chunk in gateway.chunks.contents.values())


async def test_an_overwrite_is_a_new_version_of_the_same_file(gateway: Serving) -> None:
    """The second upload answers 200, keeps the file's id, and changes version and contents."""
    first = await gateway.file("PUT", "box/f", data=b"one")
    second = await gateway.file("POST", "box/f", data=b"two")
    assert (first.status, second.status) == (201, 200)
    assert first.json["file_id"] == second.json["file_id"]
    assert first.json["version_id"] != second.json["version_id"]
    assert not second.json["created"]
    assert (await gateway.file("GET", "box/f")).body == b"two"


@pytest.mark.parametrize("size", [10, 5000])
async def test_head_answers_like_get_without_the_body(gateway: Serving, size: int) -> None:
    """HEAD has the headers of GET, the length of the contents among them, and no body."""
    await gateway.file("PUT", "box/f", data=contents(size))
    got = await gateway.file("GET", "box/f")
    head = await gateway.file("HEAD", "box/f", headers={"Range": "bytes=0-1"})
    assert (head.status, head.body) == (200, b"")
    unequal = {
        name
        for name in got.headers
        if name != "Date" and got.headers[name] != head.headers.get(name)
    }
    assert not unequal


async def test_a_deleted_file_is_gone(gateway: Serving) -> None:
    """DELETE answers 204, and from then on GET, HEAD and DELETE answer 404."""
    await gateway.file("PUT", "box/f", data=b"one")
    assert (await gateway.file("DELETE", "box/f")).status == 204
    assert (await gateway.file("GET", "box/f")).code == "no_such_file"
    assert (await gateway.file("HEAD", "box/f")).status == 404
    assert (await gateway.file("DELETE", "box/f")).code == "no_such_file"


async def test_what_a_client_says_about_a_file_is_kept(gateway: Serving) -> None:
    """Content type, own metadata and tags come back with the file, beyond ASCII as well."""
    sent = {
        "Content-Type": "text/plain; charset=utf-8",
        "X-Meta-Author": "J%C3%BCrgen, 100%25",
        "X-Meta-Plain": "as it is",
        "X-Tags": "red, gr%C3%BCn,a%2Cb",
    }
    await gateway.file("PUT", "box/f", data=b"one", headers=sent)
    got = await gateway.file("GET", "box/f")
    assert got.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert got.headers["X-Meta-author"] == "J%C3%BCrgen%2C 100%25"
    assert got.headers["X-Meta-plain"] == "as it is"
    assert got.headers["X-Tags"] == "red,gr%C3%BCn,a%2Cb"
    document = (await gateway.request("GET", "/api/v1/metadata/box/f")).json
    assert document["user_metadata"] == {"author": "Jürgen, 100%", "plain": "as it is"}
    assert document["tags"] == ["red", "grün", "a,b"]
    assert document["size_bytes"] == 3
    assert document["content_blake3"] == blake3(b"one").hexdigest()


async def test_a_file_is_reached_by_its_id(gateway: Serving) -> None:
    """/by-id serves the contents of the current version and says where the file is."""
    put = await gateway.file("PUT", "box/a%20b/c", data=contents(5000))
    by_id = f"/api/v1/by-id/{put.json['file_id']}"
    got = await gateway.request("GET", by_id)
    assert got.body == contents(5000)
    assert got.headers["Content-Location"] == "/api/v1/files/box/a%20b/c"
    assert (await gateway.request("HEAD", by_id)).headers["Content-Length"] == "5000"
    assert (await gateway.request("GET", "/api/v1/by-id/999")).code == "no_such_file"
    assert (await gateway.request("GET", "/api/v1/by-id/x")).code == "no_such_file"
    assert (await gateway.request("GET", by_id, key=None)).status == 401
    assert (await gateway.request("GET", "/api/v1/by-id/999", key=None)).status == 401


async def test_every_answer_is_harmless_in_a_browser(gateway: Serving) -> None:
    """Files, documents, errors and pages carry nosniff and a sandboxing policy."""
    await gateway.file("PUT", "box/f", data=b"<script>", headers={"Content-Type": "text/html"})
    for path in ("/api/v1/files/box/f", "/api/v1/buckets", "/nowhere", "/docs", "/metrics"):
        answer = await gateway.request("GET", path)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


async def test_compressed_bytes_are_stored_as_they_are(gateway: Serving) -> None:
    """A Content-Encoding, which would be lost, is refused; nothing is ever unpacked."""
    refused = await gateway.file(
        "PUT", "box/f", data=b"\x1f\x8bxyz", headers={"Content-Encoding": "gzip"}
    )
    assert refused.code == "unsupported_media_type"
    await gateway.file("PUT", "box/f", data=b"\x1f\x8bxyz")
    assert (await gateway.file("GET", "box/f")).body == b"\x1f\x8bxyz"
