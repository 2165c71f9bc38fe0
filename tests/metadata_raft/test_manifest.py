"""The manifest: changes in one durable step, and belongs to one node of one cluster."""

from __future__ import annotations

import pytest

from metadata_raft.configuration import Configuration
from metadata_raft.manifest import Base, Identity, Manifest, ManifestFile, PendingInstall
from metadata_raft.sealed import seal
from metadata_raft.storage_errors import StorageDamagedError, StorageForeignError
from ring.filesystem import write_file_atomically
from tests.fakes.filesystem import FakeFileSystem, SimulatedCrash

PATH = "/manifest"
IDENTITY = Identity("cluster", "node", 1)
FIRST = Manifest(identity=IDENTITY, base=Base(0, 0), first_segment=1)


@pytest.fixture
def disk() -> FakeFileSystem:
    return FakeFileSystem()


def load(disk: FakeFileSystem) -> Manifest:
    found = ManifestFile.load(disk, PATH, IDENTITY)
    assert found is not None
    return found.current


def test_durable_on_return(disk: FakeFileSystem) -> None:
    """Every field comes back as stored, after any power cut."""
    manifest = ManifestFile.create(disk, PATH, FIRST)
    assert load(disk.crashed_copy(1)) == FIRST
    configuration = Configuration(("a", "b"), ("c",), ("d",))
    manifest.update(configuration=configuration, addresses={"a": "host:1"})
    manifest.update(base=Base(10, 3), first_segment=4)
    manifest.update(pending=PendingInstall("/x", "/y", Base(20, 3)))
    for seed in range(30):
        assert load(disk.crashed_copy(seed)) == Manifest(
            identity=IDENTITY,
            base=Base(10, 3),
            first_segment=4,
            configuration=configuration,
            addresses={"a": "host:1"},
            pending=PendingInstall("/x", "/y", Base(20, 3)),
        )
    manifest.update(pending=None)
    assert load(disk.crashed_copy(1)).pending is None


def test_fields_change_together(disk: FakeFileSystem) -> None:
    """A power cut within an update leaves all of its fields old, or all of them new."""
    manifest = ManifestFile.create(disk, PATH, FIRST)
    found: set[tuple[int, int]] = set()

    def look() -> None:
        for seed in range(20):
            now = load(disk.crashed_copy(seed))
            found.add((now.base.index, now.first_segment))

    disk.on_step = look
    manifest.update(base=Base(10, 3), first_segment=4)
    assert found == {(0, 1), (10, 4)}


def test_nothing_written_without_a_change(disk: FakeFileSystem) -> None:
    manifest = ManifestFile.create(disk, PATH, FIRST)
    disk.crash_at = disk.steps + 1
    manifest.update(base=FIRST.base, configuration=FIRST.configuration)
    with pytest.raises(SimulatedCrash):
        manifest.update(base=Base(1, 0))


@pytest.mark.parametrize(
    "other",
    [
        Identity("other", "node", 1),
        Identity("cluster", "other", 1),
        Identity("cluster", "node", 2),
    ],
)
def test_foreign_directory(disk: FakeFileSystem, other: Identity) -> None:
    """The directory of another cluster, node or incarnation is refused, and named (M7)."""
    ManifestFile.create(disk, PATH, FIRST)
    with pytest.raises(StorageForeignError, match=str(IDENTITY)):
        ManifestFile.load(disk, PATH, other)


def test_damage(disk: FakeFileSystem) -> None:
    """A flipped bit, or a body that is no manifest, is damage; no file is none."""
    assert ManifestFile.load(disk, PATH, IDENTITY) is None
    ManifestFile.create(disk, PATH, FIRST)
    disk.flip_bit(PATH, 200)
    with pytest.raises(StorageDamagedError, match="checksum"):
        ManifestFile.load(disk, PATH, IDENTITY)
    write_file_atomically(disk, PATH, seal(b"mani", 1, b"\xc1"))
    with pytest.raises(StorageDamagedError, match="unreadable"):
        ManifestFile.load(disk, PATH, IDENTITY)
