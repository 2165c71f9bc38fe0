"""What share of the chunks each node can be given, exactly.

The ring has as many copies of each partition as its policy wants, every node holds at most one of
them, and zones come first. Under these limits a node's fair share is not simply its weight: a node
with half of all the capacity can still hold only one copy of three. `feasible_shares` says what
the limits leave, by pouring the copies over zones, then over the nodes of a zone, in proportion to
weight, until one is full. Fractions throughout, so that every machine computes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import msgspec

from ring.members import Member, Membership, NodeId


class ZoneShare(msgspec.Struct, frozen=True):
    """How many copies of one partition a zone holds, on average."""

    copies: Fraction
    nodes: tuple[NodeId, ...]
    weight: int
    least: int
    """Copies the zone holds of every partition."""
    most: int
    """Copies the zone may hold of any partition."""

    @property
    def contested(self) -> bool:
        """There are more zones than copies: no zone is sure of any partition."""
        return self.least == 0


def zone_shares(membership: Membership) -> dict[str, ZoneShare]:
    """The share of each zone; members without a zone share the one named "".

    With enough zones each holds at most one copy of a partition. With fewer, copies are dealt in
    rounds: each zone that has nodes left gets one per round, and only the last round is incomplete.
    """
    zones: dict[str, list[Member]] = {}
    for member in membership.members:
        zones.setdefault(member.zone, []).append(member)
    certain = dict.fromkeys(zones, 0)
    open_zones = list(zones)
    left = membership.copies()
    while open_zones and left >= len(open_zones):
        for name in open_zones:
            certain[name] += 1
        left -= len(open_zones)
        open_zones = [name for name in open_zones if certain[name] < len(zones[name])]
    weights = {name: sum(member.weight for member in zones[name]) for name in zones}
    copies = {name: Fraction(count) for name, count in certain.items()}
    if open_zones and left:
        floors = {name: certain[name] for name in open_zones}
        total = left + sum(floors.values())
        # Zones below their fair share take the copies of the last round first.
        copies |= pour(
            total,
            {name: weights[name] for name in open_zones},
            least=floors,
            most={name: floors[name] + 1 for name in open_zones},
        )
    return {
        name: ZoneShare(
            copies[name],
            tuple(member.node_id for member in zones[name]),
            weights[name],
            least=certain[name],
            most=certain[name] + (1 if left and name in open_zones else 0),
        )
        for name in zones
    }


def feasible_shares(membership: Membership) -> dict[NodeId, Fraction]:
    """The part of all partitions each node should hold: 0 to 1, summing to the number of copies."""
    weights = {member.node_id: member.weight for member in membership.members}
    shares: dict[NodeId, Fraction] = {}
    for zone in zone_shares(membership).values():
        shares |= pour(
            zone.copies,
            {node: weights[node] for node in zone.nodes},
            least=dict.fromkeys(zone.nodes, 0),
            most=dict.fromkeys(zone.nodes, 1),
        )
    return shares


def pour(
    total: Fraction | int,
    weights: Mapping[str, int],
    *,
    least: Mapping[str, int],
    most: Mapping[str, int],
) -> dict[str, Fraction]:
    """Divide `total` in proportion to `weights`, each part kept between its `least` and `most`.

    The larger of the two violations is settled first and the rest divided anew, as CSS does with
    flexible lengths (CSS Flexbox 1, §9.7); ends after at most one round per part.
    """
    settled: dict[str, Fraction] = {}
    free = dict(weights)
    while free:
        rest = total - sum(settled.values())
        weight = sum(free.values())
        parts = {name: Fraction(rest * share, weight) for name, share in free.items()}
        over = {name: most[name] for name, part in parts.items() if part > most[name]}
        under = {name: least[name] for name, part in parts.items() if part < least[name]}
        if not over and not under:
            return settled | parts
        excess = sum(parts[name] - bound for name, bound in over.items())
        lack = sum(bound - parts[name] for name, bound in under.items())
        for bounds, first in ((over, excess >= lack), (under, lack >= excess)):
            if first:
                for name, bound in bounds.items():
                    settled[name] = Fraction(bound)
                    del free[name]
    return settled
