"""Nodes go, and others take their place, on real processes under traffic.

Each test ends with what `assert_whole` demands: settled, every acknowledged file readable through
every node, equal states, and every referenced chunk whole on its owners' disks and on no other.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.client import GatewayClient, TryAgainError, UnreachableError
from loadtests.contents import Contents
from tests.end_to_end.cluster import OPEN_BUCKET, NodeProcess, wait_until
from tests.end_to_end.membership import (
    PATIENCE_SECONDS,
    PAUSE_SECONDS,
    cluster_under_traffic,
    member,
    new_token,
    node_id,
    stage,
    wait_members,
    wait_ring_of,
    wait_settled,
)

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]


@pytest.mark.parametrize("who", ["leader", "voter"])
async def test_a_node_leaves_when_the_others_have_what_it_held(tmp_path: Path, who: str) -> None:
    """Asked over HTTP or on its own machine, leading or not: it serves to the end, ends by itself
    with 0 and a sentence, and its directory starts no more."""
    async with cluster_under_traffic(tmp_path, 4, seed=2) as (cluster, traffic):
        leader = await cluster.leader()
        leaver = leader if who == "leader" else next(n for n in cluster.nodes if n is not leader)
        others = [node for node in cluster.nodes if node is not leaver]
        traffic.retire(leaver)
        if who == "leader":
            left = await cluster.command("leave", leaver.url, node=leaver)
        else:
            left = await cluster.command("leave", "--data", str(leaver.data))
        assert left.returncode == 0, left.stderr
        assert "The node has left the cluster." in left.stderr
        assert await leaver.wait_exit(timeout_seconds=PATIENCE_SECONDS) == 0
        assert f"Node {node_id(leaver)} has left its cluster" in leaver.log()
        assert stage(leaver) == "left"
        await wait_members(cluster, *others)

        leaver.start()
        assert await leaver.wait_exit(timeout_seconds=PATIENCE_SECONDS) == 1
        assert "has left its cluster for good" in leaver.log()

        again = await cluster.command("leave", "--data", str(leaver.data), node=others[0])
        assert again.returncode == 0, again.stderr

        few = await cluster.command("leave", others[0].url, "--no-wait", node=others[1])
        assert few.returncode == 1
        assert "for 3 copies" in few.stderr


async def test_what_a_leaving_node_acknowledged_is_kept(tmp_path: Path) -> None:
    """Clients that know no better go on storing through the leaver, and uploads that began before
    its wish end after it (rule D6): each is refused as one that may be repeated, or kept."""
    async with cluster_under_traffic(tmp_path, 4, seed=7) as (cluster, traffic):
        leader = await cluster.leader()
        leaver = next(node for node in cluster.nodes if node is not leader)
        others = [node for node in cluster.nodes if node is not leaver]
        traffic.retire(leaver)
        may_end = asyncio.Event()
        slow = [
            asyncio.create_task(_store_slowly(node, number, may_end))
            for number, node in enumerate((leaver, leader))
        ]
        steady = asyncio.create_task(_store_until_it_ends(leaver))
        begun = await cluster.command("leave", leaver.url, "--no-wait", node=leader)
        assert begun.returncode == 0, begun.stderr
        await wait_ring_of(cluster, *others)
        may_end.set()
        acknowledged = {**await steady, **await slow[0], **await slow[1]}
        assert await leaver.wait_exit(timeout_seconds=PATIENCE_SECONDS) == 0
        traffic.stored |= acknowledged
        assert len(acknowledged) > 1


async def _store_until_it_ends(node: NodeProcess) -> dict[str, Contents]:
    """Store files through a node until it answers no more; return those it acknowledged."""
    acknowledged: dict[str, Contents] = {}
    async with GatewayClient(node.url) as client:
        for number in itertools.count():
            path, contents = f"steady/{number}", Contents(seed=900_000 + number, size=150_000)
            try:
                await client.put(OPEN_BUCKET, path, contents.read(0, contents.size))
            except TryAgainError:
                await asyncio.sleep(PAUSE_SECONDS)
            except UnreachableError:
                break
            else:
                acknowledged[path] = contents
    return acknowledged


async def _store_slowly(
    node: NodeProcess, number: int, may_end: asyncio.Event
) -> dict[str, Contents]:
    """An upload most of which is sent at once, and the rest when it may end."""
    path, contents = f"slow/{number}", Contents(seed=800_000 + number, size=600_000)

    async def body() -> AsyncIterator[bytes]:
        yield contents.read(0, 500_000)
        await may_end.wait()
        yield contents.read(500_000, contents.size)

    async with GatewayClient(node.url) as client:
        try:
            await client.put(OPEN_BUCKET, path, body())
        except (TryAgainError, UnreachableError):
            return {}
    return {path: contents}


async def test_a_dead_node_is_removed_and_a_new_one_takes_its_place(tmp_path: Path) -> None:
    """A living one is not removed by mistake; a wiped one can't come back under the same addresses
    before the old one is removed; the removed one is told what happened when it returns."""
    async with cluster_under_traffic(tmp_path, 3, seed=3) as (cluster, traffic):
        leader = await cluster.leader()
        lost = next(node for node in cluster.nodes if node is not leader)
        alive = await cluster.command("remove", lost.url, node=leader)
        assert alive.returncode == 1
        assert "answers" in alive.stderr

        traffic.kill(lost)
        old_id, old_data = node_id(lost), tmp_path / "what the old disk held"
        shutil.move(lost.data, old_data)
        token = await new_token(cluster, "token", at=leader)

        # The disk is empty: as a new node, but with the addresses of the old one.
        lost.start(token_path=token)
        assert await lost.wait_exit(timeout_seconds=PATIENCE_SECONDS) == 1
        assert f"holdfast remove {old_id}" in lost.log()

        removed = await cluster.command("remove", old_id[:13], node=leader)
        assert removed.returncode == 0, removed.stderr

        async def gone() -> bool:
            return await member(cluster, old_id, at=leader) is None

        await wait_until(gone, timeout_seconds=PATIENCE_SECONDS, what="the dead node's record goes")
        lost.start(token_path=token)
        await lost.wait_ready()
        traffic.forgive_no_longer(lost)
        assert node_id(lost) != old_id
        await wait_ring_of(cluster, *cluster.nodes)
        await wait_settled(cluster)

        returning = cluster.add_process()
        shutil.move(old_data, returning.data)
        returning.start()
        assert await returning.wait_exit(timeout_seconds=PATIENCE_SECONDS) == 1
        assert f"Node {old_id} was removed from its cluster for good" in returning.log()
        assert stage(returning) == "left"


async def test_a_living_leader_is_removed_by_force(tmp_path: Path) -> None:
    """It is told why, and ends with 1; the others elect, make its copies anew, and go on."""
    async with cluster_under_traffic(tmp_path, 4, seed=8) as (cluster, traffic):
        leader = await cluster.leader()
        others = [node for node in cluster.nodes if node is not leader]
        traffic.retire(leader)
        removed = await cluster.command("remove", node_id(leader), "--force", node=others[0])
        assert removed.returncode == 0, removed.stderr
        assert await leader.wait_exit(timeout_seconds=PATIENCE_SECONDS) == 1
        assert f"Node {node_id(leader)} was removed from its cluster for good" in leader.log()
        assert stage(leader) == "left"
        await wait_members(cluster, *others)
        await wait_ring_of(cluster, *others)


async def test_a_cluster_shrinks_to_one_node(tmp_path: Path) -> None:
    """Where it is agreed to, fewer nodes than copies are left: with every file on the last one."""
    async with cluster_under_traffic(tmp_path, 3, seed=9) as (cluster, traffic):
        left = list(cluster.nodes)
        while len(left) > 1:
            leaver = await cluster.leader()
            left.remove(leaver)
            traffic.retire(leaver)
            gone = await cluster.command("leave", leaver.url, "--reduce-copies", node=left[0])
            assert gone.returncode == 0, gone.stderr
            assert await leaver.wait_exit(timeout_seconds=PATIENCE_SECONDS) == 0
            await wait_members(cluster, *left)


async def test_a_leave_survives_the_death_of_the_leader(tmp_path: Path) -> None:
    """Killed right after it was asked, again and again: whoever leads next goes on."""
    async with cluster_under_traffic(tmp_path, 4, seed=4) as (cluster, traffic):
        leader = await cluster.leader()
        leaver = next(node for node in cluster.nodes if node is not leader)
        others = [node for node in cluster.nodes if node is not leaver]
        traffic.retire(leaver)
        begun = await cluster.command("leave", node_id(leaver), "--no-wait", node=leader)
        assert begun.returncode == 0, begun.stderr
        traffic.kill(leader)
        leader.start()
        await leader.wait_ready()
        traffic.forgive_no_longer(leader)
        second = await cluster.leader()
        if second is not leaver:
            traffic.kill(second)
            second.start()
            await second.wait_ready()
            traffic.forgive_no_longer(second)
        assert await leaver.wait_exit(timeout_seconds=PATIENCE_SECONDS) == 0
        assert stage(leaver) == "left"
        await wait_members(cluster, *others)
        await wait_ring_of(cluster, *others)


async def test_two_joins_and_a_leave_at_once_end_right(tmp_path: Path) -> None:
    """In whatever order the leader takes them: the ring is those who stay."""
    async with cluster_under_traffic(tmp_path, 3, seed=6) as (cluster, traffic):
        leader = await cluster.leader()
        leaver = next(node for node in cluster.nodes if node is not leader)
        stayers = [node for node in cluster.nodes if node is not leaver]
        tokens = [await new_token(cluster, f"token {n}", at=stayers[0]) for n in range(2)]
        joiners = [cluster.add_process(), cluster.add_process()]
        traffic.retire(leaver)
        # Until the first joiner is in, two nodes would be left for three copies.
        arguments = ("leave", node_id(leaver), "--reduce-copies")
        leaving = asyncio.create_task(cluster.command(*arguments, node=stayers[0]))
        for joiner, token in zip(joiners, tokens, strict=True):
            joiner.start(token_path=token)
        for joiner in joiners:
            await joiner.wait_ready()
            traffic.gateways.append(joiner)
        left = await leaving
        assert left.returncode == 0, left.stderr
        assert await leaver.wait_exit(timeout_seconds=PATIENCE_SECONDS) == 0
        await wait_members(cluster, *stayers, *joiners)
        await wait_ring_of(cluster, *stayers, *joiners)
