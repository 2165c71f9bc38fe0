"""The mark of a disk that failed: set when a write or sync fails, heeded at the next start (M4).

When a sync fails the kernel forgets what it could not write, and the next sync succeeds for
nothing. So the process ends, and the next one does not start here until somebody has looked.
"""

from __future__ import annotations

import contextlib
import errno
import os

from metadata_raft.storage_errors import StorageUnusableError
from ring.filesystem import FileSystem, read_file, write_file_atomically

SUSPECT_NAME = "suspect"


def is_disk_full(error: BaseException | None) -> bool:
    """A full disk is no failure: it wrote nothing, and says so."""
    return isinstance(error, OSError) and error.errno == errno.ENOSPC


def mark_suspect(filesystem: FileSystem, directory: str, error: BaseException) -> None:
    """Leave the mark, as well as the disk still can; nothing is left for a full disk."""
    if is_disk_full(error) or is_disk_full(error.__cause__):
        return
    # The disk may refuse even this. What matters holds without it: nothing unsynced was
    # acknowledged, and this process ends.
    with contextlib.suppress(OSError):
        path = os.path.join(directory, SUSPECT_NAME)
        write_file_atomically(filesystem, path, f"{error}\n".encode())


def refuse_suspect(filesystem: FileSystem, directory: str) -> None:
    """Raises StorageUnusableError where the mark is."""
    path = os.path.join(directory, SUSPECT_NAME)
    if not filesystem.exists(path):
        return
    reason = read_file(filesystem, path).decode(errors="replace").strip()
    raise StorageUnusableError(
        f"{path}: a write or sync failed here ({reason}). Check the disk. If it is sound, delete "
        "this file and start again: nothing was acknowledged that had not been synced before. "
        "Else remove this node from the cluster, wipe its data directory, and let it join again"
    )
