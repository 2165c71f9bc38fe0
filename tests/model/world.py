"""A world small enough to be searched whole: one chunk, a few nodes, the log, gateways.

What may happen in it is in `steps.py`; here is what it consists of. Everything is an immutable
tuple, so that a state can be looked up among millions.

The replicated log is kept as the list of states that its prefixes lead to, from the newest prefix
that every node has applied (older ones nobody can act on any more) to the newest of all. A node is
at one of them; a gateway that paused remembers a generation and an epoch of some of them.
Generations count from the oldest of these prefixes, for only their differences matter, and what is
so old that it makes no difference any more is `LONG_AGO`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

LONG_AGO = -2
"""A touch or generation that forbids nothing and allows nothing: collectable, and refused."""

ABSENT = -9
"""In place of the touch of a copy: there is none."""

GONE = -1
"""In place of what a node has applied: it has left, with its disk."""

COLLECTABLE_AFTER = 2
"""Rule D4: generations between a touch and the deletion."""

KEEP, COLLECT, DROP = 0, 1, 2
"""What the writer thread of a node has decided about its copy and not carried out yet."""


class Cluster(NamedTuple):
    """The replicated state after some prefix of the log."""

    generation: int
    epoch: int
    floor: int
    """References with acknowledgements of epochs below are refused (rule D6)."""
    is_referenced: bool


class Node(NamedTuple):
    """One node, its copy of the chunk, and what it has in mind."""

    applied: int
    """Index of the prefix it has applied; GONE once it has left."""
    touch: int
    """Of its copy; ABSENT where it has none."""
    knows_floor: bool
    """Whether a linearizable read since its start told how old touches can be at most."""
    judged: int
    """KEEP, or what is about to be done in the writer thread."""
    asked_epoch: int
    """The epoch at which it asks the owners to confirm (rule D5)."""
    confirmed: int
    """Which nodes have confirmed the chunk, as bits."""
    settled: int
    """The newest epoch of which it has said that its copies are here."""


class Gateway(NamedTuple):
    """An upload of the chunk; a paused one is one that takes no step."""

    generation: int
    """Read before the first write, and sent with each (rule D4)."""
    epoch: int
    """Of the ring that its copies go by."""
    acknowledged: int
    """Which nodes have acknowledged a copy at that epoch, as bits."""


class Left(NamedTuple):
    """How much more may happen: what makes the world finite."""

    generations: int
    epochs: int
    uploads: int
    deletions: int
    restarts: int


class State(NamedTuple):
    prefixes: tuple[Cluster, ...]
    nodes: tuple[Node, ...]
    gateways: tuple[Gateway, ...]
    """In order: which is which makes no difference."""
    left: Left


@dataclass(frozen=True)
class Rules:
    """The protections; each can be left out, to see what it is for."""

    commit_is_fenced_by_generation: bool = True
    """D4: a reference is refused two generations after the one its chunk was written with."""
    write_brings_generation: bool = True
    """D4: a store's touch is at least the writer's generation, not only its own."""
    waits_two_generations: bool = True
    """D4: a chunk goes two generations after its touch, not one."""
    references_are_read_last: bool = True
    """D4: the state asked for references is at least as new as the generation decided on."""
    deletion_heeds_touches: bool = True
    """D4, D5: a higher touch that comes while a deletion is being decided stops it."""
    floor_is_linearizable: bool = True
    """D4: after a start nothing goes until a linearizable read told how old touches can be."""
    write_is_fenced_by_epoch: bool = True
    """D1: a copy is taken only at the epoch it is written for."""
    confirmation_is_fenced_by_epoch: bool = True
    """D1: a chunk is confirmed only at the epoch it is asked for, by an owner."""
    every_owner_confirms: bool = True
    """D5: not one owner, all of them."""
    confirmation_raises_touch: bool = True
    """D5: the owner's touch becomes at least the asker's."""
    confirmation_stops_deletion: bool = True
    """D5: so does a write or confirmation that leaves the touch as it is."""
    drop_rechecks_epoch: bool = True
    """D5: confirmations of an older epoch are worth nothing."""
    drop_rechecks_touch: bool = True
    """D5: confirmations from before a touch are worth nothing."""
    departure_raises_floor: bool = True
    """D6: acknowledgements that the leaving node may have given are refused."""
    departure_waits_for_settled: bool = True
    """D6: a node goes when all the others have what they should have."""
    settled_waits_for_deletions: bool = True
    """D6: nothing decided at an older epoch is under way behind the sweep."""
    repair_skips_collectable: bool = True
    """D10: what may be collected is not copied any more."""
    repair_carries_touch: bool = True
    """D10: a copy is as old as its source, not as new as the copying."""
    collector_sees_misplaced: bool = True
    """D4: unreferenced copies go wherever they lie."""
    misplaced_copies_are_dropped: bool = True
    """D5: at all."""

    def without(self, name: str) -> Rules:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Rules(**{**values, name: False})


ALL_RULES = Rules()


@dataclass(frozen=True)
class Scenario:
    """Which nodes own the chunk in each epoch, and how much may happen."""

    owners: tuple[tuple[int, ...], ...]
    """By epoch; there are as many changes as follow the first."""
    generations: int
    uploads: int
    deletions: int
    restarts: int
    nodes: int = 2
    gateways: int = 1
    leaves: int | None = None
    """The node whose departure the last epoch is for; it has no part in that one."""
    has_handoffs: bool = True
    """Whether a member that does not own the chunk may be written to in place of one that does."""

    @property
    def quorum(self) -> int:
        return len(self.owners[0]) // 2 + 1

    def may_take(self, number: int, epoch: int) -> bool:
        """Whether an epoch's ring gives a node a part in the chunk, as owner or as handoff."""
        if number in self.owners[epoch]:
            return True
        has_left = number == self.leaves and epoch == len(self.owners) - 1
        return self.has_handoffs and not has_left

    def start(self) -> State:
        node = Node(0, ABSENT, True, KEEP, -1, 0, -1)
        left = Left(
            self.generations, len(self.owners) - 1, self.uploads, self.deletions, self.restarts
        )
        return State((Cluster(0, 0, 0, False),), (node,) * self.nodes, (), left)

    def is_lost(self, state: State) -> bool:
        """Whether a file refers to the chunk and fewer nodes have it than acknowledged it."""
        if not state.prefixes[-1].is_referenced:
            return False
        return sum(node.touch != ABSENT for node in state.nodes) < self.quorum


def simplified(state: State) -> State:
    """The same state without what can't matter any more."""
    prefixes, nodes, gateways, left = state
    oldest = min(node.applied for node in nodes if node.applied != GONE)
    if oldest:
        prefixes = prefixes[oldest:]
        nodes = tuple(
            node if node.applied == GONE else node._replace(applied=node.applied - oldest)
            for node in nodes
        )
    base = prefixes[0].generation
    if base:
        prefixes = tuple(each._replace(generation=each.generation - base) for each in prefixes)
        nodes = tuple(
            node if node.touch == ABSENT else node._replace(touch=max(node.touch - base, LONG_AGO))
            for node in nodes
        )
        gateways = tuple(
            each._replace(generation=max(each.generation - base, LONG_AGO)) for each in gateways
        )
    if len(gateways) > 1:
        gateways = tuple(sorted(gateways))
    return State(prefixes, nodes, gateways, left)
