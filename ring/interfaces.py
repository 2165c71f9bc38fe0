"""What the parts of the ring ask of one another, and what the ring asks of the layers above it.

Only types live here: immutable values and Protocols, no behaviour. The chunk store on disk is
`ring/chunk_store.py`, its in-memory twin for tests is `tests/fakes/chunk_store.py`; both pass
`tests/ring/chunk_store_conformance.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ring.filesystem import Buffer
from ring.members import Membership

if TYPE_CHECKING:
    # At run time that module needs this one.
    from ring.buffers import BufferPool

CHUNK_SIZE_LIMIT = 8 * 1024 * 1024
"""Plain bytes of one chunk at most. A chunk has at least one byte."""

CHUNK_ID_SIZE = 32
"""Bytes of a chunk id: the BLAKE3-256 of the chunk's plaintext."""

BLOCK_SIZE = 64 * 1024
"""Plain bytes under one block checksum; the last block of a chunk may be shorter."""

BLOCK_CHECKSUM_SIZE = 16
"""Bytes of a block checksum: the first half of the BLAKE3-256 of the block."""


class Codec(enum.IntEnum):
    """How a chunk's payload is stored and travels between peers. The numbers are stored."""

    RAW = 0
    ZSTD = 1


@dataclass(frozen=True, slots=True)
class Checksums:
    """What somebody who saw the plaintext computed from it: proof that a payload is the chunk."""

    chunk_id: bytes
    blocks: bytes
    """The block checksums, one behind the other."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A chunk in the form in which it is stored and sent.

    `checksums` is set by the two functions of `ring/codec.py` that saw the plaintext; a store that
    is given None (a payload fresh from the network) verifies the plaintext itself.
    """

    payload: Buffer
    codec: Codec
    plain_length: int
    checksums: Checksums | None = None


class PutOutcome(enum.Enum):
    """Both mean: durable here, touch raised."""

    WRITTEN = "written"
    EXISTED = "existed"


@dataclass(frozen=True, slots=True)
class StoredContent:
    """Verified plaintext: the range asked for, and the length of the whole chunk.

    `data` may be a view on a pooled buffer, which goes back to the pool by itself when the last
    view on it is gone; whoever keeps a few bytes of it for long should copy them.
    """

    data: memoryview
    plain_length: int


@dataclass(frozen=True, slots=True)
class ChunkStat:
    """What the index knows about a chunk. A quarantined one is damaged: it counts as missing."""

    plain_length: int
    stored_length: int
    codec: Codec
    quarantined: bool
    touch: int | None
    """The generation of its last touch; None after a start until the floor is known (rule D4)."""


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """What a deletion is decided on, in the writer thread (rules D4, D5)."""

    chunk_id: bytes
    plain_length: int
    stored_length: int
    quarantined: bool
    touch: int


@dataclass(frozen=True, slots=True)
class PartitionDigest:
    """What the healthy chunks of a partition amount to; equal on nodes that hold the same ones."""

    count: int
    digest: bytes
    """XOR of the chunk ids: 32 bytes."""


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """Counters since the start where named so, else the present state. Sizes are in bytes."""

    chunks: int
    plain_bytes: int
    """Of the healthy chunks, before compression."""
    stored_bytes: int
    """Of their payloads, after compression."""
    allocated_bytes: int
    """What all records occupy on disk, quarantined ones and padding included."""
    quarantined: int
    volumes: int
    queue_depth: int
    """Operations waiting for the writer thread."""
    groups: int
    """Group commits since the start: one sync each."""
    records_written: int
    bytes_written: int
    chunks_deleted: int
    damage_found: int
    """Records quarantined and unreadable regions met since the start."""
    touch_floor: int | None
    writable: bool
    """False after a write error: reads go on, writes and deletions are refused."""
    full: bool
    """Quota and disk leave no room for a chunk of full length; shorter ones may still fit."""


class ChunkStore(Protocol):
    """The chunks of one node. Called on one asyncio loop, except where said otherwise.

    Errors (`ring/errors.py`): every call may raise StoreFailedError after a disk error.
    """

    async def put(self, chunk_id: bytes, content: Encoded, *, touch: int) -> PutOutcome:
        """Store a chunk; durable on return, its touch is max(old, `touch`).

        Does not return, not even when cancelled, before the store has ended with `content.payload`.
        Raises ChunkRejectedError (the payload is not the chunk), StoreFullError,
        StoreOverloadedError.
        """

    async def get(
        self,
        chunk_id: bytes,
        *,
        start: int = 0,
        end: int | None = None,
        pool: BufferPool | None = None,
    ) -> StoredContent:
        """Return the plaintext from `start` up to `end` (exclusive, cut at the chunk's length).

        A large one lies in a buffer of `pool`, the store's own where none is given: what is read
        for a peer must not wait for buffers that this node's clients hold, who may wait for a peer.
        Nothing unverified is returned. Raises ChunkNotFoundError; ChunkDamagedError, after which
        the chunk is quarantined.
        """

    async def get_encoded(self, chunk_id: bytes, *, pool: BufferPool | None = None) -> Encoded:
        """Return a chunk as it is stored, verified, for sending it to a peer. Errors as `get`."""

    async def stat(self, chunk_ids: Sequence[bytes]) -> list[ChunkStat | None]:
        """Look chunks up in the index; None for those that are not here."""

    async def touch(self, chunk_ids: Sequence[bytes], *, touch: int) -> list[bool]:
        """`confirm` with the same touch for all."""

    async def confirm(self, touches: Sequence[tuple[bytes, int]]) -> list[bool]:
        """Say which chunks somebody may rely on, and raise their touches to at least those given.

        True where the chunk is here: durable, not quarantined, its record header checked (D2). A
        deletion that is being judged meanwhile does not take place, also where the touch was as
        high before (D5).
        """

    async def delete(self, chunk_id: bytes, *, unless: Callable[[ChunkRow], bool]) -> bool:
        """Delete a chunk, healthy or quarantined, unless `unless` says to keep it.

        `unless` is asked in the writer thread as the last thing before the deletion, which happens
        only if since then the touch has not changed and nobody has confirmed the chunk: neither
        `confirm` nor a `put` that found it here. Returns whether the chunk was deleted: False where
        it is not here, was kept, or no touch floor has been given yet.
        """

    def set_touch_floor(self, generation: int) -> None:
        """Say that no chunk counts as touched before `generation` (rule D4).

        Touches are lost with the process, so nothing is deleted after a start until a floor from a
        linearizable read has been given. A floor never goes down.
        """

    async def wait_indexed(self) -> None:
        """Wait until `ids`, digests and statistics reflect all that was acknowledged before.

        They follow the acknowledgements within milliseconds, and mostly need not be waited for.
        """

    def ids(self, after: bytes, limit: int, *, below: bytes | None = None) -> list[bytes]:
        """Return up to `limit` ids of healthy chunks greater than `after`, in order. Any thread.

        With `below`, only ids smaller than that.
        """

    def quarantined(self, limit: int, *, after: bytes = b"") -> list[bytes]:
        """Return up to `limit` ids of quarantined chunks greater than `after`, in order. Any
        thread."""

    def partition_counts(self) -> list[int]:
        """Return how many healthy chunks each of the 4,096 partitions has. Any thread, cheap."""

    def partition_digests(self) -> list[PartitionDigest]:
        """Return the digests of all 4,096 partitions. Any thread."""

    async def recount(self, partition: int) -> bool:
        """Compute a partition's digest anew from its rows, and put it right where it was wrong.

        Returns whether it was. Digests follow every change of the rows, so only damage to the
        index or a defect makes one wrong; then it is logged as an error.
        """

    def statistics(self) -> StoreStatistics: ...


class ClusterView(Protocol):
    """This node's picture of the ring. It may lag behind the cluster; `refresh` catches it up."""

    def membership(self) -> Membership:
        """The members of the newest epoch this node knows. Cheap: called for every chunk."""

    def former(self) -> Sequence[Membership]:
        """Older epochs whose owners may still hold copies, newest first."""

    def generation(self) -> int:
        """The generation of the newest state this node has applied (rule D4)."""

    def collection_held(self) -> bool:
        """Whether that state forbids every deletion for the time being (rule D10): it was restored
        from a backup, and what files of after the backup refer to looks unreferenced. Any thread.
        """

    async def refresh(self) -> None:
        """Return once the view is at least as new as the cluster was when this was called."""


class LiveChunks(Protocol):
    """Which chunks some file, or some upload in progress, refers to. Called in worker threads."""

    def referenced(self, chunk_ids: Sequence[bytes]) -> set[bytes]:
        """Those of `chunk_ids` that are referenced in this node's applied state."""

    def page(self, after: bytes, limit: int) -> list[bytes]:
        """Up to `limit` referenced ids greater than `after`, in order; empty at the end."""
