"""The power fails, or the process dies, at any instant: nothing flushed is lost or changed."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from metadata_raft.journal import JournalSettings
from metadata_raft.manifest import Base
from metadata_raft.storage import Storage, begin_install, finish_install, open_storage
from metadata_raft.storage_errors import StorageDamagedError
from ring.filesystem import RealFileSystem, read_file, write_file_atomically
from tests.fakes.filesystem import FakeFileSystem, Operation, SimulatedCrash
from tests.metadata_raft.journal_world import (
    IDENTITY,
    Expectation,
    JournalWorld,
    check_recovered,
    new_disk,
    open_journal,
    watch,
)

OPERATIONS = 60


def run_watched(
    seed: int, *, lies_about: tuple[Operation, ...] = (), operations: int = OPERATIONS
) -> int:
    """A random workload; at each step the disks of two power cuts are opened and checked."""
    disk = new_disk(lies_about=lies_about)
    world = JournalWorld(seed, disk)
    seeds = itertools.count(seed * 100_000)
    checked = 0

    def look(disk: FakeFileSystem, expected: Expectation) -> None:
        nonlocal checked
        for _ in range(2):
            found = disk.crashed_copy(next(seeds))
            check_recovered(expected, open_journal(found))
            checked += 1

    watch(world, look)
    world.begin()
    for _ in range(operations):
        world.operate()
    return checked


@pytest.mark.parametrize("seed", range(40))
def test_power_cut_at_every_step(seed: int) -> None:
    """Whatever the instant of the power cut, the log opens, holds every flushed entry and no other
    than was added, and term and vote are those before or after the step."""
    assert run_watched(seed) > 100


@pytest.mark.parametrize("lie", ["datasync", "sync_directory"])
def test_the_crash_test_would_notice(lie: Operation) -> None:
    """On a disk that lies about syncs the same test fails, so it can."""
    failures = 0
    for seed in range(5):
        try:
            run_watched(seed, lies_about=(lie,), operations=30)
        except (AssertionError, StorageDamagedError):
            failures += 1
    assert failures >= 3


@pytest.mark.parametrize("seed", range(15))
def test_power_cut_while_recovering(seed: int) -> None:
    """A second power cut, during the recovery from the first, costs nothing either."""
    world = JournalWorld(seed, new_disk())
    world.begin()
    copies: list[tuple[FakeFileSystem, Expectation]] = []
    watch(world, lambda disk, expected: copies.append((disk.crashed_copy(seed), expected)))
    for _ in range(20):
        world.operate()
    for disk, expected in copies[::4]:
        again: list[FakeFileSystem] = []
        disk.on_step = lambda disk=disk, again=again: again.append(disk.crashed_copy(seed + 1))
        first = open_journal(disk).journal[:]
        for copy in again:
            storage = open_journal(copy)
            check_recovered(expected, storage)
            assert storage.journal[:] == first or expected.other is not None


@pytest.mark.parametrize("seed", range(15))
def test_process_death_then_power_cut(seed: int) -> None:
    """What a restarted node finds in its log it may acknowledge: a later power cut keeps it,
    although the process that wrote it died before it synced."""
    probe = JournalWorld(seed, new_disk())
    probe.begin()
    for _ in range(30):
        probe.operate()
    for step in range(40, probe.disk.steps, 7):
        disk = new_disk()
        world = JournalWorld(seed, disk)
        disk.crash_at = step
        with pytest.raises(SimulatedCrash):
            world.run()
        disk.restart_process()
        found = open_journal(disk)
        check_recovered(world.expectation, found)
        for crash in range(3):
            assert open_journal(disk.crashed_copy(crash)).journal[:] == found.journal[:]


@pytest.mark.parametrize("seed", range(10))
def test_life_goes_on_after_a_crash(seed: int) -> None:
    """A recovered log is appended to, crashes again, and so on; no entry is lost on the way."""
    disk = new_disk()
    crashes = 0
    storage = open_journal(disk)
    storage.journal.add(b"\x01", 1, 0)
    storage.journal.flush()
    storage.journal.setCurrentTerm(1, None)
    acknowledged = storage.journal[:]
    while crashes < 25:
        disk.crash_at = disk.steps + 1 + (seed * 7 + crashes * 3) % 11
        added = list(acknowledged)
        try:
            while True:
                for _ in range(3):
                    entry = (os.urandom(700), storage.journal.last_index + 1, 1)
                    storage.journal.add(*entry)
                    added.append(entry)
                storage.journal.flush()
                acknowledged = list(added)
        except SimulatedCrash:
            crashes += 1
        disk = disk.crashed_copy(seed * 1000 + crashes)
        storage = open_journal(disk, seed=crashes)
        assert storage.journal[: len(acknowledged)] == acknowledged
        assert storage.journal[:] == added[: len(storage.journal)]
        acknowledged = storage.journal[:]


def prepare_install(disk: FakeFileSystem) -> Storage:
    """A node with an old state, a log up to 3, and a verified download that stands at 50."""
    storage = open_journal(disk)
    journal = storage.journal
    journal.add(b"\x01", 1, 0)
    journal.setCurrentTerm(2, None)
    journal.add(b"two", 2, 1)
    journal.add(b"three", 3, 1)
    journal.flush()
    disk.make_directory("/state")
    disk.sync_directory("/")
    for name, content in (("state.db", b"old"), ("state.db-wal", b"old"), ("incoming", b"new")):
        write_file_atomically(disk, f"/state/{name}", content)
    return storage


def test_install_at_every_crash() -> None:
    """A downloaded state is installed whole or not at all: never the new state with the old log
    or the old write-ahead log, never the new log with the old state."""

    def install(storage: Storage) -> None:
        begin_install(
            storage,
            source="/state/incoming",
            target="/state/state.db",
            base=Base(50, 2),
            configuration=storage.manifest.current.configuration,
        )
        finish_install(storage, reset=storage.journal.reset)

    disk = new_disk()
    storage = prepare_install(disk)
    copies: list[FakeFileSystem] = []
    disk.on_step = lambda: copies.extend(disk.crashed_copy(seed) for seed in range(20))
    install(storage)
    copies += [disk.crashed_copy(seed) for seed in range(20)]
    seen = set()
    for copy in copies:
        # Opening finishes a decided installation; it may be cut short itself.
        again: list[FakeFileSystem] = [copy]
        copy.on_step = lambda copy=copy, again=again: again.append(copy.crashed_copy(1))
        open_journal(copy)
        copy.on_step = None
        for each in again:
            journal = open_journal(each).journal
            state = read_file(each, "/state/state.db")
            assert state in {b"old", b"new"}
            assert (journal.first_index, journal.last_index) == (
                (1, 3) if state == b"old" else (50, 50)
            )
            assert each.exists("/state/state.db-wal") == (state == b"old")
            seen.add(state)
    assert seen == {b"old", b"new"}
    assert all(
        read_file(disk.crashed_copy(seed), "/state/state.db") == b"new" for seed in range(20)
    )


CHILD = """
import sys
from metadata_raft.journal import JournalSettings
from metadata_raft.manifest import Identity
from metadata_raft.storage import open_storage
from ring.filesystem import RealFileSystem

storage = open_storage(
    RealFileSystem(), sys.argv[1], Identity("cluster", "node"),
    settings=JournalSettings(segment_bytes=65536, tail_entries=50, reserve_bytes=0),
)
journal = storage.journal
if not len(journal):
    journal.add(b"1", 1, 0)
    journal.flush()
journal.setCurrentTerm(journal.getCurrentTerm() + 1, "node")
print("term", journal.getCurrentTerm(), flush=True)
while True:
    for _ in range(5):
        index = journal.last_index + 1
        journal.add(b"%d " % index * (index % 50), index, journal.getCurrentTerm())
    journal.flush()
    print("flushed", journal.last_index, flush=True)
    if journal.last_index % 100 < 5:
        print("first", journal.compact(journal.durable_index), flush=True)
"""


@pytest.mark.processes
def test_killed_thirty_times(tmp_path: Path) -> None:
    """On a real disk a child is killed while it writes, thirty times over: each time the log opens
    with all it said was flushed, every entry right, and the term not gone back."""
    flushed, term = 0, 0
    for kill in range(30):
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        ) as child:
            assert child.stdout is not None
            for lines, line in enumerate(child.stdout):
                word, number = line.split()
                if word == "flushed":
                    flushed = int(number)
                elif word == "term":
                    term = int(number)
                if lines == 10 + kill * 7:
                    child.send_signal(signal.SIGKILL)
        storage = open_storage(
            RealFileSystem(),
            str(tmp_path),
            IDENTITY,
            settings=JournalSettings(segment_bytes=65536, reserve_bytes=0),
        )
        journal = storage.journal
        assert journal.last_index >= flushed
        assert journal.getCurrentTerm() >= term
        for content, index, _ in journal[:]:
            assert index == 1 or content == b"%d " % index * (index % 50)
        storage.close()
    assert flushed > 1000
