"""Commands on staged uploads: files longer than a segment reference their chunks as they come.

An upload reserves a version id; its segments hang under that id from the start, so that making the
version visible (`PutFile`) costs the same for a thousand segments as for one.
"""

from __future__ import annotations

from metadata_raft import access
from metadata_raft.chunk_references import unpack_checked
from metadata_raft.commands import AbortUpload, Done, Failure, Result, StageSegment
from metadata_raft.segment_counts import add_segment, staging_refusal
from metadata_raft.working_state import WorkingState

REPEATABLE_SEGMENTS = 64
"""How far back a repeated segment is recognised: more than any gateway has in flight."""


def stage_segment(state: WorkingState, command: StageSegment) -> Result:
    """Append the next segment of an upload, opening it with ordinal 0."""
    references = unpack_checked(command.chunks)
    if isinstance(references, str):
        return Failure(code="invalid_command", detail=f"The chunk list {references}.")
    bucket = state.bucket(command.bucket)
    if bucket is None:
        return Failure(code="no_such_bucket", detail=f"There is no bucket '{command.bucket[:80]}'.")
    if not access.may_write(state.role(command.actor), bucket.visibility):
        return Failure(
            code="forbidden", detail=f"This key may not write to bucket '{bucket.name}'."
        )
    row = state.execute(
        "SELECT bucket_id, actor, version_id, segment_count, size_bytes FROM uploads"
        " WHERE upload_id = ?",
        (command.upload_id,),
    ).fetchone()
    if row is None:
        if command.ordinal != 0:
            return _no_such_upload(command.upload_id)
        version_id, segment_count, start = state.cluster.next_version_id, 0, 0
    else:
        bucket_id, actor, version_id, segment_count, start = row
        if bucket_id != bucket.bucket_id or actor != command.actor:
            return _no_such_upload(command.upload_id)
        if command.ordinal < segment_count:
            return _repeated(state, command, version_id, segment_count)
        if command.ordinal > segment_count:
            return Failure(
                code="stale_expectation",
                detail=f"Segment {command.ordinal} came before segment {segment_count}.",
                retryable=True,
            )
    refusal = staging_refusal(
        state, generation=command.generation, oldest_epoch=command.oldest_epoch
    )
    if refusal is not None:
        return refusal

    size_bytes = sum(length for _, length in references)
    add_segment(
        state,
        version_id=version_id,
        start=start,
        ordinal=command.ordinal,
        chunks=command.chunks,
        references=references,
        size_bytes=size_bytes,
    )
    if row is None:
        state.cluster.next_version_id += 1
        state.execute(
            "INSERT INTO uploads VALUES (?, ?, ?, ?, 1, ?, ?)",
            (
                command.upload_id,
                bucket.bucket_id,
                command.actor,
                version_id,
                size_bytes,
                state.cluster.time_ms,
            ),
        )
    else:
        state.execute(
            "UPDATE uploads SET segment_count = segment_count + 1,"
            " size_bytes = size_bytes + ?, touched_ms = ? WHERE upload_id = ?",
            (size_bytes, state.cluster.time_ms, command.upload_id),
        )
    return Done()


def abort_upload(state: WorkingState, command: AbortUpload) -> Result:
    """Drop an upload of the actor's own (or any, for an admin)."""
    row = state.execute(
        "SELECT actor, version_id FROM uploads WHERE upload_id = ?", (command.upload_id,)
    ).fetchone()
    if row is None or not (
        row[0] == command.actor or access.may_administer(state.role(command.actor))
    ):
        return _no_such_upload(command.upload_id)
    state.execute("DELETE FROM uploads WHERE upload_id = ?", (command.upload_id,))
    state.enqueue("version", row[1])
    return Done()


def _repeated(
    state: WorkingState, command: StageSegment, version_id: int, segment_count: int
) -> Result:
    """Answer a segment that is there already: the same chunks are done, others are refused."""
    if command.ordinal >= segment_count - REPEATABLE_SEGMENTS:
        row = state.execute(
            "SELECT chunks FROM (SELECT ordinal, segment_id FROM version_segments"
            " WHERE version_id = ? ORDER BY start DESC LIMIT ?)"
            " JOIN segments USING (segment_id) WHERE ordinal = ?",
            (version_id, REPEATABLE_SEGMENTS, command.ordinal),
        ).fetchone()
        if row is not None and row[0] == command.chunks:
            return Done()
    return Failure(
        code="invalid_command",
        detail=f"Segment {command.ordinal} is staged already, with other chunks or long ago.",
    )


def _no_such_upload(upload_id: bytes) -> Failure:
    return Failure(code="no_such_upload", detail=f"There is no upload {upload_id.hex()}.")
