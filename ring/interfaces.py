"""What the ring needs of the layers above it, said in its own words.

`node/` wires these to the replicated metadata; tests wire them to plain lists. Nothing in `ring/`
knows Raft or SQL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ring.members import Membership


class ClusterView(Protocol):
    """This node's picture of the ring. It may lag behind the cluster; `refresh` catches it up."""

    def membership(self) -> Membership:
        """The members of the newest epoch this node knows. Cheap: called for every chunk."""

    def former(self) -> Sequence[Membership]:
        """Older epochs whose owners may still hold copies, newest first."""

    def generation(self) -> int:
        """The generation of the newest state this node has applied (rule D4)."""

    async def refresh(self) -> None:
        """Return once the view is at least as new as the cluster was when this was called."""


class LiveChunks(Protocol):
    """Which chunks some file, or some upload in progress, refers to. Called in worker threads."""

    def referenced(self, chunk_ids: Sequence[bytes]) -> set[bytes]:
        """Those of `chunk_ids` that are referenced in this node's applied state."""

    def page(self, after: bytes, limit: int) -> list[bytes]:
        """Up to `limit` referenced ids greater than `after`, in order; empty at the end."""
