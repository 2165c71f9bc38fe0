"""Group commit: commands that wait share one Raft entry, one entry in flight, the next filling.

`PendingProposals` holds what this node's own callers wait for. Each goes to the leader of the
moment, this node or another, and again to the next leader with the same request id until it is
applied here or its time is up; the state machine applies each id once (rule M1).
`GroupCommit` is the leader's side: a bounded queue, emptied into entries of at most
`ENTRY_SIZE_LIMIT`. Both are plain data, without clock or I/O.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import msgspec

from metadata_raft.commands import (
    ENTRY_SIZE_LIMIT,
    ENTRY_VERSION,
    IdempotencyKey,
    Proposal,
    encode,
)
from metadata_raft.errors import (
    MetadataError,
    NoQuorumError,
    OutcomeUnknownError,
    OverloadedError,
)
from ring.members import NodeId

PROPOSAL_SIZE_LIMIT = ENTRY_SIZE_LIMIT - 64
"""Bytes of one encoded proposal; the rest of an entry is its version, time and array headers."""

QUEUE_COUNT_LIMIT = 16 * 1024
QUEUE_SIZE_LIMIT = 16 * 1024 * 1024
"""What may wait at the leader (hazard 16): a second or two of work at full speed."""

FORWARD_SIZE_LIMIT = ENTRY_SIZE_LIMIT
"""Bytes of proposals in one Forward."""

RESEND_SECONDS = 1.0
"""A forwarded proposal that is not applied after this long is sent again, with the same id."""

REFUSED_PAUSE_SECONDS = 0.03
"""After a refusal by a node that is no leader; by then the next heartbeat has told who is."""

_encoder = msgspec.msgpack.Encoder()


class GroupCommit:
    """The leader's queue of proposals, each an id and its encoded form."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[bytes, bytes]] = deque()
        self._size = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request_id: bytes, proposal: bytes) -> bool:
        """False where the queue is full; nothing is kept then."""
        if len(self._waiting) >= QUEUE_COUNT_LIMIT or self._size > QUEUE_SIZE_LIMIT:
            return False
        self._waiting.append((request_id, proposal))
        self._size += len(proposal)
        return True

    def take(self) -> list[tuple[bytes, bytes]]:
        """Remove and return what fits into the next entry, oldest first; empty if none waits."""
        batch: list[tuple[bytes, bytes]] = []
        size = 0
        while self._waiting:
            size += len(self._waiting[0][1])
            if size > PROPOSAL_SIZE_LIMIT and batch:
                break
            batch.append(self._waiting.popleft())
        self._size -= sum(len(proposal) for _, proposal in batch)
        return batch

    def drop(self) -> list[bytes]:
        """Empty the queue, on losing leadership; returns the request ids."""
        dropped = [request_id for request_id, _ in self._waiting]
        self._waiting.clear()
        self._size = 0
        return dropped


def encode_entry(time_ms: int, proposals: list[bytes]) -> bytes:
    """The encoded `Entry` of encoded proposals, without decoding them."""
    return _encoder.encode((ENTRY_VERSION, time_ms, [msgspec.Raw(each) for each in proposals]))


@dataclass(frozen=True, slots=True)
class Draft:
    """A command that wants to become a proposal; how long it may live is counted from the state
    time its first leader tells."""

    request_id: bytes
    command: bytes
    """Encoded."""
    lifetime_ms: int
    idempotency: IdempotencyKey | None = None

    def propose(self, time_ms: int) -> bytes:
        """The encoded proposal, at this state time."""
        not_after_ms = time_ms + self.lifetime_ms
        command = msgspec.Raw(self.command)
        return encode(Proposal(self.request_id, not_after_ms, command, self.idempotency))


@dataclass(slots=True)
class _Pending:
    draft: Draft
    deadline: float
    """When its caller gives up."""
    submit_before: float
    """When it gives up if no leader took it until then."""
    route: tuple[NodeId, int] | None = None
    """Leader and term it went to, and may be waiting at."""
    routed_at: float = 0.0
    not_before: float = 0.0
    proposal: bytes = b""
    """Made once, and the same in every repetition."""
    submissions: int = 0
    """Sent this often without a refusal; where it is 0, nothing can have happened."""


class PendingProposals:
    """What this node has proposed and not yet seen applied."""

    def __init__(self) -> None:
        self._pending: dict[bytes, _Pending] = {}
        self._unrouted: deque[bytes] = deque()

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, request_id: bytes) -> bool:
        return request_id in self._pending

    def add(self, draft: Draft, *, deadline: float, submit_before: float) -> None:
        """Wait for a new proposal, or on for one that waits already."""
        present = self._pending.get(draft.request_id)
        if present is not None:
            present.deadline = max(present.deadline, deadline)
            return
        self._pending[draft.request_id] = _Pending(draft, deadline, submit_before)
        self._unrouted.append(draft.request_id)

    def route(
        self, leader: NodeId, term: int, *, time_ms: int, now: float
    ) -> list[tuple[bytes, bytes]]:
        """Return what shall go to this leader now, at most `FORWARD_SIZE_LIMIT` bytes at a time.

        `time_ms` is state time. Call again until it returns nothing.
        """
        batch: list[tuple[bytes, bytes]] = []
        size = 0
        for _ in range(len(self._unrouted)):
            request_id = self._unrouted.popleft()
            pending = self._pending.get(request_id)
            if pending is None:
                continue
            if pending.not_before > now:
                self._unrouted.append(request_id)
                continue
            if not pending.proposal:
                pending.proposal = pending.draft.propose(time_ms)
            size += len(pending.proposal)
            if size > FORWARD_SIZE_LIMIT and batch:
                self._unrouted.appendleft(request_id)
                break
            pending.route = (leader, term)
            pending.routed_at = now
            pending.submissions += 1
            batch.append((request_id, pending.proposal))
        return batch

    def reroute(self, *, leader: NodeId, term: int, now: float, connection_new: bool) -> None:
        """Send again what went to an earlier leader, was lost with a connection, or takes long."""
        for request_id, pending in self._pending.items():
            if pending.route is not None and (
                connection_new
                or pending.route != (leader, term)
                or now > pending.routed_at + RESEND_SECONDS
            ):
                pending.route = None
                self._unrouted.append(request_id)

    def refused(
        self, request_ids: list[bytes], now: float, *, overloaded: bool
    ) -> list[tuple[bytes, MetadataError]]:
        """Take back what a leader did not accept; returns whom to tell that it is overloaded."""
        failed: list[tuple[bytes, MetadataError]] = []
        for request_id in request_ids:
            pending = self._pending.get(request_id)
            if pending is None or pending.route is None:
                continue
            pending.submissions -= 1
            pending.route = None
            if overloaded and pending.submissions == 0:
                del self._pending[request_id]
                failed.append((request_id, OverloadedError("the leader has too much to do")))
            else:
                pending.not_before = now + REFUSED_PAUSE_SECONDS
                self._unrouted.append(request_id)
        return failed

    def complete(self, request_id: bytes) -> bool:
        """Whether it waited here; it does no longer."""
        return self._pending.pop(request_id, None) is not None

    def expire(self, now: float) -> list[tuple[bytes, MetadataError]]:
        """Give up on what waited too long, saying for each whether it may have happened."""
        expired: list[tuple[bytes, MetadataError]] = []
        for request_id, pending in self._pending.items():
            if pending.submissions:
                if now >= pending.deadline:
                    reason = "not seen applied in time"
                    expired.append((request_id, OutcomeUnknownError(request_id, reason)))
            elif now >= min(pending.deadline, pending.submit_before):
                expired.append((request_id, NoQuorumError("no leader took the command in time")))
        for request_id, _ in expired:
            del self._pending[request_id]
        if expired:
            # Without a leader nobody else looks through it.
            self._unrouted = deque(each for each in self._unrouted if each in self._pending)
        return expired

    def fail_all(self, reason: str) -> list[tuple[bytes, MetadataError]]:
        """Give up on everything: this node stops."""
        failed: list[tuple[bytes, MetadataError]] = [
            (
                request_id,
                OutcomeUnknownError(request_id, reason)
                if pending.submissions
                else NoQuorumError(reason),
            )
            for request_id, pending in self._pending.items()
        ]
        self._pending.clear()
        self._unrouted.clear()
        return failed

    def request_ids(self) -> list[bytes]:
        return list(self._pending)
