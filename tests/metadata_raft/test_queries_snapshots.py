"""Snapshots hold still, are many, bounded, and do not last."""

from __future__ import annotations

import itertools
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from metadata_raft.queries import SNAPSHOT_SECONDS_MAX
from metadata_raft.readers import CONNECTIONS_MAX, ReaderPool
from metadata_raft.state_errors import ReadersBusyError, SnapshotExpiredError, StateCorruptError
from tests.metadata_raft.replica import (
    Replica,
    put_inline,
)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    replica = Replica(str(tmp_path / "state.db")).bootstrap()
    yield replica
    replica.close()


def test_a_snapshot_holds_still(replica: Replica) -> None:
    """Commits during a snapshot are seen by the next one."""
    replica.do(put_inline("default", "a", b"1"))
    with replica.snapshot() as snapshot:
        before = snapshot.file("default", "a")
        replica.do(put_inline("default", "a", b"2"))
        assert snapshot.file("default", "a") == before
    with replica.snapshot() as snapshot:
        after = snapshot.file("default", "a")
    assert after is not None
    assert after.inline == b"2"


def test_a_snapshot_shows_all_that_was_committed_before_its_first_query(
    replica: Replica,
) -> None:
    """After a barrier a reader must not see less (M3)."""
    with replica.snapshot():
        pass
    replica.do(put_inline("default", "a"))
    with replica.snapshot() as snapshot:
        assert snapshot.file("default", "a") is not None


def test_snapshots_work_in_threads(replica: Replica) -> None:
    """Connections wander between threads; two threads never share one."""
    replica.do(put_inline("default", "a"))
    seen: list[bool] = []

    def read() -> None:
        for _ in range(50):
            with replica.snapshot() as snapshot:
                seen.append(snapshot.file("default", "a") is not None)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 200


def test_readers_are_bounded(replica: Replica) -> None:
    """One snapshot too many is refused at once, and connections come back."""
    pool = ReaderPool(replica.path)
    contexts = [pool.snapshot() for _ in range(CONNECTIONS_MAX)]
    for context in contexts:
        context.__enter__()
    with pytest.raises(ReadersBusyError), pool.snapshot():
        pass
    for context in contexts:
        context.__exit__(None, None, None)
    with pool.snapshot() as snapshot:
        assert snapshot.bucket("default") is not None
    pool.close()
    with pytest.raises(ReadersBusyError, match="closed"), pool.snapshot():
        pass


def test_a_snapshot_expires(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its second it answers no more, and a statement that runs into it is interrupted."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    pool = ReaderPool(replica.path)
    with pool.snapshot() as snapshot:
        snapshot.bucket("default")
        now[0] += SNAPSHOT_SECONDS_MAX + 0.1
        with pytest.raises(SnapshotExpiredError):
            snapshot.bucket("default")
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    ticks = itertools.count(1000)
    monkeypatch.setattr("time.monotonic", lambda: next(ticks) / 100)
    with pytest.raises(SnapshotExpiredError), pool.snapshot() as snapshot:
        snapshot._execute(endless).fetchone()
    monkeypatch.undo()
    with pool.snapshot() as snapshot:
        assert snapshot.bucket("default") is not None
    pool.close()


def test_another_file_can_take_the_place(replica: Replica, tmp_path: Path) -> None:
    """While suspended, and only then, nobody reads; afterwards everybody reads the new file."""
    other = Replica(str(tmp_path / "other.db")).bootstrap()
    other.do(put_inline("default", "theirs"))
    other.close()
    pool = ReaderPool(replica.path)
    ended: list[str] = []
    held = pool.snapshot()
    snapshot = held.__enter__()
    assert snapshot.file("default", "theirs") is None

    def suspend() -> None:
        pool.suspend()
        ended.append("suspended")

    thread = threading.Thread(target=suspend)
    thread.start()
    while not pool._closed:
        thread.join(0.001)
    with pytest.raises(ReadersBusyError), pool.snapshot():
        pass
    assert ended == []
    held.__exit__(None, None, None)
    thread.join()
    assert ended == ["suspended"]
    replica.machine.close()
    os.replace(other.path, replica.path)
    pool.reopen()
    with pool.snapshot() as snapshot:
        assert snapshot.file("default", "theirs") is not None
    pool.close()


def test_reopening_ends_what_is_idle(replica: Replica) -> None:
    """A connection from before is closed when it comes back, not used again."""
    pool = ReaderPool(replica.path)
    with pool.snapshot() as snapshot:
        assert snapshot.bucket("default") is not None
        pool.reopen()
    assert pool._idle == []
    with pool.snapshot() as snapshot:
        assert snapshot.bucket("default") is not None
    assert len(pool._idle) == 1
    pool.close()


def test_an_error_of_the_disk_is_told_and_leaks_nothing(replica: Replica) -> None:
    """SQLite ends a transaction by itself when the disk fails: that is damage, told as such, and
    the connection comes back to the pool."""

    def fail() -> None:
        with replica.snapshot() as snapshot:
            snapshot._execute("ROLLBACK")
            raise sqlite3.OperationalError("disk I/O error")

    for _ in range(CONNECTIONS_MAX + 1):
        with pytest.raises(StateCorruptError, match="disk I/O error"):
            fail()


def test_a_snapshot_can_only_read(replica: Replica) -> None:
    """A statement that writes fails, and is reported as what it is."""
    with pytest.raises(StateCorruptError), replica.snapshot() as snapshot:
        snapshot._execute("DELETE FROM files")
    with pytest.raises(StateCorruptError), ReaderPool(replica.path + ".no").snapshot():
        pass
