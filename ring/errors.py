"""The exceptions of the ring.

RingError
├── ChunkNotFoundError      the chunk is not in this store
├── ChunkDamagedError       its copy here is bad, and is quarantined now
├── ChunkRejectedError      a payload that is not the chunk it claims to be
├── StoreFullError          no space or quota left for the chunk; reads and deletions go on
├── StoreOverloadedError    the writer's queue is full; a retry helps
├── StoreFailedError        the disk failed: the store takes no more writes until a restart
├── OverloadedError         no buffer came free in time; a retry helps
├── QuorumFailedError       too few nodes took a copy of a chunk
├── ChunkMissingError       every node was asked, none has the chunk
├── ChunkUnavailableError   no good copy came, but not every node could be asked
├── PeerError               a node that couldn't be asked, or did not do what it was asked
│   ├── PeerUnreachableError    no answer: it may have done it or not
│   ├── PeerRefusedError        an answer that says no, with a code of ring/peer_wire.py
│   └── StaleEpochError         the two nodes are at different epochs of the ring
├── RecordError             bytes that are no record of this volume (inside the store only)
└── IndexDamagedError       SQLite refuses the index (inside the store only)
"""

from __future__ import annotations

from collections.abc import Mapping


class RingError(Exception):
    """The root. `retryable` says whether the same call may succeed a little later."""

    retryable = False


class ChunkNotFoundError(RingError):
    def __init__(self, chunk_id: bytes) -> None:
        super().__init__(f"chunk {chunk_id.hex()} is not in this store")
        self.chunk_id = chunk_id


class ChunkDamagedError(RingError):
    def __init__(self, chunk_id: bytes, detail: str) -> None:
        super().__init__(f"chunk {chunk_id.hex()} is damaged: {detail}")
        self.chunk_id = chunk_id


class ChunkRejectedError(RingError):
    """The sender's bytes do not have the id, length or form they were announced with."""

    def __init__(self, chunk_id: bytes, detail: str) -> None:
        super().__init__(f"chunk {chunk_id.hex()} is refused: {detail}")
        self.chunk_id = chunk_id


class StoreFullError(RingError):
    pass


class StoreOverloadedError(RingError):
    retryable = True


class StoreFailedError(RingError):
    """Raised with the failed operation, the file and the operating system's error in its text."""


class OverloadedError(RingError):
    retryable = True


class RecordError(RingError):
    pass


class IndexDamagedError(RingError):
    """The index can't be read or written; a new start rebuilds it from the volumes if need be."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(f"the chunk index {path} is unusable: {detail}")
        self.path = path


class QuorumFailedError(RingError):
    """Fewer nodes than the quorum have a durable copy; those that do keep it until collected."""

    retryable = True

    def __init__(
        self, chunk_id: bytes, copies: int, quorum: int, causes: Mapping[str, str]
    ) -> None:
        told = "; ".join(f"node {node}: {cause}" for node, cause in causes.items())
        super().__init__(
            f"chunk {chunk_id.hex()} has {copies} durable copies of {quorum} needed ({told})"
        )
        self.chunk_id = chunk_id
        self.causes = dict(causes)


class ChunkMissingError(RingError):
    def __init__(self, chunk_id: bytes, asked: int) -> None:
        super().__init__(f"none of the {asked} nodes has chunk {chunk_id.hex()}")
        self.chunk_id = chunk_id


class ChunkUnavailableError(RingError):
    retryable = True

    def __init__(self, chunk_id: bytes, causes: Mapping[str, str]) -> None:
        told = "; ".join(f"node {node}: {cause}" for node, cause in causes.items())
        super().__init__(f"no good copy of chunk {chunk_id.hex()} can be had ({told})")
        self.chunk_id = chunk_id
        self.causes = dict(causes)


class PeerError(RingError):
    """Names the node; `node_id` and the text tell what it did."""

    retryable = True

    def __init__(self, node_id: str, detail: str) -> None:
        super().__init__(detail)
        self.node_id = node_id


class PeerUnreachableError(PeerError):
    pass


class PeerRefusedError(PeerError):
    def __init__(self, node_id: str, code: str, detail: str) -> None:
        super().__init__(node_id, f"{code}: {detail}")
        self.code = code
        self.detail = detail


class StaleEpochError(PeerError):
    """`epoch` is the one that `node_id` is at."""

    def __init__(self, node_id: str, epoch: int) -> None:
        super().__init__(node_id, f"it is at epoch {epoch} of the ring")
        self.epoch = epoch
