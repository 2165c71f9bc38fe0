"""Commands on the cluster as a whole: generation, version, settings, and reclaiming.

Deletes, overwrites and cascades leave one row in the queue; `ReclaimStep` works it off, first in,
first out, in steps that touch a bounded number of rows and resume where the last one ended. Every
step is a function of the state alone, so replicas take the same ones.
"""

from __future__ import annotations

from metadata_raft import access
from metadata_raft.commands import (
    CLUSTER_VERSION_SUPPORTED,
    Advanced,
    AdvanceGeneration,
    Done,
    Failure,
    Reclaimed,
    ReclaimStep,
    Result,
    ResumeCollection,
    SetClusterSettings,
    SetClusterVersion,
)
from metadata_raft.records import ClusterSettings
from metadata_raft.segment_counts import release_version_segments
from metadata_raft.state_errors import UnknownVersionError
from metadata_raft.working_state import WorkingState, settings_from_rows

UPLOAD_LIFETIME_MS = 24 * 3_600_000
TOKEN_MEMORY_MS = 24 * 3_600_000
"""How long an expired join token is remembered, so that its bearer is told what is wrong."""


def advance_generation(state: WorkingState, command: AdvanceGeneration) -> Result:
    """Add one to the generation, once for each expectation (rule D4)."""
    cluster = state.cluster
    if command.expected != cluster.generation:
        return Failure(
            code="stale_expectation",
            detail=f"The generation is {cluster.generation}, not {command.expected}.",
        )
    cluster.generation += 1
    return Advanced(generation=cluster.generation)


def set_cluster_version(state: WorkingState, command: SetClusterVersion) -> Result:
    """Raise the cluster version. Raises UnknownVersionError where this software is too old."""
    if command.version > CLUSTER_VERSION_SUPPORTED:
        raise UnknownVersionError(
            f"the cluster moved to version {command.version}, "
            f"this software supports {CLUSTER_VERSION_SUPPORTED}"
        )
    if command.version < state.cluster.cluster_version:
        return Failure(
            code="stale_expectation",
            detail=f"The cluster version is {state.cluster.cluster_version} already.",
        )
    state.cluster.cluster_version = command.version
    # The proposer has seen that all do. Replicas that ran older software when a member said so have
    # not recorded it; from here on all say the same (rule M8).
    changed = state.execute(
        "UPDATE members SET supported_version = ?1 WHERE supported_version < ?1", (command.version,)
    ).rowcount
    if changed:
        state.cluster.members_version += 1
    return Done()


def set_cluster_settings(state: WorkingState, command: SetClusterSettings) -> Result:
    """Change settings by name, all of them or none."""
    if not access.may_administer(state.role(command.actor)):
        return Failure(code="forbidden", detail="Only an admin key may change settings.")
    for name in command.settings:
        if name not in ClusterSettings.__struct_fields__:
            return Failure(code="invalid_command", detail=f"'{name[:80]}' is no setting.")
    for name, value in command.settings.items():
        if value is None:
            state.execute("DELETE FROM settings WHERE name = ?", (name,))
        else:
            state.execute(
                "INSERT INTO settings VALUES (?, ?)"
                " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                (name, value),
            )
    state.settings = settings_from_rows(state.execute("SELECT name, value FROM settings"))
    return Done()


def resume_collection(state: WorkingState, command: ResumeCollection) -> Result:
    """End the hold that a restore has put on garbage collection; done where there is none."""
    if not access.may_administer(state.role(command.actor)):
        return Failure(code="forbidden", detail="Only an admin key may resume collection.")
    state.cluster.collection_held = 0
    return Done()


def reclaim_step(state: WorkingState, command: ReclaimStep) -> Result:
    """Work off about `row_limit` rows; `remaining` tells whether another step finds work now."""
    limit = command.row_limit
    rows = _expire_uploads(state, limit) + _forget_tokens(state, limit)
    ripe_ms = state.cluster.time_ms - command.grace_ms
    while True:
        # The queue is in the order of queued_ms too: if the first isn't ripe, none is.
        item = state.execute(
            "SELECT reclaim_id, kind, target_id, position, queued_ms FROM reclaim"
            " ORDER BY reclaim_id LIMIT 1"
        ).fetchone()
        if item is None or item[4] > ripe_ms:
            return Reclaimed(rows=rows, remaining=False)
        if rows >= limit:
            return Reclaimed(rows=rows, remaining=True)
        reclaim_id, kind, target_id, position, _ = item
        if kind == "bucket":
            rows += _reclaim_bucket(state, reclaim_id, target_id, limit - rows)
        else:
            rows += _reclaim_version(state, reclaim_id, target_id, position, limit - rows)


def _reclaim_bucket(state: WorkingState, reclaim_id: int, bucket_id: int, budget: int) -> int:
    """Remove files and uploads of a bucket that is gone; their versions join the queue."""
    count = max(1, budget // 2)
    files = state.execute(
        "SELECT files.file_id, files.version_id, is_inline"
        " FROM files JOIN versions ON versions.version_id = files.version_id"
        " WHERE bucket_id = ? ORDER BY path LIMIT ?",
        (bucket_id, count),
    ).fetchall()
    for file_id, version_id, is_inline in files:
        state.execute("DELETE FROM files WHERE file_id = ?", (file_id,))
        if is_inline:
            state.execute("DELETE FROM versions WHERE version_id = ?", (version_id,))
        else:
            state.enqueue("version", version_id)
    rows = 2 * len(files)
    if len(files) == count:
        return rows
    uploads = state.execute(
        "SELECT upload_id, version_id FROM uploads WHERE bucket_id = ? ORDER BY upload_id LIMIT ?",
        (bucket_id, count - len(files)),
    ).fetchall()
    _drop_uploads(state, uploads)
    rows += 2 * len(uploads)
    if len(files) + len(uploads) < count:
        state.execute("DELETE FROM reclaim WHERE reclaim_id = ?", (reclaim_id,))
        rows += 1
    return rows


def _reclaim_version(
    state: WorkingState, reclaim_id: int, version_id: int, position: int, budget: int
) -> int:
    """Release a version's segments; the last step removes the version and its queue row."""
    rows, resume_at = release_version_segments(
        state, version_id=version_id, position=position, budget=budget
    )
    if resume_at is None:
        state.execute("DELETE FROM versions WHERE version_id = ?", (version_id,))
        state.execute("DELETE FROM reclaim WHERE reclaim_id = ?", (reclaim_id,))
        return rows + 2
    if resume_at != position:
        state.execute(
            "UPDATE reclaim SET position = ? WHERE reclaim_id = ?", (resume_at, reclaim_id)
        )
        rows += 1
    return rows


def _expire_uploads(state: WorkingState, budget: int) -> int:
    uploads = state.execute(
        "SELECT upload_id, version_id FROM uploads WHERE touched_ms < ?"
        " ORDER BY touched_ms, upload_id LIMIT ?",
        (state.cluster.time_ms - UPLOAD_LIFETIME_MS, max(1, budget // 4)),
    ).fetchall()
    _drop_uploads(state, uploads)
    return 2 * len(uploads)


def _drop_uploads(state: WorkingState, uploads: list[tuple[bytes, int]]) -> None:
    for upload_id, version_id in uploads:
        state.execute("DELETE FROM uploads WHERE upload_id = ?", (upload_id,))
        state.enqueue("version", version_id)


def _forget_tokens(state: WorkingState, budget: int) -> int:
    return state.execute(
        "DELETE FROM tokens WHERE token_id IN (SELECT token_id FROM tokens WHERE expires_ms < ?"
        " ORDER BY expires_ms, token_id LIMIT ?)",
        (state.cluster.time_ms - TOKEN_MEMORY_MS, max(1, budget // 4)),
    ).rowcount
