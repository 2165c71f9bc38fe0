"""Power cuts and kills at every step of a random workload, on the fake disk.

A run has up to four lives. In each, a random workload goes on until the power fails (or the
process dies) at a chosen step; then a disk and an index as they may be found afterwards are made,
and the next life recovers from them. The first life dies once at each of its steps; the later ones
at random ones, which are as likely in the recovery itself. The index is in one of the states that
SQLite may come back in: any commit since the last durable one; or it is lost altogether.
"""

from __future__ import annotations

import errno
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ring.chunk_catalog import ChunkCatalog
from ring.chunk_index import ChunkIndex, IndexChange, IndexRow, remove_index
from ring.chunk_reader import ChunkReader, UnsoundError
from ring.codec import encode
from ring.errors import StoreFullError
from ring.interfaces import CHUNK_ID_SIZE, PartitionDigest
from ring.members import PARTITION_COUNT, partition_of
from ring.store_changes import NewRecord, StoreChanges, StoreLimits
from ring.store_recovery import open_index, prepare_directory, recover
from ring.touches import Touches
from ring.volume import volume_numbers
from tests.fakes.filesystem import FakeFileSystem, SimulatedCrash

DIRECTORY = "/volumes"
LIMITS = StoreLimits(volume_size=400_000, reserve=0)
OPERATIONS_PER_LIFE = 14
LIVES = 4

Snapshot = tuple[bytes, bytes]
"""The index's main file and its log."""


class RecordedIndex(ChunkIndex):
    """Remembers the states that a crash may bring back."""

    states: list[Snapshot]

    def apply(self, change: IndexChange, *, durable: bool = False) -> None:
        super().apply(change, durable=durable)
        if durable:
            self.states.clear()
        self.states.append(_snapshot(self._path))


def _snapshot(path: str) -> Snapshot:
    log = Path(path + "-wal")
    return Path(path).read_bytes(), log.read_bytes() if log.exists() else b""


def _restore(path: str, snapshot: Snapshot | None) -> None:
    remove_index(path)
    if snapshot is not None:
        Path(path).write_bytes(snapshot[0])
        Path(path + "-wal").write_bytes(snapshot[1])


@dataclass
class Expectation:
    """What must be found, whatever happens."""

    here: dict[bytes, bytes] = field(default_factory=dict)
    """Acknowledged, and no deletion begun."""
    gone: set[bytes] = field(default_factory=set)
    """Deletion acknowledged, and not put again since."""
    damaged: set[bytes] = field(default_factory=set)
    """Damaged on the disk by the test since they were acknowledged."""
    contents: dict[bytes, bytes] = field(default_factory=dict)
    """All that was ever put, by id."""
    uncertain: set[bytes] = field(default_factory=set)
    """An operation on them was under way at a crash."""


class Life:
    """One process on the disk, from its start to its end."""

    def __init__(
        self, disk: FakeFileSystem, index_path: str, chance: random.Random, expected: Expectation
    ) -> None:
        self.disk = disk
        self.chance = chance
        self.expected = expected
        open_index(index_path).close()
        self.index = RecordedIndex(index_path)
        self.index.states = [_snapshot(index_path)]

    def begin(self) -> None:
        prepare_directory(self.disk, DIRECTORY)
        recovered = recover(self.disk, DIRECTORY, self.index)
        self.volumes = recovered.volumes
        self.reader = ChunkReader(self.volumes)
        touches = Touches()
        touches.raise_floor(0)
        self.catalog = ChunkCatalog(self.index, touches)
        self.changes = StoreChanges(
            filesystem=self.disk,
            directory=DIRECTORY,
            limits=LIMITS,
            index=self.index,
            catalog=self.catalog,
            volumes=self.volumes,
            current=recovered.current,
            end=recovered.end,
        )

    def work(self) -> None:
        for _ in range(OPERATIONS_PER_LIFE):
            self.chance.choices(
                [self.put, self.delete, self.update_index, self.damage], [6, 3, 2, 1]
            )[0]()

    def put(self) -> None:
        """Put a group, of which some may be here already, have been deleted, or be damaged.

        What is here already is acknowledged for its sound header, as the store does it. Now and
        then the disk has no space in the middle of it.
        """
        expected, chance = self.expected, self.chance
        group: dict[bytes, NewRecord] = {}
        for _ in range(chance.randint(1, 4)):
            size = chance.choice([1, 100, 4000, 4096, 9000, 30_000, 262_144])
            data = random.Random(chance.randrange(40) * 1_000_000 + size).randbytes(size)
            encoded = encode(memoryview(data))
            assert encoded.checksums is not None
            chunk_id = encoded.checksums.chunk_id
            row = self.catalog.find(chunk_id)
            if row is None or row.quarantined:
                group[chunk_id] = NewRecord(encoded, encoded.checksums, touch=0)
                expected.contents[chunk_id] = data
            elif chunk_id not in expected.damaged and chunk_id not in group:
                assert self.reader.check_header(row).chunk_id == chunk_id
                expected.here[chunk_id] = data
                expected.uncertain.discard(chunk_id)
        waiting = list(group.items())
        for chunk_id in group:
            expected.gone.discard(chunk_id)
            expected.uncertain.add(chunk_id)
        if chance.random() < 0.15:
            self.disk.fail("write", errno.ENOSPC, nth=chance.randint(1, 2))
        while waiting:
            try:
                count = self.changes.append_group([record for _, record in waiting])
            except StoreFullError:
                break
            for chunk_id, _ in waiting[:count]:
                expected.here[chunk_id] = expected.contents[chunk_id]
                expected.uncertain.discard(chunk_id)
                expected.damaged.discard(chunk_id)
            del waiting[:count]
        self.disk._faults.clear()

    def delete(self) -> None:
        expected = self.expected
        known = sorted(expected.contents)
        chosen = self.chance.sample(known, min(len(known), self.chance.randint(1, 3)))
        for chunk_id in chosen:
            expected.here.pop(chunk_id, None)
            expected.uncertain.add(chunk_id)
        self.changes.delete([(chunk_id, lambda row: False) for chunk_id in chosen])
        for chunk_id in chosen:
            expected.gone.add(chunk_id)
            expected.uncertain.discard(chunk_id)
            expected.damaged.discard(chunk_id)

    def update_index(self) -> None:
        """The writer's queue is empty for a moment."""
        self.changes.update_index()

    def damage(self) -> None:
        """A bit flips in the payload of a chunk; most times somebody reads it soon."""
        known = sorted(self.expected.here)
        if not known:
            return
        chunk_id = self.chance.choice(known)
        row = self.catalog.find(chunk_id)
        assert row is not None
        del self.expected.here[chunk_id]
        self.expected.damaged.add(chunk_id)
        bit = (row.offset + row.payload_start) * 8 + self.chance.randrange(row.payload_length * 8)
        self.disk.flip_bit(self.volumes[row.volume].path, bit)
        if self.chance.random() < 0.8:
            assert self.changes.quarantine(row)

    def check(self) -> None:
        """All that was acknowledged is right, and what is not is not served."""
        expected = self.expected
        for chunk_id, data in expected.here.items():
            row = self.catalog.find(chunk_id)
            assert row is not None, "an acknowledged chunk is gone"
            assert not row.quarantined, "an acknowledged chunk is quarantined"
            assert self.reader.read_small(row) == data
            assert self.reader.check_header(row).chunk_id == chunk_id
        rows = self.rows()
        assert not expected.gone & rows.keys(), "a deleted chunk is back"
        for chunk_id, row in rows.items():
            assert chunk_id in expected.contents
            if row.quarantined or chunk_id in expected.damaged | expected.uncertain:
                continue
            assert self.reader.read_small(row) == expected.contents[chunk_id]
        for chunk_id in expected.damaged - expected.uncertain:
            if chunk_id in rows:
                with pytest.raises(UnsoundError):
                    self.reader.read_small(rows[chunk_id])
        self.check_bookkeeping(rows)

    def check_bookkeeping(self, rows: dict[bytes, IndexRow]) -> None:
        """Totals and digests are what the rows amount to, and no volume was given up."""
        digests = [PartitionDigest(0, bytes(CHUNK_ID_SIZE))] * PARTITION_COUNT
        healthy = [row for row in rows.values() if not row.quarantined]
        for row in healthy:
            number = partition_of(row.chunk_id)
            mixed = int.from_bytes(digests[number].digest, "big")
            mixed ^= int.from_bytes(row.chunk_id, "big")
            digests[number] = PartitionDigest(
                digests[number].count + 1, mixed.to_bytes(CHUNK_ID_SIZE, "big")
            )
        assert self.index.partition_digests() == digests
        totals = self.index.totals()
        assert totals.chunks == len(healthy)
        assert totals.quarantined == len(rows) - len(healthy)
        assert totals.plain_bytes == sum(row.plain_length for row in healthy)
        assert totals.allocated_bytes == sum(row.record_length for row in rows.values())
        assert volume_numbers(self.disk, DIRECTORY) == sorted(self.volumes)
        assert self.index.to_punch() == []

    def rows(self) -> dict[bytes, IndexRow]:
        self.changes.update_index()
        chunk_ids = self.index.ids(b"", 1_000_000) + self.index.quarantined(1_000_000)
        return self.index.find(chunk_ids)


def _run(seed: int, first_crash: int, path: str) -> int:
    """Live through all lives; return the steps that the first took."""
    chance = random.Random(seed)
    # The crash points must not change what is done before them.
    fate = random.Random(seed * 1_000_003 + first_crash)
    expected = Expectation()
    disk = FakeFileSystem(crash_at=first_crash)
    remove_index(path)
    first_steps = 0
    for number in range(LIVES):
        life = Life(disk, path, chance, expected)
        try:
            life.begin()
            disk.crash_at, crash_at = None, disk.crash_at
            life.check()
            disk.crash_at = crash_at
            life.work()
        except SimulatedCrash:
            pass
        if number == 0:
            first_steps = disk.steps
        life.index.close()
        is_kill = fate.random() < 0.3
        if is_kill:
            # The process died, and its index with all its commits stays as it is.
            disk.restart_process()
            disk._faults.clear()
            snapshot: Snapshot | None = life.index.states[-1]
            disk.steps = 0
        else:
            disk = disk.crashed_copy(fate.randrange(1 << 30))
            snapshot = fate.choice(life.index.states)
        _restore(path, None if fate.random() < 0.25 else snapshot)
        disk.crash_at = fate.randint(1, 30)
    disk.crash_at = None
    life = Life(disk, path, chance, expected)
    life.begin()
    life.check()
    life.work()
    life.check()
    life.index.close()
    return first_steps


@pytest.fixture
def index_path(tmp_path: Path) -> Iterator[str]:
    """A place in memory: the runs are many, and what SQLite syncs is not what is tested."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.path.isdir(memory) else tmp_path) as place:
        yield os.path.join(place, "index.sqlite")


@pytest.mark.parametrize("seed", range(8))
def test_every_crash_point(seed: int, index_path: str) -> None:
    """Whenever the power fails: what was acknowledged is there and right, nothing else is served,
    deleted chunks stay deleted, and the store goes on."""
    steps = _run(seed, 1_000_000, index_path)
    assert steps > 15
    for first_crash in range(1, steps + 1):
        _run(seed, first_crash, index_path)
