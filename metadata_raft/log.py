"""The log as Raft sees it: the journal, and the configuration that is in force by it.

Every entry that is appended or truncated passes through here, so that the configuration is always
the last one in the log (rule M7), also after a restart, a truncation and a compaction. The method
names in mixed case are pysyncobj's interface for journals.
"""

# ruff: noqa: N802, N803 - the library's names.

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, overload

from metadata_raft.configuration import NO_OP, Configuration, decode_configuration
from metadata_raft.errors import StateMismatchError
from metadata_raft.messages import LogEntry
from metadata_raft.storage_errors import StorageFullError

FIRST_INDEX = 1
"""Every log begins with a no-op of this index and term 0."""


class Journal(Protocol):
    """What the log asks of the journal on disk; positions count from its first entry."""

    def add(self, command: bytes, idx: int, term: int) -> None: ...

    def reset(self, index: int, term: int) -> None:
        """Begin anew with a stand-in for this entry; durable on return."""

    def deleteEntriesFrom(self, entryFrom: int) -> None: ...

    @overload
    def __getitem__(self, item: int) -> LogEntry: ...

    @overload
    def __getitem__(self, item: slice) -> list[LogEntry]: ...

    def __getitem__(self, item: int | slice) -> LogEntry | list[LogEntry]: ...

    def __len__(self) -> int: ...

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None: ...

    def getRaftCommitIndex(self) -> int: ...

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        """Durable on return."""

    def getCurrentTerm(self) -> int: ...

    def getVotedForNodeId(self) -> str | None: ...

    def onOneSecondTimer(self) -> None: ...

    def ensure_room(self, size_bytes: int, *, entries: int = 1, privileged: bool = False) -> None:
        """Raises StorageFullError where entries of so many bytes can't be appended."""

    def flush(self) -> None:
        """Make all that was added durable; cheap where nothing was.

        Raises StorageFullError: what was not durable before is gone, from memory too.
        """

    def compact(self, durable_index: int, *, lease_index: int | None = None) -> int:
        """Drop what a durable state covers, as far as it may go; returns the first index kept."""

    def _destroy(self) -> None: ...


class ReplicatedLog:
    """A journal with the configuration it implies.

    `base` is the configuration at the journal's beginning: of the manifest, or of a new cluster.
    `on_configuration` is called whenever another one comes into force.
    """

    def __init__(self, journal: Journal, base: Configuration) -> None:
        self._journal = journal
        self._base = base
        self._configurations: list[tuple[int, Configuration]] = []
        self.on_configuration: Callable[[Configuration], None] = lambda _: None
        if len(journal) == 0:
            journal.add(NO_OP, FIRST_INDEX, 0)
            journal.flush()
        for position in range(len(journal)):
            self._note(*journal[position][:2])

    # --- what the library calls ---------------------------------------------------------------

    def add(self, command: bytes, idx: int, term: int) -> None:
        self._journal.add(command, idx, term)
        if self._note(command, idx):
            self.on_configuration(self.configuration)

    def clear(self) -> None:
        raise StateMismatchError("the library wants to clear the journal")

    def deleteEntriesFrom(self, entryFrom: int) -> None:
        index = self.first_index + entryFrom
        self._journal.deleteEntriesFrom(entryFrom)
        self._forget_from(index)

    def _forget_from(self, index: int) -> None:
        before = len(self._configurations)
        while self._configurations and self._configurations[-1][0] >= index:
            self._configurations.pop()
        if len(self._configurations) < before:
            self.on_configuration(self.configuration)

    def deleteEntriesTo(self, entryTo: int) -> None:  # noqa: ARG002
        raise StateMismatchError("the library wants to compact the journal")

    @overload
    def __getitem__(self, item: int) -> LogEntry: ...

    @overload
    def __getitem__(self, item: slice) -> list[LogEntry]: ...

    def __getitem__(self, item: int | slice) -> LogEntry | list[LogEntry]:
        return self._journal[item]

    def __len__(self) -> int:
        return len(self._journal)

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        self._journal.setRaftCommitIndex(raftCommitIndex)

    def getRaftCommitIndex(self) -> int:
        return self._journal.getRaftCommitIndex()

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        self._journal.setCurrentTerm(term, votedForNodeId)

    def getCurrentTerm(self) -> int:
        return self._journal.getCurrentTerm()

    def getVotedForNodeId(self) -> str | None:
        return self._journal.getVotedForNodeId()

    def onOneSecondTimer(self) -> None:
        self._journal.onOneSecondTimer()

    def ensure_room(self, size_bytes: int, *, privileged: bool) -> None:
        self._journal.ensure_room(size_bytes, privileged=privileged)

    def flush(self) -> None:
        """Make everything durable. Raises StorageFullError where entries had to be dropped."""
        try:
            self._journal.flush()
        except StorageFullError:
            self._forget_from(self.last_index + 1)
            raise

    def _destroy(self) -> None:
        self._journal._destroy()  # noqa: SLF001 - the library's interface

    # --- what Holdfast asks -------------------------------------------------------------------

    @property
    def first_index(self) -> int:
        return self._journal[0][1]

    @property
    def first_term(self) -> int:
        return self._journal[0][2]

    @property
    def last_index(self) -> int:
        return self._journal[-1][1]

    @property
    def last_term(self) -> int:
        return self._journal[-1][2]

    @property
    def configuration(self) -> Configuration:
        """The one in force: the last in the log, committed or not."""
        return self._configurations[-1][1] if self._configurations else self._base

    @property
    def configuration_index(self) -> int:
        """The index of the entry that holds it; the log's first where that was compacted."""
        return self._configurations[-1][0] if self._configurations else self.first_index

    def configuration_at(self, index: int) -> Configuration:
        """The one in force just after the entry `index`; for the manifest of a compaction."""
        found = self._base
        for position, configuration in self._configurations:
            if position > index:
                break
            found = configuration
        return found

    def term_at(self, index: int) -> int | None:
        position = index - self._journal[0][1]
        if 0 <= position < len(self._journal):
            return self._journal[position][2]
        return None

    def entries(self, first: int, last: int) -> list[LogEntry]:
        """The entries from `first` to `last`, both included, as far as they are there."""
        start = self._journal[0][1]
        return self._journal[max(first - start, 0) : max(last + 1 - start, 0)]

    def entries_within(self, first: int, size_limit: int) -> list[LogEntry]:
        """Entries from `first` on, of `size_limit` bytes at most, but at least one if there is."""
        position = first - self._journal[0][1]
        end = position
        size = 0
        while end < len(self._journal):
            size += len(self._journal[end][0])
            if size > size_limit and end > position:
                break
            end += 1
        return self._journal[position:end]

    def compact(self, durable_index: int, *, lease_index: int | None = None) -> int:
        """Drop entries a durable state covers (rule M4); returns the first index kept.

        The manifest must hold `configuration_at(durable_index)` durably before.
        """
        first_index = self._journal.compact(durable_index, lease_index=lease_index)
        while self._configurations and self._configurations[0][0] < first_index:
            self._base = self._configurations.pop(0)[1]
        return first_index

    def install(self, index: int, term: int, configuration: Configuration) -> None:
        """Let the log begin behind a downloaded state that covers `index` (rule M6).

        Where it holds that very entry it stays as it is, else all of it is replaced.
        """
        if self.term_at(index) == term:
            return
        self._journal.reset(index, term)
        self._configurations.clear()
        self._base = configuration
        self.on_configuration(configuration)

    def _note(self, command: bytes, index: int) -> bool:
        configuration = decode_configuration(command)
        if configuration is None:
            return False
        self._configurations.append((index, configuration))
        return True
