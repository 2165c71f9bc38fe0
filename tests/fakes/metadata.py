"""A `MetadataGroup` of one process: a real state machine on a real SQLite file, without Raft.

Commands take effect at once, in the order of `submit`. State time stands still until a test moves
it with `advance_time`. The log is kept, so that a test can replay it into another replica.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import msgspec

from metadata_raft.commands import (
    CLUSTER_VERSION_SUPPORTED,
    ENTRY_VERSION,
    BootstrapCluster,
    Command,
    Done,
    Entry,
    IdempotencyKey,
    Proposal,
    Result,
    SetClusterVersion,
    decode_result,
    encode,
)
from metadata_raft.digests import state_digest
from metadata_raft.readers import ReaderPool, SnapshotContext
from metadata_raft.records import AppliedState, StateDigest
from metadata_raft.state_machine import StateMachine
from ring.members import Member

FIRST_TIME_MS = 1_700_000_000_000
ADMIN_KEY_ID = "admin-key"
ADMIN_SECRET_HASH = bytes(32)


def make_member(number: int, *, weight: int = 100, zone: str = "") -> Member:
    """A member whose id and addresses follow from its number."""
    return Member(
        node_id=f"00000000-0000-4000-8000-{number:012d}",
        peer_address=f"127.0.0.1:{7100 + number}",
        raft_address=f"127.0.0.1:{7200 + number}",
        client_url=f"http://127.0.0.1:{7000 + number}",
        zone=zone,
        weight=weight,
    )


class FakeMetadata:
    """The asynchronous interface of `MetadataGroup`, as docs/architecture.md gives it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.time_ms = FIRST_TIME_MS
        self.log: list[bytes] = []
        self.fail_next: list[Exception] = []
        """Raised, one each, by the next calls of `submit` or `barrier`, before anything happens."""
        self._machine = StateMachine(path)
        self._readers = ReaderPool(path)
        self._listeners: list[Callable[[AppliedState], None]] = []
        self._request_ids = itertools.count(1)

    async def bootstrap(
        self,
        *,
        open_bucket: str | None = None,
        admin_secret_hash: bytes = ADMIN_SECRET_HASH,
        cluster_version: int = CLUSTER_VERSION_SUPPORTED,
    ) -> None:
        """Make it a cluster of one with the admin key `ADMIN_KEY_ID`, in ring epoch 1."""
        result = await self.submit(
            BootstrapCluster(
                cluster_id="00000000-0000-4000-8000-00000000c1d0",
                member=make_member(1),
                replicas=3,
                admin_key_id=ADMIN_KEY_ID,
                admin_secret_hash=admin_secret_hash,
                open_bucket=open_bucket,
            )
        )
        assert isinstance(result, Done), result
        await self.submit(SetClusterVersion(version=cluster_version))

    def advance_time(self, milliseconds: int) -> None:
        self.time_ms += milliseconds

    async def start(self) -> None:
        """There is nothing to start; the real group recovers here."""

    async def stop(self) -> None:
        self._readers.close()
        self._machine.close()

    async def submit(
        self,
        command: Command,
        *,
        timeout_seconds: float = 10.0,
        request_id: bytes | None = None,
        idempotency: IdempotencyKey | None = None,
    ) -> Result:
        if self.fail_next:
            raise self.fail_next.pop(0)
        proposal = Proposal(
            request_id=request_id or next(self._request_ids).to_bytes(16, "big"),
            not_after_ms=self.time_ms + int(timeout_seconds * 1000),
            command=msgspec.Raw(encode(command)),
            idempotency=idempotency,
        )
        entry = encode(Entry(version=ENTRY_VERSION, time_ms=self.time_ms, proposals=[proposal]))
        self.log.append(entry)
        answers = self._machine.apply(self._machine.applied.index + 1, 1, entry)
        self._machine.flush()
        applied = self._machine.applied
        for listener in self._listeners:
            asyncio.get_running_loop().call_soon(listener, applied)
        # A real submit always waits; let others run here too.
        await asyncio.sleep(0)
        return decode_result(answers[0][1])

    async def barrier(self, *, timeout_seconds: float = 1.0) -> int:
        if self.fail_next:
            raise self.fail_next.pop(0)
        await asyncio.sleep(0)
        return self._machine.applied.index

    def snapshot(self) -> SnapshotContext:
        return self._readers.snapshot()

    def applied(self) -> AppliedState:
        return self._machine.applied

    def add_listener(self, listener: Callable[[AppliedState], None]) -> None:
        self._listeners.append(listener)

    async def checkpoint(self) -> int:
        return self._machine.checkpoint()

    async def state_digest(self) -> StateDigest:
        return state_digest(self.path)
