"""Comparing replicas: a digest of every replicated table (rule M8).

Rows are hashed in key order in a canonical encoding, so the digest says what the state is and
nothing of how it lies on disk. It streams: memory stays the same for any number of files. Unlike
ordinary snapshots this read transaction lasts as long as it takes (about two seconds for a million
rows), during which SQLite's log can't be reused: it is made on demand, never periodically.
"""

from __future__ import annotations

import sqlite3
from urllib.parse import quote

import msgspec
from blake3 import blake3

from metadata_raft.records import StateDigest
from metadata_raft.state_errors import StateCorruptError

LOCAL_TABLES = frozenset({"local_state"})
"""What each node keeps for itself."""

ROWS_PER_BATCH = 512
"""Rows encoded together. Part of the definition: replicas must batch alike."""


def state_digest(path: str) -> StateDigest:
    """Digest the committed state at `path`. Blocks; call it in a worker thread.

    Raises StateCorruptError if the state can't be read.
    """
    try:
        connection = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, isolation_level=None)
    except sqlite3.Error as error:
        raise StateCorruptError(f"the state {path} can't be opened: {error}") from error
    try:
        connection.execute("BEGIN")
        index = connection.execute("SELECT applied_index FROM cluster").fetchone()[0]
        tables = {name: _table_digest(connection, name) for name in replicated_tables(connection)}
    except sqlite3.Error as error:
        raise StateCorruptError(f"the state {path} can't be read: {error}") from error
    finally:
        connection.close()
    return StateDigest(index=index, tables=tables)


def replicated_tables(connection: sqlite3.Connection) -> list[str]:
    """The tables that must be equal on all replicas, sorted by name."""
    names = connection.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        " ORDER BY name"
    )
    return [name for (name,) in names if name not in LOCAL_TABLES]


def _table_digest(connection: sqlite3.Connection, table: str) -> str:
    columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
    key = [name for _, name in sorted((column[5], column[1]) for column in columns if column[5])]
    digest = blake3(msgspec.msgpack.encode([column[1] for column in columns]))
    cursor = connection.execute(f"SELECT * FROM {table} ORDER BY {', '.join(key)}")
    while rows := cursor.fetchmany(ROWS_PER_BATCH):
        digest.update(msgspec.msgpack.encode(rows))
    return digest.hexdigest()
