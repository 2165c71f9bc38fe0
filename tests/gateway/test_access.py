"""Who may do what, and that it is decided before a body is read."""

from __future__ import annotations

import asyncio

import pytest

from gateway.authentication import new_key, presented_key, secret_hash
from gateway.errors import ApiError
from metadata_raft.commands import Command, CreateBucket, RevokeKey, UpdateBucket
from tests.fakes.metadata import ADMIN_KEY_ID
from tests.gateway.serving import Serving, eventually


def test_a_key_is_found_in_either_header() -> None:
    """`Authorization: Bearer` and `X-Api-Key` carry the same thing."""
    key = new_key()
    for headers in (
        {"Authorization": f"Bearer {key.text}"},
        {"Authorization": f"bearer  {key.text}"},
        {"X-Api-Key": key.text},
    ):
        found = presented_key(headers)
        assert found is not None
        assert found.key_id == key.key_id
        assert secret_hash(found.secret) == key.secret_hash
    assert presented_key({}) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Basic YTpi"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer hfk_00_11"},
        {"X-Api-Key": ""},
        {"X-Api-Key": "hfk_" + "0" * 16 + "_" + "Z" * 64},
    ],
)
def test_what_is_no_key_is_refused(headers: dict[str, str]) -> None:
    """A malformed key is 401; it never counts as no key at all."""
    with pytest.raises(ApiError) as caught:
        presented_key(headers)
    assert caught.value.status == 401


@pytest.mark.parametrize("visibility", ["private", "public-read", "public-read-write"])
@pytest.mark.parametrize("who", [None, "reader", "writer", "admin"])
async def test_roles_and_visibility_decide(
    gateway: Serving, visibility: str, who: str | None
) -> None:
    """401 without a key, 403 with one that is not enough; exactly as access.py's table says."""
    await gateway.make_bucket("shop", visibility=visibility)
    await gateway.file("PUT", "shop/f", data=b"x")
    key = None if who is None else await gateway.make_key(who)
    reads = who is not None or visibility != "private"
    writes = who in ("writer", "admin") or visibility == "public-read-write"
    refusal = 401 if who is None else 403
    for method, path, allowed, status in (
        ("GET", "/api/v1/files/shop/f", reads, 200),
        ("HEAD", "/api/v1/files/shop/f", reads, 200),
        ("GET", "/api/v1/files/shop", reads, 200),
        ("GET", "/api/v1/metadata/shop/f", reads, 200),
        ("GET", "/api/v1/by-id/1", reads, 200),
        ("GET", "/api/v1/buckets/shop", reads, 200),
        ("PUT", "/api/v1/files/shop/f", writes, 200),
        ("DELETE", "/api/v1/files/shop/f", writes, 204),
    ):
        answer = await gateway.request(method, path, key=key)
        assert answer.status == (status if allowed else refusal), (method, path)
        if answer.status == 401:
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("who", [None, "reader", "writer", "admin"])
async def test_administration_is_for_administrators(gateway: Serving, who: str | None) -> None:
    """Keys and tokens are for admins; writers make buckets; any key sees the cluster."""
    key = None if who is None else await gateway.make_key(who)
    ranks = {None: 0, "reader": 1, "writer": 2, "admin": 3}
    for method, path, body, needed, status in (
        ("GET", "/api/v1/cluster", None, 1, 200),
        ("GET", "/api/v1/cluster/ring", None, 1, 200),
        ("POST", "/api/v1/buckets", b'{"name":"new-one"}', 2, 201),
        ("GET", "/api/v1/keys", None, 3, 200),
        ("POST", "/api/v1/keys", b'{"role":"reader"}', 3, 201),
        ("DELETE", "/api/v1/keys/0123456789abcdef", None, 3, 404),
        ("POST", "/api/v1/cluster/tokens", None, 3, 201),
        ("PATCH", "/api/v1/buckets/box", b"{}", 3, 200),
        ("DELETE", "/api/v1/buckets/box", None, 3, 204),
    ):
        answer = await gateway.request(method, path, key=key, data=body)
        refusal = 401 if who is None else 403
        assert answer.status == (status if ranks[who] >= needed else refusal), (method, path)


async def test_a_wrong_key_is_refused_even_where_none_is_needed(gateway: Serving) -> None:
    """An unknown key or a wrong secret is 401 on a public bucket as well."""
    await gateway.make_bucket("shop", visibility="public-read-write")
    known = await gateway.make_key("reader")
    wrong = known[:-1] + ("0" if known[-1] != "0" else "1")
    for key in (new_key().text, wrong):
        for method in ("GET", "PUT"):
            assert (await gateway.file(method, "shop/f", key=key)).code == "unauthenticated"


async def test_a_made_key_works_until_it_is_revoked(gateway: Serving) -> None:
    """POST /keys answers with a key once; after DELETE it opens nothing; its hash never shows."""
    made = await gateway.request("POST", "/api/v1/keys", json={"role": "writer"})
    assert made.status == 201
    key = made.json["key"]
    assert (await gateway.file("PUT", "box/f", key=key, data=b"x")).status == 201
    listed = await gateway.request("GET", "/api/v1/keys")
    assert made.json["key_id"] in [entry["key_id"] for entry in listed.json["keys"]]
    assert key.rpartition("_")[2] not in listed.body.decode()
    revoked = await gateway.request("DELETE", f"/api/v1/keys/{made.json['key_id']}")
    assert revoked.status == 204
    assert (await gateway.file("GET", "box/f", key=key)).status == 401


async def test_no_private_bucket_shows_to_strangers(gateway: Serving) -> None:
    """Without a key a private bucket, and one that does not exist, are answered alike."""
    for path in ("files/box/f", "files/box", "buckets/box", "metadata/box/f"):
        there = await gateway.request("GET", f"/api/v1/{path}", key=None)
        absent = await gateway.request("GET", f"/api/v1/{path.replace('box', 'bux')}", key=None)
        assert there.status == absent.status == 401
        assert there.body.replace(b"box", b"bux") == absent.body


async def test_hidden_buckets_are_not_listed(gateway: Serving) -> None:
    """Listings show what may be read; hidden buckets only to admins, private ones to any key."""
    await gateway.make_bucket("shown", visibility="public-read")
    await gateway.make_bucket("veiled", visibility="public-read", hidden=True)
    reader = await gateway.make_key("reader")
    for key, names in (
        (None, ["shown"]),
        (reader, ["box", "shown"]),
        ("admin", ["box", "shown", "veiled"]),
    ):
        page = await gateway.request("GET", "/api/v1/buckets", key=key)
        assert [bucket["name"] for bucket in page.json["buckets"]] == names
    assert (await gateway.request("GET", "/api/v1/buckets/veiled", key=None)).status == 200


@pytest.mark.parametrize("key", [None, "hfk_" + "0" * 16 + "_" + "0" * 64])
async def test_authorisation_comes_before_100_continue(gateway: Serving, key: str | None) -> None:
    """Who may not write is told so without `100 Continue`, and their body is never asked for."""
    authorization = "" if key is None else f"Authorization: Bearer {key}\r\n"
    head = (
        "PUT /api/v1/files/box/f HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
        f"Expect: 100-continue\r\n{authorization}\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(head.encode())
    async with asyncio.timeout(5):
        answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert answer.startswith(b"HTTP/1.1 401 "), answer
    assert b"Connection: close" in answer


async def test_a_welcome_body_is_asked_for(gateway: Serving) -> None:
    """After authorisation `100 Continue` is sent, and the upload goes through."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    head = (
        "PUT /api/v1/files/box/f HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n"
        f"Expect: 100-Continue\r\nAuthorization: Bearer {gateway.admin_key}\r\n\r\n"
    )
    writer.write(head.encode())
    async with asyncio.timeout(5):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"x" * 5000)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 ")
    writer.close()


async def test_an_unknown_expectation_fails(gateway: Serving) -> None:
    """417 for anything but 100-continue."""
    answer = await gateway.raw(
        b"PUT /api/v1/files/box/f HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nConnection: close\r\n"
        b"Expect: miracles\r\nAuthorization: Bearer " + gateway.admin_key.encode() + b"\r\n\r\nx"
    )
    assert answer.startswith(b"HTTP/1.1 417 ")


async def test_a_refusal_is_never_stale(gateway: Serving) -> None:
    """A write is refused only on the newest state: what another node just allowed, counts here."""
    stranger = gateway.metadata
    late: list[Command] = [
        CreateBucket(name="late", actor=ADMIN_KEY_ID),
        UpdateBucket(name="late", actor=ADMIN_KEY_ID, visibility="public-read-write"),
    ]
    barrier = stranger.barrier

    async def catch_up(*, timeout_seconds: float = 1.0) -> int:
        while late:
            await stranger.submit(late.pop(0))
        return await barrier(timeout_seconds=timeout_seconds)

    stranger.barrier = catch_up  # type: ignore[method-assign]
    assert (await gateway.file("PUT", "late/f", key=None, data=b"x")).status == 201


async def test_a_permission_lost_in_mid_upload_is_lost(gateway: Serving) -> None:
    """The state machine judges again: a key revoked while the body came makes nothing visible."""
    key = await gateway.make_key("writer")
    received = asyncio.Event()

    async def body() -> object:
        yield b"x" * 6000
        await received.wait()
        yield b"x" * 3000

    upload = asyncio.create_task(gateway.file("PUT", "box/f", key=key, data=body()))
    await eventually(lambda: bool(gateway.chunks.contents))
    await gateway.metadata.submit(RevokeKey(key_id=key.split("_")[1], actor=ADMIN_KEY_ID))
    received.set()
    assert (await upload).status == 403
    assert (await gateway.file("GET", "box/f")).status == 404
