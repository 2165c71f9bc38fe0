"""The Raft log on disk: what was flushed survives, whatever the machine does next.

`add` appends in memory, `flush` makes all that was added durable with one write and one sync, and
only then may an entry be acknowledged, or counted by the leader itself. The log is a run of
segment files of a few megabytes. Compaction removes whole segments from the front: one small
atomic manifest write and some unlinks, whatever the log's size. All entries stay in memory too;
compaction bounds them to the tail it keeps plus what the state has not made durable yet.

It has the methods that pysyncobj asks of a journal (their names are the library's) without
knowing the library. Positions are those of a list; `index` is always Raft's. Raft thread only.
Layout: docs/format.md, "Journal". Directories are opened with `metadata_raft/storage.py`.
"""

# ruff: noqa: N802, N803 - the library's names.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import overload

from metadata_raft.compaction import SegmentSummary, segments_to_drop
from metadata_raft.configuration import NO_OP
from metadata_raft.journal_files import JournalFiles
from metadata_raft.journal_format import record_size
from metadata_raft.manifest import Base
from metadata_raft.messages import LogEntry
from metadata_raft.reserve import Reserve
from metadata_raft.storage_errors import StorageFailedError, StorageFullError
from metadata_raft.suspect import is_disk_full, mark_suspect
from metadata_raft.vote_file import VoteFile
from ring.filesystem import FileSystem
from ring.members import NodeId

ROOM_FOR_LIBRARY_BYTES = 64 * 1024
"""What `ensure_room` leaves free besides: elections append entries without asking."""


@dataclass(frozen=True)
class JournalSettings:
    """Sizes, in bytes unless said otherwise."""

    segment_bytes: int = 8 * 1024 * 1024
    """Of a file of the log; also the step of compaction."""
    tail_entries: int = 20_000
    tail_bytes: int = 32 * 1024 * 1024
    """Compaction keeps as many entries, in at most so many bytes, for followers that lag."""
    lease_bytes: int = 128 * 1024 * 1024
    """A state download holds compaction back until the log, which is in memory too, is this long
    (rule M6): several seconds of the fullest load, and minutes of an ordinary one."""
    reserve_bytes: int = 32 * 1024 * 1024
    """Given up when the disk is full, so that deletions and generations go on (rule M4)."""


class Journal:
    """The log and its vote, for the library and the engine around it."""

    def __init__(
        self,
        filesystem: FileSystem,
        directory: str,
        entries: list[LogEntry],
        *,
        files: JournalFiles,
        vote: VoteFile,
        reserve: Reserve,
        settings: JournalSettings,
    ) -> None:
        self.directory = directory
        self._filesystem = filesystem
        self._entries = entries
        """All of the log; those beyond `files.offsets` are not durable yet."""
        self._files = files
        self._vote = vote
        self._reserve = reserve
        self._settings = settings
        self._restart = not entries
        """What is flushed next begins a new log."""
        self._commit_index = 1
        self._failed = False

    # --- what the library calls ----------------------------------------------------------------

    def add(self, command: bytes, idx: int, term: int) -> None:
        """Append an entry in memory; durable after `flush`."""
        if self._entries:
            _, last, last_term = self._entries[-1]
            assert idx == last + 1, f"entry {idx} behind {last}"
            assert term >= last_term, f"entry {idx} of term {term} behind term {last_term}"
        elif term > self._vote.current.term:
            # A downloaded state can be of a term this node has not heard of otherwise.
            self.setCurrentTerm(term, None)
        assert term <= self._vote.current.term, f"entry of term {term} before the term was stored"
        self._entries.append((command, idx, term))

    def clear(self) -> None:
        """Forget all entries; the disk keeps the old log until a new one is flushed."""
        self._entries.clear()
        self._restart = True

    def deleteEntriesFrom(self, entryFrom: int) -> None:
        """Drop the entries from a position on; durable on return unless all were dropped."""
        assert entryFrom >= 0
        if entryFrom == 0:
            self.clear()
        elif not self._restart and entryFrom < len(self._files.offsets):
            index = self._entries[entryFrom][1]
            self._guard(lambda: self._files.truncate(entryFrom, index))
        del self._entries[entryFrom:]

    def deleteEntriesTo(self, entryTo: int) -> None:
        """Drop entries before a position, where whole segments can go; the rest may stay."""
        assert entryTo >= 0
        if not self._restart and 0 < entryTo < len(self._entries):
            kept = self._entries[entryTo][1]
            segments = self._files.segments[1:]
            self._drop_segments(sum(1 for segment in segments if segment.first_index <= kept))

    @overload
    def __getitem__(self, item: int) -> LogEntry: ...

    @overload
    def __getitem__(self, item: slice) -> list[LogEntry]: ...

    def __getitem__(self, item: int | slice) -> LogEntry | list[LogEntry]:
        return self._entries[item]

    def __len__(self) -> int:
        return len(self._entries)

    def setCurrentTerm(self, term: int, votedForNodeId: NodeId | None) -> None:
        """Durable on return. Raises StorageFailedError."""
        self._guard(lambda: self._vote.store(term, votedForNodeId))

    def getCurrentTerm(self) -> int:
        return self._vote.current.term

    def getVotedForNodeId(self) -> NodeId | None:
        return self._vote.current.voted_for

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        """Remembered, not stored: what is committed, the next leader finds out again."""
        self._commit_index = raftCommitIndex

    def getRaftCommitIndex(self) -> int:
        return min(self._commit_index, self.last_index) if self._entries else 1

    def onOneSecondTimer(self) -> None:
        """Make the space reserve again where it was given up and there is room."""
        self._reserve.restore()

    def _destroy(self) -> None:
        self.close()

    # --- what the engine calls -----------------------------------------------------------------

    @property
    def first_index(self) -> int:
        """Index of the oldest entry; a member that needs this one or older needs the state."""
        return self._entries[0][1]

    @property
    def last_index(self) -> int:
        return self._entries[-1][1]

    @property
    def durable_index(self) -> int:
        """Index of the last entry that may be acknowledged; 0 where none is."""
        if self._restart or not self._files.offsets:
            return 0
        return self.first_index + len(self._files.offsets) - 1

    @property
    def size_bytes(self) -> int:
        """Bytes of the log on disk: about what its entries take in memory as well."""
        return sum(segment.size for segment in self._files.segments)

    def term_at(self, index: int) -> int | None:
        """The term of an entry, None where the log does not hold it."""
        if not self._entries or not self.first_index <= index <= self.last_index:
            return None
        return self._entries[index - self.first_index][2]

    def ensure_room(self, size_bytes: int, *, entries: int = 1, privileged: bool = False) -> None:
        """Make sure that entries of so many bytes can be appended; call it before `add`.

        Raises StorageFullError where the disk is (nearly) full; nothing was changed then. What
        frees space, or changes members, is `privileged`: it may use up the reserve.
        """
        if not self._reserve.has_room(privileged=privileged):
            raise StorageFullError(f"{self.directory}: the disk is full")
        needed = size_bytes + entries * record_size(0) + ROOM_FOR_LIBRARY_BYTES
        if self._restart or self._files.fits(needed):
            return
        self.flush()
        self._guard(lambda: self._roll(use_reserve=privileged))

    def flush(self) -> None:
        """Make every entry durable, with one write and one sync where they fit a segment.

        Raises StorageFailedError: the process must end. StorageFullError: the entries that were
        not durable before are gone, from memory too; nothing of them may be acknowledged.
        """
        if self._restart:
            if self._entries:
                self._guard(lambda: self._files.begin(self._entries))
                self._restart = False
        elif len(self._entries) > len(self._files.offsets):
            self._guard(self._append)

    def compact(self, durable_index: int, *, lease_index: int | None = None) -> int:
        """Drop segments that the state has made durable, but for the tail that is kept.

        `durable_index` is what `StateMachine.checkpoint()` returned, nothing else (rule M4). A
        `lease_index` is kept while the log is not too long (rule M6). Returns `first_index`.
        """
        if not self._restart:
            summaries = [
                SegmentSummary(segment.first_index, segment.size)
                for segment in self._files.segments
            ]
            count = segments_to_drop(
                summaries,
                durable_index=min(durable_index, self.durable_index),
                last_index=self.last_index,
                tail_entries=self._settings.tail_entries,
                tail_bytes=self._settings.tail_bytes,
                lease_index=lease_index,
                lease_bytes=self._settings.lease_bytes,
            )
            self._drop_segments(count)
        return self.first_index

    def reset(self, index: int, term: int) -> None:
        """Let the log begin behind an entry that the state covers; durable on return.

        Where that very entry is in the log, what follows it stays, as in Raft's InstallSnapshot
        (the paper, figure 13, step 6); else all is replaced by a stand-in for it.
        """
        if self.term_at(index) == term:
            return
        self.clear()
        self.add(NO_OP, index, term)
        self.flush()

    def close(self) -> None:
        """Flush and close; the journal can't be used any more."""
        try:
            if not self._failed:
                self.flush()
        finally:
            self._files.close()

    # --- failures ------------------------------------------------------------------------------

    def _append(self) -> None:
        """On a full disk take back, in memory and in the file, what is not durable."""
        try:
            self._files.append(self._entries[len(self._files.offsets) :])
        except OSError as error:
            if not is_disk_full(error):
                raise
            del self._entries[len(self._files.offsets) :]
            self._files.cut_back()
            raise StorageFullError(f"{self.directory}: the disk is full") from error

    def _roll(self, *, use_reserve: bool) -> None:
        try:
            self._files.roll(self.last_index + 1)
        except OSError as error:
            if not is_disk_full(error):
                raise
            if use_reserve and self._reserve.release():
                self._roll(use_reserve=False)
                return
            raise StorageFullError(f"{self.directory}: the disk is full") from error

    def _drop_segments(self, count: int) -> None:
        if count <= 0:
            return
        first_index = self._files.segments[count].first_index
        position = first_index - self.first_index
        base = Base(first_index, self._entries[position][2])
        self._guard(lambda: self._files.drop(count, base))
        del self._entries[:position]
        del self._files.offsets[:position]

    def _guard(self, action: Callable[[], None]) -> None:
        """Run what touches the disk; an error that the action lets through is final (M4)."""
        if self._failed:
            raise StorageFailedError(f"{self.directory}: a write or sync failed before")
        try:
            action()
        except (OSError, StorageFailedError) as error:
            self._failed = True
            mark_suspect(self._filesystem, self.directory, error)
            raise StorageFailedError(
                f"{self.directory} could not be written or synced: {error}; this process must end"
            ) from error
