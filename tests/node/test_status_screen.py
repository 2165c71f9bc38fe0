"""The status on one screen, at every width."""

from __future__ import annotations

import textwrap

import msgspec
import pytest

from gateway.documents import ClusterDocument
from node.cluster_warnings import warnings
from node.commands.status import fitted
from node.commands.status_screen import Line, screen
from tests.fakes.cluster_documents import GB, cluster, member, node_id, own


def text(document: ClusterDocument, width: int | None) -> str:
    document = msgspec.structs.replace(document, warnings=warnings(document))
    return "\n".join(line.text for line in screen(document, width)) + "\n"


def expected(lines: str) -> str:
    return textwrap.dedent(lines).lstrip("\n")


def test_a_healthy_cluster_on_eighty_columns() -> None:
    """All of it on one screen: who is there, who leads, where chunks are, how full disks are."""
    assert text(cluster(own(zone="a"), member(2, zone="b"), member(3, zone="c")), 80) == expected(
        """
        cluster  c1057e00-0000-4000-8000-000000000000, seen by 1000000a
        quorum   yes
        settled  yes: every copy is where it belongs
        raft     leader 1000000a, term 4, 3 voters, entry 120, lag 0
        ring     epoch 3, 3 nodes, 3 copies wanted
        chunks   0 lacking, 0 misplaced, 0 damaged, 0 unrecoverable
        moves    none
        scrub    not every node has had a full one yet

        No warnings.

        node       zone  stage  ring  intent  seen  load    chunks        disk used
        1000000a*  a     voter  yes   stay    here   12%  37.3 GiB  40% of 93.1 GiB
        2000000a   b     voter  yes   stay    now    12%  37.3 GiB  40% of 93.1 GiB
        3000000a   c     voter  yes   stay    now    12%  37.3 GiB  40% of 93.1 GiB
        """
    )


def test_a_move_under_way_tells_what_is_left() -> None:
    """Bytes, rate and time to go; a drained node; a scrub that runs."""
    moving = {
        "repair_remaining_copies": 1200.0,
        "repair_bytes_left": 9.0 * 1024**3,
        "repair_bytes_per_second": 50.0 * 1024**2,
        "repair_eta_seconds": 190.0,
        "scrub_age_seconds": 3.5 * 86_400,
        "scrub_passes": 2.0,
        "scrub_percent": 41.7,
    }
    drained = member(4, stage="learner", intent="drain", in_ring=False,
                     load={"moves_misplaced_copies": 1300.0})  # fmt: skip
    document = cluster(own(load=moving), member(2), member(3), drained, settled=False)
    lines = text(document, None).splitlines()
    assert "settled  no: copies are on their way" in lines
    assert "chunks   1200 lacking, 1300 misplaced, 0 damaged, 0 unrecoverable" in lines
    assert "moves    9.0 GiB left, 50.0 MiB/s, about 3 min" in lines
    assert "scrub    last full one 3 days ago; this one 42 %" in lines
    assert sum(line.startswith("! ") for line in lines) == 2
    handed_over = cluster(own(), member(2), member(3, load={"moves_misplaced_copies": 1.0}))
    assert "moves    1 copy to be dropped" in text(handed_over, None).splitlines()


def test_without_a_majority_it_says_so_on_a_narrow_screen() -> None:
    """Warnings are wrapped and come before the nodes; of the table the chief columns stay."""
    down = [
        member(2, reachable=False, last_seen_seconds=90.0),
        member(3, reachable=False, last_seen_seconds=None),
    ]
    document = cluster(own(), *down, quorum=False, settled=False)
    raft = msgspec.structs.replace(document.raft, leader=None, lag_entries={})
    assert text(msgspec.structs.replace(document, raft=raft), 40) == expected(
        """
        cluster  c1057e00-0000-4000-8000-
                 000000000000, seen by 1000000a
        quorum   NO: writes wait for a majority
                 of the voters
        settled  no: not every node answers
        raft     leader none, term 4, 3 voters,
                 entry 120, lag 0
        ring     epoch 3, 3 nodes, 3 copies
                 wanted
        chunks   0 lacking, 0 misplaced, 0
                 damaged, 0 unrecoverable (not
                 all nodes answer)
        moves    none
        scrub    not every node has had a full
                 one yet

        ! No quorum: this node knows no leader;
          1 of 3 voters answer it, 2 are needed.
          Nothing can be written until then.
        ! Node 2000000a (http://10.0.0.2:7070)
          does not answer; last seen 90 s ago.
        ! Node 3000000a (http://10.0.0.3:7070)
          does not answer.

        node      seen            disk used
        1000000a  here      40% of 93.1 GiB
        2000000a  90 s ago  40% of 93.1 GiB
        3000000a  never     40% of 93.1 GiB
        """
    )


@pytest.mark.parametrize("width", [24, 31, 40, 53, 66, 80, 100, 132, 200])
def test_no_line_is_longer_than_the_screen(width: int) -> None:
    """Whatever there is to say; long zone names included."""
    document = cluster(
        own(zone="a-rather-long-zone-name"),
        member(2, reachable=False, last_seen_seconds=1e6),
        member(3, load={"disk_free_bytes": 1.0 * GB}),
        quorum=False,
        settled=False,
    )
    assert max(map(len, text(document, width).splitlines())) <= width


def test_what_is_not_known_is_a_question_mark() -> None:
    """A node that has not been asked yet shows no figures of another time."""
    unknown = msgspec.structs.replace(member(2), reachable=None, last_seen_seconds=None, load={})
    row = next(
        line
        for line in text(cluster(own(), unknown), None).splitlines()
        if line.startswith(node_id(2)[:8])
    )
    assert row.split()[-5:] == ["?", "?", "?", "?", "0.1.0"]


def test_what_a_window_cuts_off_is_said() -> None:
    """Nobody takes the upper half of a screen for all of it."""
    lines = [Line(str(number)) for number in range(5)]
    assert list(fitted(lines, 5)) == lines
    assert [line.text for line in fitted(lines, 4)] == [
        "0", "1", "2", "… 2 more lines than this window shows",
    ]  # fmt: skip


def test_one_is_not_several() -> None:
    """A cluster of one node has one voter."""
    shown = "\n".join(line.text for line in screen(cluster(own(), replicas=1), 120))
    assert "1 voter, " in shown
    assert "1 node, 1 copy wanted" in shown
