"""The exceptions of the ring.

RingError
├── ChunkNotFoundError      the chunk is not in this store
├── ChunkDamagedError       its copy here is bad, and is quarantined now
├── ChunkRejectedError      a payload that is not the chunk it claims to be
├── StoreFullError          no space or quota left for the chunk; reads and deletions go on
├── StoreOverloadedError    the writer's queue is full; a retry helps
├── StoreFailedError        the disk failed: the store takes no more writes until a restart
├── OverloadedError         no buffer came free in time; a retry helps
├── RecordError             bytes that are no record of this volume (inside the store only)
└── IndexDamagedError       SQLite refuses the index (inside the store only)
"""

from __future__ import annotations


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
