"""The pure decisions about copies: when a write counts, whom a read asks."""

from __future__ import annotations

import itertools

import pytest

from ring.peer_health import PeerHealth
from ring.peer_wire import Purpose
from ring.read_plan import ReadTally, everyone_else, owners_first
from ring.write_plan import WritePlan


@pytest.mark.parametrize("outcome", list(itertools.product([True, False], repeat=5)))
def test_a_write_counts_distinct_durable_copies(outcome: tuple[bool, ...]) -> None:
    """Whatever fails: all owners are tried at once, each failure brings the next handoff, the
    verdict is "acknowledged" from two copies on and "hopeless" once two can't be had any more."""
    plan = WritePlan("abc", "de", 2)
    fate = dict(zip("abcde", outcome, strict=True))
    waiting = plan.start()
    assert [node for node, _ in waiting] == ["a", "b", "c"]
    durable: set[str] = set()
    while waiting:
        node, purpose = waiting.pop(0)
        assert purpose is (Purpose.OWNER if node in "abc" else Purpose.HANDOFF)
        assert node not in durable
        if fate[node]:
            plan.succeeded(node)
            durable.add(node)
        else:
            substitute = plan.failed(node, "broken")
            if substitute is not None:
                waiting.append(substitute)
        assert plan.durable == len(durable)
        assert plan.acknowledged == (len(durable) >= 2)
        left = [each for each in "abcde" if each not in durable and each not in plan.causes]
        if plan.hopeless:
            assert len(durable) + len(left) < 2
    assert plan.ended
    assert plan.acknowledged != plan.hopeless
    assert plan.lacking == [node for node in "abc" if not fate[node]]


def test_a_single_node_is_its_own_quorum() -> None:
    """A cluster of one acknowledges with one copy, and fails without it."""
    plan = WritePlan("a", "", 1)
    plan.start()
    plan.succeeded("a")
    assert plan.acknowledged
    plan = WritePlan("a", "", 1)
    plan.start()
    assert plan.failed("a", "full") is None
    assert plan.hopeless


def test_the_quickest_owner_is_asked_first_and_this_node_never() -> None:
    """Owners are sorted by rank, in ring order where it is equal."""
    latency = {"a": 2, "b": 1, "c": 1, "d": 1}
    assert owners_first("abcd", "d", latency.__getitem__) == ["b", "c", "a"]


def test_everybody_else_is_asked_in_order_of_hope() -> None:
    """Former owners, the newest first, then handoffs, then every member; nobody twice."""
    order = everyone_else("ab", [["b", "e"], ["f", "e"]], ["d", "c"], "abcdefgh")
    assert order == ["e", "f", "d", "c", "g", "h"]


def test_only_unanimous_absence_is_missing() -> None:
    """One node that did not answer, or whose copy is bad, keeps a chunk from being missing."""
    tally = ReadTally()
    tally.absent += ["a", "b"]
    assert tally.is_missing("ab")
    assert not tally.is_missing("abc")
    tally.failed["c"] = "no answer"
    assert not tally.is_missing("ab")
    tally.damaged.append("d")
    assert tally.lacking("acd") == ["a", "d"]


def test_a_peer_that_failed_is_asked_last_until_it_answers() -> None:
    """Failure outweighs any latency for a while, and a good one until the peer has answered."""
    quick, slow, slower = PeerHealth(), PeerHealth(), PeerHealth()
    quick.answered(0.001)
    slow.answered(0.5)
    slower.answered(9.0)
    assert quick.rank(0) < slow.rank(0)
    quick.failed(10.0)
    assert quick.rank(10.5) > slower.rank(10.5)
    assert slow.rank(13.0) < quick.rank(13.0) < slower.rank(13.0)
    for _ in range(15):
        quick.answered(0.001)
    assert quick.rank(13.0) < slow.rank(13.0)
