"""Buckets through HTTP: create, list, show, change, delete."""

from __future__ import annotations

import pytest

from tests.gateway.serving import Serving


async def test_creation_is_idempotent(gateway: Serving) -> None:
    """The second creation answers 200 with the bucket as it is."""
    wanted = {"name": "photos", "visibility": "public-read", "quota_bytes": 1000}
    first = await gateway.request("POST", "/api/v1/buckets", json=wanted)
    second = await gateway.request("POST", "/api/v1/buckets", json={"name": "photos"})
    assert (first.status, second.status) == (201, 200)
    assert first.json == second.json
    assert first.json["visibility"] == "public-read"
    assert first.json["quota_bytes"] == 1000


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"name":"No"}', "invalid_bucket_name"),
        (b'{"name":"-abc"}', "invalid_bucket_name"),
        (b'{"name":"abc","visibility":"secret"}', "invalid_document"),
        (b'{"name":"abc","owner":"me"}', "invalid_document"),
        (b'{"name":"abc","quota_bytes":-1}', "invalid_document"),
        (b"{}", "invalid_document"),
        (b"not json", "invalid_document"),
        (b"", "invalid_document"),
        (b"\xff", "invalid_document"),
        (b" " * 70_000, "body_too_large"),
    ],
)
async def test_a_wrong_document_is_refused(gateway: Serving, body: bytes, code: str) -> None:
    """A body that isn't exactly a creation makes no bucket."""
    assert (await gateway.request("POST", "/api/v1/buckets", data=body)).code == code


async def test_only_named_settings_change(gateway: Serving) -> None:
    """PATCH changes what it names, null included, and nothing else."""
    path = "/api/v1/buckets/box"
    changed = await gateway.request("PATCH", path, json={"quota_bytes": 5, "hidden": True})
    assert (changed.json["quota_bytes"], changed.json["hidden"]) == (5, True)
    again = await gateway.request("PATCH", path, json={"quota_bytes": None})
    assert (again.json["quota_bytes"], again.json["hidden"]) == (None, True)
    assert (await gateway.request("GET", path)).json == again.json
    assert (await gateway.request("PATCH", "/api/v1/buckets/none", json={})).status == 404


async def test_a_full_bucket_goes_only_by_cascade(gateway: Serving) -> None:
    """409 while files are in it; with cascade=true they go with it."""
    await gateway.file("PUT", "box/f", data=b"x")
    path = "/api/v1/buckets/box"
    assert (await gateway.request("DELETE", path)).code == "bucket_not_empty"
    assert (await gateway.request("DELETE", f"{path}?cascade=false")).status == 409
    assert (await gateway.request("DELETE", f"{path}?cascade=yes")).status == 400
    assert (await gateway.request("DELETE", f"{path}?cascade=true")).status == 204
    assert (await gateway.request("GET", path)).code == "no_such_bucket"
    assert (await gateway.file("GET", "box/f")).code == "no_such_bucket"


async def test_an_empty_bucket_goes(gateway: Serving) -> None:
    """Emptied by deletions, it needs no cascade."""
    await gateway.file("PUT", "box/f", data=b"x")
    await gateway.file("DELETE", "box/f")
    assert (await gateway.request("DELETE", "/api/v1/buckets/box")).status == 204


async def test_a_quota_is_kept(gateway: Serving) -> None:
    """An upload beyond the quota is refused with 507 and leaves nothing visible."""
    await gateway.request("PATCH", "/api/v1/buckets/box", json={"quota_bytes": 6000})
    assert (await gateway.file("PUT", "box/a", data=b"x" * 5000)).status == 201
    refused = await gateway.file("PUT", "box/b", data=b"x" * 5000)
    assert (refused.status, refused.code) == (507, "quota_exceeded")
    assert (await gateway.file("GET", "box/b")).status == 404


async def test_buckets_come_in_pages(gateway: Serving) -> None:
    """Cursors walk all buckets once, in order, whatever is hidden among them."""
    names = [f"bucket-{number:02}" for number in range(9)]
    for name in names:
        await gateway.make_bucket(name, hidden=name.endswith("5"))
    reader = await gateway.make_key("reader")
    found: list[str] = []
    cursor = ""
    while True:
        page = await gateway.request("GET", f"/api/v1/buckets?limit=2&cursor={cursor}", key=reader)
        assert len(page.json["buckets"]) <= 2
        found += [bucket["name"] for bucket in page.json["buckets"]]
        cursor = page.json["next_cursor"]
        if cursor is None:
            break
    assert found == ["box", *(name for name in names if not name.endswith("5"))]


async def test_usage_is_counted(gateway: Serving) -> None:
    """A bucket shows how many files and bytes are in it."""
    await gateway.file("PUT", "box/a", data=b"x" * 10)
    await gateway.file("PUT", "box/b", data=b"x" * 5000)
    bucket = (await gateway.request("GET", "/api/v1/buckets/box")).json
    assert (bucket["file_count"], bucket["size_bytes"]) == (2, 5010)
