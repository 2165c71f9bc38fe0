"""Nodes that come and go in tests: under traffic, and held to every promise at the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from loadtests.contents import Contents
from metadata_raft.raft_thread import STATE_NAME
from node.data_directory import IDENTITY_NAME
from node.data_plane import INDEX_NAME
from ring.members import Member, Membership
from ring.placement import Ring, build_ring
from tests.end_to_end.cluster import Cluster, NodeProcess, running_cluster, wait_until
from tests.end_to_end.copies import bad_copies, referenced_chunks, table_digests
from tests.end_to_end.traffic import Traffic

CHUNK_BYTES = 64 * 1024
"""What files are cut into here, so that little data is many chunks."""

PATIENCE_SECONDS = 120.0
"""For whatever a cluster comes to by itself; a busy machine is no failure."""

FILES_BEFORE = 30
FILE_SIZES = (100, 5_000, 60_000, 70_000, 300_000)
PAUSE_SECONDS = 0.05
"""Between two files of the traffic: it is there to be in the way, not to fill the machine."""


@contextlib.asynccontextmanager
async def cluster_under_traffic(
    folder: Path, count: int, *, seed: int, **settings: object
) -> AsyncIterator[tuple[Cluster, Traffic]]:
    """A settled cluster in which files are stored and read until the block ends.

    At the end every node that runs is compared with the others, and every copy is looked at.
    """
    traffic = Traffic(seed)
    finished = asyncio.Event()
    try:
        async with running_cluster(
            folder, count, chunk_size_bytes=CHUNK_BYTES, **settings
        ) as cluster:
            traffic.gateways.extend(cluster.nodes)
            source = random.Random(seed)
            for number in range(FILES_BEFORE):
                await _store(traffic, source, seed, number)
            async with asyncio.TaskGroup() as group:
                group.create_task(traffic.keep_reading(finished))
                group.create_task(_keep_storing(traffic, source, seed, finished))
                yield cluster, traffic
                finished.set()
            await assert_whole(cluster, traffic)
    finally:
        await traffic.close()


async def _keep_storing(
    traffic: Traffic, source: random.Random, seed: int, until: asyncio.Event
) -> None:
    number = FILES_BEFORE
    while not until.is_set():
        await _store(traffic, source, seed, number)
        number += 1
        await asyncio.sleep(PAUSE_SECONDS)


async def _store(traffic: Traffic, source: random.Random, seed: int, number: int) -> None:
    size = source.choice(FILE_SIZES)
    await traffic.store(f"files/{number:05}", Contents(seed=seed * 100_000 + number, size=size))


async def assert_whole(cluster: Cluster, traffic: Traffic) -> None:
    """Nothing acknowledged is missing: through every node, and on every disk.

    The nodes are killed for it, because one that stops in order adds to the log.
    """
    running = [node for node in cluster.nodes if node.running]
    await wait_settled(cluster)
    for node in running:
        await traffic.read_all(node, traffic.stored)

    async def alike() -> bool:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            statuses = [await cluster.status(node) for node in running]
            return len({status["raft"]["applied_index"] for status in statuses}) == 1
        return False

    await wait_until(alike, timeout_seconds=PATIENCE_SECONDS, what="all nodes at one index")
    ring = await current_ring(cluster, running[0])
    await wait_nothing_misplaced(*running, ring=ring)
    ids = {node_id(node): node for node in running}
    assert set(ring.members) <= set(ids), "a node of the ring does not run"
    cluster.close()
    states = [table_digests(node.data) for node in running]
    assert all(state == states[0] for state in states), states
    chunk_ids = referenced_chunks(running[0].data)
    assert chunk_ids
    for owner in ring.members:
        owned = [chunk_id for chunk_id in chunk_ids if owner in ring.owners(chunk_id)]
        assert await bad_copies(ids[owner].data, owned) == []


async def wait_nothing_misplaced(*nodes: NodeProcess, ring: Ring) -> None:
    """Wait until none of these running nodes holds a copy that the ring wants elsewhere."""
    await wait_until(
        lambda: _nothing_is_misplaced(nodes, ring),
        timeout_seconds=PATIENCE_SECONDS,
        what="no copy where it is not wanted",
    )


async def wait_weight(cluster: Cluster, node: NodeProcess, weight: int) -> None:
    """Wait until every running node sees a node in the ring with this weight."""

    async def placed() -> bool:
        rings = [await current_ring(cluster, each) for each in cluster.nodes if each.running]
        return all(ring.members[node_id(node)].weight == weight for ring in rings)

    await wait_until(placed, timeout_seconds=PATIENCE_SECONDS, what=f"weight {weight}")


async def _nothing_is_misplaced(nodes: Sequence[NodeProcess], ring: Ring) -> bool:
    """Whether no node holds a copy of a referenced chunk that it does not own. The nodes run."""
    for node in nodes:
        own_id = node_id(node)
        for chunk_id in _ids(node.data / "raft" / STATE_NAME) & _ids(
            node.data / "chunks" / INDEX_NAME
        ):
            if own_id not in ring.owners(chunk_id):
                return False
    return True


def _ids(database: Path) -> set[bytes]:
    """The chunk ids in the table `chunks`, which a node's state and its index both have."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    with contextlib.closing(connection):
        return {row[0] for row in connection.execute("SELECT chunk_id FROM chunks")}


async def current_ring(cluster: Cluster, node: NodeProcess) -> Ring:
    """The ring as a node shows it, computed here once more."""
    shown = await _get(cluster, node, "/api/v1/cluster/ring")
    members = tuple(
        Member(
            node_id=each["node_id"], peer_address="", raft_address="", client_url="",
            zone=each["zone"], weight=each["weight"],
        )
        for each in shown["members"]
    )  # fmt: skip
    return build_ring(Membership(epoch=shown["epoch"], members=members, replicas=shown["replicas"]))


async def _get(cluster: Cluster, node: NodeProcess, path: str) -> Any:
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {cluster.admin_key}"}) as session,
        session.get(f"{node.url}{path}") as response,
    ):
        response.raise_for_status()
        return await response.json()


def node_id(node: NodeProcess) -> str:
    """Who a node is, from its directory."""
    return str(json.loads((node.data / IDENTITY_NAME).read_bytes())["node_id"])


def stage(node: NodeProcess) -> str:
    """The stage in a node's directory: joining, member, left."""
    return str(json.loads((node.data / IDENTITY_NAME).read_bytes())["stage"])


async def member(cluster: Cluster, wanted: str, *, at: NodeProcess) -> dict[str, Any] | None:
    """What a node says of the member with this id; None if there is none."""
    members = (await cluster.status(at))["members"]
    return next((each for each in members if each["node_id"] == wanted), None)


async def wait_status(
    cluster: Cluster, condition: Callable[[dict[str, Any]], bool], *, what: str
) -> None:
    """Wait until every running node's status meets the condition."""

    async def met() -> bool:
        try:
            statuses = [await cluster.status(node) for node in cluster.nodes if node.running]
        except (aiohttp.ClientError, TimeoutError):
            return False
        return all(condition(status) for status in statuses)

    await wait_until(met, timeout_seconds=PATIENCE_SECONDS, what=what)


async def wait_settled(cluster: Cluster) -> None:
    """Wait until every running node says that all copies are where they belong."""
    await wait_status(cluster, lambda status: bool(status["settled"]), what="all copies in place")


async def wait_ring_of(cluster: Cluster, *nodes: NodeProcess) -> None:
    """Wait until exactly these nodes are in the ring, as every running node sees it."""
    wanted = {node_id(node) for node in nodes}

    def met(status: dict[str, Any]) -> bool:
        return {each["node_id"] for each in status["members"] if each["in_ring"]} == wanted

    await wait_status(cluster, met, what=f"{len(nodes)} nodes in the ring")


async def wait_members(cluster: Cluster, *nodes: NodeProcess) -> None:
    """Wait until exactly these nodes are members, as every running node sees it."""
    wanted = {node_id(node) for node in nodes}

    def met(status: dict[str, Any]) -> bool:
        return {each["node_id"] for each in status["members"]} == wanted

    await wait_status(cluster, met, what=f"{len(nodes)} members")


async def new_token(cluster: Cluster, name: str, *, at: NodeProcess) -> Path:
    """A file with a new join token."""
    made = await cluster.command("token", "--data", str(at.data))
    assert made.returncode == 0, made.stderr
    path = cluster.folder / name
    path.write_text(made.stdout)
    return path
