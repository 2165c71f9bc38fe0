"""Reading the replicated state: plain methods on one consistent snapshot of it.

A `Snapshot` is a read transaction on a pooled connection (`readers.py`) and lives for under a
second; every method checks that, and SQLite interrupts a statement that runs beyond it. Point
queries take microseconds. Contents of inline files are loaded by `file` and `file_by_id` only.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from metadata_raft.apply_members import MEMBER_COLUMNS, member_from_row
from metadata_raft.listing import list_page
from metadata_raft.records import (
    BucketRecord,
    ClusterRecord,
    FileRecord,
    KeyRecord,
    Listing,
    MemberRecord,
    SegmentRecord,
    UploadRecord,
)
from metadata_raft.state_errors import SnapshotExpiredError
from metadata_raft.working_state import settings_from_rows
from ring.members import Member, Membership, NodeId

SNAPSHOT_SECONDS_MAX = 1.0
"""A read transaction holds back the reuse of SQLite's log, so none lives longer."""

IDS_PER_STATEMENT = 128
"""Chunk ids asked for in one statement of `referenced`; a fixed number, so that it stays cached."""

PAGE_LIMIT = 10_000
"""Rows of any page at most."""

_BUCKET_COLUMNS = "name, owner, visibility, hidden, quota_bytes, created_ms, file_count, size_bytes"
_FILE_COLUMNS = (
    "path, files.file_id, files.version_id, versions.size_bytes, etag, content_type,"
    " user_metadata, tags, files.owner, files.created_ms, versions.created_ms, content_checksum,"
    " chunking"
)
_SELECT_FILE = (
    f"SELECT {_FILE_COLUMNS}, inline, buckets.name FROM buckets"
    " CROSS JOIN files ON files.bucket_id = buckets.bucket_id"
    " CROSS JOIN versions ON versions.version_id = files.version_id"
    " WHERE buckets.name = ? AND path = ?"
)
_SELECT_FILE_BY_ID = (
    f"SELECT {_FILE_COLUMNS}, inline, buckets.name FROM files"
    " CROSS JOIN versions ON versions.version_id = files.version_id"
    " CROSS JOIN buckets ON buckets.bucket_id = files.bucket_id"
    " WHERE files.file_id = ?"
)
_SELECT_LISTED = (
    f"SELECT {_FILE_COLUMNS} FROM files"
    " CROSS JOIN versions ON versions.version_id = files.version_id WHERE bucket_id = ?"
)
_SELECT_MEMBERS = (
    f"SELECT {MEMBER_COLUMNS}, stage, boot_counter, software_version, intent, settled_epoch,"
    " supported_version FROM members"
)
_SELECT_REFERENCED = (
    f"SELECT chunk_id FROM chunks WHERE chunk_id IN ({', '.join('?' * IDS_PER_STATEMENT)})"
)

_decode_map = msgspec.msgpack.Decoder(dict[str, str]).decode
_decode_tags = msgspec.msgpack.Decoder(tuple[str, ...]).decode
_decode_members = msgspec.msgpack.Decoder(tuple[Member, ...]).decode


class Snapshot:
    """The state at one applied index. Made by `ReaderPool.snapshot`; one thread at a time."""

    def __init__(self, connection: sqlite3.Connection, deadline: float) -> None:
        self._execute_now: Callable[..., sqlite3.Cursor] = connection.execute
        self._deadline = deadline

    def _execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        if time.monotonic() > self._deadline:
            raise SnapshotExpiredError(
                f"a snapshot was asked after its {SNAPSHOT_SECONDS_MAX:g} s had passed"
            )
        return self._execute_now(sql, parameters)

    # --- cluster -----------------------------------------------------------------------------

    def cluster(self) -> ClusterRecord:
        row = self._execute(
            "SELECT cluster_id, cluster_version, generation, epoch, epoch_floor, replicas,"
            " collection_held FROM cluster"
        ).fetchone()
        cluster_id, cluster_version, generation, epoch, epoch_floor, replicas, held = row
        return ClusterRecord(
            cluster_id=cluster_id,
            cluster_version=cluster_version,
            generation=generation,
            epoch=epoch,
            epoch_floor=epoch_floor,
            replicas=replicas,
            collection_held=bool(held),
            settings=settings_from_rows(self._execute("SELECT name, value FROM settings")),
        )

    def applied_index(self) -> int:
        """The log index that this snapshot shows the effects of."""
        return int(self._execute("SELECT applied_index FROM cluster").fetchone()[0])

    def members(self) -> list[MemberRecord]:
        """All members, sorted by node id."""
        current = self.membership(None)
        in_ring = {member.node_id for member in current.members}
        return [
            MemberRecord(
                member=member_from_row(row[:6]),
                stage=row[6],
                in_ring=row[0] in in_ring,
                boot_counter=row[7],
                software_version=row[8],
                intent=row[9],
                settled_epoch=row[10],
                supported_version=row[11],
            )
            for row in self._execute(f"{_SELECT_MEMBERS} ORDER BY node_id")
        ]

    def departed(self, node_id: NodeId) -> bool:
        """Whether a node of this id was a member and was removed for good."""
        return (
            self._execute("SELECT 1 FROM departed WHERE node_id = ?", (node_id,)).fetchone()
            is not None
        )

    def membership(self, epoch: int | None) -> Membership:
        """The ring's members of an epoch (None: the current one), with their addresses of today.

        Zones and weights are those of the epoch, for they decide the placement. Before the
        cluster is bootstrapped, and for an epoch that never was, there are no members.
        """
        condition = "epoch = (SELECT epoch FROM cluster)" if epoch is None else "epoch = ?"
        parameters = () if epoch is None else (epoch,)
        found = self._memberships(f"WHERE {condition}", parameters)
        return found[0] if found else Membership(epoch=epoch or 0, members=())

    def epochs(self) -> list[Membership]:
        """The epochs of the ring that some member may not have settled beyond, newest first."""
        return self._memberships("ORDER BY epoch DESC", ())

    def _memberships(self, clause: str, parameters: tuple[int, ...]) -> list[Membership]:
        rows = self._execute(
            f"SELECT epoch, replicas, members FROM epochs {clause}", parameters
        ).fetchall()
        today = {
            row[0]: member_from_row(row)
            for row in self._execute(f"SELECT {MEMBER_COLUMNS} FROM members")
        }
        return [
            Membership(
                epoch=epoch,
                members=tuple(
                    _readdressed(member, today.get(member.node_id))
                    for member in _decode_members(members)
                ),
                replicas=replicas,
            )
            for epoch, replicas, members in rows
        ]

    # --- buckets and files -------------------------------------------------------------------

    def bucket(self, name: str) -> BucketRecord | None:
        row = self._execute(
            f"SELECT {_BUCKET_COLUMNS} FROM buckets WHERE name = ?", (name,)
        ).fetchone()
        return None if row is None else _bucket(row)

    def buckets(self, after: str = "", limit: int = 1000) -> list[BucketRecord]:
        """Up to `limit` buckets whose names come after `after`, in order; hidden ones too."""
        return [
            _bucket(row)
            for row in self._execute(
                f"SELECT {_BUCKET_COLUMNS} FROM buckets WHERE name > ? ORDER BY name LIMIT ?",
                (after, min(limit, PAGE_LIMIT)),
            )
        ]

    def file(self, bucket: str, path: str) -> FileRecord | None:
        """The file at a path with its current version, inline contents included."""
        row = self._execute(_SELECT_FILE, (bucket, path)).fetchone()
        return None if row is None else _file(row, row[14], row[13])

    def file_by_id(self, file_id: int) -> FileRecord | None:
        """The file with this id, inline contents included."""
        row = self._execute(_SELECT_FILE_BY_ID, (file_id,)).fetchone()
        return None if row is None else _file(row, row[14], row[13])

    def files(
        self,
        bucket: str,
        prefix: str = "",
        delimiter: str = "",
        cursor: str | None = None,
        limit: int = 1000,
    ) -> Listing:
        """One page of files in key order; empty for a bucket that isn't there.

        With a delimiter, everything that has it behind the prefix is given as a common prefix. A
        cursor stays valid whatever is written or deleted between pages.
        """
        found = self._execute("SELECT bucket_id FROM buckets WHERE name = ?", (bucket,)).fetchone()
        if found is None:
            return Listing(files=(), prefixes=(), next_cursor=None)
        rows, prefixes, next_cursor = list_page(
            self._execute,
            _SELECT_LISTED,
            bucket_id=found[0],
            prefix=prefix,
            delimiter=delimiter,
            cursor=cursor,
            limit=limit,
        )
        return Listing(
            files=tuple(_file(row, bucket, None) for row in rows),
            prefixes=tuple(prefixes),
            next_cursor=next_cursor,
        )

    def segments(
        self, version_id: int, from_offset: int = 0, limit: int = 16
    ) -> list[SegmentRecord]:
        """Up to `limit` segments of a version, from the one that holds `from_offset` on."""
        return [
            SegmentRecord(ordinal=ordinal, start=start, size_bytes=size_bytes, chunks=chunks)
            for ordinal, start, size_bytes, chunks in self._execute(
                "SELECT ordinal, start, size_bytes, chunks FROM version_segments"
                " CROSS JOIN segments USING (segment_id)"
                " WHERE version_id = ?1 AND start >= coalesce((SELECT max(start)"
                "  FROM version_segments WHERE version_id = ?1 AND start <= ?2), 0)"
                " AND start + size_bytes > ?2 ORDER BY start LIMIT ?3",
                (version_id, from_offset, min(limit, PAGE_LIMIT)),
            )
        ]

    def upload(self, upload_id: bytes) -> UploadRecord | None:
        row = self._execute(
            "SELECT name, actor, segment_count, uploads.size_bytes, touched_ms"
            " FROM uploads CROSS JOIN buckets USING (bucket_id) WHERE upload_id = ?",
            (upload_id,),
        ).fetchone()
        if row is None:
            return None
        bucket, actor, segment_count, size_bytes, touched_ms = row
        return UploadRecord(
            upload_id=upload_id,
            bucket=bucket,
            actor=actor,
            segment_count=segment_count,
            size_bytes=size_bytes,
            touched_ms=touched_ms,
        )

    # --- keys --------------------------------------------------------------------------------

    def key(self, key_id: str) -> KeyRecord | None:
        row = self._execute(
            "SELECT key_id, secret_hash, role, description, created_ms FROM keys WHERE key_id = ?",
            (key_id,),
        ).fetchone()
        return None if row is None else _key(row)

    def keys(self) -> list[KeyRecord]:
        """All API keys, sorted by id; at most a thousand."""
        return [
            _key(row)
            for row in self._execute(
                "SELECT key_id, secret_hash, role, description, created_ms FROM keys"
                " ORDER BY key_id"
            )
        ]

    def join_token_hash(self, token_id: str) -> bytes | None:
        """What the state keeps of a join token's secret; whether it is still good is not said."""
        row = self._execute(
            "SELECT secret_hash FROM tokens WHERE token_id = ?", (token_id,)
        ).fetchone()
        return None if row is None else row[0]

    # --- collection and results --------------------------------------------------------------

    def referenced(self, chunk_ids: Sequence[bytes]) -> set[bytes]:
        """Those of the chunk ids that any segment refers to."""
        found: set[bytes] = set()
        for start in range(0, len(chunk_ids), IDS_PER_STATEMENT):
            batch = list(chunk_ids[start : start + IDS_PER_STATEMENT])
            batch += [b""] * (IDS_PER_STATEMENT - len(batch))
            found.update(row[0] for row in self._execute(_SELECT_REFERENCED, batch))
        return found

    def chunk_page(self, after: bytes = b"", limit: int = 1000) -> list[bytes]:
        """Up to `limit` referenced chunk ids above `after`, in order."""
        return [
            row[0]
            for row in self._execute(
                "SELECT chunk_id FROM chunks WHERE chunk_id > ? ORDER BY chunk_id LIMIT ?",
                (after, min(limit, PAGE_LIMIT)),
            )
        ]

    def reclaim_pending(self) -> bool:
        """Whether deleted or replaced contents wait for `ReclaimStep`."""
        return self._execute("SELECT 1 FROM reclaim LIMIT 1").fetchone() is not None

    def result(self, request_id: bytes) -> bytes | None:
        """The encoded result remembered for a request id (rule M1)."""
        row = self._execute(
            "SELECT result FROM request_results WHERE request_id = ?", (request_id,)
        ).fetchone()
        return None if row is None else row[0]


def _readdressed(member: Member, today: Member | None) -> Member:
    """A ring member under its present addresses; one that has left keeps its last ones."""
    if today is None:
        return member
    return msgspec.structs.replace(
        member,
        peer_address=today.peer_address,
        raft_address=today.raft_address,
        client_url=today.client_url,
    )


def _bucket(row: tuple[Any, ...]) -> BucketRecord:
    name, owner, visibility, hidden, quota_bytes, created_ms, file_count, size_bytes = row
    return BucketRecord(
        name=name,
        owner=owner,
        visibility=visibility,
        hidden=bool(hidden),
        quota_bytes=quota_bytes,
        created_ms=created_ms,
        file_count=file_count,
        size_bytes=size_bytes,
    )


def _file(row: tuple[Any, ...], bucket: str, inline: bytes | None) -> FileRecord:
    return FileRecord(
        bucket=bucket,
        path=row[0],
        file_id=row[1],
        version_id=row[2],
        size_bytes=row[3],
        etag=row[4],
        content_type=row[5],
        user_metadata={} if row[6] is None else _decode_map(row[6]),
        tags=() if row[7] is None else _decode_tags(row[7]),
        owner=row[8],
        created_ms=row[9],
        modified_ms=row[10],
        content_checksum=row[11],
        chunking=row[12],
        inline=inline,
    )


def _key(row: tuple[Any, ...]) -> KeyRecord:
    key_id, secret_hash, role, description, created_ms = row
    return KeyRecord(
        key_id=key_id,
        secret_hash=secret_hash,
        role=role,
        description=description,
        created_ms=created_ms,
    )
