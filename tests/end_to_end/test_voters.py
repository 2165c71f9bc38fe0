"""Who votes when voters die: a dead one does not cost fault tolerance for ever (rule M7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.cluster import running_cluster, wait_until
from tests.end_to_end.membership import PATIENCE_SECONDS, node_id, wait_status

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]


def stages(status: dict[str, Any]) -> dict[str, str]:
    return {each["node_id"]: each["stage"] for each in status["members"]}


async def test_a_learner_votes_for_a_dead_voter_and_the_next_death_is_survived(
    tmp_path: Path,
) -> None:
    """Of three voters one dies for longer than a restart takes: the fourth node votes in its place.
    So a second one may die while the first is still away; and the first one, when it is back,
    follows without a vote, for there are three again."""
    async with running_cluster(tmp_path, 4, voter_gone_seconds=2) as cluster:
        leader = await cluster.leader()
        named = stages(await cluster.status(leader))
        (fourth,) = [name for name, stage in named.items() if stage == "learner"]
        others = [
            node for node in cluster.nodes if node is not leader and named[node_id(node)] == "voter"
        ]
        first, second = others
        first.kill()
        await wait_status(
            cluster,
            lambda status: (
                stages(status)[fourth] == "voter" and stages(status)[node_id(first)] == "learner"
            ),
            what="the learner votes",
        )

        second.kill()

        async def writes() -> bool:
            return (await cluster.command("bucket", "create", "after")).returncode == 0

        await wait_until(writes, timeout_seconds=PATIENCE_SECONDS, what="a write without two")
        second.start()
        first.start()
        await first.wait_ready(timeout_seconds=PATIENCE_SECONDS)
        await second.wait_ready(timeout_seconds=PATIENCE_SECONDS)
        await wait_status(
            cluster,
            lambda status: (
                sorted(stages(status).values()) == ["learner", "voter", "voter", "voter"]
            ),
            what="three of four vote",
        )
