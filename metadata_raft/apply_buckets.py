"""Commands on buckets. Removing one touches one row: its files go in the background, in steps."""

from __future__ import annotations

import msgspec

from metadata_raft import access
from metadata_raft.commands import (
    BucketDone,
    CreateBucket,
    DeleteBucket,
    Done,
    Failure,
    Result,
    UpdateBucket,
)
from metadata_raft.names import bucket_name_problem
from metadata_raft.working_state import BucketRow, WorkingState


def create_bucket(state: WorkingState, command: CreateBucket) -> Result:
    """Make a bucket, or say that it is there already to who may change it."""
    problem = bucket_name_problem(command.name)
    if problem is not None:
        return _invalid(f"The bucket name '{command.name[:80]}' {problem}.")
    if command.visibility not in access.VISIBILITIES:
        return _invalid(f"'{command.visibility[:80]}' is no visibility.")
    role = state.role(command.actor)
    if not access.may_create_buckets(role):
        return Failure(code="forbidden", detail="This key may not create buckets.")
    existing = state.bucket(command.name)
    if existing is not None:
        if not access.may_change_bucket(role, is_owner=existing.owner == command.actor):
            return Failure(
                code="bucket_exists", detail=f"The bucket '{command.name}' belongs to another key."
            )
        return BucketDone(created=False)
    add_bucket(
        state,
        name=command.name,
        owner=command.actor,
        visibility=command.visibility,
        hidden=command.hidden,
        quota_bytes=command.quota_bytes,
    )
    return BucketDone(created=True)


def add_bucket(
    state: WorkingState,
    *,
    name: str,
    owner: str,
    visibility: str,
    hidden: bool = False,
    quota_bytes: int | None = None,
) -> None:
    """Insert a bucket that has been checked, under the next bucket id."""
    cluster = state.cluster
    state.add_bucket(
        BucketRow(
            bucket_id=cluster.next_bucket_id,
            name=name,
            owner=owner,
            visibility=visibility,
            hidden=hidden,
            quota_bytes=quota_bytes,
            created_ms=cluster.time_ms,
            file_count=0,
            size_bytes=0,
        )
    )
    cluster.next_bucket_id += 1


def update_bucket(state: WorkingState, command: UpdateBucket) -> Result:
    """Change the settings that the command names."""
    bucket = _changeable(state, command.name, command.actor)
    if isinstance(bucket, Failure):
        return bucket
    visibility = command.visibility
    if visibility is not msgspec.UNSET:
        if visibility not in access.VISIBILITIES:
            return _invalid(f"'{visibility[:80]}' is no visibility.")
        bucket.visibility = visibility
    if command.hidden is not msgspec.UNSET:
        bucket.hidden = command.hidden
    if command.quota_bytes is not msgspec.UNSET:
        bucket.quota_bytes = command.quota_bytes
    state.bucket_changed(bucket)
    return Done()


def delete_bucket(state: WorkingState, command: DeleteBucket) -> Result:
    """Remove a bucket. Its name is free at once; files and uploads are left to the queue."""
    bucket = _changeable(state, command.name, command.actor)
    if isinstance(bucket, Failure):
        return bucket
    if bucket.file_count and not command.cascade:
        return Failure(
            code="bucket_not_empty",
            detail=f"The bucket '{bucket.name}' still holds {bucket.file_count:,} files.",
        )
    state.remove_bucket(bucket)
    state.enqueue("bucket", bucket.bucket_id)
    return Done()


def _changeable(state: WorkingState, name: str, actor: str) -> BucketRow | Failure:
    bucket = state.bucket(name)
    if bucket is None:
        return Failure(code="no_such_bucket", detail=f"There is no bucket '{name[:80]}'.")
    if not access.may_change_bucket(state.role(actor), is_owner=bucket.owner == actor):
        return Failure(code="forbidden", detail=f"This key may not change the bucket '{name}'.")
    return bucket


def _invalid(detail: str) -> Failure:
    return Failure(code="invalid_command", detail=detail)
