"""What an administrator does about members over HTTP: who may, with which words, and what comes."""

from __future__ import annotations

import pytest

from gateway.client import AccessError, NotFoundError, RefusedError
from gateway.documents import SettingsChange
from tests.gateway.serving import Serving

MEMBERS = "/api/v1/cluster/members"
ADMINISTRATIVE = (
    ("POST", f"{MEMBERS}/n1/drain"),
    ("POST", f"{MEMBERS}/n1/undrain"),
    ("POST", f"{MEMBERS}/n1/leave"),
    ("DELETE", f"{MEMBERS}/n2"),
    ("POST", "/api/v1/cluster/collection/resume"),
    ("POST", "/api/v1/cluster/scrub"),
    ("PATCH", "/api/v1/cluster/settings"),
)


@pytest.mark.parametrize(("method", "path"), ADMINISTRATIVE)
async def test_only_an_administrator_changes_members_and_settings(
    gateway: Serving, method: str, path: str
) -> None:
    """Without a key 401, with a writer's 403, and nothing is wished of the cluster."""
    writer = await gateway.make_key("writer")
    assert (await gateway.request(method, path, key=None)).status == 401
    refused = await gateway.request(method, path, key=writer)
    assert (refused.status, refused.code) == (403, "forbidden")
    assert gateway.cluster.membership.wishes == []
    assert gateway.cluster.scrubs == []


async def test_a_wish_reaches_the_cluster_with_who_had_it(gateway: Serving) -> None:
    """Drain, undrain and leave answer with the member as it then stands."""
    async with gateway.client() as client:
        assert (await client.drain("n1")).intent == "drain"
        assert (await client.undrain("n1")).intent == "stay"
        assert (await client.leave("n2", reduce_copies=True)).intent == "leave"
    actor = gateway.admin_key.split("_")[1]
    assert gateway.cluster.membership.wishes == [
        ("n1", "drain", actor, False),
        ("n1", "stay", actor, False),
        ("n2", "leave", actor, True),
    ]


async def test_a_node_that_answers_is_removed_by_force_only(gateway: Serving) -> None:
    """409 `node_is_alive` says that a repetition won't help; `force` does."""
    async with gateway.client() as client:
        with pytest.raises(RefusedError) as refused:
            await client.remove("n1")
        assert (refused.value.code, refused.value.retryable) == ("node_is_alive", False)
        await client.remove("n1", force=True)
        await client.remove("n2")
    assert [wish[:2] for wish in gateway.cluster.membership.wishes] == [
        ("n1", "remove"),
        ("n2", "remove"),
    ]


async def test_a_node_that_is_not_there_is_not_found(gateway: Serving) -> None:
    """404 `no_such_member`, for every wish."""
    async with gateway.client() as client:
        for wish in (client.drain, client.undrain, client.leave, client.remove):
            with pytest.raises(NotFoundError) as refused:
                await wish("n9")
            assert refused.value.code == "no_such_member"


async def test_flags_are_true_or_false(gateway: Serving) -> None:
    """What is neither, and a parameter of another operation, is refused instead of ignored."""
    for path in (
        f"{MEMBERS}/n1/drain?reduce_copies=yes",
        f"{MEMBERS}/n1/undrain?reduce_copies=true",
    ):
        assert (await gateway.request("POST", path)).code == "invalid_parameter"
    assert (await gateway.request("DELETE", f"{MEMBERS}/n2?force=1")).code == "invalid_parameter"
    assert gateway.cluster.membership.wishes == []


@pytest.mark.parametrize("path", ["", "/", "/n1/", "/n1/drain/", "/n1/stop"])
async def test_other_targets_below_members_are_no_routes(gateway: Serving, path: str) -> None:
    """Nothing is served beside the documented templates."""
    assert (await gateway.request("POST", f"{MEMBERS}{path}")).code == "no_such_route"


async def test_the_ring_shows_what_a_change_would_move(gateway: Serving) -> None:
    """With any key; the ring itself is in the same answer, without a preview where none was
    asked for."""
    reader = await gateway.make_key("reader")
    async with gateway.client(reader) as client:
        assert (await client.ring()).preview is None
        joined = await client.preview_join(weight=250, zone="b")
        assert (joined.change, joined.node_id) == ("join", "250 b")
        assert (await client.preview_leave("n1")).change == "leave"
        with pytest.raises(NotFoundError):
            await client.preview_leave("n9")
    async with gateway.client(None) as client:
        with pytest.raises(AccessError):
            await client.preview_join(weight=1)


@pytest.mark.parametrize(
    "query",
    [
        "preview=join",
        "preview=join&capacity=0",
        "preview=join&capacity=1000001",
        "preview=join&capacity=-5",
        "preview=join&capacity=5GB",
        "preview=join&capacity=5&node=n1",
        f"preview=join&capacity=5&zone={'z' * 65}",
        "preview=join&capacity=5&zone=a%0Ab",
        "preview=leave",
        "preview=leave&node=n1&zone=b",
        "preview=drain&node=n1",
        "capacity=5",
    ],
)
async def test_a_preview_that_is_not_whole_is_refused(gateway: Serving, query: str) -> None:
    """A capacity is 1 to 1,000,000 gigabytes, and the parameters belong to their preview."""
    assert (await gateway.request("GET", f"/api/v1/cluster/ring?{query}")).code == (
        "invalid_parameter"
    )


async def test_settings_that_are_named_change(gateway: Serving) -> None:
    """What is absent stays, null is the default, and all of them are answered."""
    async with gateway.client() as client:
        document = await client.change_settings(SettingsChange(repair_bytes_per_second=50_000_000))
        assert document.repair_bytes_per_second == 50_000_000
        await client.change_settings(SettingsChange(scrub_interval_seconds=None))
    assert gateway.cluster.membership.settings == {
        "repair_bytes_per_second": 50_000_000,
        "scrub_interval_seconds": None,
    }


@pytest.mark.parametrize("body", [b'{"speed": 1}', b'{"repair_bytes_per_second": -1}', b"[]", b""])
async def test_settings_that_do_not_exist_are_refused(gateway: Serving, body: bytes) -> None:
    """A misspelt name or a rate below zero changes nothing."""
    answer = await gateway.request("PATCH", "/api/v1/cluster/settings", data=body)
    assert (answer.status, answer.code) == (400, "invalid_document")
    assert gateway.cluster.membership.wishes == []


async def test_collection_is_resumed(gateway: Serving) -> None:
    """204, and the wish has arrived."""
    async with gateway.client() as client:
        await client.resume_collection()
    assert gateway.cluster.membership.wishes[0][0] == "resume"


async def test_a_scrub_of_one_node_or_of_all(gateway: Serving) -> None:
    """202 with who was told, and how many passes it will have ended then."""
    async with gateway.client() as client:
        assert [each.node_id for each in (await client.scrub()).nodes] == ["n1"]
        assert (await client.scrub("n2")).nodes[0].passes == 1
        with pytest.raises(NotFoundError) as refused:
            await client.scrub("n9")
        assert refused.value.code == "no_such_member"
    assert gateway.cluster.scrubs == [None, "n2"]
    assert (await gateway.request("POST", "/api/v1/cluster/scrub?nodes=n1")).status == 400
