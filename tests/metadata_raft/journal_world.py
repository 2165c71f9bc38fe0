"""A journal under a random workload, with a model of what its disk may hold at any instant.

Used by the crash tests: `JournalWorld` carries out seeded operations and, at every step of the
disk, lets the test look at what a power cut would leave then.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from metadata_raft.journal import JournalSettings
from metadata_raft.manifest import Identity
from metadata_raft.messages import LogEntry
from metadata_raft.storage import Storage, open_storage
from metadata_raft.vote_file import Vote
from tests.fakes.filesystem import FakeFileSystem, Operation

IDENTITY = Identity("cluster", "node")
DIRECTORY = "/raft"
SETTINGS = JournalSettings(segment_bytes=3072, tail_entries=4, tail_bytes=4096, reserve_bytes=0)


def new_disk(
    *, capacity_bytes: int | None = None, lies_about: tuple[Operation, ...] = ()
) -> FakeFileSystem:
    """A disk with an empty Raft directory, which is there whatever the disk lies about."""
    disk = FakeFileSystem(capacity_bytes=capacity_bytes, lies_about=lies_about)
    disk.make_directory(DIRECTORY)
    disk._root.sync()
    return disk


def open_journal(
    disk: FakeFileSystem, settings: JournalSettings = SETTINGS, *, seed: int = 0
) -> Storage:
    return open_storage(
        disk, DIRECTORY, IDENTITY, settings=settings, entropy=random.Random(seed).randbytes
    )


@dataclass(frozen=True)
class Expectation:
    """What a crash may leave: a log that begins as `sure` and goes on as `possible` does.

    `other` is a second log that may be found instead; compaction may have taken entries from the
    front up to `first_limit`.
    """

    sure: list[LogEntry]
    possible: list[LogEntry]
    other: list[LogEntry] | None
    first_limit: int
    votes: tuple[Vote, ...]


class JournalWorld:
    """One journal and its model. `operate` does one random operation."""

    def __init__(self, seed: int, disk: FakeFileSystem) -> None:
        self.chance = random.Random(seed)
        self.disk = disk
        self.storage = open_journal(disk, seed=seed)
        self.durable: list[LogEntry] = []
        self.pending: list[LogEntry] = []
        vote = self.storage.vote.current
        self.expectation = Expectation([], [], None, 1, (vote,))

    def begin(self) -> None:
        """The first entry, as every log has it."""
        self._add(1, 0, b"\x01")
        self._flush()

    def run(self) -> None:
        """Operate until the power fails."""
        self.begin()
        while True:
            self.operate()

    def operate(self) -> None:
        operation = self.chance.choices(
            [self._append, self._flush, self._elect, self._truncate, self._compact, self._reset],
            weights=[10, 8, 2, 2, 3, 1],
        )[0]
        operation()

    def _append(self) -> None:
        journal = self.storage.journal
        for _ in range(self.chance.randint(1, 4)):
            size = self.chance.choice((0, 1, 60, 400, 1500, 4000))
            self._add(journal.last_index + 1, journal.getCurrentTerm(), b"", size)

    def _add(self, index: int, term: int, content: bytes, size: int = 0) -> None:
        entry = (content + self.chance.randbytes(size), index, term)
        self.storage.journal.add(*entry)
        self.pending.append(entry)

    def _flush(self) -> None:
        after = self.durable + self.pending
        self._expect(sure=self.durable, possible=after)
        self.storage.journal.flush()
        self.durable, self.pending = after, []
        self._settle()

    def _elect(self) -> None:
        journal = self.storage.journal
        term, vote = journal.getCurrentTerm(), journal.getVotedForNodeId()
        if vote is None and self.chance.random() < 0.5:
            new = Vote(term, self.chance.choice("abc"))
        else:
            new = Vote(term + 1, self.chance.choice((None, "a", "b", "c")))
        self._expect(sure=self.durable, possible=self.durable, vote=new)
        journal.setCurrentTerm(new.term, new.voted_for)
        self._settle()

    def _truncate(self) -> None:
        """A conflict: a new leader replaces the end of the log with entries of its own."""
        journal = self.storage.journal
        if len(journal) < 3:
            return
        position = self.chance.randint(max(1, len(journal) - 8), len(journal) - 1)
        kept = self.durable[:position]
        self._expect(sure=kept, possible=self.durable)
        journal.deleteEntriesFrom(position)
        self.pending = self.pending[: max(0, position - len(self.durable))]
        self.durable = kept
        self._settle()

    def _compact(self) -> None:
        if len(self.durable) < 2:
            return
        target = self.chance.choice(self.durable)[1]
        self._expect(sure=self.durable, possible=self.durable, first_limit=target)
        first = self.storage.journal.compact(target)
        self.durable = [entry for entry in self.durable if entry[1] >= first]
        self._settle()

    def _reset(self) -> None:
        """A downloaded state takes the place of the log."""
        self._flush()
        journal = self.storage.journal
        index = journal.last_index + self.chance.randint(1, 50)
        log = [(b"\x01", index, journal.getCurrentTerm())]
        self._expect(sure=self.durable, possible=self.durable, other=log)
        journal.reset(index, journal.getCurrentTerm())
        self.durable = log
        self._settle()

    def _expect(
        self,
        *,
        sure: list[LogEntry],
        possible: list[LogEntry],
        other: list[LogEntry] | None = None,
        first_limit: int | None = None,
        vote: Vote | None = None,
    ) -> None:
        current = self.storage.vote.current
        self.expectation = Expectation(
            list(sure),
            list(possible),
            other,
            first_limit or (sure[0][1] if sure else 1),
            (current,) if vote is None else (current, vote),
        )

    def _settle(self) -> None:
        """Between operations exactly the durable log may be found."""
        assert self.storage.journal[:] == self.durable + self.pending
        self._expect(sure=self.durable, possible=self.durable)


def check_recovered(expected: Expectation, storage: Storage) -> None:
    """Every acknowledged entry is there and right, none is invented, the vote stands."""
    found = storage.journal[:]
    assert storage.vote.current in expected.votes
    if expected.other is not None and found == expected.other:
        return
    first = found[0][1] if found else 1
    assert not expected.sure or expected.sure[0][1] <= first <= expected.first_limit
    possible = [entry for entry in expected.possible if entry[1] >= first]
    sure = [entry for entry in expected.sure if entry[1] >= first]
    assert found == possible[: len(found)]
    assert len(found) >= len(sure)


def watch(world: JournalWorld, look: Callable[[FakeFileSystem, Expectation], None]) -> None:
    """Call `look` at every step of the disk from now on, with what may be found then."""
    world.disk.on_step = lambda: look(world.disk, world.expectation)
