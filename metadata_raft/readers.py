"""A pool of read-only connections to the state, usable from every thread.

Readers never block the writer, nor it them. Each snapshot is one read transaction of at most a
second: SQLite can't reuse its log while an old one is open. Opening the snapshot happens with its
first query, so one taken after a barrier shows at least that barrier's index (rule M3).
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from types import TracebackType
from typing import Literal
from urllib.parse import quote

from metadata_raft.queries import SNAPSHOT_SECONDS_MAX, Snapshot
from metadata_raft.state_errors import ReadersBusyError, SnapshotExpiredError, StateCorruptError

CONNECTIONS_MAX = 32
"""Snapshots open at once: one on the main loop and one for each worker thread, with room."""

CACHE_SIZE_KIB = 2 * 1024
"""Page cache of a reader. Small, since every commit of the writer makes it stale anyway."""

_STEPS_BETWEEN_CHECKS = 20_000
"""SQLite steps between two looks at the clock: well under a millisecond of work."""

SUSPEND_SECONDS_MAX = 5.0
"""A snapshot ends within its second; whoever holds one this long would hold it for ever."""

_logger = logging.getLogger(__name__)


class _Reader:
    """One connection with the deadline of its present snapshot."""

    def __init__(self, path: str, generation: int) -> None:
        self.generation = generation
        # Closing and handing on between threads is guarded by the pool, SQLite itself serialises.
        self.connection = sqlite3.connect(
            f"file:{quote(path)}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        self.connection.execute("PRAGMA query_only = ON")
        self.connection.execute(f"PRAGMA cache_size = -{CACHE_SIZE_KIB}")
        self.deadline = float("inf")
        self.connection.set_progress_handler(self._is_overdue, _STEPS_BETWEEN_CHECKS)

    def _is_overdue(self) -> int:
        return time.monotonic() > self.deadline


class ReaderPool:
    """Hands out snapshots of the state at `path`, which a `StateMachine` must have made."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._idle: list[_Reader] = []
        self._open_count = 0
        self._closed = False
        self._generation = 0
        self._all_closed = threading.Condition(self._lock)

    def snapshot(self) -> SnapshotContext:
        """Return a context manager that yields a `Snapshot`. Blocks on nothing but the disk.

        Entering raises ReadersBusyError where all connections are in use. Inside, queries raise
        SnapshotExpiredError a second after the start, and StateCorruptError if the file is damaged.
        """
        return SnapshotContext(self)

    def suspend(self) -> None:
        """Close all connections and refuse snapshots until `reopen` (rule M6).

        To be called before another database is put in the place of this one: a reader that opened
        in between could attach the log of one to the other. Blocks until the snapshots in use have
        ended, which their bound makes about a second.
        """
        with self._lock:
            self._closed = True
            self._close_idle()
            if not self._all_closed.wait_for(lambda: self._open_count == 0, SUSPEND_SECONDS_MAX):
                raise StateCorruptError(
                    f"{self._open_count} snapshots of {self._path} were held for "
                    f"{SUSPEND_SECONDS_MAX:g} s"
                )

    def reopen(self) -> None:
        """Another database has taken the place of this one (rule M6): new snapshots read that,
        those in use end with the one they began with."""
        with self._lock:
            self._generation += 1
            self._close_idle()
            self._closed = False

    def close(self) -> None:
        """Close the idle connections, and those in use when they come back."""
        with self._lock:
            self._closed = True
            self._close_idle()

    def _close_idle(self) -> None:
        for reader in self._idle:
            reader.connection.close()
        self._open_count -= len(self._idle)
        self._idle.clear()

    def take(self) -> _Reader:
        with self._lock:
            if self._closed:
                raise ReadersBusyError("the state is closed")
            if self._idle:
                return self._idle.pop()
            if self._open_count >= CONNECTIONS_MAX:
                raise ReadersBusyError(f"all {CONNECTIONS_MAX} read connections are in use")
            self._open_count += 1
            generation = self._generation
        try:
            return _Reader(self._path, generation)
        except sqlite3.Error as error:
            with self._lock:
                self._open_count -= 1
                self._all_closed.notify_all()
            raise StateCorruptError(f"the state {self._path} can't be read: {error}") from error

    def give_back(self, reader: _Reader) -> None:
        with self._lock:
            if not self._closed and reader.generation == self._generation:
                self._idle.append(reader)
                return
            reader.connection.close()
            self._open_count -= 1
            self._all_closed.notify_all()


class SnapshotContext:
    """The `with` block of one snapshot."""

    __slots__ = ("_pool", "_reader")

    def __init__(self, pool: ReaderPool) -> None:
        self._pool = pool
        self._reader: _Reader | None = None

    def __enter__(self) -> Snapshot:
        reader = self._reader = self._pool.take()
        reader.deadline = time.monotonic() + SNAPSHOT_SECONDS_MAX
        reader.connection.execute("BEGIN")
        return Snapshot(reader.connection, reader.deadline)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        reader, self._reader = self._reader, None
        assert reader is not None
        overdue_seconds = time.monotonic() - reader.deadline
        reader.deadline = float("inf")
        # Where the disk failed SQLite has ended the transaction already; this does not mind.
        reader.connection.rollback()
        self._pool.give_back(reader)
        if isinstance(error, sqlite3.OperationalError) and overdue_seconds > 0:
            raise SnapshotExpiredError("a query ran into the end of its snapshot") from error
        if isinstance(error, sqlite3.Error):
            raise StateCorruptError(f"a query of the state failed: {error}") from error
        if overdue_seconds > 0:
            _logger.warning("a snapshot was held %.1f s too long", overdue_seconds)
        return False
