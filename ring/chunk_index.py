"""Where each chunk lies: the index of a store, in SQLite.

Everything in it can be rebuilt from the volumes, so that a commit need not reach the disk to
acknowledge a chunk. What a deletion relies on is the exception: `apply(durable=True)` returns when
the change is on disk (rule D7). Count and digest of each partition, the totals, and how far each
volume is reflected (`indexed_up_to`) change in the same transaction as the rows.

`apply` and `close` belong to the writer thread (and to recovery before it starts); queries may be
called from any thread, each of which has a connection of its own.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ring.digests import partition_range
from ring.errors import IndexDamagedError, StoreFullError
from ring.interfaces import CHUNK_ID_SIZE, Codec, PartitionDigest
from ring.members import PARTITION_COUNT, partition_of
from ring.record import RECORD_SIZE_MAX, align

INDEX_FORMAT_VERSION = 1

_ROWS_PER_STATEMENT = (64, 8, 1)
"""Rows are inserted by few, wide statements: each statement gives the interpreter lock away once,
and getting it back from a busy event loop can take milliseconds."""

_IDS_PER_QUERY = 256

_PAST_ALL_IDS = b"\xff" * (CHUNK_ID_SIZE + 1)
_NO_SPACE = ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")
"""The second: the file that the connections share can't grow."""

_SUFFIXES = ("-wal", "-shm", "")

_SCHEMA = """
CREATE TABLE meta (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    format_version INTEGER NOT NULL,
    chunks INTEGER NOT NULL,
    plain_bytes INTEGER NOT NULL,
    stored_bytes INTEGER NOT NULL,
    allocated_bytes INTEGER NOT NULL,
    quarantined INTEGER NOT NULL
);
CREATE TABLE volumes (
    number INTEGER PRIMARY KEY,
    key BLOB NOT NULL,
    indexed_up_to INTEGER NOT NULL,
    sealed INTEGER NOT NULL
);
CREATE TABLE chunks (
    chunk_id BLOB PRIMARY KEY,
    volume INTEGER NOT NULL,
    start INTEGER NOT NULL,
    payload_start INTEGER NOT NULL,
    payload_length INTEGER NOT NULL,
    plain_length INTEGER NOT NULL,
    codec INTEGER NOT NULL,
    touch INTEGER NOT NULL,
    quarantined INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX quarantined_chunks ON chunks (chunk_id) WHERE quarantined;
CREATE TABLE to_punch (
    volume INTEGER NOT NULL,
    start INTEGER NOT NULL,
    length INTEGER NOT NULL,
    chunk_id BLOB NOT NULL,
    PRIMARY KEY (volume, start)
) WITHOUT ROWID;
CREATE TABLE partitions (
    partition INTEGER PRIMARY KEY,
    chunks INTEGER NOT NULL,
    digest BLOB NOT NULL
);
"""


class IndexRow(NamedTuple):
    """Where one chunk lies; offsets and lengths in bytes."""

    chunk_id: bytes
    volume: int
    offset: int
    payload_start: int
    payload_length: int
    plain_length: int
    codec: Codec
    touch: int
    """The touch it was written with; 0 where that is not known any more."""
    quarantined: bool = False

    @property
    def record_length(self) -> int:
        return align(self.payload_start + self.payload_length)

    def extent(self) -> Extent:
        return Extent(self.volume, self.offset, self.record_length, self.chunk_id)


class Extent(NamedTuple):
    """A record whose bytes go: no row points at it any more."""

    volume: int
    offset: int
    length: int
    chunk_id: bytes


class VolumePosition(NamedTuple):
    """How far the index reflects a volume. A sealed one gets no more records."""

    number: int
    key: bytes
    indexed_up_to: int
    sealed: bool = False


class Transition(NamedTuple):
    """One chunk's row before and after a change; None where it is absent."""

    before: IndexRow | None
    after: IndexRow | None


@dataclass(frozen=True, slots=True)
class IndexTotals:
    chunks: int = 0
    plain_bytes: int = 0
    stored_bytes: int = 0
    allocated_bytes: int = 0
    quarantined: int = 0


@dataclass(slots=True)
class IndexChange:
    """What one transaction does. Extents of rows that vanish or move belong in `to_punch`."""

    transitions: list[Transition] = field(default_factory=list)
    to_punch: list[Extent] = field(default_factory=list)
    punched: list[Extent] = field(default_factory=list)
    volumes: list[VolumePosition] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.transitions or self.to_punch or self.punched or self.volumes)


class ChunkIndex:
    """The index in the SQLite file at `path`, which is created where it is missing.

    Raises IndexDamagedError where the file is no sound index: it can be removed and rebuilt.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._connections_lock = threading.Lock()
        with _translated(path):
            self._writer = self._connect()
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._writer.execute("PRAGMA synchronous = NORMAL")
            self._load()
        self._identities = self._current_identities()

    @property
    def path(self) -> str:
        return self._path

    def is_in_place(self) -> bool:
        """Whether the files of the index are those that were opened.

        SQLite goes on with files that were removed or replaced, and what it commits is lost.
        """
        return self._current_identities() == self._identities

    def _current_identities(self) -> list[tuple[int, int] | None]:
        return [_identity(self._path + suffix) for suffix in _SUFFIXES]

    def _load(self) -> None:
        connection = self._writer
        if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise IndexDamagedError(self._path, "quick_check failed")
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
            connection.executescript(
                f"BEGIN; {_SCHEMA}"
                f"INSERT INTO meta VALUES (1, {INDEX_FORMAT_VERSION}, 0, 0, 0, 0, 0); COMMIT;"
            )
        # Also for indexes that were made before there was a scrub.
        connection.execute("CREATE INDEX IF NOT EXISTS chunks_in_order ON chunks (volume, start)")
        version, *totals = connection.execute(
            "SELECT format_version, chunks, plain_bytes, stored_bytes, allocated_bytes, quarantined"
            " FROM meta"
        ).fetchone()
        if version != INDEX_FORMAT_VERSION:
            raise IndexDamagedError(self._path, f"format version {version}")
        self._totals = IndexTotals(*totals)
        self._partitions = [(0, 0)] * PARTITION_COUNT
        for number, count, digest in connection.execute("SELECT * FROM partitions"):
            self._partitions[number] = (count, int.from_bytes(digest, "big"))

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        connection.execute("PRAGMA cache_size = -8192")
        connection.execute("PRAGMA mmap_size = 268435456")
        with self._connections_lock:
            self._connections.append(connection)
        return connection

    # --- queries -------------------------------------------------------------------------------

    def find(self, chunk_ids: Sequence[bytes]) -> dict[bytes, IndexRow]:
        """Return the committed rows of chunks; a few microseconds each."""
        found: dict[bytes, IndexRow] = {}
        for start in range(0, len(chunk_ids), _IDS_PER_QUERY):
            batch = chunk_ids[start : start + _IDS_PER_QUERY]
            places = ",".join("?" * len(batch))
            query = f"SELECT * FROM chunks WHERE chunk_id IN ({places})"
            for values in self._reader().execute(query, batch):
                found[values[0]] = _row(values)
        return found

    def ids(self, after: bytes, limit: int, *, below: bytes | None = None) -> list[bytes]:
        """Return up to `limit` ids of healthy chunks greater than `after`, in order.

        With `below`, only ids smaller than that.
        """
        return [
            chunk_id
            for (chunk_id,) in self._reader().execute(
                "SELECT chunk_id FROM chunks WHERE chunk_id > ? AND chunk_id < ?"
                " AND NOT quarantined ORDER BY chunk_id LIMIT ?",
                (after, _PAST_ALL_IDS if below is None else below, limit),
            )
        ]

    def quarantined(self, limit: int, *, after: bytes = b"") -> list[bytes]:
        """Return up to `limit` ids of quarantined chunks greater than `after`, in order."""
        return [
            chunk_id
            for (chunk_id,) in self._reader().execute(
                "SELECT chunk_id FROM chunks WHERE quarantined AND chunk_id > ?"
                " ORDER BY chunk_id LIMIT ?",
                (after, limit),
            )
        ]

    def rows_in_order(self, volume: int, start: int, limit: int) -> list[IndexRow]:
        """Return up to `limit` rows as they lie on the disk, from a place in a volume on."""
        rows = self._reader().execute(
            "SELECT * FROM chunks WHERE (volume, start) >= (?, ?) ORDER BY volume, start LIMIT ?",
            (volume, start, limit),
        )
        return [_row(values) for values in rows]

    def volumes(self) -> list[VolumePosition]:
        return [
            VolumePosition(number, key, indexed_up_to, bool(sealed))
            for number, key, indexed_up_to, sealed in self._reader().execute(
                "SELECT * FROM volumes ORDER BY number"
            )
        ]

    def rows_beyond(self, volume: int, size: int) -> list[IndexRow]:
        """Return the healthy rows whose records reach past `size`: what a volume has lost."""
        rows = self._reader().execute(
            "SELECT * FROM chunks WHERE volume = ? AND start > ? AND NOT quarantined",
            (volume, size - RECORD_SIZE_MAX),
        )
        return [row for row in map(_row, rows) if row.offset + row.record_length > size]

    def to_punch(self) -> list[Extent]:
        rows = self._reader().execute("SELECT volume, start, length, chunk_id FROM to_punch")
        return [Extent(*row) for row in rows]

    def partition_counts(self) -> list[int]:
        """Return how many healthy chunks each partition has. From memory: some 0.1 ms."""
        return [count for count, _ in self._partitions]

    def partition_digests(self) -> list[PartitionDigest]:
        return [
            PartitionDigest(count, digest.to_bytes(CHUNK_ID_SIZE, "big"))
            for count, digest in list(self._partitions)
        ]

    def is_digest_exact(self, partition: int) -> bool:
        """Whether a partition's digest is what its rows amount to; any thread, no lock.

        False may also mean that the digest was changing at that moment: `recount` is sure.
        """
        cached = self._partitions[partition]
        connection = self._reader()
        # Both in one snapshot: they change in one transaction.
        connection.execute("BEGIN")
        try:
            counted, stored = self._recounted(connection, partition)
        finally:
            connection.execute("COMMIT")
        return counted == stored == cached

    @staticmethod
    def _recounted(
        connection: sqlite3.Connection, partition: int
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return (count, digest) of a partition as its rows have it, and as it is stored."""
        after, below = partition_range(partition)
        count = digest = 0
        for (chunk_id,) in connection.execute(
            "SELECT chunk_id FROM chunks WHERE chunk_id > ? AND chunk_id < ? AND NOT quarantined",
            (after, _PAST_ALL_IDS if below is None else below),
        ):
            count += 1
            digest ^= int.from_bytes(chunk_id, "big")
        stored = (0, 0)
        for known, mixed in connection.execute(
            "SELECT chunks, digest FROM partitions WHERE partition = ?", (partition,)
        ):
            stored = (known, int.from_bytes(mixed, "big"))
        return (count, digest), stored

    def totals(self) -> IndexTotals:
        return self._totals

    def _reader(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
        return connection

    # --- changes -------------------------------------------------------------------------------

    def apply(self, change: IndexChange, *, durable: bool = False) -> None:
        """Commit a change as one transaction; with `durable` it is on disk on return.

        Raises IndexDamagedError or StoreFullError; then nothing of the change was done.
        """
        totals, partitions = self._after(change.transitions)
        with _translated(self._path):
            self._writer.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                self._write(change, totals, partitions)
                self._writer.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._writer.execute("ROLLBACK")
                raise
        self._totals = totals
        for number, value in partitions.items():
            self._partitions[number] = value

    def recount(self, partition: int) -> bool:
        """Put a partition's digest right; returns whether it was wrong. Writer thread.

        Raises IndexDamagedError or StoreFullError.
        """
        with _translated(self._path):
            counted, stored = self._recounted(self._writer, partition)
            if counted == stored == self._partitions[partition]:
                return False
            count, digest = counted
            self._insert(
                "partitions", 3, [(partition, count, digest.to_bytes(CHUNK_ID_SIZE, "big"))]
            )
        self._partitions[partition] = counted
        return True

    def _write(
        self, change: IndexChange, totals: IndexTotals, partitions: dict[int, tuple[int, int]]
    ) -> None:
        execute = self._writer.execute
        gone = [step.before for step in change.transitions if step.before and not step.after]
        for row in gone:
            execute("DELETE FROM chunks WHERE chunk_id = ?", (row.chunk_id,))
        self._insert("chunks", 9, [step.after for step in change.transitions if step.after])
        self._insert("to_punch", 4, change.to_punch)
        for extent in change.punched:
            execute("DELETE FROM to_punch WHERE volume = ? AND start = ?", extent[:2])
        self._insert("volumes", 4, change.volumes)
        self._insert(
            "partitions",
            3,
            [
                (number, count, digest.to_bytes(CHUNK_ID_SIZE, "big"))
                for number, (count, digest) in partitions.items()
            ],
        )
        if change.transitions:
            execute(
                "UPDATE meta SET chunks = ?, plain_bytes = ?, stored_bytes = ?,"
                " allocated_bytes = ?, quarantined = ?",
                (
                    totals.chunks,
                    totals.plain_bytes,
                    totals.stored_bytes,
                    totals.allocated_bytes,
                    totals.quarantined,
                ),
            )

    def _insert(self, table: str, columns: int, rows: Sequence[tuple[object, ...]]) -> None:
        place = f"({','.join('?' * columns)})"
        start = 0
        for count in _ROWS_PER_STATEMENT:
            statement = f"INSERT OR REPLACE INTO {table} VALUES {','.join([place] * count)}"
            while len(rows) - start >= count:
                batch = rows[start : start + count]
                self._writer.execute(statement, [value for row in batch for value in row])
                start += count

    def _after(
        self, transitions: Iterable[Transition]
    ) -> tuple[IndexTotals, dict[int, tuple[int, int]]]:
        """Return totals, and the partitions that change, as they are after the transitions."""
        totals = self._totals
        partitions: dict[int, tuple[int, int]] = {}
        for before, after in transitions:
            for row, sign in ((before, -1), (after, 1)):
                if row is None:
                    continue
                totals = _counted(totals, row, sign)
                if not row.quarantined:
                    number = partition_of(row.chunk_id)
                    count, digest = partitions.get(number, self._partitions[number])
                    partitions[number] = (
                        count + sign,
                        digest ^ int.from_bytes(row.chunk_id, "big"),
                    )
        return totals, partitions

    def close(self) -> None:
        """Close all connections; the last one writes the WAL back."""
        with self._connections_lock:
            for connection in reversed(self._connections):
                connection.close()
            self._connections.clear()


def remove_index(path: str) -> None:
    """Remove an index and what belongs to it, so that a new one is built from the volumes."""
    for suffix in _SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + suffix)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _counted(totals: IndexTotals, row: IndexRow, sign: int) -> IndexTotals:
    allocated = totals.allocated_bytes + sign * row.record_length
    if row.quarantined:
        return replace(totals, allocated_bytes=allocated, quarantined=totals.quarantined + sign)
    return replace(
        totals,
        chunks=totals.chunks + sign,
        plain_bytes=totals.plain_bytes + sign * row.plain_length,
        stored_bytes=totals.stored_bytes + sign * row.payload_length,
        allocated_bytes=allocated,
    )


def _row(values: tuple[bytes, int, int, int, int, int, int, int, int]) -> IndexRow:
    return IndexRow(*values[:6], Codec(values[6]), values[7], bool(values[8]))


@contextlib.contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if error.sqlite_errorname in _NO_SPACE:
            raise StoreFullError(f"no space left for the chunk index {path}") from error
        raise IndexDamagedError(path, str(error)) from error
