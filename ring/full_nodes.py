"""Which nodes had no room for a copy lately, so that they are left alone for a while."""

from __future__ import annotations

import time
from collections.abc import Callable

from ring.members import NodeId

FULL_SECONDS = 10.0
"""How long a node that had no room for a copy is offered none: each try moves a whole chunk for
nothing, so there is one at a time, until one fits."""


class FullNodes:
    """Remembers refusals for lack of room, by node. `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.until: dict[NodeId, float] = {}
        """Nodes that had no room, and when each may be tried again."""

    def __contains__(self, node: object) -> bool:
        """Whether a node had no room at the last try."""
        return node in self.until

    def is_left_alone(self, node: NodeId) -> bool:
        return self._clock() < self.until.get(node, 0.0)

    def may_try(self, node: NodeId) -> bool:
        """Whether the caller may offer a copy now.

        One try for all: where a node's time is over, whether it has room now shows only so, and
        others wait for how that one ends.
        """
        if node in self.until:
            if self.is_left_alone(node):
                return False
            self.had_none(node)
        return True

    def had_none(self, node: NodeId) -> None:
        self.until[node] = self._clock() + FULL_SECONDS

    def has_room(self, node: NodeId) -> None:
        self.until.pop(node, None)
