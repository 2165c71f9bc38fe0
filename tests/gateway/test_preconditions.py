"""Conditional requests: reads decide in the gateway, writes in the state machine."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from gateway.preconditions import MalformedConditionError, entity_tags, for_write
from tests.gateway.serving import Serving, contents


@pytest.mark.parametrize(
    ("value", "tags"),
    [
        ('"a"', [(False, "a")]),
        ('"a", W/"b","c"', [(False, "a"), (True, "b"), (False, "c")]),
        ('"a,b"', [(False, "a,b")]),
        (" * ", [(False, "*")]),
        ('""', [(False, "")]),
    ],
)
def test_a_list_of_entity_tags(value: str, tags: list[tuple[bool, str]]) -> None:
    """RFC 9110 §8.8.3, commas inside the quotes among them."""
    assert entity_tags("If-Match", value) == tags


@pytest.mark.parametrize("value", ["", "a", '"a" "b"', '"a",', 'w/"a"', '"a'])
def test_what_is_no_list_of_entity_tags(value: str) -> None:
    """Anything else is an error: a condition that is misread would protect nothing."""
    with pytest.raises(MalformedConditionError):
        entity_tags("If-Match", value)


def test_weak_tags_never_match_a_write() -> None:
    """If-Match compares strongly: its weak tags are dropped, and none left means no match."""
    assert for_write({"If-Match": 'W/"a"'}).if_match == ()
    assert for_write({"If-None-Match": 'W/"a"'}).if_none_match == ("a",)


async def test_reads_are_conditional(gateway: Serving) -> None:
    """304 where the client has it already, 412 where it wants another one, in RFC order."""
    put = await gateway.file("PUT", "box/f", data=b"one")
    etag = put.headers["ETag"]
    modified = (await gateway.file("HEAD", "box/f")).headers["Last-Modified"]
    past, future = "Sat, 01 Jan 2000 00:00:00 GMT", "Sat, 01 Jan 2095 00:00:00 GMT"
    for headers, status in (
        ({"If-None-Match": etag}, 304),
        ({"If-None-Match": f'"x", W/{etag}'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"x"'}, 200),
        ({"If-None-Match": '"x"', "If-Modified-Since": future}, 200),
        ({"If-Modified-Since": modified}, 304),
        ({"If-Modified-Since": past}, 200),
        ({"If-Modified-Since": "nonsense"}, 200),
        ({"If-Match": etag}, 200),
        ({"If-Match": '"x"'}, 412),
        ({"If-Match": f"W/{etag}"}, 412),
        ({"If-Match": etag, "If-Unmodified-Since": past}, 200),
        ({"If-Unmodified-Since": past}, 412),
        ({"If-Unmodified-Since": modified}, 200),
        ({"If-Match": "broken"}, 400),
    ):
        for method in ("GET", "HEAD"):
            answer = await gateway.file(method, "box/f", headers=headers)
            assert answer.status == status, headers
            if status == 304:
                assert answer.body == b""
                assert answer.headers["ETag"] == etag


@pytest.mark.parametrize("size", [10, 5000])
async def test_writes_are_conditional(gateway: Serving, size: int) -> None:
    """If-Match and If-None-Match decide uploads and deletions; a refused one changes nothing."""
    first, second = contents(size, seed=1), contents(size, seed=2)
    assert (await gateway.file("PUT", "box/f", data=first, headers={"If-Match": "*"})).status == 412
    put = await gateway.file("PUT", "box/f", data=first, headers={"If-None-Match": "*"})
    assert put.status == 201
    etag = put.headers["ETag"]
    for headers in ({"If-None-Match": "*"}, {"If-Match": '"x"'}, {"If-None-Match": etag}):
        refused = await gateway.file("PUT", "box/f", data=second, headers=headers)
        assert refused.code == "precondition_failed"
        assert (await gateway.file("GET", "box/f")).body == first
    assert (await gateway.file("DELETE", "box/f", headers={"If-Match": '"x"'})).status == 412
    changed = await gateway.file("PUT", "box/f", data=second, headers={"If-Match": etag})
    assert changed.status == 200
    assert (await gateway.file("DELETE", "box/f", headers={"If-Match": etag})).status == 412
    last = {"If-Match": changed.headers["ETag"]}
    assert (await gateway.file("DELETE", "box/f", headers=last)).status == 204


async def test_a_date_cannot_protect_a_write(gateway: Serving) -> None:
    """If-Unmodified-Since on a write is refused instead of being half kept."""
    headers = {"If-Unmodified-Since": "Sat, 01 Jan 2095 00:00:00 GMT"}
    assert (await gateway.file("PUT", "box/f", data=b"x", headers=headers)).status == 400
    assert (await gateway.file("DELETE", "box/f", headers=headers)).status == 400


@pytest.mark.parametrize("size", [10, 5000])
async def test_one_of_fifty_creators_wins(gateway: Serving, size: int) -> None:
    """Of 50 concurrent creations with If-None-Match: * one is answered 201, the others 412."""
    answers = await asyncio.gather(
        *(
            gateway.file(
                "PUT", "box/f", data=contents(size, seed=seed), headers={"If-None-Match": "*"}
            )
            for seed in range(50)
        )
    )
    assert Counter(answer.status for answer in answers) == {201: 1, 412: 49}
    winner = next(seed for seed, answer in enumerate(answers) if answer.status == 201)
    assert (await gateway.file("GET", "box/f")).body == contents(size, seed=winner)
