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
