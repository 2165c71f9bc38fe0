"""Nodes come and go on real processes, while clients store and read and notice nothing.

Each test ends with what `assert_whole` demands: settled, every acknowledged file readable through
every node, equal states, and every referenced chunk whole on its owners' disks and on no other.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.end_to_end.cluster import wait_until
from tests.end_to_end.membership import (
    PATIENCE_SECONDS,
    cluster_under_traffic,
    current_ring,
    member,
    new_token,
    node_id,
    wait_members,
    wait_nothing_misplaced,
    wait_ring_of,
    wait_settled,
    wait_weight,
)

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]


async def test_a_fourth_node_joins_as_previewed_is_drained_and_comes_back(tmp_path: Path) -> None:
    """What `ring preview join` says is what the new node then holds; drained it holds nothing
    that is needed and stays a member; undrained it has its share again."""
    async with cluster_under_traffic(tmp_path, 3, seed=1) as (cluster, traffic):
        first = cluster.nodes[0]
        said = await cluster.command("ring", "preview", "join", "--capacity", "100GB", "--json")
        assert said.returncode == 0, said.stderr
        preview = json.loads(said.stdout)
        new = next(each for each in preview["members"] if each["node_id"] == "new")
        assert new["bytes_gained"] == preview["bytes_moved"] > 0

        fourth = await cluster.add_node()
        traffic.gateways.append(fourth)
        await wait_settled(cluster)
        shown = await cluster.command("ring", "--json")
        shares = {each["node_id"]: each for each in json.loads(shown.stdout)["members"]}
        partitions = shares[node_id(fourth)]["partitions"]
        assert partitions == pytest.approx(new["partitions_after"], rel=0.15)

        drained = await cluster.command("drain", node_id(fourth)[:8], "--json")
        assert drained.returncode == 0, drained.stderr
        assert json.loads(drained.stdout)["intent"] == "drain"
        assert "drained: no copy is needed" in drained.stderr
        record = await member(cluster, node_id(fourth), at=first)
        assert record is not None
        assert not record["in_ring"]
        await wait_nothing_misplaced(fourth, ring=await current_ring(cluster, first))

        # It goes on as a member, also when it starts anew; and with another weight and zone.
        traffic.retire(fourth)
        assert await fourth.stop() == 0
        fourth.settings |= {"weight": 50, "zone": "b"}
        fourth.start()
        await fourth.wait_ready()
        traffic.gateways.append(fourth)

        back = await cluster.command("undrain", fourth.url)
        assert back.returncode == 0, back.stderr
        await wait_ring_of(cluster, *cluster.nodes)
        await wait_settled(cluster)
        placed = (await current_ring(cluster, first)).members[node_id(fourth)]
        assert (placed.weight, placed.zone) == (50, "b")

        # In the ring as well: it is placed anew.
        traffic.retire(fourth)
        assert await fourth.stop() == 0
        fourth.settings |= {"weight": 100, "zone": ""}
        fourth.start()
        await fourth.wait_ready()
        traffic.gateways.append(fourth)
        await wait_weight(cluster, fourth, 100)


async def test_a_join_survives_the_death_of_the_joiner(tmp_path: Path) -> None:
    """Killed when it has been admitted, when it follows the log, and when it is in the ring: the
    same start goes on, as one and the same member."""
    async with cluster_under_traffic(tmp_path, 3, seed=5) as (cluster, traffic):
        first = cluster.nodes[0]
        token = await new_token(cluster, "token", at=first)
        joiner = cluster.add_process()

        async def is_member() -> bool:
            return len((await cluster.status(first))["members"]) == 4

        async def follows() -> bool:
            record = await member(cluster, node_id(joiner), at=first)
            return record is not None and record["stage"] != "joining"

        async def in_ring() -> bool:
            record = await member(cluster, node_id(joiner), at=first)
            return record is not None and bool(record["in_ring"])

        for step, what in ((is_member, "admitted"), (follows, "learner"), (in_ring, "in the ring")):
            joiner.start(token_path=token)
            await wait_until(step, timeout_seconds=PATIENCE_SECONDS, what=what)
            joiner.kill()
        joiner.start()
        await joiner.wait_ready()
        traffic.gateways.append(joiner)
        await wait_members(cluster, *cluster.nodes)
        await wait_ring_of(cluster, *cluster.nodes)


async def test_a_node_moves_to_another_machine_with_its_directory(tmp_path: Path) -> None:
    """Started there with other addresses it is who it was, and the others find it."""
    async with cluster_under_traffic(tmp_path, 3, seed=10) as (cluster, traffic):
        node = await cluster.leader()
        traffic.retire(node)
        assert await node.stop() == 0
        moved = cluster.add_process()
        shutil.move(node.data, moved.data)
        cluster.nodes.remove(node)
        moved.start()
        await moved.wait_ready()
        traffic.gateways.append(moved)
        await wait_members(cluster, *cluster.nodes)
        at = next(each for each in cluster.nodes if each is not moved)
        record = await member(cluster, node_id(moved), at=at)
        assert record is not None
        assert record["client_url"] == moved.url
        await wait_settled(cluster)
