"""Whom to ask for a chunk, in which order, and what the answers amount to (rule D3). Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ring.members import NodeId


def owners_first(
    owners: Iterable[NodeId], this_node: NodeId, rank: Callable[[NodeId], Any]
) -> list[NodeId]:
    """The other owners; smallest `rank` first, in ring order where it is equal."""
    return sorted((node for node in owners if node != this_node), key=rank)


def everyone_else(
    asked: Iterable[NodeId],
    former_owners: Sequence[Sequence[NodeId]],
    handoffs: Sequence[NodeId],
    members: Iterable[NodeId],
) -> list[NodeId]:
    """Who may have a copy though no present owner: former owners, the newest epoch's first, those
    who stand in for owners, and at last every member of any epoch. Nobody twice."""
    order: dict[NodeId, None] = {}
    for nodes in (*former_owners, handoffs, sorted(members)):
        order.update(dict.fromkeys(nodes))
    for node in asked:
        order.pop(node, None)
    return list(order)


class ReadTally:
    """What became of each question for one chunk."""

    def __init__(self) -> None:
        self.absent: list[NodeId] = []
        """Nodes that answered that they don't have it."""
        self.failed: dict[NodeId, str] = {}
        """Nodes that did not answer, or whose copy is bad."""
        self.damaged: list[NodeId] = []
        """Those of them whose copy is bad."""

    def is_missing(self, everyone: Iterable[NodeId]) -> bool:
        """Whether all answered, and all that they have none: nothing less means "missing"."""
        return not self.failed and set(everyone) <= set(self.absent)

    def lacking(self, owners: Iterable[NodeId]) -> list[NodeId]:
        """Owners that turned out to have no good copy."""
        without = {*self.absent, *self.damaged}
        return [node for node in owners if node in without]
