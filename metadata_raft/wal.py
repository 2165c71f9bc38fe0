"""Keeping the write-ahead log of the state short without holding up the raft thread.

SQLite's own checkpoint would run, and sync, inside whichever commit happens to cross a threshold.
Here a thread of its own copies pages back (passive checkpoints, which block nobody) until little is
left; then the raft thread copies the rest and starts the log over.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading

WAL_SIZE_START = 16 * 1024 * 1024
"""Bytes of log at which copying back begins: about three seconds of full load."""

PASSES_MAX = 4
REST_FRAMES = 256
"""Copying back is repeated until a pass found fewer frames than this: what comes in during such a
pass takes the raft thread about a millisecond."""

RESTART_WAIT_MS = 20
"""How long a restart of the log waits for older readers. If they take longer (a state download
does), the log grows by another `WAL_SIZE_START` before the next attempt."""

_logger = logging.getLogger(__name__)


class WalKeeper:
    """Watches the log of one database; driven by the thread that commits to it."""

    def __init__(self, path: str, connection: sqlite3.Connection) -> None:
        self._path = path
        self._wal_path = path + "-wal"
        self._connection = connection
        self._copier: threading.Thread | None = None
        self._start_at = WAL_SIZE_START
        connection.execute(f"PRAGMA busy_timeout = {RESTART_WAIT_MS}")

    def after_commit(self) -> None:
        """Start, or finish, copying back if the log has grown long; called after each commit."""
        copier = self._copier
        if copier is None:
            if self._size() >= self._start_at:
                self._copier = threading.Thread(target=self._copy_back, name="state-checkpoint")
                self._copier.start()
        elif not copier.is_alive():
            copier.join()
            self._copier = None
            self._restart()

    def close(self) -> None:
        """Wait for a copy in progress: a thread of ours must not outlive the database."""
        if self._copier is not None:
            self._copier.join()
            self._copier = None

    def _size(self) -> int:
        try:
            return os.stat(self._wal_path).st_size
        except FileNotFoundError:
            return 0

    def _copy_back(self) -> None:
        try:
            connection = sqlite3.connect(self._path, isolation_level=None)
            try:
                copied_before = 0
                for _ in range(PASSES_MAX):
                    _, _, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                    if copied - copied_before < REST_FRAMES:
                        break
                    copied_before = copied
            finally:
                connection.close()
        except sqlite3.Error as error:
            # Nothing is lost: the log stays, and the next commit tries again.
            _logger.warning("copying back the log of %s failed: %s", self._path, error)

    def _restart(self) -> None:
        """Copy the rest and truncate the log, unless older readers still need it."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._start_at = self._size() + WAL_SIZE_START
