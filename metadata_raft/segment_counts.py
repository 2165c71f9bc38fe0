"""Segments and their chunks in the state: adding one, and releasing one step by step.

A chunk's count is the number of its occurrences in segments; the row goes with the last one, and
a store may then collect the chunk by generation. What D4 and D6 ask of new references is decided
here too.
"""

from __future__ import annotations

from collections import Counter

from metadata_raft.chunk_references import unpack
from metadata_raft.commands import Failure
from metadata_raft.working_state import WorkingState

_ADD_CHUNK = (
    "INSERT INTO chunks VALUES (?, ?)"
    " ON CONFLICT (chunk_id) DO UPDATE SET refs = refs + excluded.refs"
)


def staging_refusal(state: WorkingState, *, generation: int, oldest_epoch: int) -> Failure | None:
    """Refuse references to chunks that may be collected, or may stand on nodes that left.

    A store may delete an unreferenced chunk two generations after its touch (D4), so one written
    under generation G can be referenced safely until G + 1. Copies acknowledged in an epoch below
    the floor may have gone with a member (D6).
    """
    cluster = state.cluster
    if cluster.generation > generation + 1:
        return Failure(
            code="restage",
            detail=f"The chunks were written in generation {generation}, "
            f"now it is {cluster.generation}.",
            retryable=True,
        )
    if oldest_epoch < cluster.epoch_floor:
        return Failure(
            code="restage",
            detail=f"A chunk was acknowledged in ring epoch {oldest_epoch}, "
            f"epochs below {cluster.epoch_floor} are fenced.",
            retryable=True,
        )
    return None


def add_segment(
    state: WorkingState,
    *,
    version_id: int,
    start: int,
    ordinal: int,
    chunks: bytes,
    references: list[tuple[bytes, int]],
    size_bytes: int,
) -> None:
    """Append a segment to a version and count its chunks."""
    cluster = state.cluster
    segment_id = cluster.next_segment_id
    cluster.next_segment_id += 1
    state.execute("INSERT INTO segments VALUES (?, 1, ?, ?)", (segment_id, size_bytes, chunks))
    state.execute(
        "INSERT INTO version_segments VALUES (?, ?, ?, ?)", (version_id, start, ordinal, segment_id)
    )
    if len(references) == 1:
        state.execute(_ADD_CHUNK, (references[0][0], 1))
    else:
        state.executemany(_ADD_CHUNK, Counter(chunk_id for chunk_id, _ in references).items())


def release_version_segments(
    state: WorkingState, *, version_id: int, position: int, budget: int
) -> tuple[int, int | None]:
    """Take segments from a dead version for about `budget` rows, resuming at chunk `position`.

    Returns the rows touched and the position to resume at in the first segment left; None when no
    segment is left. Nothing else refers to a segment whose chunks have begun to go: only live
    versions share theirs.
    """
    rows = 0
    while rows < budget:
        found = state.execute(
            "SELECT start, segment_id, refs, chunks FROM version_segments"
            " JOIN segments USING (segment_id) WHERE version_id = ? ORDER BY start LIMIT 1",
            (version_id,),
        ).fetchone()
        if found is None:
            return rows, None
        start, segment_id, refs, chunks = found
        if refs > 1:
            state.execute("UPDATE segments SET refs = refs - 1 WHERE segment_id = ?", (segment_id,))
        else:
            references = unpack(chunks)
            batch = references[position : position + budget - rows]
            rows += _release_chunks(state, [chunk_id for chunk_id, _ in batch])
            position += len(batch)
            if position < len(references):
                return rows, position
            state.execute("DELETE FROM segments WHERE segment_id = ?", (segment_id,))
            position = 0
        state.execute(
            "DELETE FROM version_segments WHERE version_id = ? AND start = ?", (version_id, start)
        )
        rows += 2
    return rows, position


def _release_chunks(state: WorkingState, chunk_ids: list[bytes]) -> int:
    """Count occurrences down; returns how many rows that took."""
    counts = [(chunk_id, count) for chunk_id, count in Counter(chunk_ids).items()]
    # The first statement deletes the rows whose last occurrences these are, the second counts the
    # others down: one row touched per chunk either way.
    state.executemany("DELETE FROM chunks WHERE chunk_id = ? AND refs = ?", counts)
    state.executemany("UPDATE chunks SET refs = refs - ?2 WHERE chunk_id = ?1", counts)
    return len(counts)
