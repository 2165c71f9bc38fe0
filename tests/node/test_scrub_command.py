"""Following a scrub: when it is done, when it is given up, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

from gateway.client import GatewayClient, UnreachableError
from gateway.documents import ClusterDocument, MemberDocument
from node.commands import scrub
from node.commands.scrub import NodeScrub, ScrubReport, follow, look_at, sentences
from node.errors import EXIT_DONE, EXIT_FAILED, EXIT_TRY_AGAIN
from tests.fakes.documents import cluster, member


def node(name: str, *, last_seen: float | None = 1.0, **figures: float) -> MemberDocument:
    load = {"scrub_passes": 0.0, "disk_allocated_bytes": 1000.0, **figures}
    return member(name, last_seen_seconds=last_seen, load=load)


def reading(name: str, done: int) -> MemberDocument:
    return node(
        name, scrub_running=1.0, scrub_done_bytes=float(done), scrub_total_bytes=1000.0,
        scrub_damage_found=1.0,
    )  # fmt: skip


def read(name: str, *, lacking: int = 0, unrecoverable: int = 0) -> MemberDocument:
    return node(
        name, scrub_passes=1.0, scrub_damage_found=2.0, repair_remaining_copies=float(lacking),
        unrecoverable_chunks=float(unrecoverable),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "state", "done"),
    [
        (node("n1"), "reading", 0),
        (reading("n1", 400), "reading", 400),
        (read("n1", lacking=3), "healing", 1000),
        (read("n1"), "done", 1000),
        (node("n1", last_seen=None), "silent", 0),
        (node("n1", last_seen=1000.0), "silent", 0),
    ],
)
def test_the_state_of_a_node(seen: MemberDocument, state: str, done: int) -> None:
    """A pass counts once it has ended, and is over when what it found is healed."""
    (found,) = look_at(cluster(seen), {"n1": 1})
    assert (found.state, found.done_bytes, found.total_bytes) == (state, done, 1000)
    assert look_at(cluster(seen), {"n2": 1}) == []


def test_an_earlier_pass_does_not_count() -> None:
    """What was asked for is the second: that the first has ended says nothing."""
    (found,) = look_at(cluster(read("n1")), {"n1": 2})
    assert found.state == "reading"


async def followed(
    looks: Sequence[ClusterDocument | Exception], wanted: dict[str, int]
) -> list[NodeScrub]:
    left = list(looks)

    async def look() -> ClusterDocument:
        now = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(now, Exception):
            raise now
        return now

    return await follow(look, wanted, lambda _: None)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(scrub, "STALL_SECONDS", 0.05)
    monkeypatch.setattr(scrub, "HOPELESS_SECONDS", 0.02)


@pytest.mark.usefixtures("_impatient")
async def test_it_is_followed_until_all_is_healed() -> None:
    """Over a node that does not answer for a moment."""
    looks: list[ClusterDocument | Exception] = [
        cluster(node("n1"), reading("n2", 10)),
        cluster(reading("n1", 5), reading("n2", 500)),
        UnreachableError("a restart"),
        cluster(read("n1", lacking=2), reading("n2", 900)),
        cluster(read("n1", lacking=1), read("n2")),
        cluster(read("n1"), read("n2")),
    ]
    nodes = await followed(looks, {"n1": 1, "n2": 1})
    assert [each.state for each in nodes] == ["done", "done"]
    report = ScrubReport(nodes=nodes, not_told={})
    assert report.exit_code == EXIT_DONE
    assert sentences(report, is_begun_only=False) == [
        "Read 2.0 KiB on 2 nodes; 4 damaged records found.",
        "All are healed.",
    ]


@pytest.mark.usefixtures("_impatient")
async def test_what_nobody_can_heal_fails_the_command() -> None:
    """Once nothing moves any more, with a sentence; reading for long is no standstill."""
    looks: list[ClusterDocument | Exception] = [cluster(reading("n1", 5)) for _ in range(50)]
    looks.append(cluster(read("n1", lacking=1, unrecoverable=1)))
    nodes = await followed(looks, {"n1": 1})
    report = ScrubReport(nodes=nodes, not_told={})
    assert report.exit_code == EXIT_FAILED
    assert sentences(report, is_begun_only=False) == [
        "Read 1000 B on 1 node; 2 damaged records found.",
        "1 chunk has no good copy on any node that answers.",
        "1 copy is lacking still; `holdfast status` says more.",
    ]


@pytest.mark.usefixtures("_impatient")
async def test_nodes_that_are_down_are_named() -> None:
    """The others are done; the exit code says that this one is still to be asked."""
    nodes = await followed([cluster(read("n1"), node("n2", last_seen=99.0))], {"n1": 1, "n2": 1})
    report = ScrubReport(nodes=nodes, not_told={"n3": "it does not answer"})
    assert report.exit_code == EXIT_TRY_AGAIN
    said = sentences(report, is_begun_only=False)
    assert said[0] == "Node n3 could not be told to scrub: it does not answer."
    assert said[1].startswith("Node n2 has not answered")


def test_nothing_to_follow() -> None:
    """`--watch` without a scrub under way says so."""
    report = ScrubReport(nodes=[], not_told={})
    assert sentences(report, is_begun_only=False) == ["No scrub is under way."]
    assert report.exit_code == EXIT_DONE


@pytest.mark.usefixtures("_impatient")
async def test_what_has_just_begun_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures are seconds old: none under way by them may be one that began since."""
    idle, running = node("n2"), node("n2", scrub_running=1.0, scrub_passes=3.0)
    looks = [cluster(node("n1"), each) for each in (idle, idle, running)]
    client = FakeCluster(looks)
    wanted, not_told = await scrub._begin(cast(GatewayClient, client), None, watch=True)
    assert (wanted, not_told) == ({"n2": 4}, {})
    monkeypatch.setattr(scrub, "FRESH_SECONDS", 0.0)
    assert await scrub._begin(cast(GatewayClient, FakeCluster(looks[:1])), None, watch=True) == (
        {},
        {},
    )


class FakeCluster:
    """Shows the next look each time."""

    def __init__(self, looks: list[ClusterDocument]) -> None:
        self._looks = list(looks)

    async def cluster(self) -> ClusterDocument:
        return self._looks.pop(0)
