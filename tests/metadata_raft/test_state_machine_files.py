"""Files and buckets: usage, quota, ids, who may write, and which references are taken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from metadata_raft.commands import (
    BucketDone,
    ChangeRing,
    CreateBucket,
    CreateKey,
    DeleteBucket,
    DeleteFile,
    Done,
    Failure,
    FileDeleted,
    FilePut,
    RevokeKey,
    UpdateBucket,
)
from tests.fakes.metadata import make_member
from tests.metadata_raft.replica import (
    ADMIN,
    Replica,
    chunk_id,
    put_chunks,
    put_inline,
    stage,
)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    replica = Replica(str(tmp_path / "state.db")).bootstrap()
    yield replica
    replica.close()


def test_usage_follows_what_is_current(replica: Replica) -> None:
    """Files and bytes are counted per bucket: created, replaced, deleted."""

    def usage() -> object:
        return replica.rows("SELECT file_count, size_bytes FROM buckets")[0]

    replica.do(put_inline("default", "a", b"12345"))
    replica.do(put_chunks("default", "b", 1, 2))
    assert usage() == (2, 2005)
    replica.do(put_chunks("default", "a", 3))
    assert usage() == (2, 3000)
    replica.do(DeleteFile(bucket="default", path="b", actor=ADMIN))
    assert usage() == (1, 1000)


def test_a_quota_bounds_growth_only(replica: Replica) -> None:
    """A bucket over its quota still takes smaller versions and deletes."""
    replica.do(put_chunks("default", "a", 1, 2))
    assert replica.do(UpdateBucket(name="default", actor=ADMIN, quota_bytes=500)) == Done()
    assert isinstance(replica.do(put_chunks("default", "a", 3)), FilePut)
    assert isinstance(replica.do(put_inline("default", "b", b"x")), Failure)
    assert isinstance(replica.do(put_inline("default", "a", b"x")), FilePut)
    assert replica.do(UpdateBucket(name="default", actor=ADMIN, quota_bytes=None)) == Done()
    assert isinstance(replica.do(put_chunks("default", "b", 4)), FilePut)


def test_a_file_keeps_its_id_and_gets_new_versions(replica: Replica) -> None:
    """Replacing makes a version; the file stays the file; ids are never used again."""
    first = replica.do(put_inline("default", "a", b"1"))
    second = replica.do(put_inline("default", "a", b"2"))
    assert isinstance(first, FilePut)
    assert isinstance(second, FilePut)
    assert (first.created, second.created) == (True, False)
    assert first.file_id == second.file_id
    assert first.version_id < second.version_id
    deleted = replica.do(DeleteFile(bucket="default", path="a", actor=ADMIN))
    assert deleted == FileDeleted(version_id=second.version_id)
    third = replica.do(put_inline("default", "a", b"3"))
    assert isinstance(third, FilePut)
    assert third.file_id > first.file_id


def test_visibility_lets_anonymous_requests_in(replica: Replica) -> None:
    """Only public-read-write takes writes without a key; a revoked key is no key."""
    replica.do(CreateBucket(name="shown", actor=ADMIN, visibility="public-read"))
    replica.do(CreateKey(key_id="w", secret_hash=bytes(32), actor=ADMIN))
    assert isinstance(replica.do(put_inline("default", "a", actor="")), FilePut)
    assert isinstance(replica.do(put_inline("shown", "a", actor="")), Failure)
    assert isinstance(replica.do(put_inline("shown", "a", actor="w")), FilePut)
    assert replica.do(RevokeKey(key_id="w", actor=ADMIN)) == Done()
    assert isinstance(replica.do(put_inline("shown", "a", actor="w")), Failure)
    assert isinstance(replica.do(put_inline("default", "a", actor="w")), FilePut)


def test_making_a_bucket_again_says_so(replica: Replica) -> None:
    """Its maker and an admin hear that it is there, unchanged; writers own what they make."""
    replica.do(CreateKey(key_id="w", secret_hash=bytes(32), actor=ADMIN))
    make = CreateBucket(name="mine", actor="w", quota_bytes=5)
    assert replica.do(make) == BucketDone(created=True)
    assert replica.do(msgspec.structs.replace(make, quota_bytes=9)) == BucketDone(created=False)
    assert replica.do(msgspec.structs.replace(make, actor=ADMIN)) == BucketDone(created=False)
    assert replica.rows("SELECT owner, quota_bytes FROM buckets WHERE name = 'mine'") == [("w", 5)]
    assert replica.do(UpdateBucket(name="mine", actor="w", hidden=True)) == Done()
    assert replica.do(DeleteBucket(name="mine", actor="w")) == Done()


def test_resetting_an_admin_key_revokes_the_others_in_one_step(replica: Replica) -> None:
    """`replaces_role` leaves exactly the new key of that role; other roles stay."""
    replica.do(CreateKey(key_id="w", secret_hash=bytes(32), actor=ADMIN))
    replica.do(CreateKey(key_id="other", secret_hash=bytes(32), actor=ADMIN, role="admin"))
    reset = CreateKey(
        key_id="new", secret_hash=bytes(32), actor="system", role="admin", replaces_role="admin"
    )
    assert replica.do(reset) == Done()
    assert replica.do(reset) == Done()
    assert replica.rows("SELECT key_id FROM keys ORDER BY key_id") == [("new",), ("w",)]
    assert isinstance(replica.do(CreateBucket(name="abc", actor=ADMIN)), Failure)
    assert isinstance(replica.do(CreateBucket(name="abc", actor="new")), BucketDone)


@pytest.mark.parametrize("age", [0, 1, 2, 3])
def test_references_are_taken_one_generation_late_at_most(replica: Replica, age: int) -> None:
    """Chunks written in generation G may be referenced until G + 1, by files and segments (D4)."""
    replica.advance_generations(5)
    results = [
        replica.do(put_chunks("default", "a", 1, generation=5 - age)),
        replica.do(stage("default", 1, 0, [2], generation=5 - age)),
    ]
    refused = [isinstance(result, Failure) and result.code == "restage" for result in results]
    assert refused == [age >= 2] * 2


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_references_from_below_the_epoch_floor_are_refused(replica: Replica, epoch: int) -> None:
    """Copies acknowledged before the floor was raised may have left with a member (D6)."""
    node_ids = (make_member(1).node_id,)
    replica.do(ChangeRing(expected_epoch=1, node_ids=node_ids, raise_floor=True))
    replica.do(ChangeRing(expected_epoch=2, node_ids=node_ids))
    results = [
        replica.do(put_chunks("default", "a", 1, oldest_epoch=epoch)),
        replica.do(stage("default", 1, 0, [2], oldest_epoch=epoch)),
    ]
    refused = [isinstance(result, Failure) and result.code == "restage" for result in results]
    assert refused == [epoch < 2] * 2


@pytest.mark.parametrize("row_limit", [1, 2, 1000])
def test_chunks_are_counted_by_occurrence(replica: Replica, row_limit: int) -> None:
    """A chunk stays referenced until its last occurrence in the last segment is reclaimed."""
    replica.do(put_chunks("default", "a", 1, 1, 2))
    replica.do(put_chunks("default", "b", 1))

    def counts() -> dict[bytes, int]:
        return dict(replica.rows("SELECT chunk_id, refs FROM chunks"))

    assert counts() == {chunk_id(1): 3, chunk_id(2): 1}
    replica.do(DeleteFile(bucket="default", path="a", actor=ADMIN))
    assert counts() == {chunk_id(1): 3, chunk_id(2): 1}
    replica.drain(row_limit=row_limit)
    assert counts() == {chunk_id(1): 1}
    replica.do(put_inline("default", "b"))
    replica.drain()
    assert counts() == {}
    assert replica.rows("SELECT count(*) FROM segments") == [(0,)]
    assert replica.rows("SELECT count(*) FROM version_segments") == [(0,)]


def test_shared_segments_are_counted_by_version(replica: Replica) -> None:
    """Reclaiming one of two versions that share a segment leaves the segment and its chunks."""
    first = replica.do(put_chunks("default", "a", 1, 2))
    assert isinstance(first, FilePut)
    # Sharing comes with copies; the rows are laid down here as a copy will lay them.
    connection = replica.machine._connection
    connection.execute("UPDATE segments SET refs = 2")
    connection.execute(
        "INSERT INTO version_segments SELECT 900, start, ordinal, segment_id FROM version_segments"
    )
    replica.do(DeleteFile(bucket="default", path="a", actor=ADMIN))
    replica.drain()
    assert replica.rows("SELECT version_id FROM version_segments") == [(900,)]
    assert replica.rows("SELECT refs FROM segments") == [(1,)]
    assert replica.rows("SELECT count(*) FROM chunks") == [(2,)]
