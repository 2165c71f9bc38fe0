"""The seam to the disk: one suite for the real one and the fake, then what only the fake can do."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ring.filesystem import (
    FileSystem,
    RealFileSystem,
    can_punch_holes,
    read_file,
    write_file_atomically,
)
from tests.fakes.filesystem import FakeFileSystem, Operation, SimulatedCrash

KEPT_BY_LUCK_LIMIT = 200
"""Seeds tried before a fate that must be possible is taken to be impossible."""


class FileSystemConformance:
    """What every file system does; a subclass provides `disk` and an empty `folder` on it."""

    def test_reads_what_was_written(self, disk: FileSystem, folder: str) -> None:
        """Bytes are read where they were written, zeros before them, nothing behind the end."""
        file = disk.open(f"{folder}/a", create=True)
        file.write_at(5000, memoryview(b"hello"))
        assert file.size() == 5005
        assert file.read_at(4998, 100) == b"\0\0hello"
        assert file.read_at(5005, 10) == b""
        buffer = bytearray(8)
        assert file.read_into(5001, memoryview(buffer)) == 4
        assert bytes(buffer) == b"ello\0\0\0\0"
        file.close()

    def test_writes_many_pieces(self, disk: FileSystem, folder: str) -> None:
        """A vector longer than the system's limit is written whole and in order."""
        file = disk.open(f"{folder}/a", create=True)
        pieces = [b"%05d" % number for number in range(3000)]
        file.write_vector_at(7, [*pieces[:-1], memoryview(pieces[-1])])
        assert file.read_at(0, 1 << 20) == bytes(7) + b"".join(pieces)
        file.close()

    def test_truncates_and_extends(self, disk: FileSystem, folder: str) -> None:
        """A cut removes bytes for good: extending again shows zeros."""
        file = disk.open(f"{folder}/a", create=True)
        file.write_at(0, b"abcdef")
        file.truncate(2)
        file.truncate(4)
        assert file.read_at(0, 10) == b"ab\0\0"
        file.close()

    def test_allocates(self, disk: FileSystem, folder: str) -> None:
        """Reserving keeps what is stored and grows the size with zeros."""
        file = disk.open(f"{folder}/a", create=True)
        file.write_at(0, b"abc")
        file.allocate(0, 8192)
        assert file.size() == 8192
        assert file.read_at(0, 5) == b"abc\0\0"
        file.close()

    def test_punches_holes(self, disk: FileSystem, folder: str) -> None:
        """A hole reads as zeros and the size stays."""
        file = disk.open(f"{folder}/a", create=True)
        file.write_at(0, b"x" * 12288)
        file.punch_hole(4096, 4096)
        assert file.read_at(0, 12288) == b"x" * 4096 + bytes(4096) + b"x" * 4096
        assert file.size() == 12288
        file.close()

    def test_names(self, disk: FileSystem, folder: str) -> None:
        """Names come sorted; replacing moves contents over, unlinking removes the name only."""
        for name in ("b", "a", "c"):
            file = disk.open(f"{folder}/{name}", create=True)
            file.write_at(0, name.encode())
            file.close()
        assert disk.names(folder) == ["a", "b", "c"]
        held = disk.open(f"{folder}/b")
        disk.replace(f"{folder}/a", f"{folder}/b")
        disk.unlink(f"{folder}/c")
        disk.sync_directory(folder)
        assert disk.names(folder) == ["b"]
        assert read_file(disk, f"{folder}/b") == b"a"
        assert held.read_at(0, 1) == b"b"
        held.close()
        assert disk.exists(f"{folder}/b")
        assert not disk.exists(f"{folder}/c")

    def test_missing_names(self, disk: FileSystem, folder: str) -> None:
        """Opening, replacing, removing or listing what is not there says so."""
        with pytest.raises(FileNotFoundError):
            disk.open(f"{folder}/none")
        with pytest.raises(FileNotFoundError):
            disk.replace(f"{folder}/none", f"{folder}/other")
        with pytest.raises(FileNotFoundError):
            disk.unlink(f"{folder}/none")
        with pytest.raises(FileNotFoundError):
            disk.names(f"{folder}/none")
        with pytest.raises(FileNotFoundError):
            disk.open(f"{folder}/none/below", create=True)
        assert not disk.exists(f"{folder}/none/below")

    def test_directories(self, disk: FileSystem, folder: str) -> None:
        """A directory may exist, its parent must; a file in its place is an error."""
        disk.make_directory(f"{folder}/d")
        disk.make_directory(f"{folder}/d")
        assert disk.names(f"{folder}/d") == []
        with pytest.raises(FileNotFoundError):
            disk.make_directory(f"{folder}/x/y")
        disk.open(f"{folder}/file", create=True).close()
        with pytest.raises(FileExistsError):
            disk.make_directory(f"{folder}/file")

    def test_open_keeps_contents(self, disk: FileSystem, folder: str) -> None:
        """Opening an existing file to create it does not truncate it."""
        write_file_atomically(disk, f"{folder}/a", b"kept")
        disk.open(f"{folder}/a", create=True).close()
        assert read_file(disk, f"{folder}/a") == b"kept"

    def test_writes_atomically(self, disk: FileSystem, folder: str) -> None:
        """A small file is replaced whole, and a leftover temporary one is no obstacle."""
        disk.open(f"{folder}/a.new", create=True).close()
        write_file_atomically(disk, f"{folder}/a", b"first, longer")
        write_file_atomically(disk, f"{folder}/a", b"second")
        assert read_file(disk, f"{folder}/a") == b"second"
        assert disk.names(folder) == ["a"]

    def test_direct_access(self, disk: FileSystem, folder: str) -> None:
        """Aligned access works, up to an unaligned end of the file; unaligned access is refused."""
        with mmap.mmap(-1, 8192) as memory, memoryview(memory) as page:
            page[:4096] = b"d" * 4096
            file = disk.open(f"{folder}/a", create=True, direct=True)
            with page[:4096] as first:
                file.write_at(0, first)
            file.datasync()
            file.truncate(1000)
            assert file.read_into(0, page) == 1000
            assert bytes(page[:1000]) == b"d" * 1000
            with pytest.raises(OSError, match="Invalid argument"):
                file.read_into(100, page)
            file.close()

    def test_closed_file(self, disk: FileSystem, folder: str) -> None:
        """A closed file can't be used."""
        file = disk.open(f"{folder}/a", create=True)
        file.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            file.size()

    def test_free_bytes(self, disk: FileSystem, folder: str) -> None:
        assert disk.free_bytes(folder) > 0


class TestRealFileSystem(FileSystemConformance):
    @pytest.fixture
    def folder(self, tmp_path: Path) -> str:
        return str(tmp_path)

    @pytest.fixture
    def disk(self) -> FileSystem:
        return RealFileSystem()

    def test_hole_probe(self, tmp_path: Path) -> None:
        """The probe answers, and leaves nothing behind."""
        assert can_punch_holes(RealFileSystem(), str(tmp_path))
        assert os.listdir(tmp_path) == []

    def test_holes_give_space_back(self, tmp_path: Path) -> None:
        file = RealFileSystem().open(str(tmp_path / "a"), create=True)
        file.write_at(0, b"x" * (1 << 20))
        file.datasync()
        before = (tmp_path / "a").stat().st_blocks
        file.punch_hole(0, 1 << 20)
        file.datasync()
        file.close()
        assert (tmp_path / "a").stat().st_blocks < before / 2

    def test_short_vector_write_is_continued(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever part of a vector the kernel takes at first, all of it ends up in the file."""
        pieces = [b"abc", b"", b"defgh", b"i"]
        pwritev = os.pwritev
        for taken in range(10):

            def short(descriptor: int, vector: list[bytes], offset: int, taken: int = taken) -> int:
                return pwritev(descriptor, [b"".join(vector)[:taken]], offset)

            monkeypatch.setattr(os, "pwritev", short)
            file = RealFileSystem().open(str(tmp_path / str(taken)), create=True)
            file.write_vector_at(2, list(pieces))
            assert file.read_at(0, 100) == b"\0\0abcdefghi"
            file.close()


class TestFakeFileSystem(FileSystemConformance):
    @pytest.fixture
    def folder(self) -> str:
        return "/folder"

    @pytest.fixture
    def disk(self, folder: str) -> FakeFileSystem:
        disk = FakeFileSystem()
        disk.make_directory(folder)
        disk.sync_directory("/")
        return disk

    @pytest.fixture
    def synced(self, disk: FakeFileSystem) -> FakeFileSystem:
        """A disk with one durable file `/a` of 1,024 bytes `o`."""
        file = disk.open("/a", create=True)
        file.write_at(0, b"o" * 1024)
        file.datasync()
        file.close()
        disk.sync_directory("/")
        return disk

    def test_synced_survives_every_crash(self, synced: FakeFileSystem) -> None:
        """What was synced, contents and name, is there whatever the seed."""
        for seed in range(KEPT_BY_LUCK_LIMIT):
            assert read_file(synced.crashed_copy(seed), "/a") == b"o" * 1024

    def test_unsynced_write_has_every_fate(self, synced: FakeFileSystem) -> None:
        """A write without a sync is seen dropped, kept and torn at a sector."""
        file = synced.open("/a")
        file.write_at(0, b"n" * 1024)
        found = {read_file(synced.crashed_copy(seed), "/a") for seed in range(KEPT_BY_LUCK_LIMIT)}
        assert found == {
            first * 512 + second * 512 for first in (b"o", b"n") for second in (b"o", b"n")
        }

    def test_later_write_can_survive_alone(self, synced: FakeFileSystem) -> None:
        """Writes reach the disk in any order: the second may be there without the first."""
        file = synced.open("/a")
        file.write_at(0, b"1" * 512)
        file.write_at(512, b"2" * 512)
        found = {read_file(synced.crashed_copy(seed), "/a") for seed in range(KEPT_BY_LUCK_LIMIT)}
        assert b"o" * 512 + b"2" * 512 in found

    def test_unsynced_truncation_can_be_lost(self, synced: FakeFileSystem) -> None:
        synced.open("/a").truncate(0)
        found = {read_file(synced.crashed_copy(seed), "/a") for seed in range(KEPT_BY_LUCK_LIMIT)}
        assert found == {b"", b"o" * 1024}

    def test_unsynced_names_can_be_lost(self, synced: FakeFileSystem) -> None:
        """Creation, rename and removal are kept in order up to some point, contents apart."""
        file = synced.open("/new", create=True)
        file.write_at(0, b"contents")
        file.datasync()
        synced.replace("/new", "/a")
        synced.unlink("/a")
        found: set[tuple[tuple[str, bytes], ...]] = set()
        for seed in range(KEPT_BY_LUCK_LIMIT):
            copy = synced.crashed_copy(seed)
            names = [name for name in copy.names("/") if name != "folder"]
            found.add(tuple((name, read_file(copy, f"/{name}")[:1]) for name in names))
        assert found == {(("a", b"o"),), (("a", b"o"), ("new", b"c")), (("a", b"c"),), ()}

    def test_lost_directory_takes_its_contents(self, disk: FakeFileSystem) -> None:
        """Syncing a directory does not make its own name durable: syncing its parent does."""
        disk.make_directory("/d")
        disk.open("/d/a", create=True).close()
        disk.sync_directory("/d")
        assert {disk.crashed_copy(seed).exists("/d/a") for seed in range(50)} == {True, False}
        disk.sync_directory("/")
        assert {disk.crashed_copy(seed).exists("/d/a") for seed in range(50)} == {True}

    def test_crash_at_every_step(self) -> None:
        """The power fails at exactly the step asked for, and nothing works after it."""

        def workload(disk: FakeFileSystem) -> None:
            write_file_atomically(disk, "/a", b"x" * 600)

        whole = FakeFileSystem()
        workload(whole)
        operations = [operation for operation, _ in whole.log]
        assert operations == ["create", "write", "datasync", "replace", "sync_directory"]
        for step in range(1, whole.steps + 1):
            disk = FakeFileSystem(crash_at=step)
            with pytest.raises(SimulatedCrash):
                workload(disk)
            assert disk.steps == step
            with pytest.raises(SimulatedCrash):
                disk.exists("/a")
            assert isinstance(disk.crashed_copy(1).exists("/a"), bool)

    def test_copies_of_every_step_in_one_run(self, disk: FakeFileSystem) -> None:
        """Watching the steps of one run shows what a crash at each of them leaves."""
        write_file_atomically(disk, "/a", b"old")
        found: list[set[bytes]] = []

        def look() -> None:
            found.append({read_file(disk.crashed_copy(seed), "/a") for seed in range(30)})

        disk.on_step = look
        write_file_atomically(disk, "/a", b"new")
        assert found == [{b"old"}, {b"old"}, {b"old"}, {b"old", b"new"}, {b"old", b"new"}]

    def test_sync_crashed_at_is_not_done(self, synced: FakeFileSystem) -> None:
        """A sync during which the power fails promises nothing."""
        file = synced.open("/a")
        file.write_at(0, b"n" * 1024)
        synced.crash_at = synced.steps + 1
        with pytest.raises(SimulatedCrash):
            file.datasync()
        found = {read_file(synced.crashed_copy(seed), "/a") for seed in range(50)}
        assert b"o" * 1024 in found

    def test_process_death_keeps_the_page_cache(self, synced: FakeFileSystem) -> None:
        """After the death of the process alone, unsynced bytes are seen, but still not durable."""
        file = synced.open("/a")
        file.write_at(0, b"n" * 1024)
        synced.restart_process()
        with pytest.raises(OSError, match="Bad file descriptor"):
            file.size()
        assert read_file(synced, "/a") == b"n" * 1024
        found = {read_file(synced.crashed_copy(seed), "/a") for seed in range(50)}
        assert b"o" * 1024 in found

    @pytest.mark.parametrize("operation", ["write", "datasync", "truncate", "allocate"])
    def test_injected_error(self, synced: FakeFileSystem, operation: Operation) -> None:
        """The n-th operation fails with the error asked for, the next one succeeds."""
        synced.fail(operation, errno.EIO, nth=2, path="/a")
        file = synced.open("/a")
        actions: dict[str, Callable[[], None]] = {
            "write": lambda: file.write_at(0, b"n"),
            "datasync": file.datasync,
            "truncate": lambda: file.truncate(1024),
            "allocate": lambda: file.allocate(0, 10),
        }
        action = actions[operation]
        action()
        with pytest.raises(OSError, match="Input/output error"):
            action()
        action()

    def test_failed_sync_is_not_made_good_by_the_next(self, synced: FakeFileSystem) -> None:
        """As in Linux, pages a failed sync covered are not written by a later one."""
        file = synced.open("/a")
        file.write_at(0, b"n" * 1024)
        synced.fail("datasync", errno.EIO)
        with pytest.raises(OSError, match="Input/output"):
            file.datasync()
        file.datasync()
        found = {read_file(synced.crashed_copy(seed), "/a") for seed in range(50)}
        assert b"o" * 1024 in found

    def test_disk_full(self) -> None:
        """Writes beyond the capacity fail with ENOSPC; a hole makes room again."""
        disk = FakeFileSystem(capacity_bytes=8192)
        file = disk.open("/a", create=True)
        file.write_at(0, bytes(8192))
        assert disk.free_bytes("/") == 0
        with pytest.raises(OSError, match="No space left"):
            file.write_at(8192, b"x")
        with pytest.raises(OSError, match="No space left"):
            file.allocate(8192, 1)
        file.punch_hole(0, 4096)
        assert disk.allocated_bytes("/a") == 4096
        file.write_at(8192, b"x")

    def test_flipped_bit(self, synced: FakeFileSystem) -> None:
        """A flipped bit shows at once and after a crash."""
        synced.flip_bit("/a", 8 * 3)
        assert read_file(synced, "/a")[3] == ord("o") ^ 1
        assert read_file(synced.crashed_copy(0), "/a")[3] == ord("o") ^ 1

    def test_lying_disk(self) -> None:
        """A disk that lies about a sync loses what was synced, for some seed."""
        lies: tuple[Operation, Operation]
        for lies in (("datasync", "datasync"), ("sync_directory", "sync_directory")):
            disk = FakeFileSystem(lies_about=lies)
            write_file_atomically(disk, "/a", b"x" * 600)
            copies = [disk.crashed_copy(seed) for seed in range(50)]
            assert any(
                not copy.exists("/a") or read_file(copy, "/a") != b"x" * 600 for copy in copies
            )

    def test_atomic_write_at_every_crash(self) -> None:
        """After any crash in an atomic replacement the file is the old one or the new one, and
        the new one once the call had returned."""
        for step in range(1, 7):
            disk = FakeFileSystem()
            write_file_atomically(disk, "/a", b"o" * 600)
            disk.crash_at = disk.steps + step
            done = False
            try:
                write_file_atomically(disk, "/a", b"n" * 600)
                done = True
                disk.sync_directory("/")
            except SimulatedCrash:
                pass
            for seed in range(60):
                found = read_file(disk.crashed_copy(seed), "/a")
                assert found == b"n" * 600 or (not done and found == b"o" * 600), (step, seed)
