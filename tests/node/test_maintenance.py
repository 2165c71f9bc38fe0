"""When a node may be stopped on purpose: as a table of what speaks against it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gateway.documents import MemberDocument
from node.maintenance import Situation, reasons_against_stopping
from tests.fakes.cluster_documents import member, node_id, own

OWN, SECOND, THIRD, FOURTH = (node_id(number) for number in range(1, 5))

THREE = (own(), member(2), member(3))
ALL_THREE = ((OWN, SECOND, THIRD), (THIRD, OWN, SECOND))


def against(
    members: Sequence[MemberDocument],
    *,
    owners: Sequence[Sequence[str]] = ALL_THREE,
    quorum: bool = True,
    settled: bool = True,
    lacking: int = 0,
    ring_quorum: int = 2,
) -> list[str]:
    return reasons_against_stopping(
        Situation(
            node_id=OWN,
            members=members,
            quorum=quorum,
            settled=settled,
            lacking_copies=lacking,
            owners=owners,
            ring_quorum=ring_quorum,
        )
    )


def test_one_of_three_settled_nodes_may_stop() -> None:
    """Two of three voters and two of three copies go on."""
    assert against(THREE) == []


DOWN = member(3, reachable=False)

CASES: tuple[tuple[str, list[str], list[str]], ...] = (
    (
        "another is down already",
        against([own(), member(2), DOWN]),
        [
            "node 3000000a does not answer",
            "1 of 3 voters would be left, and 2 are needed",
            "of 2 partitions only 1 copy would answer, a write needs 2",
        ],
    ),
    (
        "another has not been heard yet",
        against([own(), member(2), member(3, reachable=None, in_ring=False, stage="learner")],
                owners=[(OWN, SECOND)], ring_quorum=1),
        ["node 3000000a does not answer", "1 of 2 voters would be left, and 2 are needed"],
    ),
    (
        "one of two nodes",
        against([own(), member(2)], owners=[(OWN, SECOND)]),
        [
            "1 of 2 voters would be left, and 2 are needed",
            "of 1 partitions only 1 copy would answer, a write needs 2",
        ],
    ),
    (
        "the only node",
        against([own()], owners=[(OWN,)], ring_quorum=1),
        [
            "0 of 1 voters would be left, and 1 are needed",
            "of 1 partitions only 0 copies would answer, a write needs 1",
        ],
    ),
    (
        "copies on their way",
        against(THREE, settled=False, lacking=12),
        ["not every copy is where it belongs, 12 are lacking"],
    ),
    (
        "not settled for another reason",
        against(THREE, settled=False),
        ["not every copy is where it belongs"],
    ),
    (
        "nobody leads",
        against(THREE, quorum=False),
        ["no majority of the voters answers this node"],
    ),
    (
        "a node that is leaving",
        against([*THREE, member(4, intent="leave", stage="learner", in_ring=False)]),
        ["node 4000000a is on its way out of the cluster"],
    ),
    (
        "a node that is being removed",
        against([*THREE, member(4, stage="leaving", in_ring=False)]),
        ["node 4000000a is on its way out of the cluster"],
    ),
    (
        "two voters and a learner",
        against([own(), member(2), member(3, stage="learner")]),
        ["1 of 2 voters would be left, and 2 are needed"],
    ),
)  # fmt: skip


@pytest.mark.parametrize(("found", "expected"), [case[1:] for case in CASES],
                         ids=[case[0] for case in CASES])  # fmt: skip
def test_what_speaks_against_it_is_said_in_words(found: list[str], expected: list[str]) -> None:
    """All reasons at once, so that an operator does not find them one after the other."""
    assert found == expected


def test_a_drained_node_or_a_learner_stops_at_no_cost() -> None:
    """It owns nothing, and does not vote: what the others are is no matter for it."""
    others = [member(2), member(3), member(4)]
    drained = own(stage="learner", intent="drain", in_ring=False)
    assert against([drained, *others], owners=[(SECOND, THIRD, FOURTH)]) == []


def test_partitions_of_others_are_no_worse_without_this_node() -> None:
    """Only what this node owns counts; with four nodes each partition is on three."""
    members = [own(), member(2), member(3), member(4)]
    owners = [(OWN, SECOND, THIRD), (SECOND, THIRD, FOURTH), (FOURTH, OWN, SECOND)]
    assert against(members, owners=owners) == []
    members[3] = member(4, reachable=False)
    assert against(members, owners=owners) == [
        "node 4000000a does not answer",
        "2 of 4 voters would be left, and 3 are needed",
        "of 1 partitions only 1 copy would answer, a write needs 2",
    ]
