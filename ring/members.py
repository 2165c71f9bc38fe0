"""Who is in the cluster: the types every layer shares.

A member is named by its node id for life; its addresses may change. `Membership` is what one epoch
of the ring is computed from, and is stored in the replicated state with every epoch.
"""

from __future__ import annotations

import msgspec

NodeId = str
"""A node's UUID in canonical text form; generated on first start, never reused."""

PARTITION_COUNT = 4096
"""Slices of the chunk-id space; a power of two, so that a partition is a bit prefix."""

DEFAULT_REPLICAS = 3


def partition_of(chunk_id: bytes) -> int:
    """The partition of a chunk: the leading 12 bits of its id."""
    return chunk_id[0] << 4 | chunk_id[1] >> 4


class Member(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A node that holds chunks, as the ring sees it. Addresses are `host:port`."""

    node_id: NodeId
    peer_address: str
    raft_address: str
    client_url: str
    zone: str = ""
    weight: int = 100
    """Relative capacity, 1 to 1,000,000; by convention gigabytes."""


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """The members of one ring epoch, sorted by node id."""

    epoch: int
    members: tuple[Member, ...]
    replicas: int = DEFAULT_REPLICAS

    def copies(self) -> int:
        """How many copies each chunk has: the replicas wanted, or all the members there are."""
        return min(self.replicas, len(self.members))

    def quorum(self) -> int:
        """How many durable copies acknowledge a write: 2 of 3, 2 of 2, 1 of 1."""
        return self.copies() // 2 + 1
