"""Digests of the state tell whether replicas are equal, and nothing about how they lie on disk."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from metadata_raft.commands import DeleteFile
from metadata_raft.digests import LOCAL_TABLES, replicated_tables, state_digest
from metadata_raft.state_errors import StateCorruptError
from tests.metadata_raft.replica import ADMIN, Replica, put_chunks, put_inline


@pytest.fixture
def path(tmp_path: Path) -> str:
    replica = Replica(str(tmp_path / "state.db")).bootstrap()
    replica.apply(
        [replica.propose(put_inline("default", f"{number}", b"x")) for number in range(700)]
    )
    replica.do(put_chunks("default", "big", *range(50)))
    replica.do(DeleteFile(bucket="default", path="7", actor=ADMIN))
    replica.close()
    return replica.path


def test_the_digest_ignores_how_rows_lie_on_disk(path: str) -> None:
    """Rebuilding the file changes its pages, not its digest; nor do local tables count."""
    before = state_digest(path)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.execute("PRAGMA page_size = 8192")
    connection.execute("VACUUM")
    connection.execute("UPDATE local_state SET checkpoints = 99")
    connection.close()
    assert state_digest(path) == before


def test_the_digest_sees_every_table_and_every_value(path: str) -> None:
    """Any changed, missing or additional row of any replicated table changes that one digest."""
    before = state_digest(path)
    connection = sqlite3.connect(path, isolation_level=None)
    tables = replicated_tables(connection)
    assert set(before.tables) == set(tables)
    assert not LOCAL_TABLES & set(tables)
    filled = [table for table in tables if connection.execute(f"SELECT 1 FROM {table}").fetchone()]
    assert {"files", "versions", "segments", "chunks", "cluster", "keys"} <= set(filled)
    for table in filled:
        key = connection.execute(f"PRAGMA table_info({table})").fetchall()[-1][1]
        connection.execute("BEGIN")
        connection.execute(
            f"UPDATE {table} SET {key} = CASE typeof({key}) WHEN 'blob' THEN x'01'"
            f" WHEN 'text' THEN 'changed' ELSE coalesce({key}, 0) + 1 END"
            f" WHERE {key} IS (SELECT max({key}) FROM {table})"
        )
        connection.execute("COMMIT")
        after = state_digest(path)
        changed = {name for name in tables if after.tables[name] != before.tables[name]}
        assert changed == {table}
        before = after
    connection.close()


def test_the_digest_names_its_index(path: str) -> None:
    """Replicas are compared at the same index only."""
    assert state_digest(path).index == 5


def test_an_unreadable_state_has_no_digest(tmp_path: Path) -> None:
    """A missing or foreign file is an error, not an empty digest."""
    with pytest.raises(StateCorruptError):
        state_digest(str(tmp_path / "missing.db"))
    (tmp_path / "text.db").write_bytes(b"no database" * 500)
    with pytest.raises(StateCorruptError):
        state_digest(str(tmp_path / "text.db"))
