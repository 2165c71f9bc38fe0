"""What an operator is told to look at."""

from __future__ import annotations

import msgspec
import pytest

from gateway.documents import ClusterDocument
from node.cluster_warnings import duration, warnings
from tests.fakes.cluster_documents import CLOCK, GB, cluster, member, own

DAY = 86_400.0

CASES: tuple[tuple[str, ClusterDocument, str], ...] = (
    (
        "no quorum",
        cluster(
            own(),
            member(2, reachable=False, last_seen_seconds=None),
            member(3, reachable=True),
            quorum=False,
        ),
        (
            "No quorum: this node knows no leader; 2 of 3 voters answer it, 2 are needed. Nothing "
            "can be written until then."
        ),
    ),
    (
        "a node that is down",
        cluster(own(), member(2), member(3, zone="b", reachable=False, last_seen_seconds=185.0)),
        "Node 3000000a in zone b (http://10.0.0.3:7070) does not answer; last seen 3 min ago.",
    ),
    (
        "a node that was never seen",
        cluster(own(), member(2), member(3, reachable=False, last_seen_seconds=None)),
        "Node 3000000a (http://10.0.0.3:7070) does not answer.",
    ),
    (
        "chunks nobody has, counted by each of their owners",
        cluster(
            own(load={"unrecoverable_chunks": 2.0}),
            member(2, load={"unrecoverable_chunks": 2.0}),
            member(3),
        ),
        (
            "2 referenced chunks were found on no node that answers: the files that hold them "
            "can't be read in full until a node that has them is back."
        ),
    ),
    (
        "copies that are lacking",
        cluster(
            own(load={"repair_remaining_copies": 1.0}),
            member(2, load={"repair_remaining_copies": 4.0}),
            member(3),
        ),
        (
            "5 copies are lacking: chunks have fewer copies than wanted, or a new owner has not "
            "got its own yet; repair is at it."
        ),
    ),
    (
        "a store that writes no more",
        cluster(own(), member(2, load={"store_writable": 0.0}), member(3)),
        (
            "Node 2000000a takes no more chunks after a failed write or sync: look at its disk and "
            "its log."
        ),
    ),
    (
        "a disk that fills",
        cluster(own(), member(2, load={"disk_free_bytes": 9.0 * GB}), member(3)),
        "The disk of node 2000000a is nearly full: 9 % of 100 GB are free.",
    ),
    (
        "a store that is full",
        cluster(own(), member(2, load={"store_full": 1.0, "disk_free_bytes": 9.0 * GB}), member(3)),
        "The chunk store of node 2000000a is full: its copies go to other nodes.",
    ),
    (
        "damage that was met",
        cluster(own(), member(2, load={"damage_found": 1.0}), member(3)),
        (
            "Node 2000000a has met 1 damaged copy since its start; they are healed from other "
            "nodes, but its disk may be failing."
        ),
    ),
    (
        "a scrub that does not keep up",
        cluster(own(), member(2, load={"scrub_age_seconds": 29 * DAY}), member(3)),
        (
            "The chunks of node 2000000a were last read through 29 days ago, 14 days is the "
            "interval: scrubbing does not keep up."
        ),
    ),
    (
        "collection that waits for a word",
        cluster(collection_held=True),
        (
            "Collection is held since the metadata was restored from a backup: space of deleted "
            "files does not come back until it is resumed."
        ),
    ),
    (
        "too few voters",
        cluster(own(), member(2), member(3, stage="learner")),
        (
            "2 nodes vote, 3 should: the metadata survives fewer failures than the number of nodes "
            "would allow."
        ),
    ),
    (
        "an even number of voters",
        cluster(own(), member(2), member(3), member(4)),
        "4 nodes vote: an even number survives no more failures than one fewer.",
    ),
    (
        "fewer nodes than copies",
        cluster(own(), member(2)),
        "2 nodes hold chunks, so each has 2 copies instead of 3.",
    ),
    (
        "a node that was drained",
        cluster(
            own(),
            member(2),
            member(3),
            member(
                4,
                stage="learner",
                intent="drain",
                in_ring=False,
                load={"moves_misplaced_copies": 7.0},
            ),
        ),
        "Node 4000000a is drained: it holds no share of the chunks; 7 copies still to hand over.",
    ),
    (
        "a node that leaves",
        cluster(own(), member(2), member(3), member(4, stage="learner", intent="leave")),
        "Node 4000000a is leaving.",
    ),
    (
        "a node that is removed",
        cluster(own(), member(2), member(3), member(4, stage="learner", intent="remove")),
        "Node 4000000a is being removed.",
    ),
    (
        "an upgrade half done",
        cluster(own(), member(2), member(3, software_version="0.2.0")),
        "Nodes run different versions (0.1.0 on 2, 0.2.0 on 1): finish the upgrade.",
    ),
    (
        "a wrong clock",
        cluster(own(), member(2, load={"clock_seconds": CLOCK - 3600.0}), member(3)),
        "The clock of node 2000000a is 59 min behind that of node 1000000a.",
    ),
    (
        "a job that fails",
        cluster(own(load={"jobs_failing": 2.0}), member(2), member(3)),
        "2 background jobs fail on node 1000000a: its log says why.",
    ),
)


def test_a_healthy_cluster_has_no_warnings() -> None:
    """What nobody has to look at is not mentioned."""
    assert warnings(cluster()) == []


@pytest.mark.parametrize(("document", "said"), [case[1:] for case in CASES],
                         ids=[case[0] for case in CASES])  # fmt: skip
def test_what_is_wrong_is_said(document: ClusterDocument, said: str) -> None:
    """Each thing an operator should look at has its sentence, and only that one if alone."""
    found = warnings(document)
    assert said in found
    assert len(found) == (2 if not document.quorum else 1)


def test_a_follower_that_falls_behind_is_named_by_the_leader() -> None:
    """A node that is down lags too, but that it is down says more."""
    healthy = cluster()
    lags = {each.node_id: 50_000 for each in healthy.members[1:]}
    raft = msgspec.structs.replace(healthy.raft, lag_entries=lags)
    down = member(3, reachable=False, last_seen_seconds=60.0)
    found = warnings(cluster(own(), member(2), down, raft=raft))
    assert [sentence[:13] for sentence in found] == ["Node 3000000a", "Node 2000000a"]
    assert "50000 entries behind" in found[1]


def test_figures_of_a_silent_node_raise_no_alarm() -> None:
    """Its disk and damage were of another time; that it is silent is said instead."""
    old = {"disk_free_bytes": 0.0, "damage_found": 9.0, "clock_seconds": CLOCK - 86_400}
    silent = member(3, reachable=False, last_seen_seconds=86_400.0, load=old)
    assert len(warnings(cluster(own(), member(2), silent))) == 1


def test_the_worst_comes_first() -> None:
    """No quorum before nodes that are down, and those before what can wait."""
    down = [member(number, reachable=False, last_seen_seconds=5.0) for number in (2, 3)]
    found = warnings(cluster(own(load={"damage_found": 1.0}), *down, quorum=False))
    assert [sentence.split()[0] for sentence in found] == ["No", "Node", "Node", "Node"]
    assert "damaged" in found[3]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (119.9, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"),
     (2 * DAY - 1, "47 h"), (2 * DAY, "2 days"), (29.9 * DAY, "29 days")],
)  # fmt: skip
def test_durations_are_one_number(seconds: float, said: str) -> None:
    """Rounded down to a unit of which there are at least two."""
    assert duration(seconds) == said
