"""Which nodes hold which chunk: a pure function of the members of an epoch.

The leading 12 bits of a chunk's id name its partition; a `Ring` names each partition's owners, and
behind them the other nodes in the order in which they stand in as handoffs. The same members give
the same ring on every machine and every Python: positions are BLAKE2b, all arithmetic is on whole
numbers and exact fractions.

How the table comes about (docs/decisions/0040-placement.md has the reasons and measurements):

1. `uhashring` puts `POINTS_PER_NODE` points of every node, and one of every partition, on a circle.
   A node's distance from a partition is the way clockwise to its next point.
2. Distances are divided by an effective weight, chosen so that taking the nearest nodes, zones
   first, gives every node about its feasible share (`ring/shares.py`): exactly where that moves
   little at the next change, and else a compromise (`ZONE_EASE`).
3. Chance leaves some nodes further from their share than a tolerance. Those nodes swap partitions
   with others, the nearest ties first, until none is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Context, Decimal
from fractions import Fraction
from hashlib import blake2b
from math import ceil, floor

import msgspec
from uhashring import HashRing

from ring.members import PARTITION_COUNT, Member, Membership, NodeId, partition_of
from ring.shares import ZoneShare, feasible_shares, zone_shares

POINTS_PER_NODE = 1024
"""Points of each node on the circle; weight scales distances instead of this number, so that a
change of one node's weight leaves all others where they are."""

EQUAL_TOLERANCE = Fraction(145, 1000)
UNEQUAL_TOLERANCE = Fraction(20, 100)
"""How far from its feasible share a node may be before partitions are swapped: where all shares are
the same, and elsewhere. Below what is promised (15 % and 25 %), and above what chance does to most
nodes: each swap is a partition that may move needlessly at the next change."""

ZONE_EASE = Fraction(6, 10)
"""By how much shares of zones are lessened before they become effective weights, where there are
more zones than copies. 1 would meet the shares and move up to twice the least; 0, weights as they
are, moves least and misses the shares. Of what was measured, this moves least within tolerance."""

_CIRCLE = 1 << 64
_SWAP_ROUNDS = 8
"""Rounds of swaps; one is enough unless zones leave few partners."""

_ROUNDING = Context(prec=30)
"""`Decimal.ln` is correctly rounded everywhere, which the C library's log is not."""


class Ring:
    """The immutable map of one epoch from partitions to nodes. Safe to share between threads."""

    def __init__(self, membership: Membership, orders: Sequence[tuple[NodeId, ...]]) -> None:
        """`orders`: for every partition all nodes, the owners first, then the handoffs."""
        self.membership = membership
        self.epoch = membership.epoch
        self.copies = membership.copies()
        self.quorum = membership.quorum()
        self.members: Mapping[NodeId, Member] = {
            member.node_id: member for member in membership.members
        }
        self._owners = [order[: self.copies] for order in orders]
        self._handoffs = [order[self.copies :] for order in orders]

    def owners(self, chunk_id: bytes) -> tuple[NodeId, ...]:
        """The distinct nodes that must hold the chunk, nearest first."""
        return self._owners[partition_of(chunk_id)]

    def handoffs(self, chunk_id: bytes) -> tuple[NodeId, ...]:
        """All other nodes, in the order in which they stand in for an owner."""
        return self._handoffs[partition_of(chunk_id)]

    def partition_owners(self, partition: int) -> tuple[NodeId, ...]:
        return self._owners[partition]

    def shared(self, one: NodeId, other: NodeId) -> list[int]:
        """The partitions that both nodes own, in order."""
        return [
            partition
            for partition, owners in enumerate(self._owners)
            if one in owners and other in owners
        ]

    def partition_counts(self) -> dict[NodeId, int]:
        """How many partitions each member owns."""
        counts = dict.fromkeys(self.members, 0)
        for owners in self._owners:
            for node in owners:
                counts[node] += 1
        return counts


def build_ring(membership: Membership) -> Ring:
    """Compute the table of an epoch: some 0.2 s for 20 nodes, so outside the event loop."""
    nodes = sorted(member.node_id for member in membership.members)
    if not nodes:
        return Ring(membership, [()] * PARTITION_COUNT)
    assert len(set(nodes)) == len(nodes), "a membership names each node once"
    return Ring(membership, _Table(membership, nodes).orders())


class _Table:
    """The work of `build_ring`. Nodes and zones are numbers here; `rank` smaller is nearer."""

    def __init__(self, membership: Membership, nodes: list[NodeId]) -> None:
        members = {member.node_id: member for member in membership.members}
        zones = zone_shares(membership)
        names = sorted(zones)
        self._nodes = nodes
        self._copies = membership.copies()
        self._zone = [names.index(members[node].zone) for node in nodes]
        self._least = [zones[name].least for name in names]
        self._most = [zones[name].most for name in names]
        shares = feasible_shares(membership)
        self._tolerance = EQUAL_TOLERANCE if len(set(shares.values())) == 1 else UNEQUAL_TOLERANCE
        self._target = [shares[node] * PARTITION_COUNT for node in nodes]
        self._ranks = _ranks(membership, nodes)
        self._walks = [sorted(range(len(nodes)), key=rank.__getitem__) for rank in self._ranks]
        self._owners = [self._nearest(walk) for walk in self._walks]

    def orders(self) -> list[tuple[NodeId, ...]]:
        self._settle()
        orders: list[tuple[NodeId, ...]] = []
        for walk, owners in zip(self._walks, self._owners, strict=True):
            order = [index for index in walk if index in owners]
            order += [index for index in walk if index not in owners]
            orders.append(tuple(self._nodes[index] for index in order))
        return orders

    def _nearest(self, walk: list[int]) -> set[int]:
        """The nearest nodes that give every zone its least, and none more than its most."""
        counts = [0] * len(self._least)
        owners: set[int] = set()
        for limits in (self._least, self._most):
            for index in walk:
                zone = self._zone[index]
                if counts[zone] < limits[zone] and index not in owners:
                    if len(owners) == self._copies:
                        break
                    owners.add(index)
                    counts[zone] += 1
        return owners

    def _settle(self) -> None:
        """Swap partitions from nodes far above their share, and to nodes far below it."""
        counts = [0] * len(self._nodes)
        for owners in self._owners:
            for index in owners:
                counts[index] += 1
        # Whole partitions only, so a small share may miss its tolerance by rounding.
        floors = [min(floor(t), ceil(t * (1 - self._tolerance))) for t in self._target]
        ceilings = [max(ceil(t), floor(t * (1 + self._tolerance))) for t in self._target]
        for _ in range(_SWAP_ROUNDS):
            above = {index for index, count in enumerate(counts) if count > ceilings[index]}
            below = {index for index, count in enumerate(counts) if count < floors[index]}
            if not above and not below:
                return
            swapped = False
            for _, partition, giver, taker in self._swaps(above, below):
                wanted = counts[giver] > ceilings[giver] or counts[taker] < floors[taker]
                allowed = counts[giver] > floors[giver] and counts[taker] < ceilings[taker]
                if wanted and allowed and self._may_swap(partition, giver, taker):
                    self._owners[partition].remove(giver)
                    self._owners[partition].add(taker)
                    counts[giver] -= 1
                    counts[taker] += 1
                    swapped = True
            if not swapped:
                return

    def _swaps(self, above: set[int], below: set[int]) -> list[tuple[float, int, int, int]]:
        """Every swap that helps one of these nodes, the nearest ties first."""
        swaps: list[tuple[float, int, int, int]] = []
        everyone = set(range(len(self._nodes)))
        for partition, owners in enumerate(self._owners):
            givers, takers = owners & above, below - owners
            if not givers and not takers:
                continue
            ranks = self._ranks[partition]
            for giver in owners:
                for taker in everyone - owners if giver in givers else takers:
                    if self._may_swap(partition, giver, taker):
                        # Division of whole numbers is correctly rounded: the same everywhere.
                        near, far = ranks[giver][0], ranks[taker][0]
                        swaps.append((far / near if near else float(far), partition, giver, taker))
        swaps.sort()
        return swaps

    def _may_swap(self, partition: int, giver: int, taker: int) -> bool:
        owners = self._owners[partition]
        if giver not in owners or taker in owners:
            return False
        loses, gains = self._zone[giver], self._zone[taker]
        if loses == gains:
            return True
        counts = [self._zone[index] for index in owners]
        return counts.count(loses) > self._least[loses] and counts.count(gains) < self._most[gains]


def _ranks(membership: Membership, nodes: list[NodeId]) -> list[list[tuple[int, int]]]:
    """For every partition the rank of each node; the second number only orders equal ranks."""
    ring = HashRing(nodes=list(nodes), vnodes=POINTS_PER_NODE, hash_fn=_position)
    points: dict[NodeId, list[int]] = {node: [] for node in nodes}
    for position, node in ring.get_points():
        points[node].append(position)
    places = sorted(
        (ring.get_key(f"partition-{number}"), number) for number in range(PARTITION_COUNT)
    )
    stretches = _stretches(membership)
    ranks: list[list[tuple[int, int]]] = [[] for _ in range(PARTITION_COUNT)]
    for node in nodes:
        stretch, tie = stretches[node]
        clockwise = points[node]
        clockwise.append(clockwise[0] + _CIRCLE)
        at = 0
        for place, partition in places:
            while clockwise[at] <= place:
                at += 1
            distance = clockwise[at] - place
            ranks[partition].append((distance * stretch, distance * tie))
    return ranks


def _position(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")


def _stretches(membership: Membership) -> dict[NodeId, tuple[int, int]]:
    """What each node's distances are multiplied with, and the same by plain weight, for ties.

    Distances are spread exponentially, so that a share p is met by the effective weight -ln(1-p)
    (order sampling: Rosén, "On sampling with probability proportional to size", 1997); a share of
    one by an infinite weight, that is a distance of nought. Zones that compete for partitions have
    such weights themselves, and their nodes parts of them by their own weights.
    """
    zones = zone_shares(membership)
    shares = feasible_shares(membership)
    zone_weights = _zone_weights(zones)
    stretches: dict[NodeId, tuple[int, int]] = {}
    for member in membership.members:
        zone = zones[member.zone]
        stretch = 0
        if zone.contested:
            whole = zone_weights[member.zone]
            stretch = int(_SCALE * zone.weight / (whole * member.weight))
        elif zone.most > 1 and shares[member.node_id] < 1:
            stretch = int(_SCALE / _effective_weight(shares[member.node_id]))
        stretches[member.node_id] = (stretch, _SCALE // member.weight)
    return stretches


_SCALE = 10**18


def _zone_weights(zones: Mapping[str, ZoneShare]) -> dict[str, Decimal]:
    """The effective weights of zones that compete. Only the ratios between them matter.

    -ln(1-p) climbs without end towards a share of one. A zone that grows by a node would raise the
    weights of its old nodes with it: these would take from other zones what the new node should,
    while that takes from them, and all moves twice. So the curve is eased (`ZONE_EASE`), and goes
    on as its tangent for what a zone's weight claims beyond the one copy it can hold.
    """
    per_weight = max(zone.copies / zone.weight for zone in zones.values())
    slope = _decimal(ZONE_EASE / (1 - ZONE_EASE))
    weights: dict[str, Decimal] = {}
    for name, zone in zones.items():
        claim = per_weight * zone.weight
        within = min(claim, Fraction(1))
        weights[name] = _effective_weight(ZONE_EASE * within) + slope * _decimal(claim - within)
    return weights


def _effective_weight(share: Fraction) -> Decimal:
    """-ln(1 - share)."""
    return -_decimal(1 - share).ln(_ROUNDING)


def _decimal(number: Fraction) -> Decimal:
    return _ROUNDING.divide(Decimal(number.numerator), Decimal(number.denominator))


class NodeMove(msgspec.Struct, frozen=True, kw_only=True):
    """What a change of the ring means for one node. Shares are parts of all copies, 0 to 1."""

    node_id: NodeId
    partitions_before: int
    partitions_after: int
    partitions_gained: int
    bytes_gained: int
    share_after: float
    feasible_share: float


class RingPreview(msgspec.Struct, frozen=True, kw_only=True):
    """What has to move from one ring to another: copies of partitions, and their bytes."""

    partitions_moved: int
    partitions_ideal: float
    """The least that any placement with exactly feasible shares has to move: 4,096 times the sum
    of all growth of feasible shares (0 to 1 of the partitions; a node that joins grows from 0).
    Zones force no more than that (docs/decisions/0040-placement.md)."""
    bytes_moved: int
    nodes: tuple[NodeMove, ...]


def preview(before: Ring, after: Ring, partition_bytes: Sequence[int]) -> RingPreview:
    """Say what changing the ring would move; `partition_bytes` holds one copy's bytes for each."""
    gained = dict.fromkeys(after.members, 0)
    gained_bytes = dict.fromkeys(after.members, 0)
    for partition in range(PARTITION_COUNT):
        held = before.partition_owners(partition)
        for node in after.partition_owners(partition):
            if node not in held:
                gained[node] += 1
                gained_bytes[node] += partition_bytes[partition]
    counts_before, counts_after = before.partition_counts(), after.partition_counts()
    shares_before = feasible_shares(before.membership)
    shares_after = feasible_shares(after.membership)
    growth = (share - shares_before.get(node, 0) for node, share in shares_after.items())
    slots = PARTITION_COUNT * after.copies
    return RingPreview(
        partitions_moved=sum(gained.values()),
        partitions_ideal=float(PARTITION_COUNT * sum(part for part in growth if part > 0)),
        bytes_moved=sum(gained_bytes.values()),
        nodes=tuple(
            NodeMove(
                node_id=node,
                partitions_before=counts_before.get(node, 0),
                partitions_after=counts_after[node],
                partitions_gained=gained[node],
                bytes_gained=gained_bytes[node],
                share_after=counts_after[node] / slots,
                feasible_share=float(shares_after[node] / after.copies),
            )
            for node in sorted(after.members)
        ),
    )
