"""Where copies of a chunk go, and when enough of them are durable (rule D2). Pure.

All owners are written to at once. One that fails is replaced by the next handoff, which counts like
an owner: what matters is that distinct nodes have durable copies.
"""

from __future__ import annotations

from collections.abc import Sequence

from ring.members import NodeId
from ring.peer_wire import Purpose

Target = tuple[NodeId, Purpose]


class WritePlan:
    """The state of one write. Tell it what became of each target; it tells what to do next."""

    def __init__(self, owners: Sequence[NodeId], handoffs: Sequence[NodeId], quorum: int) -> None:
        self.quorum = quorum
        self.causes: dict[NodeId, str] = {}
        """Why nodes have no copy."""
        self.lacking: list[NodeId] = []
        """Owners that have none."""
        self._owners = tuple(owners)
        self._handoffs = iter(handoffs)
        self._under_way: set[NodeId] = set()
        self._durable: set[NodeId] = set()

    def start(self) -> list[Target]:
        self._under_way.update(self._owners)
        return [(node, Purpose.OWNER) for node in self._owners]

    def succeeded(self, node: NodeId) -> None:
        self._under_way.remove(node)
        self._durable.add(node)

    def failed(self, node: NodeId, cause: str, *, replace: bool = True) -> Target | None:
        """Returns the node that stands in, if there is one and `replace` asks for it."""
        self._under_way.remove(node)
        self.causes[node] = cause
        if node in self._owners:
            self.lacking.append(node)
        handoff = next(self._handoffs, None) if replace else None
        if handoff is None:
            return None
        self._under_way.add(handoff)
        return handoff, Purpose.HANDOFF

    @property
    def under_way(self) -> frozenset[NodeId]:
        return frozenset(self._under_way)

    @property
    def durable(self) -> int:
        return len(self._durable)

    @property
    def acknowledged(self) -> bool:
        return len(self._durable) >= self.quorum

    @property
    def hopeless(self) -> bool:
        """Not enough copies, and not enough on their way."""
        return len(self._durable) + len(self._under_way) < self.quorum

    @property
    def ended(self) -> bool:
        return not self._under_way
