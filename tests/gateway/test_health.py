"""Health, metrics and the cluster's documents."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from metadata_raft.errors import NoQuorumError
from metadata_raft.state_errors import StateCorruptError
from tests.gateway.serving import Serving


async def test_health_needs_no_key_and_tells_apart(gateway: Serving) -> None:
    """A node without a quorum lives; one that is starting is not ready; both are 503 then."""
    for aspect in ("live", "ready", "cluster"):
        answer = await gateway.request("GET", f"/health/{aspect}", key=None)
        assert (answer.status, answer.json["status"]) == (200, "ok")
    gateway.cluster.reason = "the state is being downloaded"
    starting = await gateway.request("GET", "/health/ready", key=None)
    assert (starting.status, starting.code) == (503, "not_ready")
    assert "downloaded" in starting.json["detail"]
    gateway.metadata.fail_next = [NoQuorumError("no majority answers")]
    cut_off = await gateway.request("GET", "/health/cluster", key=None)
    assert (cut_off.status, cut_off.code) == (503, "no_quorum")
    assert cut_off.headers["Retry-After"] == "1"
    assert (await gateway.request("GET", "/health/live", key=None)).status == 200


async def test_a_node_says_whether_it_may_be_stopped(gateway: Serving) -> None:
    """All that speaks against it is in the answer; it is no matter for the plain question."""
    path = "/health/ready?maintenance=true"
    answer = await gateway.request("GET", path, key=None)
    assert (answer.status, answer.json["status"]) == (200, "ok")
    gateway.cluster.against_stopping = ["node a does not answer", "7 copies are lacking"]
    unsafe = await gateway.request("GET", path, key=None)
    assert (unsafe.status, unsafe.code) == (412, "maintenance_unsafe")
    assert unsafe.json["detail"] == "node a does not answer; 7 copies are lacking"
    assert unsafe.json["retryable"] is True
    for plain in ("/health/ready", "/health/ready?maintenance=false"):
        assert (await gateway.request("GET", plain, key=None)).status == 200
    odd = await gateway.request("GET", "/health/ready?maintenance=perhaps", key=None)
    assert (odd.status, odd.code) == (400, "invalid_parameter")
    gateway.cluster.reason = "the state is being downloaded"
    assert (await gateway.request("GET", path, key=None)).code == "not_ready"


async def test_requests_are_counted(gateway: Serving) -> None:
    """Every request is counted by its route's template and status, never by its path."""
    await gateway.file("PUT", "box/secret-name", data=b"x" * 5000)
    await gateway.file("GET", "box/secret-name", headers={"Range": "bytes=0-99"})
    await gateway.file("GET", "box/none")
    await gateway.request("GET", "/nowhere")
    exposition = (await gateway.request("GET", "/metrics", key=None)).body.decode()
    file = 'operation="{} /api/v1/files/{{bucket}}/{{path}}"'
    for line in (
        f'holdfast_requests_total{{{file.format("PUT")},status="201"}} 1.0',
        f'holdfast_requests_total{{{file.format("GET")},status="206"}} 1.0',
        f'holdfast_requests_total{{{file.format("GET")},status="404"}} 1.0',
        'holdfast_requests_total{operation="unrouted",status="404"} 1.0',
        f"holdfast_request_seconds_count{{{file.format('GET')}}} 2.0",
        "holdfast_received_bytes_total 5000.0",
        "holdfast_sent_bytes_total 100.0",
        "holdfast_requests_in_progress 1.0",
    ):
        assert line in exposition.splitlines(), line
    assert "secret-name" not in exposition
    names = [line.split()[2] for line in exposition.splitlines() if line.startswith("# TYPE")]
    assert all(name.startswith("holdfast_") for name in names)


async def test_damaged_metadata_ends_the_node(gateway: Serving) -> None:
    """An error that must end the process reaches the loop's handler, not just a client."""
    seen: list[BaseException | None] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: seen.append(context.get("exception")))
    gateway.metadata.fail_next = [StateCorruptError("a page is damaged")]
    assert (await gateway.file("GET", "box/f")).code == "not_ready"
    assert [type(error) for error in seen] == [StateCorruptError]
    loop.set_exception_handler(None)


async def test_a_backup_is_for_administrators_and_never_ends_short(gateway: Serving) -> None:
    """Whole with an admin key, refused with any other; cut off where the node fails on the way."""
    gateway.cluster.backup_pieces = [b"head", b"x" * 100_000, b"digest"]
    whole = await gateway.request("GET", "/api/v1/cluster/backup")
    assert whole.status == 200
    assert whole.body == b"head" + b"x" * 100_000 + b"digest"
    assert whole.headers["Cache-Control"] == "no-store"
    nobody = await gateway.request("GET", "/api/v1/cluster/backup", key=None)
    assert (nobody.status, nobody.code) == (401, "unauthenticated")
    made = await gateway.request("POST", "/api/v1/keys", data=b'{"role": "writer"}')
    writer = await gateway.request("GET", "/api/v1/cluster/backup", key=made.json["key"])
    assert (writer.status, writer.code) == (403, "forbidden")
    gateway.cluster.backup_pieces = [b"head", None]
    with pytest.raises(aiohttp.ClientError):
        await gateway.request("GET", "/api/v1/cluster/backup")


async def test_who_watches_is_no_client(gateway: Serving) -> None:
    """Background work yields to requests for files and buckets, refused ones included; not to
    health checks, metrics and whoever looks at the cluster's status, or tells a node to drain."""
    for path in ("/health/live", "/health/ready", "/health/cluster", "/metrics"):
        await gateway.request("GET", path, key=None)
    await gateway.request("GET", "/api/v1/cluster")
    await gateway.request("POST", "/api/v1/cluster/members/some-node/drain")
    assert gateway.noted == []
    await gateway.file("PUT", "box/small", data=b"inline")
    assert len(gateway.noted) == 1
    await gateway.file("GET", "box/small")
    await gateway.file("GET", "box/small", key=None)
    assert len(gateway.noted) == 3
