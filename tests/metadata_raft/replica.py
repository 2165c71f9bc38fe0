"""Driving one `StateMachine` by hand: entries, state time and request ids as a test wants."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterable
from typing import Any

import msgspec

from metadata_raft.chunk_references import pack
from metadata_raft.commands import (
    CLUSTER_VERSION_SUPPORTED,
    ENTRY_VERSION,
    AdvanceGeneration,
    BootstrapCluster,
    Command,
    Done,
    Entry,
    Failure,
    IdempotencyKey,
    Proposal,
    PutFile,
    ReclaimStep,
    Result,
    SetClusterVersion,
    StageSegment,
    decode_result,
    encode,
)
from metadata_raft.digests import replicated_tables
from metadata_raft.readers import ReaderPool, SnapshotContext
from metadata_raft.state_machine import StateMachine
from tests.fakes.metadata import ADMIN_KEY_ID, ADMIN_SECRET_HASH, FIRST_TIME_MS, make_member

ADMIN = ADMIN_KEY_ID
CHUNK = 1000
"""The length of a made chunk in bytes."""

Rows = list[tuple[Any, ...]]


def chunk_id(number: int) -> bytes:
    """A chunk id that follows from a number, spread over the id space."""
    return (number * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big") + number.to_bytes(24, "big")


def chunk_list(*numbers: int) -> bytes:
    """Packed references to made chunks."""
    return pack((chunk_id(number), CHUNK) for number in numbers)


def put_inline(bucket: str, path: str, content: bytes = b"", **fields: Any) -> PutFile:
    return PutFile(
        **{
            "bucket": bucket,
            "path": path,
            "actor": ADMIN,
            "size_bytes": len(content),
            "etag": f"e-{content.hex()[:16]}",
            "inline": content,
            **fields,
        }
    )


def put_chunks(bucket: str, path: str, *numbers: int, **fields: Any) -> PutFile:
    return PutFile(
        **{
            "bucket": bucket,
            "path": path,
            "actor": ADMIN,
            "size_bytes": CHUNK * len(numbers),
            "etag": "e-" + "-".join(map(str, numbers[:8])),
            "chunks": chunk_list(*numbers),
            "oldest_epoch": 1,
            **fields,
        }
    )


def stage(
    bucket: str, upload: int, ordinal: int, numbers: Iterable[int], **fields: Any
) -> StageSegment:
    return StageSegment(
        **{
            "upload_id": upload.to_bytes(16, "big"),
            "actor": ADMIN,
            "bucket": bucket,
            "ordinal": ordinal,
            "chunks": chunk_list(*numbers),
            "generation": 0,
            "oldest_epoch": 1,
            **fields,
        }
    )


def propose(
    command: Command | bytes,
    request_id: int,
    *,
    not_after_ms: int,
    idempotency: IdempotencyKey | None = None,
) -> Proposal:
    return Proposal(
        request_id=request_id.to_bytes(16, "big"),
        not_after_ms=not_after_ms,
        command=msgspec.Raw(command if isinstance(command, bytes) else encode(command)),
        idempotency=idempotency,
    )


class Replica:
    """A state machine with the log that made it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.time_ms = FIRST_TIME_MS
        self.log: list[bytes] = []
        self.machine = StateMachine(path)
        self._request_ids = itertools.count(1)
        self._readers: ReaderPool | None = None

    def bootstrap(self, *, open_bucket: str | None = "default") -> Replica:
        result = self.do(
            BootstrapCluster(
                cluster_id="c1d0",
                member=make_member(1),
                replicas=3,
                admin_key_id=ADMIN,
                admin_secret_hash=ADMIN_SECRET_HASH,
                open_bucket=open_bucket,
            )
        )
        assert isinstance(result, Done)
        self.do(SetClusterVersion(version=CLUSTER_VERSION_SUPPORTED))
        return self

    def propose(
        self, command: Command | bytes, *, idempotency: IdempotencyKey | None = None
    ) -> Proposal:
        """A proposal under the next request id, good for ten seconds of state time."""
        return propose(
            command,
            next(self._request_ids),
            not_after_ms=self.time_ms + 10_000,
            idempotency=idempotency,
        )

    def entry(self, proposals: list[Proposal]) -> bytes:
        return encode(Entry(version=ENTRY_VERSION, time_ms=self.time_ms, proposals=proposals))

    def apply(self, proposals: list[Proposal]) -> list[Result]:
        """Apply one entry and commit."""
        entry = self.entry(proposals)
        self.log.append(entry)
        answers = self.machine.apply(len(self.log), 1, entry)
        self.machine.flush()
        return [decode_result(answer) for _, answer in answers]

    def do(self, command: Command | bytes, *, idempotency: IdempotencyKey | None = None) -> Result:
        """Apply one command in an entry of its own and commit."""
        return self.apply([self.propose(command, idempotency=idempotency)])[0]

    def failure(self, command: Command | bytes) -> Failure:
        """Apply a command that must be refused, without a trace in the replicated tables."""
        before = self.tables(but={"cluster", "request_results"})
        result = self.do(command)
        assert isinstance(result, Failure), result
        assert self.tables(but={"cluster", "request_results"}) == before
        return result

    def drain(self, *, row_limit: int = 1000) -> int:
        """Reclaim until nothing remains; returns the number of steps."""
        for steps in range(1, 100_000):
            result = self.do(ReclaimStep(row_limit=row_limit))
            assert not isinstance(result, Failure)
            if not getattr(result, "remaining", False):
                return steps
        raise AssertionError("the queue never ends")

    def advance_generations(self, count: int) -> None:
        for _ in range(count):
            self.do(AdvanceGeneration(expected=self.machine.applied.generation))

    def reopen(self) -> None:
        self.machine.close()
        self.machine = StateMachine(self.path)

    def snapshot(self) -> SnapshotContext:
        """What readers see."""
        if self._readers is None:
            self._readers = ReaderPool(self.path)
        return self._readers.snapshot()

    def close(self) -> None:
        if self._readers is not None:
            self._readers.close()
        self.machine.close()

    def rows(self, sql: str, *parameters: Any) -> Rows:
        """Committed rows, seen from outside."""
        connection = sqlite3.connect(self.path)
        try:
            return connection.execute(sql, parameters).fetchall()
        finally:
            connection.close()

    def tables(self, *, but: set[str] | frozenset[str] = frozenset()) -> dict[str, Rows]:
        """Every replicated table, each with its rows in a canonical order."""
        return tables_of(self.path, but=but)


def tables_of(path: str, *, but: set[str] | frozenset[str] = frozenset()) -> dict[str, Rows]:
    connection = sqlite3.connect(path)
    try:
        return {
            name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=repr)
            for name in replicated_tables(connection)
            if name not in but
        }
    finally:
        connection.close()
