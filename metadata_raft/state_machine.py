"""The replicated state machine: entries of the log in, results out, SQLite in between.

Equal logs make equal states: application uses no clock, no randomness, and nothing that depends on
how entries were batched into commits, on restarts, or on which node this is (rules M1, M5, M8). The
applied index is committed in the same transaction as its effects, so that replaying the log after
a crash skips exactly what is there.

Commits don't sync (WAL, synchronous=NORMAL): the journal holds what a crash takes back.
`checkpoint` makes the state durable, and only then may the journal be cut (rule M4). Used by one
thread.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from metadata_raft.apply_buckets import create_bucket, delete_bucket, update_bucket
from metadata_raft.apply_departures import (
    forget_member,
    report_settled,
    set_member_intent,
    set_member_stage,
)
from metadata_raft.apply_files import delete_file, put_file
from metadata_raft.apply_housekeeping import (
    advance_generation,
    reclaim_step,
    resume_collection,
    set_cluster_settings,
    set_cluster_version,
)
from metadata_raft.apply_keys import create_key, revoke_key
from metadata_raft.apply_members import (
    admit_member,
    bootstrap_cluster,
    change_ring,
    create_join_token,
    update_member,
)
from metadata_raft.apply_uploads import abort_upload, stage_segment
from metadata_raft.commands import (
    CLUSTER_VERSION_SUPPORTED,
    ENTRY_VERSION,
    REQUEST_LIFETIME_LIMIT_MS,
    AbortUpload,
    AdmitMember,
    AdvanceGeneration,
    BootstrapCluster,
    ChangeRing,
    Command,
    CreateBucket,
    CreateJoinToken,
    CreateKey,
    DeleteBucket,
    DeleteFile,
    Entry,
    Failure,
    ForgetMember,
    Proposal,
    PutFile,
    ReclaimStep,
    ReportSettled,
    Result,
    ResumeCollection,
    RevokeKey,
    SetClusterSettings,
    SetClusterVersion,
    SetMemberIntent,
    SetMemberStage,
    StageSegment,
    UpdateBucket,
    UpdateMember,
    decode_command,
    decode_entry,
    encode,
    required_version,
)
from metadata_raft.records import AppliedState
from metadata_raft.request_results import RequestResults
from metadata_raft.schema_versions import require_schema
from metadata_raft.state_errors import StateCorruptError, UnknownVersionError
from metadata_raft.wal import WalKeeper
from metadata_raft.working_state import WorkingState

CACHE_SIZE_KIB = 48 * 1024
"""The writer's page cache: memory stays the same however many files there are."""

_APPLY: dict[type, Callable[[WorkingState, Any], Result]] = {
    CreateBucket: create_bucket,
    UpdateBucket: update_bucket,
    DeleteBucket: delete_bucket,
    PutFile: put_file,
    DeleteFile: delete_file,
    StageSegment: stage_segment,
    AbortUpload: abort_upload,
    CreateKey: create_key,
    RevokeKey: revoke_key,
    CreateJoinToken: create_join_token,
    AdmitMember: admit_member,
    UpdateMember: update_member,
    SetMemberStage: set_member_stage,
    ChangeRing: change_ring,
    BootstrapCluster: bootstrap_cluster,
    AdvanceGeneration: advance_generation,
    ReclaimStep: reclaim_step,
    SetClusterVersion: set_cluster_version,
    SetMemberIntent: set_member_intent,
    ForgetMember: forget_member,
    ReportSettled: report_settled,
    SetClusterSettings: set_cluster_settings,
    ResumeCollection: resume_collection,
}

_EXPIRED = encode(
    Failure(
        code="request_expired", detail="The request came after its time; it was not carried out."
    )
)


class StateMachine:
    """One node's replica. Not thread-safe; readers use connections of their own (`readers.py`)."""

    applied: AppliedState
    """What the last commit holds; replaced, never changed, so other threads may read it."""

    def __init__(self, path: str) -> None:
        """Open the state, making an empty one where there is none.

        Raises StateCorruptError where the file is damaged or foreign, UnknownVersionError where it
        was written by newer software.
        """
        try:
            self._connection = _open(path)
            self._state = WorkingState(self._connection)
        except sqlite3.Error as error:
            raise StateCorruptError(f"the state {path} can't be opened: {error}") from error
        if self._state.cluster.cluster_version > CLUSTER_VERSION_SUPPORTED:
            self._connection.close()
            raise UnknownVersionError(
                f"the state {path} is of cluster version {self._state.cluster.cluster_version}"
            )
        self._results = RequestResults(self._state)
        self._wal = WalKeeper(path, self._connection)
        self._in_transaction = False
        self._abandoned = False
        self._closed = False
        self.applied = self._published()

    def apply(self, index: int, term: int, entry: bytes) -> list[tuple[bytes, bytes]]:
        """Apply one log entry; return (request id, encoded Result) for each of its proposals.

        The effects and results are to be shown to nobody before the next `flush`. An index at or
        below the applied one returns [] (a replay). Empty bytes only move the index, and so do
        bytes that are no entry: every replica skips them alike. Raises StateCorruptError if the
        database fails, UnknownVersionError for entries of newer software; both end the process.
        """
        cluster = self._state.cluster
        if index <= cluster.applied_index:
            return []
        decoded = _decode(entry) if entry else None
        with self._all_or_nothing(f"applying entry {index}"):
            if not self._in_transaction:
                self._state.execute("BEGIN IMMEDIATE")
                self._in_transaction = True
            answers: list[tuple[bytes, bytes]] = []
            if decoded is not None:
                cluster.time_ms = max(cluster.time_ms, decoded.time_ms)
                answers = [
                    (proposal.request_id, self._answer(proposal)) for proposal in decoded.proposals
                ]
                self._results.end_entry(len(answers))
            cluster.applied_index = index
            cluster.applied_term = term
        return answers

    def flush(self) -> None:
        """Commit what was applied and publish it as `applied`; not synced, see `checkpoint`."""
        if not self._in_transaction:
            return
        with self._all_or_nothing("a commit"):
            self._state.write_back()
            self._state.execute("COMMIT")
            self._in_transaction = False
            self.applied = self._published()
            self._wal.after_commit()

    def checkpoint(self) -> int:
        """Commit durably; return the index up to which the journal may now be dropped (M4)."""
        self.flush()
        with self._all_or_nothing("a checkpoint"):
            self._state.execute("PRAGMA synchronous = FULL")
            self._state.execute("BEGIN IMMEDIATE")
            # Without a changed page a commit writes nothing, and would sync nothing.
            self._state.execute("UPDATE local_state SET checkpoints = checkpoints + 1")
            self._state.execute("COMMIT")
            self._state.execute("PRAGMA synchronous = NORMAL")
        return self.applied.index

    def close(self) -> None:
        """Commit what was applied and close; after an error, only close. May be repeated."""
        if self._closed:
            return
        if not self._abandoned:
            self.flush()
        self._closed = True
        self._wal.close()
        self._connection.close()

    @contextlib.contextmanager
    def _all_or_nothing(self, what: str) -> Iterator[None]:
        """On any error roll back and take no more: part of an entry must never be committed."""
        if self._abandoned:
            raise StateCorruptError(f"{what} after an error; this process should have ended")
        try:
            yield
        except BaseException as error:
            self._abandoned = True
            with contextlib.suppress(sqlite3.Error):
                self._connection.rollback()
            if isinstance(error, sqlite3.Error):
                raise StateCorruptError(f"{what} failed: {error}") from error
            raise

    def _answer(self, proposal: Proposal) -> bytes:
        """Carry out one proposal unless it was answered before (rule M1)."""
        request_id, not_after_ms = proposal.request_id, proposal.not_after_ms
        time_ms = self._state.cluster.time_ms
        if not_after_ms > time_ms + REQUEST_LIFETIME_LIMIT_MS:
            return encode(_invalid("The request may wait longer than results are remembered."))
        remembered = self._results.find(request_id, not_after_ms)
        if remembered is not None:
            return remembered
        if not_after_ms < time_ms:
            return _EXPIRED
        answer = self._carry_out(proposal)
        self._results.remember(request_id, not_after_ms, answer)
        return answer

    def _carry_out(self, proposal: Proposal) -> bytes:
        try:
            command = decode_command(proposal.command)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            return encode(_invalid(f"The command can't be read: {error}"))
        idempotency = proposal.idempotency
        if idempotency is None:
            return encode(self._applied(command))
        found = self._results.find_keyed(idempotency)
        if isinstance(found, bytes):
            return found
        if found is not None:
            return encode(found)
        result = self._applied(command)
        answer = encode(result)
        if not isinstance(result, Failure):
            self._results.remember_keyed(idempotency, answer)
        return answer

    def _applied(self, command: Command) -> Result:
        required = required_version(command)
        if self._state.cluster.cluster_version < required:
            return version_too_old(required)
        return _APPLY[type(command)](self._state, command)

    def _published(self) -> AppliedState:
        cluster = self._state.cluster
        return AppliedState(
            index=cluster.applied_index,
            term=cluster.applied_term,
            time_ms=cluster.time_ms,
            generation=cluster.generation,
            epoch=cluster.epoch,
            members_version=cluster.members_version,
            cluster_version=cluster.cluster_version,
            collection_held=bool(cluster.collection_held),
            settings=self._state.settings,
        )


def version_too_old(required: int) -> Failure:
    """The refusal of a command that not every member may be able to read yet."""
    return Failure(
        code="cluster_version_too_old",
        detail=f"This needs cluster version {required}, which begins when all nodes support it.",
        retryable=True,
    )


def _decode(entry: bytes) -> Entry | None:
    """Return an entry of this version; None for bytes that no version can read.

    Such bytes were committed by a majority, so refusing them would stop the cluster for good; all
    replicas skip them instead. (Damage on one disk alone is found by the journal's checksums.)
    """
    try:
        decoded = decode_entry(entry)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        version = _version_of(entry)
        if version is not None and version > ENTRY_VERSION:
            raise UnknownVersionError(_too_new(version)) from None
        return None
    if decoded.version > ENTRY_VERSION:
        raise UnknownVersionError(_too_new(decoded.version))
    return decoded


def _version_of(entry: bytes) -> int | None:
    """The version of an entry whose rest this software can't read."""
    try:
        fields = msgspec.msgpack.decode(entry, type=list[msgspec.Raw])
        return msgspec.msgpack.decode(fields[0], type=int)
    except (msgspec.DecodeError, IndexError, RecursionError):
        return None


def _too_new(version: int) -> str:
    return f"an entry of version {version}, this software knows {ENTRY_VERSION}"


def _invalid(detail: str) -> Failure:
    return Failure(code="invalid_command", detail=detail)


def _open(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=256)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA cache_size = -{CACHE_SIZE_KIB}")
        require_schema(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection
