"""Which chunks are here at this moment: the index, and what has not reached it yet.

A chunk is acknowledged as soon as it is durable in its volume; its row follows into SQLite a little
later, and meanwhile stands here. One lock makes the two decisions that race exclude each other: the
event loop's "it is here, and touched now", and the writer thread's "it goes, for its touch is old".
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from ring.chunk_index import ChunkIndex, IndexRow
from ring.touches import Touches


class ChunkCatalog:
    """Rows by chunk id, with their touches."""

    def __init__(self, index: ChunkIndex, touches: Touches) -> None:
        self._index = index
        self._touches = touches
        self._lock = threading.Lock()
        self._unindexed: dict[bytes, IndexRow] = {}
        self._going: set[bytes] = set()

    def find(self, chunk_id: bytes) -> IndexRow | None:
        """Return a chunk's row, quarantined or not; None where it is not here or is just going."""
        with self._lock:
            if chunk_id in self._going:
                return None
            row = self._unindexed.get(chunk_id)
        # In this order: a row leaves `_unindexed` only after it was committed.
        return row if row is not None else self._index.find((chunk_id,)).get(chunk_id)

    def find_all(self, chunk_ids: Sequence[bytes]) -> dict[bytes, IndexRow]:
        """Return the rows of those of the chunks that are here."""
        with self._lock:
            going = self._going.intersection(chunk_ids)
            unindexed = {
                chunk_id: self._unindexed[chunk_id]
                for chunk_id in chunk_ids
                if chunk_id in self._unindexed
            }
        found = self._index.find(chunk_ids) | unindexed
        return {chunk_id: row for chunk_id, row in found.items() if chunk_id not in going}

    def touch_of(self, row: IndexRow) -> int | None:
        with self._lock:
            return self._touches.of(row.chunk_id, row.touch)

    @property
    def touch_floor(self) -> int | None:
        with self._lock:
            return self._touches.floor

    def raise_floor(self, generation: int) -> None:
        with self._lock:
            self._touches.raise_floor(generation)

    def confirm(self, row: IndexRow, touch: int) -> bool:
        """Raise the touch of a chunk; False where it has gone meanwhile, and nothing was done."""
        with self._lock:
            self._touches.raise_to(row.chunk_id, touch)
        # In this order: a deletion decided before is seen here, a later one sees the touch.
        return self.find(row.chunk_id) is not None

    # --- for the writer thread ------------------------------------------------------------------

    def add(self, rows: Iterable[IndexRow]) -> None:
        """These chunks are durable, and not in the index yet."""
        with self._lock:
            self._unindexed.update((row.chunk_id, row) for row in rows)

    def indexed(self, rows: Iterable[IndexRow]) -> None:
        """The index has committed these rows."""
        with self._lock:
            for row in rows:
                if self._unindexed.get(row.chunk_id) is row:
                    del self._unindexed[row.chunk_id]

    def condemn(self, row: IndexRow, *, touch: int) -> bool:
        """Hide a chunk that is about to be deleted, if its touch still is `touch`."""
        with self._lock:
            if self._touches.of(row.chunk_id, row.touch) != touch:
                return False
            self._going.add(row.chunk_id)
            return True

    def gone(self, chunk_id: bytes) -> None:
        """The index has committed that a condemned chunk is not here any more."""
        with self._lock:
            self._touches.forget(chunk_id)
            self._going.discard(chunk_id)

    def reprieve(self, chunk_id: bytes) -> None:
        """A condemned chunk could not be deleted: it is still here."""
        with self._lock:
            self._going.discard(chunk_id)
