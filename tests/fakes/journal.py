"""A Raft journal in memory whose disk forgets what was not flushed when the power fails."""

from __future__ import annotations

import random
from typing import overload

from metadata_raft.configuration import NO_OP
from metadata_raft.messages import LogEntry
from metadata_raft.storage_errors import StorageFullError


class JournalDisk:
    """What survives: entries as of the last flush, term and vote as of their last change."""

    def __init__(self) -> None:
        self.entries: list[LogEntry] = []
        self.term = 0
        self.voted_for: str | None = None


class FakeJournal:
    """The journal's interface over a `JournalDisk`. `is_full` refuses room and flushes."""

    def __init__(self, disk: JournalDisk) -> None:
        self.disk = disk
        self.entries = list(disk.entries)
        self.is_dirty = False
        self.is_full = False
        self.fail_next_flush = False
        self.flush_count = 0

    def crash(self, generator: random.Random) -> None:
        """The power fails: of what was added since the last flush, some beginning may be there."""
        durable = self.disk.entries
        if self.entries[: len(durable)] == durable:
            kept = generator.randint(0, len(self.entries) - len(durable))
            self.disk.entries = self.entries[: len(durable) + kept]

    def add(self, command: bytes, idx: int, term: int) -> None:
        if self.entries:
            assert idx == self.entries[-1][1] + 1
        self.entries.append((command, idx, term))
        self.is_dirty = True

    def reset(self, index: int, term: int) -> None:
        self.disk.term = max(self.disk.term, term)
        self.entries = [(NO_OP, index, term)]
        self.is_dirty = True
        self.flush()

    def deleteEntriesFrom(self, entryFrom: int) -> None:  # noqa: N802, N803
        del self.entries[entryFrom:]
        self.flush()

    @overload
    def __getitem__(self, item: int) -> LogEntry: ...

    @overload
    def __getitem__(self, item: slice) -> list[LogEntry]: ...

    def __getitem__(self, item: int | slice) -> LogEntry | list[LogEntry]:
        return self.entries[item]

    def __len__(self) -> int:
        return len(self.entries)

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803
        pass

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        return 1

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802, N803
        assert term >= self.disk.term
        if term == self.disk.term and self.disk.voted_for is not None:
            assert votedForNodeId == self.disk.voted_for, "two votes in one term"
        self.disk.term = term
        self.disk.voted_for = votedForNodeId

    def getCurrentTerm(self) -> int:  # noqa: N802
        return self.disk.term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        return self.disk.voted_for

    def onOneSecondTimer(self) -> None:  # noqa: N802
        pass

    def ensure_room(self, size_bytes: int, *, entries: int = 1, privileged: bool = False) -> None:
        if self.is_full and not privileged:
            raise StorageFullError("the fake disk is full")

    def flush(self) -> None:
        if self.is_dirty and self.fail_next_flush:
            self.fail_next_flush = False
            self.is_dirty = False
            del self.entries[len(self.disk.entries) :]
            raise StorageFullError("the fake disk is full")
        if self.is_dirty:
            self.flush_count += 1
            self.disk.entries = list(self.entries)
            self.is_dirty = False

    def compact(self, durable_index: int, *, lease_index: int | None = None) -> int:
        """Keep the entry at `durable_index` and what follows it."""
        first = self.entries[0][1]
        if durable_index > first:
            del self.entries[: durable_index - first]
            self.is_dirty = True
            self.flush()
        return self.entries[0][1]

    def _destroy(self) -> None:
        self.flush()
