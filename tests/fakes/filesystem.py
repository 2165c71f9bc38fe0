"""A disk in memory that behaves as badly as a real one may: the fake `FileSystem`.

Every operation that changes or secures the disk is a step. At a chosen step the power fails: the
operation may or may not have taken place, `SimulatedCrash` is raised, and so it is by everything
after it. `crashed_copy(seed)` is then a disk as it may be found afterwards:

- what `datasync` covered is there; each later write, truncation, allocation or punch is dropped,
  kept, or (a write) torn at 512-byte sectors, each by itself, whatever came after it;
- of the names made, removed or replaced since `sync_directory` an initial run is kept, in order
  within a directory, as a journaling file system does it; a lost directory takes all below it.

Contents and names are independent: a synced file whose name was not synced can be gone, and a
renamed file whose contents were not synced can be empty. A failed `datasync` loses what it was
asked to secure as Linux does: a later one that succeeds does not cover it.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ring.filesystem import Buffer, FileIdentity
from tests.fakes.disk_state import (
    BLOCK_SIZE,
    SECTOR_SIZE,
    Change,
    Directory,
    Image,
    Inode,
    blocks_of,
)

UNLIMITED_BYTES = 1 << 40
"""The free space told of a disk without `capacity_bytes`."""

Operation = Literal[
    "create",
    "write",
    "datasync",
    "truncate",
    "allocate",
    "punch_hole",
    "make_directory",
    "replace",
    "unlink",
    "sync_directory",
]


class SimulatedCrash(Exception):  # noqa: N818 - an event, not an error of the code
    """The machine lost power; only `crashed_copy` of its disk is of use now."""


@dataclass
class _Fault:
    operation: Operation
    code: int
    path: str
    remaining: int
    times: int


class FakeFileSystem:
    """The disk. `crash_at` is the step at which the power fails, counted from 1.

    `lies_about` names operations that return at once and secure nothing: a disk no software can
    be safe on, for showing that a test would notice a missing sync.
    """

    def __init__(
        self,
        *,
        crash_at: int | None = None,
        capacity_bytes: int | None = None,
        lies_about: Sequence[Operation] = (),
    ) -> None:
        self.steps = 0
        self.crash_at = crash_at
        self.crashed = False
        self.capacity_bytes = capacity_bytes
        self.log: list[tuple[Operation, str]] = []
        """Every step with the path it was about; the last one is where the power failed."""
        self.on_step: Callable[[], None] | None = None
        """Called within each step, at the instant the power would fail: a `crashed_copy` taken
        there is one of that step. One run then shows the crashes at all of its steps."""
        self._lies = frozenset(lies_about)
        self._faults: list[_Fault] = []
        self._root = Directory()
        self._lock = threading.RLock()
        self._run = 0

    # --- what tests do to it -------------------------------------------------------------------

    def fail(
        self, operation: Operation, code: int, *, nth: int = 1, times: int = 1, path: str = ""
    ) -> None:
        """Let the n-th such operation from now on, on a path containing `path`, raise OSError.

        A failed write leaves its first half behind, a failed datasync loses what it covered.
        """
        self._faults.append(_Fault(operation, code, path, nth, times))

    def crashed_copy(self, seed: int) -> FakeFileSystem:
        """A disk as it may be found after the power failed; the seed decides what was kept."""
        with self._lock:
            found = FakeFileSystem(capacity_bytes=self.capacity_bytes)
            found._root = self._root.settle(random.Random(seed))
            return found

    def restart_process(self) -> None:
        """The process died and not the machine: files close, unsynced changes stay unsynced."""
        with self._lock:
            self.crashed, self.crash_at, self._run = False, None, self._run + 1

    def flip_bit(self, path: str, bit: int) -> None:
        """Change one bit of a file, now and on the disk; `bit` counts from the file's start."""
        with self._lock:
            inode = self._inode(path)
            for image in (inode.current, inode.durable):
                if bit // 8 < len(image.content):
                    image.content[bit // 8] ^= 1 << (bit % 8)

    def allocated_bytes(self, path: str | None = None) -> int:
        """Space taken by one file, or by all that have a name."""
        with self._lock:
            inodes = [self._inode(path)] if path is not None else _inodes(self._root)
            return sum(len(inode.current.blocks) for inode in inodes) * BLOCK_SIZE

    # --- the FileSystem interface --------------------------------------------------------------

    def open(self, path: str, *, create: bool = False, direct: bool = False) -> FakeFile:
        with self._lock:
            self._alive()
            directory, name = self._parent(path)
            node = directory.current.get(name)
            if isinstance(node, Directory):
                raise _error(errno.EISDIR, path)
            if node is None:
                if not create:
                    raise _error(errno.ENOENT, path)
                inode = Inode()
                self._begin("create", path)
                directory.change(lambda names: names.update({name: inode}))
                self._end()
                node = inode
            return FakeFile(self, path, node, direct, self._run)

    def exists(self, path: str) -> bool:
        with self._lock:
            self._alive()
            try:
                directory, name = self._parent(path)
            except FileNotFoundError:
                return False
            return name in directory.current

    def names(self, directory: str) -> list[str]:
        with self._lock:
            self._alive()
            return sorted(self._directory(directory).current)

    def make_directory(self, path: str) -> None:
        with self._lock:
            self._alive()
            parent, name = self._parent(path)
            node = parent.current.get(name)
            if isinstance(node, Inode):
                raise _error(errno.EEXIST, path)
            if node is None:
                made = Directory()
                self._begin("make_directory", path)
                parent.change(lambda names: names.update({name: made}))
                self._end()

    def replace(self, source: str, target: str) -> None:
        with self._lock:
            directory, old = self._parent(source)
            other, new = self._parent(target)
            if directory is not other:
                raise ValueError(f"durability of a rename across directories: {source}, {target}")
            node = self._inode(source)

            def rename(names: dict[str, Inode | Directory]) -> None:
                names.pop(old, None)
                names[new] = node

            self._begin("replace", target)
            directory.change(rename)
            self._end()

    def unlink(self, path: str) -> None:
        with self._lock:
            directory, name = self._parent(path)
            self._inode(path)
            self._begin("unlink", path)
            directory.change(lambda names: _remove(names, name))
            self._end()

    def sync_directory(self, path: str) -> None:
        with self._lock:
            directory = self._directory(path)
            self._begin("sync_directory", path)
            self._end()
            if "sync_directory" not in self._lies:
                directory.sync()

    def free_bytes(self, path: str) -> int:
        with self._lock:
            self._alive()
            if self.capacity_bytes is None:
                return UNLIMITED_BYTES
            return max(0, self.capacity_bytes - self.allocated_bytes())

    def identity(self, path: str) -> FileIdentity | None:
        with self._lock:
            self._alive()
            try:
                return 0, id(self._inode(path))
            except FileNotFoundError:
                return None

    # --- within --------------------------------------------------------------------------------

    def _parent(self, path: str) -> tuple[Directory, str]:
        return self._directory(os.path.dirname(path)), os.path.basename(path)

    def _directory(self, path: str) -> Directory:
        if not path.startswith("/"):
            raise ValueError(f"not an absolute path: {path!r}")
        node: Inode | Directory | None = self._root
        for part in path.split("/"):
            if part:
                node = node.current.get(part) if isinstance(node, Directory) else None
        if isinstance(node, Inode):
            raise _error(errno.ENOTDIR, path)
        if node is None:
            raise _error(errno.ENOENT, path)
        return node

    def _inode(self, path: str) -> Inode:
        directory, name = self._parent(path)
        node = directory.current.get(name)
        if not isinstance(node, Inode):
            raise _error(errno.ENOENT if node is None else errno.EISDIR, path)
        return node

    def _alive(self) -> None:
        if self.crashed:
            raise SimulatedCrash(f"the power failed at step {self.steps}")

    def _begin(self, operation: Operation, path: str) -> None:
        """Count a step and raise an injected error, before the operation has any effect."""
        self._alive()
        self.steps += 1
        self.log.append((operation, path))
        for fault in self._faults:
            if fault.operation == operation and fault.path in path:
                fault.remaining -= 1
                if fault.remaining <= 0 < fault.times:
                    fault.times -= 1
                    raise _error(fault.code, path)

    def _end(self) -> None:
        """Cut the power if this is the step: changes are pending, syncs have not taken place."""
        if self.on_step is not None:
            self.on_step()
        if self.crash_at is not None and self.steps >= self.crash_at:
            self.crashed = True
            self._alive()


def _inodes(directory: Directory) -> list[Inode]:
    found: list[Inode] = []
    for node in directory.current.values():
        found.extend(_inodes(node) if isinstance(node, Directory) else [node])
    return found


def _remove(names: dict[str, Inode | Directory], name: str) -> None:
    names.pop(name, None)


def _error(code: int, path: str) -> OSError:
    return OSError(code, os.strerror(code), path)


class FakeFile:
    """An open file of the fake disk."""

    def __init__(
        self, disk: FakeFileSystem, path: str, inode: Inode, direct: bool, run: int
    ) -> None:
        self._disk = disk
        self._path = path
        self._inode = inode
        self._direct = direct
        self._run = run
        self._closed = False

    def write_at(self, offset: int, data: Buffer) -> None:
        self.write_vector_at(offset, [data])

    def write_vector_at(self, offset: int, pieces: Sequence[Buffer]) -> None:
        data = b"".join(pieces)
        with self._disk._lock:
            self._check(offset, len(data))
            if not data:
                return
            try:
                self._begin("write")
                self._claim(offset, len(data))
            except OSError:
                half = len(data) // 2 // SECTOR_SIZE * SECTOR_SIZE
                if half:
                    self._inode.change(_write(offset, data[:half]))
                raise
            self._inode.change(_write(offset, data))
            self._disk._end()

    def read_at(self, offset: int, length: int) -> bytes:
        with self._disk._lock:
            self._check(offset, length)
            return bytes(memoryview(self._inode.current.content)[offset : offset + length])

    def read_into(self, offset: int, buffer: memoryview) -> int:
        data = self.read_at(offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def datasync(self) -> None:
        with self._disk._lock:
            self._check(0, 0)
            try:
                self._begin("datasync")
            except OSError:
                self._inode.fail_sync()
                raise
            self._disk._end()
            if "datasync" not in self._disk._lies:
                self._inode.sync()

    def truncate(self, size: int) -> None:
        self._change("truncate", lambda image: image.truncate(size))

    def allocate(self, offset: int, length: int) -> None:
        with self._disk._lock:
            self._check(0, 0)
            self._begin("allocate")
            self._claim(offset, length)
            self._inode.change(Change(lambda image: image.allocate(offset, length)))
            self._disk._end()

    def punch_hole(self, offset: int, length: int) -> None:
        self._change("punch_hole", lambda image: image.punch(offset, length))

    def size(self) -> int:
        with self._disk._lock:
            self._check(0, 0)
            return len(self._inode.current.content)

    def identity(self) -> FileIdentity:
        return 0, id(self._inode)

    def close(self) -> None:
        self._closed = True

    def _change(self, operation: Operation, apply: Callable[[Image], None]) -> None:
        with self._disk._lock:
            self._check(0, 0)
            self._begin(operation)
            self._inode.change(Change(apply))
            self._disk._end()

    def _begin(self, operation: Operation) -> None:
        self._disk._begin(operation, self._path)

    def _check(self, offset: int, length: int) -> None:
        self._disk._alive()
        if self._closed or self._run != self._disk._run:
            raise _error(errno.EBADF, self._path)
        if offset < 0 or (self._direct and (offset % BLOCK_SIZE or length % BLOCK_SIZE)):
            raise _error(errno.EINVAL, self._path)

    def _claim(self, offset: int, length: int) -> None:
        if self._disk.capacity_bytes is None:
            return
        new = set(blocks_of(offset, length)) - self._inode.current.blocks
        if self._disk.allocated_bytes() + len(new) * BLOCK_SIZE > self._disk.capacity_bytes:
            raise _error(errno.ENOSPC, self._path)


def _write(offset: int, data: bytes) -> Change:
    return Change(
        lambda image: image.write(offset, data),
        lambda image, chance: image.write_torn(offset, data, chance),
    )
