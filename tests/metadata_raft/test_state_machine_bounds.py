"""Long uploads and the work they leave: commands stay small, space comes back (rule M2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from metadata_raft.commands import (
    AbortUpload,
    BucketDone,
    CreateBucket,
    CreateKey,
    DeleteBucket,
    DeleteFile,
    Done,
    Failure,
    FilePut,
    PutFile,
    Reclaimed,
    ReclaimStep,
)
from tests.metadata_raft.replica import (
    ADMIN,
    Replica,
    chunk_id,
    chunk_list,
    put_chunks,
    put_inline,
    stage,
)

ROW_BOUND = 1100
"""Rows a command may touch: a full segment of 1,024 chunks, and a little around it (rule M2)."""


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    replica = Replica(str(tmp_path / "state.db")).bootstrap()
    yield replica
    replica.close()


def finish(bucket: str, path: str, upload: int, size_bytes: int) -> PutFile:
    return put_inline(
        bucket,
        path,
        inline=None,
        upload_id=upload.to_bytes(16, "big"),
        size_bytes=size_bytes,
        etag="e-upload",
    )


def test_an_upload_becomes_a_version_with_its_segments(replica: Replica) -> None:
    """Segments lie end to end in order; afterwards the upload is gone."""
    assert replica.do(stage("default", 1, 0, [1, 2])) == Done()
    assert replica.do(stage("default", 1, 1, [3])) == Done()
    assert replica.rows("SELECT count(*) FROM versions") == [(0,)]
    result = replica.do(finish("default", "big", 1, 3000))
    assert isinstance(result, FilePut)
    with replica.snapshot() as snapshot:
        segments = snapshot.segments(result.version_id)
        assert [(s.ordinal, s.start, s.size_bytes, s.chunks) for s in segments] == [
            (0, 0, 2000, chunk_list(1, 2)),
            (1, 2000, 1000, chunk_list(3)),
        ]
    assert isinstance(replica.do(finish("default", "big", 1, 3000)), Failure)
    assert replica.rows("SELECT count(*) FROM uploads") == [(0,)]


def test_a_repeated_segment_is_answered_again(replica: Replica) -> None:
    """One of the last 64 with the same chunks is done; nothing is counted twice."""
    for ordinal in range(70):
        assert replica.do(stage("default", 1, ordinal, [ordinal])) == Done()
    tables = replica.tables(but={"cluster", "request_results"})
    assert replica.do(stage("default", 1, 69, [69])) == Done()
    assert replica.do(stage("default", 1, 6, [6])) == Done()
    assert replica.tables(but={"cluster", "request_results"}) == tables
    assert replica.failure(stage("default", 1, 5, [5])).code == "invalid_command"
    assert replica.failure(stage("default", 1, 69, [5])).code == "invalid_command"


def test_a_finished_upload_needs_no_fresh_generation(replica: Replica) -> None:
    """Staged segments hold their chunks, however many generations the upload takes."""
    replica.do(stage("default", 1, 0, [1]))
    replica.advance_generations(5)
    assert isinstance(replica.do(finish("default", "a", 1, 1000)), FilePut)


@pytest.mark.parametrize("how", ["abort", "expire", "bucket"])
def test_an_abandoned_upload_gives_its_chunks_back(replica: Replica, how: str) -> None:
    """Aborted, untouched for a day, or in a bucket that went: its references end."""
    replica.do(CreateBucket(name="other", actor=ADMIN))
    for ordinal in range(3):
        replica.do(stage("other", 1, ordinal, range(10 * ordinal, 10 * ordinal + 10)))
    if how == "abort":
        assert replica.do(AbortUpload(upload_id=(1).to_bytes(16, "big"), actor=ADMIN)) == Done()
    elif how == "bucket":
        assert replica.do(DeleteBucket(name="other", actor=ADMIN)) == Done()
    else:
        replica.time_ms += 24 * 3_600_000
        replica.drain()
        assert replica.rows("SELECT count(*) FROM chunks") == [(30,)]
        replica.time_ms += 1
    replica.drain(row_limit=7)
    for table in ("uploads", "version_segments", "segments", "chunks", "reclaim"):
        assert replica.rows(f"SELECT count(*) FROM {table}") == [(0,)], table


def touched(replica: Replica, command: object) -> tuple[int, object]:
    """The rows one command changed, apart from the fixed ones around it, and its result."""
    connection = replica.machine._connection
    before = connection.total_changes
    result = replica.do(command)  # type: ignore[arg-type]
    return connection.total_changes - before, result


def test_no_command_on_a_large_file_touches_many_rows(replica: Replica) -> None:
    """Staging, finishing, replacing and deleting 20 full segments each stay within the bound."""
    for ordinal in range(20):
        numbers = range(1024 * ordinal, 1024 * (ordinal + 1))
        rows, _ = touched(replica, stage("default", 1, ordinal, numbers))
        assert rows <= ROW_BOUND
    size = 20 * 1024 * 1000
    rows, result = touched(replica, finish("default", "a", 1, size))
    assert isinstance(result, FilePut)
    assert rows < 10
    rows, _ = touched(replica, put_chunks("default", "a", *range(1024)))
    assert rows <= ROW_BOUND
    rows, _ = touched(replica, DeleteFile(bucket="default", path="a", actor=ADMIN))
    assert rows < 10
    steps = 0
    remaining = True
    while remaining:
        rows, result = touched(replica, ReclaimStep(row_limit=1000))
        assert isinstance(result, Reclaimed)
        assert rows <= ROW_BOUND
        assert result.rows <= 1010
        remaining, steps = result.remaining, steps + 1
    assert steps >= 20
    assert replica.rows("SELECT count(*) FROM chunks") == [(0,)]
    assert replica.rows("SELECT count(*) FROM versions") == [(0,)]


def test_deleting_a_bucket_is_one_step_whatever_it_holds(replica: Replica) -> None:
    """The cascade marks; the name is free at once; steps of any size end in an empty state."""
    replica.do(CreateBucket(name="full", actor=ADMIN))
    for start in range(0, 300, 100):
        replica.apply(
            [replica.propose(put_inline("full", f"i/{n}", b"x")) for n in range(start, start + 100)]
            + [replica.propose(put_chunks("full", f"c/{n}", n, 0)) for n in range(start, start + 9)]
        )
    rows, result = touched(replica, DeleteBucket(name="full", actor=ADMIN, cascade=True))
    assert result == Done()
    assert rows < 10
    assert replica.do(CreateBucket(name="full", actor=ADMIN)) == BucketDone(created=True)
    assert isinstance(replica.do(put_chunks("full", "new", 0)), FilePut)
    remaining = True
    while remaining:
        rows, result = touched(replica, ReclaimStep(row_limit=40))
        assert isinstance(result, Reclaimed)
        assert rows <= 40 + 30
        remaining = result.remaining
    assert replica.rows("SELECT path FROM files") == [("new",)]
    assert replica.rows("SELECT count(*) FROM versions") == [(1,)]
    assert replica.rows("SELECT chunk_id, refs FROM chunks") == [(chunk_id(0), 1)]


def test_key_bounds_hold_the_largest_replacement(replica: Replica) -> None:
    """Revoking every key of a role at once stays within the bound."""
    for start in range(0, 999, 111):
        replica.apply(
            [
                replica.propose(CreateKey(key_id=f"k{n}", secret_hash=bytes(32), actor=ADMIN))
                for n in range(start, start + 111)
            ]
        )
    replace = CreateKey(key_id="z", secret_hash=bytes(32), actor=ADMIN, replaces_role="writer")
    rows, result = touched(replica, replace)
    assert result == Done()
    assert rows <= ROW_BOUND
    assert replica.rows("SELECT count(*) FROM keys") == [(2,)]


def test_reclaiming_waits_for_its_grace(replica: Replica) -> None:
    """What was queued a moment ago stays for readers in mid-file; later it goes."""
    replica.do(put_chunks("default", "a", 1))
    replica.do(DeleteFile(bucket="default", path="a", actor=ADMIN))
    assert replica.do(ReclaimStep(grace_ms=1000)) == Reclaimed(rows=0, remaining=False)
    assert replica.rows("SELECT count(*) FROM chunks") == [(1,)]
    replica.time_ms += 1000
    replica.do(ReclaimStep(grace_ms=1000))
    assert replica.rows("SELECT count(*) FROM chunks") == [(0,)]
