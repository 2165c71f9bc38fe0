"""Which chunks are here at this moment: the index, and what has not reached it yet.

A chunk is acknowledged as soon as it is durable in its volume; its row follows into SQLite a little
later, and meanwhile stands here. One lock makes the two decisions that race exclude each other:
"it is here, and somebody relies on that", and the writer thread's "it goes". Whoever comes first
wins: what was confirmed while a deletion was judged stays, even where its touch was as high before
(rule D5 relies on confirmations that change nothing), and what is condemned is not confirmed.
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
        self._judged: set[bytes] = set()
        """Somebody is being asked whether these may go, and nobody has confirmed them since."""
        self._going: set[bytes] = set()
        self._failing: set[bytes] = set()
        """Being marked as damaged."""
        self._losses = 0
        """Counts what deletions and damage have taken away."""

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
        """Raise the touch of a chunk whose `row` was found sound, and let it stay: a deletion that
        is being judged does not take place, also where the touch is as high already.

        False where the chunk has gone, moved or been quarantined meanwhile: it does not count then.
        """
        chunk_id = row.chunk_id
        while True:
            with self._lock:
                losses = self._losses
            if self.find(chunk_id) != row:
                return False
            with self._lock:
                if chunk_id in self._failing:
                    return False
                # Nothing went while this looked, so what it saw is still so: no query under the
                # lock, which the event loop waits for.
                if self._losses == losses:
                    if touch > row.touch:
                        # Else it says nothing new, and would only take up memory: a move confirms
                        # every chunk with the touch that it was written with.
                        self._touches.raise_to(chunk_id, touch)
                    self._judged.discard(chunk_id)
                    return True

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

    def judge(self, row: IndexRow) -> int | None:
        """Return the touch that a deletion is to be decided on; None while none is known.

        `absolve` must follow, after `condemn` if need be.
        """
        with self._lock:
            self._judged.add(row.chunk_id)
            return self._touches.of(row.chunk_id, row.touch)

    def absolve(self, row: IndexRow) -> None:
        """Nothing is being decided about a chunk any more."""
        with self._lock:
            self._judged.discard(row.chunk_id)

    def condemn(self, row: IndexRow, *, touch: int) -> bool:
        """Hide a chunk that is about to be deleted, if its touch still is `touch` and nobody has
        confirmed it since `judge`."""
        with self._lock:
            if row.chunk_id not in self._judged:
                return False
            if self._touches.of(row.chunk_id, row.touch) != touch:
                return False
            self._going.add(row.chunk_id)
            self._losses += 1
            return True

    def fail(self, row: IndexRow) -> None:
        """A copy is found damaged, and about to be marked so: it is not confirmed from now on.

        `failed` must follow, whether it was marked or not.
        """
        with self._lock:
            self._failing.add(row.chunk_id)

    def failed(self, row: IndexRow) -> None:
        with self._lock:
            self._failing.discard(row.chunk_id)
            self._losses += 1

    def gone(self, chunk_id: bytes) -> None:
        """The index has committed that a condemned chunk is not here any more."""
        with self._lock:
            self._touches.forget(chunk_id)
            self._going.discard(chunk_id)

    def reprieve(self, chunk_id: bytes) -> None:
        """A condemned chunk could not be deleted: it is still here."""
        with self._lock:
            self._going.discard(chunk_id)
