"""Space kept aside for the day the disk is full (rule M4).

A full disk must not keep a node from freeing space: deletions are log entries too, so are the
generations that collection runs on, and compaction writes a manifest. A preallocated file is given
up for those; ordinary entries are refused while less than its size is free.
"""

from __future__ import annotations

import os

from ring.filesystem import FileSystem

STATE_SHARE = 4
"""One part in so many is never given to entries: the state machine writes what they say, and where
it finds no room the process has to end; the journal only waits."""


class Reserve:
    """The reserve file of one directory. `size_bytes` 0 keeps nothing aside."""

    def __init__(self, filesystem: FileSystem, path: str, size_bytes: int) -> None:
        self._filesystem = filesystem
        self._path = path
        self._size_bytes = size_bytes
        self._held = filesystem.exists(path)

    @property
    def held(self) -> bool:
        return self._held

    def has_room(self, *, privileged: bool) -> bool:
        """Whether an entry may be appended; a privileged one gives the reserve up if need be."""
        if self._free_bytes() >= self._size_bytes:
            return True
        if not privileged:
            return False
        self.release()
        return self._free_bytes() > self._size_bytes // STATE_SHARE

    def release(self) -> bool:
        """Give the space back; False where it was given back before. Raises OSError."""
        if not self._held:
            return False
        self._filesystem.unlink(self._path)
        self._held = False
        return True

    def restore(self) -> None:
        """Set the space aside again as soon as twice as much is free; else leave it."""
        if self._held or not self._size_bytes or self._free_bytes() < 2 * self._size_bytes:
            return
        try:
            file = self._filesystem.open(self._path, create=True)
        except OSError:
            return
        try:
            file.allocate(0, self._size_bytes)
            self._held = True
        except OSError:
            # Somebody else was faster; the next second tries again.
            self._filesystem.unlink(self._path)
        finally:
            file.close()

    def _free_bytes(self) -> int:
        return self._filesystem.free_bytes(os.path.dirname(self._path))
