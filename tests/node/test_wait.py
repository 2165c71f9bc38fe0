"""`holdfast wait`: returns when something holds, and says meanwhile what stands against it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import msgspec
import pytest

from gateway.client import (
    AccessError,
    GatewayClient,
    PreconditionError,
    TryAgainError,
    UnreachableError,
)
from gateway.documents import ChunksDocument, ClusterDocument, Problem
from node.commands import wait
from node.commands.wait import CONDITIONS, NotYetError, waiting
from tests.fakes.cluster_documents import cluster, member, own


def problem(status: int, code: str, detail: str) -> Problem:
    return Problem(type="", title="", status=status, code=code, detail=detail, retryable=True)


class FakeClient:
    """Answers every question with the next of what it was given: an error, or a document."""

    def __init__(self, answers: Sequence[Exception | ClusterDocument | None]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def health(self, aspect: str) -> Any:
        return self._answer(aspect)

    async def cluster(self) -> Any:
        return self._answer("cluster")

    def _answer(self, question: str) -> ClusterDocument | None:
        self.asked.append(question)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "POLL_SECONDS", 0.0)


async def run(condition: str, client: FakeClient, *, timeout_seconds: float | None = None) -> None:
    await waiting(
        CONDITIONS[condition], cast(GatewayClient, client), timeout_seconds=timeout_seconds
    )


async def test_it_goes_on_while_the_node_is_away_or_refuses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each obstacle is said once, however often it is met."""
    unsafe = PreconditionError(problem(412, "maintenance_unsafe", "node b does not answer"))
    starting = TryAgainError(problem(503, "not_ready", "this node is starting"))
    client = FakeClient([UnreachableError("refused"), starting, unsafe, unsafe, unsafe, None])
    await run("maintenance", client)
    assert client.asked == ["ready?maintenance=true"] * 6
    assert capsys.readouterr().err.splitlines() == [
        "The node can't be reached: refused",
        "this node is starting",
        "node b does not answer",
    ]


async def test_settled_is_what_the_cluster_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Who is silent, or what is lacking, is what stands against it."""
    silent = cluster(own(), member(2), member(3, reachable=False), settled=False)
    copying = msgspec.structs.replace(
        cluster(settled=False), chunks=ChunksDocument(lacking_copies=7, misplaced_copies=2)
    )
    looking = msgspec.structs.replace(cluster(settled=False), chunks=ChunksDocument())
    client = FakeClient([silent, copying, looking, cluster()])
    await run("settled", client)
    assert client.answers == []
    assert capsys.readouterr().err.splitlines() == [
        "Not settled: no answer from 3000000a.",
        "Not settled: 7 copies are lacking, 2 are to be dropped.",
        "Not settled: not every node has looked through its copies at epoch 3.",
    ]


async def test_settled_waits_for_the_ring_that_is_wanted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Until the new epoch is there, that the old one is settled says nothing: nobody is to stop a
    node just before copies move. Nodes that are silent are no part of that."""
    undrained = cluster(own(), member(2), member(3, in_ring=False))
    drained = cluster(own(intent="drain"), member(2), member(3))
    done = cluster(own(), member(2), member(3, in_ring=False, reachable=False))
    client = FakeClient([undrained, drained, done])
    await run("settled", client)
    assert client.answers == []
    assert capsys.readouterr().err.splitlines() == [
        "Not settled: the ring is to change for 3000000a.",
        "Not settled: the ring is to change for 1000000a.",
    ]


async def test_a_limit_ends_it_with_the_last_obstacle() -> None:
    """So that a script does not hang, and its log says why."""
    client = FakeClient([TryAgainError(problem(503, "not_ready", "this node is starting"))] * 9)
    with pytest.raises(NotYetError, match=r"Not within 0 s: this node is starting"):
        await run("ready", client, timeout_seconds=0)


async def test_what_asking_again_can_not_change_ends_it() -> None:
    """A wrong key is wrong a second later, too."""
    client = FakeClient([AccessError(problem(401, "unauthenticated", "this key is not known"))])
    with pytest.raises(AccessError):
        await run("settled", client)
