"""The journal as the library uses it, its bytes, and what it refuses to start on."""

from __future__ import annotations

import random

import pytest

from metadata_raft import journal_format
from metadata_raft.errors import StateMismatchError
from metadata_raft.journal import JournalSettings
from metadata_raft.journal_files import segment_path
from metadata_raft.journal_format import (
    HEADER_SIZE,
    RECORD_OVERHEAD,
    FileHeader,
    decode_contents,
    decode_header,
    encode_header,
    encode_record,
    record_size,
)
from metadata_raft.manifest import Identity
from metadata_raft.messages import LogEntry
from metadata_raft.storage import Storage, check_state, open_storage
from metadata_raft.storage_errors import (
    StorageDamagedError,
    StorageForeignError,
    StorageUnusableError,
)
from metadata_raft.suspect import SUSPECT_NAME
from ring.filesystem import read_file, write_file_atomically
from tests.fakes.filesystem import FakeFileSystem
from tests.metadata_raft.journal_world import DIRECTORY, IDENTITY, new_disk, open_journal

FIRST = segment_path(DIRECTORY, 1)
PLAIN = JournalSettings(segment_bytes=1 << 20, reserve_bytes=0)


def entry(index: int, term: int = 1) -> LogEntry:
    return (b"entry %d " % index * 20, index, term)


def filled(disk: FakeFileSystem, count: int, *, per_flush: int = 1) -> Storage:
    """A journal of entries 1 to `count`, flushed in groups."""
    storage = open_journal(disk, PLAIN)
    journal = storage.journal
    journal.add(b"\x01", 1, 0)
    journal.flush()
    journal.setCurrentTerm(1, "a")
    for index in range(2, count + 1):
        journal.add(*entry(index))
        if (index - 1) % per_flush == 0:
            journal.flush()
    journal.flush()
    return storage


# --- as the library sees it --------------------------------------------------------------------


def test_behaves_like_a_list() -> None:
    """Positions, slices, negatives and length are those of a list of (command, index, term)."""
    journal = filled(new_disk(), 6).journal
    expected = [(b"\x01", 1, 0)] + [entry(index) for index in range(2, 7)]
    assert len(journal) == 6
    assert journal[:] == expected
    assert journal[0] == expected[0]
    assert journal[-1] == expected[-1]
    assert journal[2:4] == expected[2:4]
    assert journal[-2:] == expected[-2:]
    assert journal[9:] == []
    with pytest.raises(IndexError):
        journal[6]


def test_unflushed_entries_are_seen_and_not_durable() -> None:
    """What was added can be read at once, but counts as durable only after the flush."""
    journal = filled(new_disk(), 3).journal
    journal.add(*entry(4))
    assert journal[-1] == entry(4)
    assert (journal.last_index, journal.durable_index) == (4, 3)
    journal.flush()
    assert journal.durable_index == 4


def test_one_write_and_one_sync_per_flush() -> None:
    """A batch costs one write and one sync, and a flush of nothing costs nothing."""
    disk = new_disk()
    journal = filled(disk, 3).journal
    before = len(disk.log)
    for index in range(4, 40):
        journal.add(*entry(index))
    journal.flush()
    journal.flush()
    assert [operation for operation, _ in disk.log[before:]] == ["write", "datasync"]


def test_deletion_of_the_end_is_durable() -> None:
    """Entries a new leader replaces are gone when the call returns, whatever happens then."""
    disk = new_disk()
    journal = filled(disk, 10).journal
    journal.add(*entry(11))
    journal.deleteEntriesFrom(6)
    assert journal.last_index == 6
    for seed in range(20):
        assert open_journal(disk.crashed_copy(seed), PLAIN).journal[:] == journal[:]
    journal.setCurrentTerm(2, None)
    journal.add(*entry(7, 2))
    journal.flush()
    assert open_journal(disk.crashed_copy(1), PLAIN).journal[-1] == entry(7, 2)


def test_deletion_of_everything_keeps_the_old_log_on_disk() -> None:
    """Until a new log is flushed the disk holds the old one; then it holds the new one."""
    disk = new_disk()
    journal = filled(disk, 5).journal
    old = journal[:]
    journal.deleteEntriesFrom(0)
    assert len(journal) == 0
    journal.flush()
    assert open_journal(disk.crashed_copy(1), PLAIN).journal[:] == old
    journal.add(*entry(30))
    journal.flush()
    assert open_journal(disk.crashed_copy(1), PLAIN).journal[:] == [entry(30)]


def test_term_and_vote_come_back() -> None:
    disk = new_disk()
    filled(disk, 2)
    journal = open_journal(disk.crashed_copy(1), PLAIN).journal
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (1, "a")


def test_commit_index_is_never_beyond_the_log() -> None:
    journal = filled(new_disk(), 5).journal
    journal.setRaftCommitIndex(99)
    assert journal.getRaftCommitIndex() == 5
    journal.setRaftCommitIndex(3)
    assert journal.getRaftCommitIndex() == 3


def test_gaps_and_early_terms_are_defects() -> None:
    """An entry that leaves a gap, goes back in term, or is of a term that was not stored, is
    never accepted."""
    journal = filled(new_disk(), 3).journal
    for wrong in (entry(5), entry(3), entry(4, 0), entry(4, 2)):
        with pytest.raises(AssertionError):
            journal.add(*wrong)


def test_reset_keeps_what_follows_a_known_entry() -> None:
    """As in InstallSnapshot, entries behind one the log agrees with stay; they may have been
    acknowledged. Otherwise the log is replaced, and the term is stored first."""
    disk = new_disk()
    journal = filled(disk, 10).journal
    journal.reset(4, 1)
    assert journal.last_index == 10
    journal.reset(4, 7)
    assert journal[:] == [(b"\x01", 4, 7)]
    found = open_journal(disk.crashed_copy(1), PLAIN)
    assert found.journal[:] == [(b"\x01", 4, 7)]
    assert found.vote.current.term == 7


def test_large_entry_has_a_segment_of_its_own() -> None:
    """An entry larger than a segment is stored all the same."""
    disk = new_disk()
    settings = JournalSettings(segment_bytes=1024, reserve_bytes=0)
    journal = open_journal(disk, settings).journal
    journal.add(b"\x01", 1, 0)
    journal.setCurrentTerm(1, None)
    journal.add(b"x" * 300_000, 2, 1)
    journal.add(b"y", 3, 1)
    journal.flush()
    assert open_journal(disk.crashed_copy(1), settings).journal[:] == journal[:]


# --- damage ------------------------------------------------------------------------------------


def test_every_flipped_bit_of_synced_records_is_noticed() -> None:
    """Damage to an entry that was durable once is never cut off as a torn tail, nor served: with
    any later record there, the node refuses to start. Only padding may be anything."""
    disk = new_disk()
    storage = filled(disk, 6)
    storage.close()
    padding = range((HEADER_SIZE + RECORD_OVERHEAD + 1) * 8, (HEADER_SIZE + record_size(1)) * 8)
    chance = random.Random(1)
    last = HEADER_SIZE + record_size(1) + 4 * record_size(len(entry(3)[0]))
    for bit in chance.sample(range(last * 8), 400):
        disk.flip_bit(FIRST, bit)
        if bit in padding:
            assert open_journal(disk.crashed_copy(1), PLAIN).journal[:] == storage.journal[:]
        else:
            with pytest.raises(StorageUnusableError):
                open_journal(disk.crashed_copy(1), PLAIN)
        disk.flip_bit(FIRST, bit)
    assert open_journal(disk.crashed_copy(1), PLAIN).journal[:] == storage.journal[:]


def test_torn_last_record_is_cut() -> None:
    """A damaged record with nothing durable behind it is a torn tail; the log goes on there."""
    disk = new_disk()
    filled(disk, 6).close()
    disk.flip_bit(
        FIRST, (HEADER_SIZE + record_size(1) + 4 * record_size(len(entry(3)[0])) + 50) * 8
    )
    journal = open_journal(disk, PLAIN).journal
    assert journal[:] == [(b"\x01", 1, 0)] + [entry(index) for index in range(2, 6)]
    journal.add(*entry(6))
    journal.flush()
    assert open_journal(disk.crashed_copy(1), PLAIN).journal[-1] == entry(6)


def test_torn_batch_is_no_damage() -> None:
    """Of one flush a later record can reach the disk without an earlier one: nobody was promised
    either, so that is a torn tail and not damage."""
    disk = new_disk()
    filled(disk, 7, per_flush=6)
    first_of_batch = HEADER_SIZE + record_size(1)
    disk.flip_bit(FIRST, (first_of_batch + 60) * 8)
    assert open_journal(disk, PLAIN).journal[:] == [(b"\x01", 1, 0)]


def test_contents_can_t_forge_a_record() -> None:
    """Bytes a client chooses, though they look like records of this very journal's form, are
    never taken for one, nor do they turn a torn tail into damage."""
    disk = new_disk()
    journal = filled(disk, 3).journal
    forged = b"".join(bytes(piece) for piece in encode_record(bytes(32), entry(4), 1 << 20))
    journal.add(bytes(8) + forged * 3, 4, 1)
    journal.flush()
    offset = HEADER_SIZE + record_size(1) + 2 * record_size(len(entry(3)[0]))
    disk.flip_bit(FIRST, offset * 8)
    assert open_journal(disk, PLAIN).journal.last_index == 3


def test_records_of_a_former_file_don_t_count() -> None:
    """What stood in the same blocks before is no record of this file."""
    header = FileHeader(1, 1, b"k" * 32, begins_log=True)
    other = b"".join(bytes(piece) for piece in encode_record(b"o" * 32, entry(1), HEADER_SIZE))
    data = encode_header(header, IDENTITY) + other
    assert decode_contents(data, header, FIRST).entries == []


@pytest.mark.parametrize("number", [1, 2, 3])
def test_missing_segment(number: int) -> None:
    """A segment that is missing, whichever but the last, is noticed."""
    disk = new_disk()
    settings = JournalSettings(segment_bytes=2048, reserve_bytes=0)
    journal = open_journal(disk, settings).journal
    journal.add(b"\x01", 1, 0)
    journal.setCurrentTerm(1, None)
    for index in range(2, 40):
        journal.add(*entry(index))
    journal.flush()
    disk.unlink(segment_path(DIRECTORY, number))
    with pytest.raises(StorageDamagedError):
        open_journal(disk, settings)


def test_segment_under_another_name() -> None:
    """A segment copied over another one is noticed."""
    disk = new_disk()
    settings = JournalSettings(segment_bytes=2048, reserve_bytes=0)
    journal = open_journal(disk, settings).journal
    journal.add(b"\x01", 1, 0)
    journal.setCurrentTerm(1, None)
    for index in range(2, 40):
        journal.add(*entry(index))
    journal.flush()
    data = read_file(disk, segment_path(DIRECTORY, 2))
    write_file_atomically(disk, segment_path(DIRECTORY, 3), data)
    with pytest.raises(StorageDamagedError, match="it is segment 2"):
        open_journal(disk, settings)


# --- what it refuses to start on ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("vote", "missing beside a journal"),
        ("manifest", "missing beside a journal or vote"),
        ("journal-000000000001", "the journal does not begin"),
    ],
)
def test_missing_file(missing: str, sentence: str) -> None:
    """A file that is missing beside the others means forgotten promises: no start (M4)."""
    disk = new_disk()
    filled(disk, 3).close()
    disk.unlink(f"{DIRECTORY}/{missing}")
    with pytest.raises(StorageDamagedError, match=sentence):
        open_journal(disk, PLAIN)


def test_old_vote_file() -> None:
    """A vote file older than the journal was restored from somewhere: no start."""
    disk = new_disk()
    storage = filled(disk, 3)
    old = read_file(disk, f"{DIRECTORY}/vote")
    storage.journal.setCurrentTerm(5, None)
    storage.journal.add(*entry(4, 5))
    storage.close()
    write_file_atomically(disk, f"{DIRECTORY}/vote", old)
    with pytest.raises(StorageDamagedError, match="older than the journal"):
        open_journal(disk, PLAIN)


@pytest.mark.parametrize("other", [Identity("other", "node"), Identity("cluster", "other")])
def test_foreign_journal(other: Identity) -> None:
    """A directory, or a single file of the journal, of another node or cluster is refused."""
    disk = new_disk()
    filled(disk, 3).close()
    with pytest.raises(StorageForeignError):
        open_storage(disk, DIRECTORY, other, settings=PLAIN)
    with pytest.raises(StorageForeignError):
        decode_header(read_file(disk, FIRST), other, FIRST)


def test_newer_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal of a later version is refused by name, not taken for damaged."""
    header = FileHeader(1, 1, bytes(32), begins_log=True)
    monkeypatch.setattr(journal_format, "FORMAT_VERSION", 9)
    data = encode_header(header, IDENTITY)
    monkeypatch.undo()
    with pytest.raises(StorageUnusableError, match="has format version 9"):
        decode_header(data, IDENTITY, FIRST)
    with pytest.raises(StorageDamagedError, match="50 bytes long"):
        decode_header(data[:50], IDENTITY, FIRST)


def test_suspect_directory() -> None:
    """After a failed write or sync the node doesn't start until somebody has looked."""
    disk = new_disk()
    filled(disk, 3).close()
    write_file_atomically(disk, f"{DIRECTORY}/{SUSPECT_NAME}", b"Input/output error")
    with pytest.raises(StorageUnusableError, match="Input/output error"):
        open_journal(disk, PLAIN)
    disk.unlink(f"{DIRECTORY}/{SUSPECT_NAME}")
    assert len(open_journal(disk, PLAIN).journal) == 3


def test_leftovers_are_removed() -> None:
    """Unfinished files and segments the manifest does not count disappear at start."""
    disk = new_disk()
    storage = filled(disk, 3)
    storage.journal.reset(50, 1)
    storage.close()
    for name in (
        "journal-000000000001",
        "journal-000000000009.new",
        "vote.new",
        "state.db.incoming",
        "state.db.outgoing",
        "state.db.outgoing-journal",
    ):
        disk.open(f"{DIRECTORY}/{name}", create=True).close()
    open_journal(disk, PLAIN)
    assert disk.names(DIRECTORY) == ["journal-000000000002", "manifest", "vote"]


# --- journal and state -------------------------------------------------------------------------


def test_state_ahead_of_the_journal() -> None:
    """Nothing is applied before it is durable: a state that holds more than the journal shows
    that durable entries are gone, even where that looked like a torn tail."""
    disk = new_disk()
    filled(disk, 5).close()
    offset = HEADER_SIZE + record_size(1) + 3 * record_size(len(entry(3)[0]))
    disk.flip_bit(FIRST, (offset + 60) * 8)
    journal = open_journal(disk, PLAIN).journal
    assert journal.last_index == 4
    with pytest.raises(StorageDamagedError, match="holds entry 5, the journal ends with 4"):
        check_state(journal, applied_index=5, applied_term=1)
    with pytest.raises(StorageDamagedError, match="holds entry 3, the journal ends with 0"):
        check_state(open_journal(new_disk()).journal, applied_index=3, applied_term=1)


def test_state_within_the_journal() -> None:
    """Where both fit all is well; where they contradict each other the node stops."""
    journal = filled(new_disk(), 5).journal
    check_state(journal, applied_index=0, applied_term=0)
    check_state(journal, applied_index=4, applied_term=1)
    check_state(journal, applied_index=5, applied_term=1)
    check_state(open_journal(new_disk()).journal, applied_index=0, applied_term=0)
    with pytest.raises(StateMismatchError, match="has term"):
        check_state(journal, applied_index=4, applied_term=3)


def test_state_behind_the_journal() -> None:
    """Entries between state and journal that are nowhere: the node stops."""
    journal = filled(new_disk(), 5).journal
    journal.reset(50, 1)
    check_state(journal, applied_index=50, applied_term=1)
    with pytest.raises(StorageDamagedError, match="begins with 50"):
        check_state(journal, applied_index=49, applied_term=1)
