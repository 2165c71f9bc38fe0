"""Names come from the raw request target, decoded once and strictly."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import paths
from gateway.errors import ApiError
from gateway.paths import Target, file_target, parse_query, parse_target
from metadata_raft.names import path_problem
from tests.gateway.serving import Serving


@pytest.mark.parametrize(
    ("raw", "target"),
    [
        ("/api/v1/files/box/a", Target(paths.FILE, "box", "a", "")),
        ("/api/v1/files/box/a/b%20c?x=1", Target(paths.FILE, "box", "a/b c", "x=1")),
        ("/api/v1/files/box/%C3%BC", Target(paths.FILE, "box", "ü", "")),
        ("/api/v1/files/box/\udcc3\udcbc", Target(paths.FILE, "box", "ü", "")),
        ("/api/v1/files/box/a%252Fb", Target(paths.FILE, "box", "a%2Fb", "")),
        ("/api/v1/files/box/a+b", Target(paths.FILE, "box", "a+b", "")),
        ("/api/v1/files/box/a;b=c", Target(paths.FILE, "box", "a;b=c", "")),
        ("/api/v1/files/box/...", Target(paths.FILE, "box", "...", "")),
        ("http://host:7070/api/v1/buckets?limit=1", Target(paths.BUCKETS, "", "", "limit=1")),
        ("/api/v1/files/box", Target(paths.LISTING, "box", "", "")),
        ("/api/v1/by-id/7", Target(paths.BY_ID, "7", "", "")),
        ("/api/v1/cluster/ring", Target(paths.RING, "", "", "")),
        ("/health/live", Target(paths.HEALTH_LIVE, "", "", "")),
    ],
)
def test_a_target_leads_to(raw: str, target: Target) -> None:
    """Every part is taken from where it stands, and decoded exactly once."""
    assert parse_target(raw) == target


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ("/api/v1/files/box/a/../b", "invalid_path"),
        ("/api/v1/files/box/..", "invalid_path"),
        ("/api/v1/files/box/%2e%2E/b", "invalid_path"),
        ("/api/v1/files/box/./b", "invalid_path"),
        ("/api/v1/files/box/a%2Fb", "invalid_path"),
        ("/api/v1/files/box/a%2fb", "invalid_path"),
        ("/api/v1/files/box/a%00b", "invalid_path"),
        ("/api/v1/files/box/a//b", "invalid_path"),
        ("/api/v1/files/box/", "invalid_path"),
        ("/api/v1/files/box/a/", "invalid_path"),
        ("/api/v1/files/box/%FF", "invalid_path"),
        ("/api/v1/files/box/\udcff", "invalid_path"),
        ("/api/v1/files/box/%ED%A0%80", "invalid_path"),
        ("/api/v1/files/box/%C0%AF", "invalid_path"),
        ("/api/v1/files/box/100%", "invalid_path"),
        ("/api/v1/files/box/%zz", "invalid_path"),
        ("/api/v1/files/box/a#b", "invalid_path"),
        ("/api/v1/files/box/" + "a" * 1025, "invalid_path"),
        ("/api/v1/files/../keys", "invalid_bucket_name"),
        ("/api/v1/files/Box/a", "invalid_bucket_name"),
        ("/api/v1/files/b%6Fx-/a", "invalid_bucket_name"),
        ("*", "invalid_path"),
        ("host:443", "invalid_path"),
        ("ftp://host/api/v1/buckets", "invalid_path"),
        ("/api/v1/nothing/box", "no_such_route"),
        ("/api/v1/buckets/box/a", "no_such_route"),
        ("/api/v1/buckets/", "no_such_route"),
        ("/api/v1/cluster/other", "no_such_route"),
        ("/api/v1", "no_such_route"),
        ("/", "no_such_route"),
        ("//api/v1/buckets", "no_such_route"),
        ("/api/v1/../v1/buckets", "no_such_route"),
    ],
)
def test_a_target_is_refused(raw: str, code: str) -> None:
    """What is not strictly a name is an error; nothing is resolved, repaired or guessed."""
    with pytest.raises(ApiError) as caught:
        parse_target(raw)
    assert caught.value.code == code


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(min_size=1, max_size=60).filter(lambda text: path_problem(text) is None))
def test_every_allowed_path_survives_its_encoding(path: str) -> None:
    """A path that may be stored is reached by its encoding, and is the very same string."""
    assert parse_target(file_target("box", path)).path == path


@pytest.mark.parametrize("query", ["a=1&a=2", "b=1", "a=%FF", "a=%z", "&".join(["a=1"] * 20)])
def test_a_query_is_refused(query: str) -> None:
    """An unknown, repeated or undecodable parameter is an error: it may have meant to limit."""
    with pytest.raises(ApiError) as caught:
        parse_query(query, frozenset({"a"}))
    assert caught.value.code == "invalid_parameter"


def test_a_query_is_decoded() -> None:
    """Form encoding: plus is a space, an empty value is a value."""
    assert parse_query("a=x+y%2B&b=", frozenset({"a", "b"})) == {"a": "x y+", "b": ""}


async def test_nothing_is_normalised_on_the_way(gateway: Serving) -> None:
    """Dot segments and encoded ones reach the gateway as sent and are refused, nothing stored."""
    await gateway.file("PUT", "box/secret", data=b"s")
    for path in ("a/../secret", "./secret", "%2e/secret", "a/%2e%2e/secret", "a%2Fsecret"):
        request = (
            f"PUT /api/v1/files/box/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n"
            f"Authorization: Bearer {gateway.admin_key}\r\nConnection: close\r\n\r\nx"
        )
        answer = await gateway.raw(request.encode())
        assert answer.startswith(b"HTTP/1.1 400 "), answer
        assert b"invalid_path" in answer
    listing = await gateway.file("GET", "box")
    assert [file["path"] for file in listing.json["files"]] == ["secret"]
    assert (await gateway.file("GET", "box/secret")).body == b"s"


async def test_a_path_is_stored_as_given(gateway: Serving) -> None:
    """Odd but allowed names come back from the listing as the very same strings."""
    names = ["a b", "a+b", "a%2Fb", "…", "e\u0301", "é", ".hidden", "a.b..c", "x" * 1024, "😀/😀"]
    async with gateway.client() as client:
        for name in names:
            await client.put("box", name, name.encode())
        page = await client.list("box")
        assert sorted(file.path for file in page.files) == sorted(names)
        for name in names:
            async with client.get("box", name) as download:
                assert await download.read() == name.encode()


async def test_a_path_of_two_thousand_bytes_is_refused(gateway: Serving) -> None:
    """A path beyond the limit is a clear 400, also with every byte escaped."""
    for path in ("a" * 2000, "%C3%BC" * 1000):
        answer = await gateway.file("PUT", f"box/{path}", data=b"x")
        assert (answer.status, answer.code) == (400, "invalid_path")
        assert "1024" in answer.json["detail"]
    assert not (await gateway.file("GET", "box")).json["files"]
