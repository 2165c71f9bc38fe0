"""The seam to the disk: every byte that must survive a power cut goes through a `FileSystem`.

The Raft journal, the vote file, the manifest and the chunk volumes are written through this
interface and nothing else, so that tests can put a fake disk below them that forgets, tears or
keeps unsynced writes at any point. SQLite files go through SQLite's own layer.

Nothing here buffers: a write that returned is in the operating system, and durable only after
`datasync` (contents) or `sync_directory` (names). Errors are the `OSError` of the call.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Protocol

Buffer = bytes | bytearray | memoryview

FileIdentity = tuple[int, int]
"""Device and inode. An open file keeps its own, whatever becomes of its name."""


class File(Protocol):
    """An open file; offsets and lengths are in bytes. Usable from several threads.

    Opened with `direct`, offsets, lengths and the memory of buffers are multiples of 4 KiB, and
    reading is by `read_into`; else the kernel answers OSError(EINVAL).
    """

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write all of `data` at `offset`; a short write is continued."""

    def write_vector_at(self, offset: int, pieces: list[Buffer]) -> None:
        """Write the pieces one behind the other at `offset`, as one call where possible."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes; shorter only at the end of the file."""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` from `offset`; return the bytes read, fewer only at the end of the file."""

    def datasync(self) -> None:
        """Make contents and size durable (fdatasync)."""

    def truncate(self, size: int) -> None:
        """Cut or extend with zeros to `size`; durable after `datasync`."""

    def allocate(self, offset: int, length: int) -> None:
        """Reserve blocks without changing what is stored; new bytes read as zeros (fallocate).

        The size grows to cover the range. Raises OSError(ENOSPC) where the blocks can't be had.
        """

    def punch_hole(self, offset: int, length: int) -> None:
        """Give the blocks of a range back; it reads as zeros. The size stays."""

    def size(self) -> int: ...

    def identity(self) -> FileIdentity:
        """Which file this is; `FileSystem.identity` of its path says the same while it is there."""

    def close(self) -> None: ...


class FileSystem(Protocol):
    """Files by absolute path. `open` never truncates."""

    def open(self, path: str, *, create: bool = False, direct: bool = False) -> File:
        """Open for reading and writing; `direct` asks for O_DIRECT (aligned access only).

        Raises FileNotFoundError without `create`, OSError(EINVAL) where O_DIRECT is unsupported.
        """

    def exists(self, path: str) -> bool: ...

    def names(self, directory: str) -> list[str]:
        """The names in a directory, sorted."""

    def make_directory(self, path: str) -> None:
        """Make one directory, whose parent must exist; it may be there already.

        Durable after `sync_directory` of the parent.
        """

    def replace(self, source: str, target: str) -> None:
        """Rename over `target`; durable after `sync_directory`."""

    def unlink(self, path: str) -> None: ...

    def sync_directory(self, path: str) -> None:
        """Make the names in a directory durable (fsync of the directory)."""

    def free_bytes(self, path: str) -> int:
        """What an ordinary user may still write on the file system that holds `path`."""

    def identity(self, path: str) -> FileIdentity | None:
        """Which file has this path now; None where there is none."""


def read_file(filesystem: FileSystem, path: str) -> bytes:
    """Return a whole file. Raises FileNotFoundError."""
    file = filesystem.open(path)
    try:
        return file.read_at(0, file.size())
    finally:
        file.close()


def write_file_atomically(filesystem: FileSystem, path: str, data: bytes) -> None:
    """Replace a small file so that after a crash it is either the old one or the new one.

    New file, write, datasync, rename, sync of the directory; durable on return.
    """
    temporary = path + ".new"
    if filesystem.exists(temporary):
        filesystem.unlink(temporary)
    file = filesystem.open(temporary, create=True)
    try:
        file.write_at(0, data)
        file.datasync()
    finally:
        file.close()
    filesystem.replace(temporary, path)
    filesystem.sync_directory(os.path.dirname(path))


class RealFile:
    """A `File` on a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write_at(self, offset: int, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view, offset = view[written:], offset + written

    def write_vector_at(self, offset: int, pieces: list[Buffer]) -> None:
        for start in range(0, len(pieces), _VECTOR_LIMIT):
            batch = pieces[start : start + _VECTOR_LIMIT]
            written = os.pwritev(self._descriptor, batch, offset)
            offset += written
            for piece in batch:
                # A short write is rare: what it left is written piece by piece, uncopied.
                if written < len(piece):
                    rest = memoryview(piece)[written:]
                    self.write_at(offset, rest)
                    offset += len(rest)
                written = max(0, written - len(piece))

    def read_at(self, offset: int, length: int) -> bytes:
        pieces: list[bytes] = []
        while length > 0:
            piece = os.pread(self._descriptor, length, offset)
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
            if not piece or (length > 0 and offset >= self.size()):
                break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        done = 0
        while done < len(buffer):
            count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            done += count
            # Asking on from an unaligned end would be EINVAL on a direct file, not "no more".
            if count == 0 or (done < len(buffer) and offset + done >= self.size()):
                break
        return done

    def datasync(self) -> None:
        os.fdatasync(self._descriptor)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def allocate(self, offset: int, length: int) -> None:
        os.posix_fallocate(self._descriptor, offset, length)

    def punch_hole(self, offset: int, length: int) -> None:
        _fallocate(self._descriptor, _PUNCH_HOLE_KEEP_SIZE, offset, length)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def identity(self) -> FileIdentity:
        status = os.fstat(self._descriptor)
        return status.st_dev, status.st_ino

    def close(self) -> None:
        os.close(self._descriptor)


class RealFileSystem:
    """The `FileSystem` of the operating system (Linux)."""

    def open(self, path: str, *, create: bool = False, direct: bool = False) -> RealFile:
        flags = os.O_RDWR | os.O_CLOEXEC
        if create:
            flags |= os.O_CREAT
        if direct:
            flags |= os.O_DIRECT
        return RealFile(os.open(path, flags, 0o600))

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def names(self, directory: str) -> list[str]:
        return sorted(os.listdir(directory))

    def make_directory(self, path: str) -> None:
        try:
            os.mkdir(path, mode=0o700)
        except FileExistsError:
            if not os.path.isdir(path):
                raise

    def replace(self, source: str, target: str) -> None:
        os.replace(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def sync_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def free_bytes(self, path: str) -> int:
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize

    def identity(self, path: str) -> FileIdentity | None:
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino


_VECTOR_LIMIT = 1024
"""IOV_MAX on Linux."""

_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
"""FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from linux/falloc.h."""

_libc = ctypes.CDLL(None, use_errno=True)


def _fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    arguments = (
        ctypes.c_int(descriptor),
        ctypes.c_int(mode),
        ctypes.c_int64(offset),
        ctypes.c_int64(length),
    )
    while _libc.fallocate(*arguments) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def can_punch_holes(filesystem: FileSystem, directory: str) -> bool:
    """Whether the files of a directory can give space back; leaves nothing behind."""
    path = os.path.join(directory, ".hole-probe")
    file = filesystem.open(path, create=True)
    try:
        file.write_at(0, bytes(8192))
        file.punch_hole(0, 4096)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        raise
    finally:
        file.close()
        filesystem.unlink(path)
    return True
