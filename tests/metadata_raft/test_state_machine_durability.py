"""Crashes, checkpoints, and files that are not what they should be (rule M4)."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from metadata_raft.commands import (
    CLUSTER_VERSION_SUPPORTED,
    AdvanceGeneration,
    SetClusterVersion,
)
from metadata_raft.errors import FatalRaftError
from metadata_raft.state_errors import StateCorruptError, UnknownVersionError
from metadata_raft.state_machine import StateMachine
from tests.metadata_raft.replica import (
    Replica,
    put_chunks,
    put_inline,
    tables_of,
)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    replica = Replica(str(tmp_path / "state.db")).bootstrap()
    yield replica
    replica.close()


def test_a_crash_between_commits_is_healed_by_the_log(replica: Replica, tmp_path: Path) -> None:
    """A copy taken in mid-batch holds the last commit; replaying the log makes it equal."""
    for number in range(5):
        replica.do(put_chunks("default", f"{number}", number))
    entry = replica.entry([replica.propose(put_chunks("default", "uncommitted", 9))])
    replica.log.append(entry)
    replica.machine.apply(len(replica.log), 1, entry)
    for suffix in ("", "-wal"):
        shutil.copy(replica.path + suffix, tmp_path / f"copy.db{suffix}")
    replica.machine.flush()

    copy = StateMachine(str(tmp_path / "copy.db"))
    assert copy.applied.index == len(replica.log) - 1
    answered = [copy.apply(index, 1, logged) for index, logged in enumerate(replica.log, start=1)]
    assert [len(answers) for answers in answered] == [0] * (len(replica.log) - 1) + [1]
    copy.close()
    assert tables_of(str(tmp_path / "copy.db")) == tables_of(replica.path)


def test_a_lost_log_file_of_sqlite_is_healed_by_the_journal(
    replica: Replica, tmp_path: Path
) -> None:
    """After power loss the state may be an older commit; the log from there on makes it equal."""
    replica.do(put_inline("default", "a"))
    index = replica.machine.checkpoint()
    assert index == len(replica.log)
    replica.reopen()  # closing copies everything into the main file
    replica.do(put_inline("default", "b"))
    shutil.copy(replica.path, tmp_path / "old.db")
    old = StateMachine(str(tmp_path / "old.db"))
    assert index <= old.applied.index < len(replica.log)
    for number in range(old.applied.index, len(replica.log)):
        old.apply(number + 1, 1, replica.log[number])
    old.close()
    assert tables_of(str(tmp_path / "old.db")) == tables_of(replica.path)


@pytest.mark.parametrize("seed", range(8))
def test_power_loss_leaves_an_earlier_commit(replica: Replica, tmp_path: Path, seed: int) -> None:
    """SQLite's log cut or damaged anywhere gives a prefix of the commits; the rest is replayed."""
    choose = random.Random(seed)
    replica.reopen()  # what was made so far goes into the main file
    for number in range(20):
        replica.do(put_chunks("default", f"{number % 7}", number))
    shutil.copy(replica.path, tmp_path / "copy.db")
    log = bytearray(Path(replica.path + "-wal").read_bytes())
    place = choose.randrange(len(log))
    if seed % 2:
        log[place] ^= 0xFF
    else:
        del log[place:]
    (tmp_path / "copy.db-wal").write_bytes(log)

    copy = StateMachine(str(tmp_path / "copy.db"))
    assert copy.applied.index <= len(replica.log)
    for index in range(copy.applied.index, len(replica.log)):
        copy.apply(index + 1, 1, replica.log[index])
    copy.close()
    assert tables_of(str(tmp_path / "copy.db")) == tables_of(replica.path)


def test_a_checkpoint_is_a_full_sync_of_something_written(replica: Replica) -> None:
    """The commit runs under synchronous=FULL and writes a page, for else SQLite syncs nothing."""
    replica.do(put_inline("default", "a"))
    statements: list[str] = []
    connection = replica.machine._connection
    connection.set_trace_callback(statements.append)
    frames = os.path.getsize(replica.path + "-wal")
    assert replica.machine.checkpoint() == len(replica.log)
    connection.set_trace_callback(None)
    full = statements.index("PRAGMA synchronous = FULL")
    commit = statements.index("COMMIT", full)
    assert statements.index("PRAGMA synchronous = NORMAL") > commit
    assert os.path.getsize(replica.path + "-wal") > frames
    assert connection.execute("PRAGMA synchronous").fetchone() == (1,)


def test_a_checkpoint_commits_what_is_grouped(replica: Replica) -> None:
    """The returned index covers entries applied but not flushed before."""
    entry = replica.entry([replica.propose(AdvanceGeneration(expected=0))])
    replica.machine.apply(50, 1, entry)
    assert replica.machine.checkpoint() == 50
    assert replica.rows("SELECT applied_index, generation FROM cluster") == [(50, 1)]


def test_the_log_of_sqlite_stays_short(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copying back happens beside the commits, and then the log starts over."""
    monkeypatch.setattr("metadata_raft.wal.WAL_SIZE_START", 256 * 1024)
    replica.reopen()
    keeper = replica.machine._wal
    sizes: list[int] = []
    for number in range(300):
        replica.do(put_inline("default", f"{number:04}", bytes(4000)))
        sizes.append(os.path.getsize(replica.path + "-wal"))
        if keeper._copier is not None:
            # However slow the disk: the commit after the copy finds it done.
            keeper._copier.join()
    assert max(sizes) < 512 * 1024
    assert sizes.count(0) > 3
    assert replica.rows("SELECT count(*) FROM files") == [(300,)]


def test_a_long_reader_does_not_hold_up_commits(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a read transaction keeps the log in use, restarts are tried as it grows, not always."""
    monkeypatch.setattr("metadata_raft.wal.WAL_SIZE_START", 256 * 1024)
    replica.reopen()
    keeper = replica.machine._wal
    restarts: list[int] = []
    restart = keeper._restart

    def counted() -> None:
        restart()
        restarts.append(os.path.getsize(replica.path + "-wal"))

    monkeypatch.setattr(keeper, "_restart", counted)
    reader = sqlite3.connect(replica.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT 1 FROM cluster").fetchone()
    for number in range(200):
        replica.do(put_inline("default", f"{number:04}", bytes(4000)))
        if keeper._copier is not None:
            keeper._copier.join()
    held = len(restarts)
    assert 0 < held <= restarts[-1] // (256 * 1024) + 1
    assert min(restarts) > 0
    reader.close()
    for number in range(100):
        replica.do(put_inline("default", f"{number:04}", bytes(4000)))
        if keeper._copier is not None:
            keeper._copier.join()
    assert 0 in restarts[held:]


def test_a_foreign_or_damaged_file_is_refused(tmp_path: Path) -> None:
    """What isn't a state of ours, or is of newer software, ends the start with a reason."""
    (tmp_path / "text.db").write_bytes(b"no database at all, but long enough to be read" * 100)
    with pytest.raises(StateCorruptError, match=r"text\.db"):
        StateMachine(str(tmp_path / "text.db"))
    connection = sqlite3.connect(tmp_path / "newer.db")
    connection.execute("PRAGMA user_version = 3")
    connection.close()
    with pytest.raises(UnknownVersionError, match="schema version 3"):
        StateMachine(str(tmp_path / "newer.db"))
    Replica(str(tmp_path / "followed.db")).close()
    connection = sqlite3.connect(tmp_path / "followed.db")
    connection.execute("UPDATE cluster SET cluster_version = 3")
    connection.commit()
    connection.close()
    with pytest.raises(UnknownVersionError, match="cluster version 3"):
        StateMachine(str(tmp_path / "followed.db"))
    assert issubclass(StateCorruptError, FatalRaftError)
    assert issubclass(UnknownVersionError, FatalRaftError)


def test_a_failing_disk_ends_the_process(replica: Replica) -> None:
    """A database error is never an answer: it is local, so it must not look like a result."""
    replica.machine._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StateCorruptError):
        replica.do(put_inline("default", "a"))


def test_part_of_an_entry_is_never_committed(replica: Replica) -> None:
    """An error in mid-entry takes the whole entry back; nothing can be applied or flushed then."""
    before = tables_of(replica.path)
    entry = replica.entry(
        [
            replica.propose(put_inline("default", "a")),
            replica.propose(SetClusterVersion(version=CLUSTER_VERSION_SUPPORTED + 1)),
        ]
    )
    index = replica.machine.applied.index + 1
    with pytest.raises(UnknownVersionError):
        replica.machine.apply(index, 1, entry)
    for attempt in (
        replica.machine.flush,
        replica.machine.checkpoint,
        lambda: replica.machine.apply(index, 1, entry),
    ):
        with pytest.raises(StateCorruptError, match="after an error"):
            attempt()
    replica.machine.close()
    assert tables_of(replica.path) == before


def test_closing_twice_is_closing_once(replica: Replica) -> None:
    """A stop path may call it again."""
    replica.machine.close()
    replica.close()
