"""What commands see and change while a batch of entries is applied.

A `WorkingState` stands between the commands and one SQLite connection in an open transaction. The
rows that nearly every command needs (the cluster's counters, the buckets with their usage, the
roles of keys) are held as objects and written back once per commit; everything else is SQL.
Commands decide before they write: a refusal leaves no trace, so no savepoint is needed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from metadata_raft.commands import ANONYMOUS, SYSTEM
from metadata_raft.records import ClusterSettings
from metadata_raft.state_errors import StateCorruptError

CACHED_BUCKETS = 4096
"""Bucket rows held in memory at most; about 2 MB. Beyond it the cache starts afresh."""


class ClusterRow(msgspec.Struct, kw_only=True):
    """The one row of `cluster`, in the order of its columns."""

    cluster_id: str
    cluster_version: int
    applied_index: int
    applied_term: int
    time_ms: int
    generation: int
    epoch: int
    epoch_floor: int
    replicas: int
    members_version: int
    next_bucket_id: int
    next_file_id: int
    next_version_id: int
    next_segment_id: int
    next_reclaim_id: int
    idempotency_count: int
    collection_held: int


class BucketRow(msgspec.Struct, kw_only=True):
    """A row of `buckets`, without what only later versions use."""

    bucket_id: int
    name: str
    owner: str
    visibility: str
    hidden: bool
    quota_bytes: int | None
    created_ms: int
    file_count: int
    size_bytes: int


_CLUSTER_COLUMNS = ClusterRow.__struct_fields__
_BUCKET_COLUMNS = BucketRow.__struct_fields__
_SELECT_CLUSTER = f"SELECT {', '.join(_CLUSTER_COLUMNS)} FROM cluster"
_UPDATE_CLUSTER = f"UPDATE cluster SET {', '.join(f'{name} = ?' for name in _CLUSTER_COLUMNS)}"
_SELECT_BUCKET = f"SELECT {', '.join(_BUCKET_COLUMNS)} FROM buckets WHERE name = ?"
_INSERT_BUCKET = (
    f"INSERT INTO buckets ({', '.join(_BUCKET_COLUMNS)}) "
    f"VALUES ({', '.join('?' * len(_BUCKET_COLUMNS))})"
)
_UPDATE_BUCKET = (
    "UPDATE buckets SET visibility = ?, hidden = ?, quota_bytes = ?, file_count = ?, "
    "size_bytes = ? WHERE bucket_id = ?"
)


def settings_from_rows(rows: Iterable[tuple[str, int]]) -> ClusterSettings:
    """The settings of the cluster: the defaults, but for what rows of `settings` say."""
    return ClusterSettings(**dict(rows))


class WorkingState:
    """The state as the next command sees it; used by the raft thread only."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Raises StateCorruptError if the cluster row is missing."""
        cursor = connection.cursor()
        self.execute: Callable[..., sqlite3.Cursor] = cursor.execute
        self.executemany: Callable[[str, Iterable[Any]], sqlite3.Cursor] = cursor.executemany
        row = self.execute(_SELECT_CLUSTER).fetchone()
        if row is None:
            raise StateCorruptError("the state has no cluster row")
        self.cluster = ClusterRow(**dict(zip(_CLUSTER_COLUMNS, row, strict=True)))
        self.roles: dict[str, str] = dict(self.execute("SELECT key_id, role FROM keys").fetchall())
        self.settings = settings_from_rows(self.execute("SELECT name, value FROM settings"))
        self._buckets: dict[str, BucketRow] = {}
        self._changed_buckets: dict[int, BucketRow] = {}

    def role(self, actor: str) -> str | None:
        """The role of a command's actor; None for anonymous requests and revoked keys."""
        if actor == SYSTEM:
            return "admin"
        if actor == ANONYMOUS:
            return None
        return self.roles.get(actor)

    def bucket(self, name: str) -> BucketRow | None:
        """The bucket's row; after changing it call `bucket_changed`."""
        bucket = self._buckets.get(name)
        if bucket is None:
            row = self.execute(_SELECT_BUCKET, (name,)).fetchone()
            if row is None:
                return None
            bucket = BucketRow(**dict(zip(_BUCKET_COLUMNS, row, strict=True)))
            bucket.hidden = bool(bucket.hidden)
            self._buckets[name] = bucket
        return bucket

    def bucket_changed(self, bucket: BucketRow) -> None:
        self._changed_buckets[bucket.bucket_id] = bucket

    def add_bucket(self, bucket: BucketRow) -> None:
        self.execute(_INSERT_BUCKET, msgspec.structs.astuple(bucket))
        self._buckets[bucket.name] = bucket

    def remove_bucket(self, bucket: BucketRow) -> None:
        self.execute("DELETE FROM buckets WHERE bucket_id = ?", (bucket.bucket_id,))
        del self._buckets[bucket.name]

    def enqueue(self, kind: str, target_id: int) -> None:
        """Leave a removed bucket or version to `ReclaimStep`."""
        cluster = self.cluster
        self.execute(
            "INSERT INTO reclaim VALUES (?, ?, ?, 0, ?)",
            (cluster.next_reclaim_id, kind, target_id, cluster.time_ms),
        )
        cluster.next_reclaim_id += 1

    def write_back(self) -> None:
        """Write the held rows that changed; called right before a commit."""
        if self._changed_buckets:
            self.executemany(
                _UPDATE_BUCKET,
                [
                    (
                        bucket.visibility,
                        bucket.hidden,
                        bucket.quota_bytes,
                        bucket.file_count,
                        bucket.size_bytes,
                        bucket.bucket_id,
                    )
                    for bucket in self._changed_buckets.values()
                ],
            )
            self._changed_buckets.clear()
        if len(self._buckets) > CACHED_BUCKETS:
            self._buckets.clear()
        self.execute(_UPDATE_CLUSTER, msgspec.structs.astuple(self.cluster))
