"""The cluster on one screen, as lines of text for a given width. Pure.

A line is text with a style, so that a terminal gets colours and a pipe the same words. Where the
width does not suffice, columns of the table go, the least important first; no line is wider.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gateway.documents import ClusterDocument, MemberDocument
from node.cluster_warnings import counted, duration, short
from node.commands import output
from node.commands.text import printable

PLAIN, GOOD, BAD, HEAD, FAINT = "", "green", "bold red", "bold", "dim"
"""Styles, as rich names them."""

WIDTH_MIN = 24
"""Narrower than this nothing sensible fits; such lines are left to the terminal."""

_GAP = "  "
_NAME_WIDTH = 9


class Line(NamedTuple):
    text: str
    style: str = PLAIN


class Column(NamedTuple):
    """A column of the table of nodes; those with the lowest rank stay longest."""

    title: str
    rank: int
    cell: Callable[[MemberDocument, ClusterDocument], str]
    to_right: bool = False


def screen(cluster: ClusterDocument, width: int | None) -> list[Line]:
    """The whole status. `width` None: as wide as it gets, each warning on one line."""
    return [
        *(part for line in _head(cluster) for part in _wrapped(line, " " * _NAME_WIDTH, width)),
        Line(""),
        # Above the nodes: where the screen ends, it is not these that are cut off.
        *(part for line in _warnings(cluster) for part in _wrapped(line, "  ", width)),
        Line(""),
        *_table(cluster, width),
    ]


def _head(cluster: ClusterDocument) -> list[Line]:
    raft, chunks = cluster.raft, cluster.chunks
    leader = short(raft.leader) if raft.leader else "none"
    behind = max([raft.commit_index - raft.applied_index, *raft.lag_entries.values()])
    voters = sum(member.stage == "voter" for member in cluster.members)
    in_ring = sum(member.in_ring for member in cluster.members)
    return [
        _row("cluster", f"{cluster.cluster_id}, seen by {short(cluster.node_id)}"),
        _row(
            "quorum",
            "yes" if cluster.quorum else "NO: writes wait for a majority of the voters",
            GOOD if cluster.quorum else BAD,
        ),
        _row("settled", *_settled(cluster)),
        _row(
            "raft",
            f"leader {leader}, term {raft.term}, {counted(voters, 'voter', 'voters')}, "
            f"entry {raft.applied_index}, lag {behind}",
        ),
        _row(
            "ring",
            f"epoch {cluster.epoch}, {counted(in_ring, 'node', 'nodes')}, "
            f"{counted(cluster.replicas, 'copy', 'copies')} wanted",
        ),
        _row(
            "chunks",
            f"{chunks.lacking_copies} lacking, {chunks.misplaced_copies} misplaced, "
            f"{chunks.quarantined_chunks} damaged, {chunks.unrecoverable_chunks} unrecoverable"
            + ("" if chunks.complete else " (not all nodes answer)"),
            PLAIN if chunks.complete and not chunks.unrecoverable_chunks else BAD,
        ),
        _row("moves", _moves(cluster)),
        _row("scrub", _scrub(cluster)),
    ]


def _row(name: str, text: str, style: str = PLAIN) -> Line:
    return Line(f"{name:<{_NAME_WIDTH}}{text}", style)


def _settled(cluster: ClusterDocument) -> tuple[str, str]:
    if cluster.settled is None:
        return "not known on this node", PLAIN
    if cluster.settled:
        return "yes: every copy is where it belongs", GOOD
    if not cluster.chunks.complete:
        return "no: not every node answers", BAD
    return "no: copies are on their way", PLAIN


def _moves(cluster: ClusterDocument) -> str:
    chunks = cluster.chunks
    if not chunks.bytes_left:
        count = chunks.misplaced_copies
        return f"{count} {'copy' if count == 1 else 'copies'} to be dropped" if count else "none"
    rate = f", {output.size(int(chunks.bytes_per_second))}/s" if chunks.bytes_per_second else ""
    eta = f", about {duration(chunks.eta_seconds)}" if chunks.eta_seconds is not None else ""
    return f"{output.size(chunks.bytes_left)} left{rate}{eta}"


def _scrub(cluster: ClusterDocument) -> str:
    chunks = cluster.chunks
    age, percent = chunks.scrub_age_seconds, chunks.scrub_percent
    last = (
        f"last full one {duration(age)} ago"
        if age is not None and chunks.scrub_passes
        else ("not every node has had a full one yet")
    )
    return last if percent is None else f"{last}; this one {percent:.0f} %"


# --- the nodes -------------------------------------------------------------------------------


def _table(cluster: ClusterDocument, width: int | None) -> list[Line]:
    columns = list(_COLUMNS)
    if not any(member.zone for member in cluster.members):
        columns = [column for column in columns if column.title != "zone"]
    while True:
        cells = [
            [printable(column.cell(member, cluster)) for column in columns]
            for member in cluster.members
        ]
        widths = [
            max([len(column.title), *(len(row[at]) for row in cells)])
            for at, column in enumerate(columns)
        ]
        whole = sum(widths) + len(_GAP) * (len(columns) - 1)
        if width is None or whole <= width or len(columns) == 1:
            break
        columns.remove(max(columns, key=lambda column: column.rank))
    head = _aligned([column.title for column in columns], columns, widths)
    return [
        Line(head, HEAD),
        *(
            Line(_aligned(row, columns, widths), _style(member))
            for row, member in zip(cells, cluster.members, strict=True)
        ),
    ]


def _aligned(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    return _GAP.join(
        cell.rjust(width) if column.to_right else cell.ljust(width)
        for cell, column, width in zip(cells, columns, widths, strict=True)
    ).rstrip()


def _style(member: MemberDocument) -> str:
    if member.reachable is False:
        return BAD
    return PLAIN if member.in_ring else FAINT


def _name(member: MemberDocument, cluster: ClusterDocument) -> str:
    return short(member.node_id) + ("*" if member.node_id == cluster.raft.leader else "")


def _seen(member: MemberDocument, cluster: ClusterDocument) -> str:
    if member.node_id == cluster.node_id:
        return "here"
    if member.reachable is None:
        return "?"
    seen = member.last_seen_seconds
    if member.reachable:
        return "now"
    return "never" if seen is None else f"{duration(seen)} ago"


def _disk(member: MemberDocument, _: ClusterDocument) -> str:
    size, free = member.load.get("disk_size_bytes"), member.load.get("disk_free_bytes")
    if not size or free is None:
        return "?"
    return f"{100 * (size - free) / size:.0f}% of {output.size(int(size))}"


def _stored(member: MemberDocument, _: ClusterDocument) -> str:
    stored = member.load.get("chunks_stored_bytes")
    return output.size(int(stored)) if stored is not None else "?"


def _load(member: MemberDocument, _: ClusterDocument) -> str:
    load = member.load.get("machine_load_percent")
    return f"{load:.0f}%" if load is not None else "?"


_COLUMNS = (
    Column("node", 0, _name),
    Column("url", 10, lambda member, _: member.client_url),
    Column("zone", 6, lambda member, _: member.zone or "-"),
    Column("weight", 9, lambda member, _: str(member.weight), to_right=True),
    Column("stage", 3, lambda member, _: member.stage),
    Column("ring", 4, lambda member, _: "yes" if member.in_ring else "no"),
    Column("intent", 5, lambda member, _: member.intent),
    Column("seen", 1, _seen),
    Column("load", 7, _load, to_right=True),
    Column("chunks", 8, _stored, to_right=True),
    Column("disk used", 2, _disk, to_right=True),
    Column("version", 11, lambda member, _: member.software_version),
)
"""From left to right; `rank` says what goes first on a narrow screen."""


def _warnings(cluster: ClusterDocument) -> list[Line]:
    if not cluster.warnings:
        return [Line("No warnings.", GOOD)]
    return [Line(f"! {printable(warning)}", BAD) for warning in cluster.warnings]


def _wrapped(line: Line, indent: str, width: int | None) -> list[Line]:
    """A line, or several where it is too long; what follows the first is indented."""
    if width is None or width < WIDTH_MIN or len(line.text) <= width:
        return [line]
    # Only what comes behind the name is broken, so that columns of blanks stay.
    head, rest = line.text[: len(indent)], line.text[len(indent) :]
    parts = textwrap.wrap(rest, width=width - len(indent))
    return [Line((head if at == 0 else indent) + part, line.style) for at, part in enumerate(parts)]
