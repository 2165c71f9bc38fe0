"""Commands on files: the one place where a version becomes visible or goes.

The order of the checks is part of the contract: names, bucket, permission, preconditions, contents,
quota. All of them come before the first write.
"""

from __future__ import annotations

import msgspec

from metadata_raft import access
from metadata_raft.chunk_references import unpack_checked
from metadata_raft.commands import (
    INLINE_SIZE_LIMIT,
    USER_METADATA_SIZE_LIMIT,
    DeleteFile,
    Failure,
    FileDeleted,
    FilePut,
    Preconditions,
    PutFile,
    Result,
)
from metadata_raft.names import path_problem
from metadata_raft.segment_counts import add_segment, staging_refusal
from metadata_raft.working_state import BucketRow, WorkingState

_SELECT_CURRENT = (
    "SELECT files.file_id, files.version_id, size_bytes, etag, is_inline"
    " FROM files JOIN versions ON versions.version_id = files.version_id"
    " WHERE bucket_id = ? AND path = ?"
)
_INSERT_VERSION = "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?, ?, ?, ?)"

_encode = msgspec.msgpack.Encoder().encode
_NO_PRECONDITIONS = Preconditions()


class _Current(msgspec.Struct, frozen=True):
    """What the file at a path is now, as far as commands care."""

    file_id: int
    version_id: int
    size_bytes: int
    etag: str
    is_inline: int


class _Upload(msgspec.Struct, frozen=True):
    version_id: int
    bucket_id: int
    actor: str
    size_bytes: int


def put_file(state: WorkingState, command: PutFile) -> Result:
    """Make a new current version; the one it replaces is left to the queue."""
    problem = path_problem(command.path)
    if problem is not None:
        return _invalid(f"The path '{command.path[:80]}' {problem}.")
    if (command.user_metadata or command.tags) and (
        _user_metadata_size(command) > USER_METADATA_SIZE_LIMIT
    ):
        return _invalid(f"User metadata and tags exceed {USER_METADATA_SIZE_LIMIT} bytes.")
    bucket = _writable(state, command.bucket, command.actor)
    if isinstance(bucket, Failure):
        return bucket
    row = state.execute(_SELECT_CURRENT, (bucket.bucket_id, command.path)).fetchone()
    current = None if row is None else _Current(*row)
    if command.preconditions != _NO_PRECONDITIONS:
        refusal = precondition_refusal(
            command.preconditions, None if current is None else current.etag
        )
        if refusal is not None:
            return _precondition_failed(command.bucket, command.path, refusal)

    # Which of the three kinds of contents, and whether it may be referenced.
    inline, chunks = command.inline, command.chunks
    upload: _Upload | None = None
    references: list[tuple[bytes, int]] = []
    if (inline is not None) + (chunks is not None) + (command.upload_id is not None) != 1:
        return _invalid("Exactly one of inline, chunks and upload_id holds the contents.")
    if inline is not None:
        content_size = len(inline)
        if content_size > INLINE_SIZE_LIMIT:
            return _invalid(f"Inline contents of {content_size} bytes; at most 4,096 may be.")
    elif chunks is not None:
        checked = unpack_checked(chunks)
        if isinstance(checked, str):
            return _invalid(f"The chunk list {checked}.")
        references = checked
        content_size = sum(length for _, length in references)
        staging = staging_refusal(
            state, generation=command.generation, oldest_epoch=command.oldest_epoch
        )
        if staging is not None:
            return staging
    else:
        found = _staged_upload(state, command, bucket)
        if isinstance(found, Failure):
            return found
        upload = found
        content_size = upload.size_bytes
    if content_size != command.size_bytes:
        return _invalid(
            f"The contents have {content_size} bytes, the command says {command.size_bytes}."
        )
    replaced_size = 0 if current is None else current.size_bytes
    growth = content_size - replaced_size
    if bucket.quota_bytes is not None and growth > 0:
        size_after = bucket.size_bytes + growth
        if size_after > bucket.quota_bytes:
            return Failure(
                code="quota_exceeded",
                detail=f"The bucket '{bucket.name}' would hold {size_after:,} bytes, "
                f"its quota is {bucket.quota_bytes:,}.",
            )

    # Decided; from here on everything is written.
    cluster = state.cluster
    time_ms = cluster.time_ms
    if upload is None:
        version_id = cluster.next_version_id
        cluster.next_version_id += 1
    else:
        version_id = upload.version_id
        state.execute("DELETE FROM uploads WHERE upload_id = ?", (command.upload_id,))
    if current is None:
        file_id = cluster.next_file_id
        cluster.next_file_id += 1
        state.execute(
            "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)",
            (file_id, bucket.bucket_id, command.path, version_id, command.actor, time_ms),
        )
        bucket.file_count += 1
    else:
        file_id = current.file_id
        state.execute("UPDATE files SET version_id = ? WHERE file_id = ?", (version_id, file_id))
        _discard(state, current)
    state.execute(
        _INSERT_VERSION,
        (
            version_id,
            file_id,
            content_size,
            command.etag,
            command.content_type,
            _encode(command.user_metadata) if command.user_metadata else None,
            _encode(command.tags) if command.tags else None,
            command.actor,
            time_ms,
            command.content_checksum,
            command.chunking,
            inline is not None,
            inline,
        ),
    )
    if chunks is not None:
        add_segment(
            state,
            version_id=version_id,
            start=0,
            ordinal=0,
            chunks=chunks,
            references=references,
            size_bytes=content_size,
        )
    bucket.size_bytes += growth
    state.bucket_changed(bucket)
    return FilePut(
        file_id=file_id,
        version_id=version_id,
        created=current is None,
        etag=command.etag,
        modified_ms=time_ms,
    )


def delete_file(state: WorkingState, command: DeleteFile) -> Result:
    """Remove a file; its version is left to the queue."""
    bucket = _writable(state, command.bucket, command.actor)
    if isinstance(bucket, Failure):
        return bucket
    row = state.execute(_SELECT_CURRENT, (bucket.bucket_id, command.path)).fetchone()
    current = None if row is None else _Current(*row)
    refusal = precondition_refusal(command.preconditions, None if current is None else current.etag)
    if refusal is not None:
        return _precondition_failed(command.bucket, command.path, refusal)
    if current is None:
        return Failure(
            code="no_such_file",
            detail=f"There is no file '{command.path[:1024]}' in bucket '{command.bucket}'.",
        )
    state.execute("DELETE FROM files WHERE file_id = ?", (current.file_id,))
    _discard(state, current)
    bucket.file_count -= 1
    bucket.size_bytes -= current.size_bytes
    state.bucket_changed(bucket)
    return FileDeleted(version_id=current.version_id)


def precondition_refusal(preconditions: Preconditions, current_etag: str | None) -> str | None:
    """Return which condition doesn't hold for the current entity tag (None: no file), or None.

    RFC 9110 §13.1.1 and §13.1.2; both are evaluated, If-Match first (§13.2.2).
    """
    if_match, if_none_match = preconditions.if_match, preconditions.if_none_match
    if if_match is not None and (
        current_etag is None or not ("*" in if_match or current_etag in if_match)
    ):
        return "If-Match"
    if (
        if_none_match is not None
        and current_etag is not None
        and ("*" in if_none_match or current_etag in if_none_match)
    ):
        return "If-None-Match"
    return None


def _writable(state: WorkingState, name: str, actor: str) -> BucketRow | Failure:
    bucket = state.bucket(name)
    if bucket is None:
        return Failure(code="no_such_bucket", detail=f"There is no bucket '{name[:80]}'.")
    if not access.may_write(state.role(actor), bucket.visibility):
        return Failure(code="forbidden", detail=f"This key may not write to bucket '{name}'.")
    return bucket


def _staged_upload(state: WorkingState, command: PutFile, bucket: BucketRow) -> _Upload | Failure:
    row = state.execute(
        "SELECT version_id, bucket_id, actor, size_bytes FROM uploads WHERE upload_id = ?",
        (command.upload_id,),
    ).fetchone()
    upload = None if row is None else _Upload(*row)
    # Someone else's upload is answered like none: ids must not be probed.
    if upload is None or upload.bucket_id != bucket.bucket_id or upload.actor != command.actor:
        return Failure(
            code="no_such_upload", detail=f"No upload for '{command.path[:1024]}' has this id."
        )
    return upload


def _discard(state: WorkingState, current: _Current) -> None:
    """Let a version go: an inline one is a single row, another takes the queue (rule M2)."""
    if current.is_inline:
        state.execute("DELETE FROM versions WHERE version_id = ?", (current.version_id,))
    else:
        state.enqueue("version", current.version_id)


def _user_metadata_size(command: PutFile) -> int:
    texts = [*command.user_metadata.keys(), *command.user_metadata.values(), *command.tags]
    return sum(len(text.encode()) for text in texts)


def _precondition_failed(bucket: str, path: str, condition: str) -> Failure:
    return Failure(
        code="precondition_failed",
        detail=f"{condition} doesn't hold for '{path[:1024]}' in bucket '{bucket}'.",
    )


def _invalid(detail: str) -> Failure:
    return Failure(code="invalid_command", detail=detail)
