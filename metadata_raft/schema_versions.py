"""The tables of the replicated state, made where there are none and brought up to date.

A state of an older version is changed in one transaction when it is opened, and then has exactly
the tables that a new one has (rule M8): a column that is added stands last in `schema.sql` too.
"""

from __future__ import annotations

import os
import sqlite3

from metadata_raft.state_errors import UnknownVersionError

SCHEMA_VERSION = 2

_SCHEMA_PATH = os.path.join(os.path.dirname(__file__), "schema.sql")

_UPGRADES = {
    1: """
        ALTER TABLE cluster ADD COLUMN collection_held INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE members ADD COLUMN intent TEXT NOT NULL DEFAULT 'stay';
        ALTER TABLE members ADD COLUMN settled_epoch INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE members ADD COLUMN supported_version INTEGER NOT NULL DEFAULT 1;
        CREATE TABLE departed (
            node_id TEXT PRIMARY KEY, departed_ms INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID;
        CREATE TABLE settings (
            name TEXT PRIMARY KEY, value INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID;
    """,
}
"""From the version that is the key to the next one."""


def require_schema(connection: sqlite3.Connection, path: str) -> None:
    """Make the tables of an empty database, upgrade older ones; refuse those of newer software.

    Raises UnknownVersionError and sqlite3.Error, with nothing changed.
    """
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise UnknownVersionError(
            f"the state {path} has schema version {version}, this software knows {SCHEMA_VERSION}"
        )
    if version == 0:
        with open(_SCHEMA_PATH, encoding="utf-8") as file:
            _run(connection, file.read())
    elif version < SCHEMA_VERSION:
        _run(connection, "".join(_UPGRADES[each] for each in range(version, SCHEMA_VERSION)))


def _run(connection: sqlite3.Connection, statements: str) -> None:
    connection.executescript(
        f"BEGIN IMMEDIATE; {statements} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    )
