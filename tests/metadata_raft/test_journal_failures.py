"""Errors of the disk below the journal: a failed sync ends the node, a full disk does not (M4)."""

from __future__ import annotations

import errno
from typing import get_args

import pytest

from metadata_raft.journal import ROOM_FOR_LIBRARY_BYTES, JournalSettings
from metadata_raft.storage import Storage
from metadata_raft.storage_errors import (
    StorageFailedError,
    StorageFullError,
    StorageUnusableError,
)
from tests.fakes.filesystem import FakeFileSystem, Operation
from tests.metadata_raft.journal_world import DIRECTORY, new_disk, open_journal

SETTINGS = JournalSettings(segment_bytes=128 * 1024, reserve_bytes=0, tail_entries=0, tail_bytes=0)
RESERVED = JournalSettings(
    segment_bytes=128 * 1024, reserve_bytes=256 * 1024, tail_entries=0, tail_bytes=0
)


def begin(disk: FakeFileSystem, settings: JournalSettings = SETTINGS) -> Storage:
    storage = open_journal(disk, settings)
    storage.journal.add(b"\x01", 1, 0)
    storage.journal.flush()
    storage.journal.setCurrentTerm(1, None)
    return storage


def append(storage: Storage, size: int = 1000) -> None:
    storage.journal.add(bytes(size), storage.journal.last_index + 1, 1)


def exercise(storage: Storage) -> None:
    """Every kind of change a journal makes."""
    journal = storage.journal
    for _ in range(3):
        append(storage)
    journal.flush()
    for _ in range(100):
        append(storage, 3000)
        journal.flush()
    journal.setCurrentTerm(2, "a")
    journal.deleteEntriesFrom(len(journal) - 60)
    journal.add(b"new", journal.last_index + 1, 2)
    journal.flush()
    journal.compact(journal.last_index)
    journal.reset(journal.last_index + 10, 2)


@pytest.mark.parametrize(
    "operation", sorted(set(get_args(Operation)) - {"punch_hole", "make_directory"})
)
def test_any_error_ends_the_node(operation: Operation) -> None:
    """Whichever operation fails: no acknowledgement, the directory is suspect, nothing works any
    more, and the next start is refused until somebody has looked at the disk."""
    nth = 1
    failures = 0
    while True:
        disk = new_disk()
        storage = begin(disk)
        disk.fail(operation, errno.EIO, nth=nth)
        try:
            exercise(storage)
            break
        except StorageFailedError:
            failures += 1
        acknowledged = storage.journal.durable_index
        with pytest.raises(StorageFailedError, match="failed before"):
            storage.journal.setCurrentTerm(9, None)
        storage.close()
        assert storage.journal.durable_index == acknowledged
        with pytest.raises(StorageUnusableError, match="suspect"):
            open_journal(disk, SETTINGS)
        # Whoever finds the disk sound removes the mark; what was durable is there.
        found = disk.crashed_copy(nth)
        found.unlink(f"{DIRECTORY}/suspect")
        journal = open_journal(found, SETTINGS).journal
        assert len(journal) > 0
        nth += 1
    assert failures > 0


def test_failed_sync_is_not_repeated() -> None:
    """After a failed sync a second one would succeed and mean nothing: what was not durable is
    never acknowledged."""
    disk = new_disk()
    storage = begin(disk)
    append(storage)
    disk.fail("datasync", errno.EIO)
    for _ in range(2):
        with pytest.raises(StorageFailedError):
            storage.journal.flush()
    assert storage.journal.durable_index == 1


def test_full_disk_takes_the_batch_back() -> None:
    """Where a flush finds the disk full, its entries are gone from memory and disk, everything
    before them stays, and the journal goes on when there is room again."""
    disk = new_disk(capacity_bytes=2 * 128 * 1024 + 64 * 1024)
    storage = begin(disk)
    journal = storage.journal
    for _ in range(100):
        append(storage)
    journal.flush()
    durable = journal[:]
    for _ in range(300):
        append(storage)
    with pytest.raises(StorageFullError):
        journal.flush()
    kept = journal[:]
    assert kept[: len(durable)] == durable
    assert journal.last_index == journal.durable_index
    assert open_journal(disk.crashed_copy(1), SETTINGS).journal[:] == kept
    disk.capacity_bytes = 1 << 30
    for _ in range(300):
        append(storage)
    journal.flush()
    assert open_journal(disk.crashed_copy(2), SETTINGS).journal[:] == journal[:]


def test_full_disk_in_the_middle_of_a_write() -> None:
    """A write that the full disk took half of leaves nothing behind, even after a power cut."""
    disk = new_disk()
    storage = begin(disk)
    append(storage)
    storage.journal.flush()
    durable = storage.journal[:]
    append(storage, 5000)
    append(storage, 5000)
    disk.fail("write", errno.ENOSPC)
    with pytest.raises(StorageFullError):
        storage.journal.flush()
    assert storage.journal[:] == durable
    for seed in range(20):
        assert open_journal(disk.crashed_copy(seed), SETTINGS).journal[:] == durable


def test_room_is_asked_for_before_anything_changes() -> None:
    """With `ensure_room` a leader learns of a full disk before it appends: what it was granted
    can then be flushed, also with what the library appends by itself."""
    disk = new_disk(capacity_bytes=600 * 1024)
    storage = begin(disk)
    journal = storage.journal
    refused = 0
    for _ in range(400):
        try:
            journal.ensure_room(8000)
        except StorageFullError:
            refused += 1
            continue
        append(storage, 8000)
        journal.flush()
    assert refused > 0
    last = journal.last_index
    append(storage, ROOM_FOR_LIBRARY_BYTES - 8000)
    journal.flush()
    assert open_journal(disk.crashed_copy(1), SETTINGS).journal.last_index == last + 1


def fill_up(storage: Storage) -> None:
    """Append ordinary entries until they are refused."""
    with pytest.raises(StorageFullError):  # noqa: PT012 - the loop is what fails.
        while True:
            storage.journal.ensure_room(4000)
            append(storage, 4000)
            storage.journal.flush()


def test_some_of_the_reserve_is_the_states() -> None:
    """The journal stops before the disk is full to the last byte: the state machine, which writes
    what was appended, would fail for good where the journal only has to wait."""
    disk = new_disk(capacity_bytes=4 << 20)
    storage = begin(disk, RESERVED)
    disk.capacity_bytes = disk.allocated_bytes()
    storage.journal.ensure_room(1000, privileged=True)
    assert not disk.exists(f"{DIRECTORY}/reserve")
    disk.capacity_bytes = disk.allocated_bytes() + RESERVED.reserve_bytes // 4 - 1
    with pytest.raises(StorageFullError):
        storage.journal.ensure_room(1000, privileged=True)


def test_reserve_serves_what_frees_space() -> None:
    """When ordinary entries are refused, privileged ones still fit for a good while; and when
    space is free again, the reserve is set aside anew."""
    disk = new_disk(capacity_bytes=1 << 20)
    storage = begin(disk, RESERVED)
    journal = storage.journal
    assert disk.exists(f"{DIRECTORY}/reserve")
    fill_up(storage)
    assert disk.exists(f"{DIRECTORY}/reserve")
    for _ in range(40):
        journal.ensure_room(4000, privileged=True)
        append(storage, 4000)
        journal.flush()
    assert not disk.exists(f"{DIRECTORY}/reserve")
    with pytest.raises(StorageFullError):
        journal.ensure_room(10)
    journal.onOneSecondTimer()
    assert not disk.exists(f"{DIRECTORY}/reserve")
    disk.capacity_bytes = 4 << 20
    journal.onOneSecondTimer()
    assert disk.exists(f"{DIRECTORY}/reserve")
    journal.ensure_room(4000)


def test_votes_and_compaction_on_a_full_disk() -> None:
    """A disk without a single free block keeps a node neither from voting nor from compacting."""
    disk = new_disk()
    storage = begin(disk, RESERVED)
    journal = storage.journal
    for _ in range(100):
        append(storage, 4000)
    journal.flush()
    disk.capacity_bytes = disk.allocated_bytes()
    journal.setCurrentTerm(5, "a")
    assert not disk.exists(f"{DIRECTORY}/reserve")
    disk.capacity_bytes = 4 << 20
    journal.onOneSecondTimer()
    disk.capacity_bytes = disk.allocated_bytes()
    before = disk.allocated_bytes()
    assert journal.compact(journal.last_index) > 1
    assert disk.allocated_bytes() < before
    found = open_journal(disk.crashed_copy(1), SETTINGS)
    assert (found.vote.current.term, found.journal.last_index) == (5, journal.last_index)


def test_full_disk_at_a_reset() -> None:
    """A reset that finds the disk full ends the process; the old log stands, unsuspected."""
    disk = new_disk()
    storage = begin(disk)
    append(storage)
    storage.journal.flush()
    old = storage.journal[:]
    disk.capacity_bytes = disk.allocated_bytes()
    with pytest.raises(StorageFailedError, match="No space left"):
        storage.journal.reset(50, 1)
    disk.capacity_bytes = None
    assert open_journal(disk.crashed_copy(1), SETTINGS).journal[:] == old
