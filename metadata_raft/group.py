"""The metadata group as the rest of a node sees it: commands in, results out, reads that are true.

`MetadataGroup` lives on the main loop and has a raft thread below it (`raft_thread.py`). A command
returns once it is applied on this node; a barrier returns once this node has applied everything
that was acknowledged anywhere before it was called (rule M3). What neither can promise is said by
the type of the error: `NotSubmittedError` when nothing happened, `OutcomeUnknownError` when the
same request id has to be repeated to find out (rule M1).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Never

from metadata_raft.backup import StateBackup
from metadata_raft.batching import PROPOSAL_SIZE_LIMIT, Draft
from metadata_raft.commands import (
    Command,
    IdempotencyKey,
    Result,
    decode_result,
    encode,
    required_version,
)
from metadata_raft.digests import state_digest
from metadata_raft.errors import (
    CommandTooLargeError,
    MembershipChangeError,
    NoQuorumError,
    OutcomeUnknownError,
    OverloadedError,
    RemovedError,
    RestoredDiskError,
)
from metadata_raft.raft_thread import STATE_NAME, Delivery, RaftThread
from metadata_raft.readers import ReaderPool, SnapshotContext
from metadata_raft.records import AppliedState, StateDigest
from metadata_raft.replica import RaftStatus
from metadata_raft.request_ids import new_request_id
from metadata_raft.settings import RaftSettings
from metadata_raft.state_machine import version_too_old
from metadata_raft.state_stream import StateStreamError
from ring.members import NodeId

SUBMIT_SECONDS_LIMIT = 1.0
"""A command that finds no leader for this long was not submitted; design §7 promises a 503 then."""

OUTSTANDING_LIMIT = 4096
OUTSTANDING_SIZE_LIMIT = 32 * 1024 * 1024
"""Commands one node has on their way; beyond it callers are refused at once (hazard 16)."""

REPEATABLE_MS = 10 * 60_000
"""How long a request with a caller's own id may be repeated, in state time: its result is kept that
long (rule M1). A client's idempotency key is kept for a day, in a table of its own."""

ONE_TIME_MS = 2 * 60_000
"""The same for an id made here, which only an `OutcomeUnknownError` tells. At 5,000 requests per
second 600,000 results are kept."""

ENVELOPE_SIZE = 128
"""Bytes of a proposal besides command and idempotency key."""

FATAL_EXIT_STATUS = 70
"""EX_SOFTWARE: the process ended itself rather than risk acknowledged data."""

_logger = logging.getLogger(__name__)


def exit_process(error: BaseException) -> Never:
    """End the process at once: what is in memory can't be trusted any more (rule M4)."""
    _logger.critical("metadata failed, the process ends", exc_info=error)
    os._exit(FATAL_EXIT_STATUS)


class MetadataGroup:
    """This node's member of the metadata group. Main loop only, unless said otherwise."""

    def __init__(
        self,
        settings: RaftSettings,
        *,
        on_fatal: Callable[[BaseException], None] = exit_process,
    ) -> None:
        """`on_fatal` is called on the main loop when going on could lose acknowledged data."""
        self._settings = settings
        self._on_fatal = on_fatal
        self._state_path = os.path.join(settings.directory, STATE_NAME)
        self._readers = ReaderPool(self._state_path)
        self._thread: RaftThread | None = None
        self._stopped = False
        self._loop: asyncio.AbstractEventLoop
        self._waiting: dict[bytes, list[asyncio.Future[Result]]] = {}
        self._waiting_size = 0
        self._reading: dict[int, asyncio.Future[int]] = {}
        self._read_token = 0
        self._backup_runs = False
        self._listeners: list[Callable[[AppliedState], None]] = []
        self._applied: AppliedState
        self.listen_address = ""
        """Where other members reach this node, `host:port`; known after `start`."""

    async def start(self) -> None:
        """Recover journal and state, open the transport, begin to tick.

        Raises StorageUnusableError, StateCorruptError or StateMismatchError, whose messages are for
        the operator, and OSError where the address is taken.
        """
        self._loop = asyncio.get_running_loop()
        self._thread = RaftThread(
            self._settings, self._readers, deliver=self._deliver, failed=self._fail
        )
        self.listen_address = await self._thread.start()
        self._applied = self._thread.applied

    async def stop(self) -> None:
        """Hand over leadership if leading, answer everybody, flush, close. May be repeated."""
        if self._stopped:
            return
        self._stopped = True
        if self._thread is not None:
            await self._thread.stop()
            # What the thread delivered last is on its way.
            await asyncio.sleep(0)
        self._abandon("this node is stopping")
        self._readers.close()

    async def submit(
        self,
        command: Command,
        *,
        timeout_seconds: float = 10.0,
        request_id: bytes | None = None,
        idempotency: IdempotencyKey | None = None,
    ) -> Result:
        """Have a command applied; returns its Result once it is applied on this node.

        A `Failure` is a value. Raises NoQuorumError, OverloadedError, CommandTooLargeError or
        RemovedError where nothing happened, and OutcomeUnknownError where that is not known: it
        names the request id with which the same command may be repeated.
        """
        thread = self._running()
        # Older software must not meet it in the log; versions never go back, so this can't err.
        if self._applied.cluster_version < (required := required_version(command)):
            return version_too_old(required)
        lifetime_ms = REPEATABLE_MS if request_id else ONE_TIME_MS
        draft = Draft(request_id or new_request_id(), encode(command), lifetime_ms, idempotency)
        size = len(draft.command) + ENVELOPE_SIZE
        if idempotency is not None:
            size += len(idempotency.scope) + len(idempotency.key) + len(idempotency.fingerprint)
        if size > PROPOSAL_SIZE_LIMIT:
            raise CommandTooLargeError(
                f"a {type(command).__name__} of {size} bytes; {PROPOSAL_SIZE_LIMIT} fit an entry"
            )
        if (
            len(self._waiting) >= OUTSTANDING_LIMIT
            or self._waiting_size + size > OUTSTANDING_SIZE_LIMIT
        ):
            raise OverloadedError(f"{len(self._waiting)} commands are on their way already")
        future: asyncio.Future[Result] = self._loop.create_future()
        self._waiting.setdefault(draft.request_id, []).append(future)
        self._waiting_size += size
        thread.submit(draft, timeout_seconds, min(timeout_seconds, SUBMIT_SECONDS_LIMIT))
        try:
            return await future
        finally:
            self._waiting_size -= size

    async def barrier(self, *, timeout_seconds: float = 1.0) -> int:
        """Return an index that is committed in this node's SQLite and covers every write that was
        acknowledged anywhere before the call (ReadIndex, rule M3).

        Raises NoQuorumError within the timeout, OverloadedError, RemovedError.
        """
        thread = self._running()
        self._read_token = token = self._read_token + 1
        future: asyncio.Future[int] = self._loop.create_future()
        self._reading[token] = future
        thread.read(token, timeout_seconds)
        return await future

    def snapshot(self) -> SnapshotContext:
        """A read transaction on a pooled connection, for `with`; usable from every thread."""
        return self._readers.snapshot()

    def applied(self) -> AppliedState:
        """What this node has applied, as last published; no I/O."""
        return self._applied

    def add_listener(self, listener: Callable[[AppliedState], None]) -> None:
        """Have a function called on the main loop with each newly published state."""
        self._listeners.append(listener)

    def status(self) -> RaftStatus:
        """How this member sees the group, at most a tick old."""
        assert self._thread is not None
        return self._thread.status

    @property
    def is_removed(self) -> bool:
        """Whether this node was removed from the cluster for good: it should stop (rule M7)."""
        return self._thread is not None and self._thread.is_removed

    @property
    def later_boot(self) -> int:
        """A boot of this node that others know and that is later than its own, else 0: its disk
        was restored from an older copy, and it must stop (rule M7)."""
        return 0 if self._thread is None else self._thread.later_boot

    @property
    def other_incarnation(self) -> int:
        """The highest other incarnation of the cluster that a node of it was met in, else 0."""
        return 0 if self._thread is None else self._thread.other_incarnation_seen

    async def checkpoint(self) -> int:
        """Make the state durable and compact the journal now; returns the durable index."""
        thread = self._running()
        return await thread.call(thread.checkpoint)

    async def state_digest(self) -> StateDigest:
        """Index and digest of each table of this replica (rule M8)."""
        return await asyncio.to_thread(state_digest, self._state_path)

    @asynccontextmanager
    async def backup(self) -> AsyncIterator[StateBackup]:
        """This node's state as a backup to iterate over, one at a time on a node.

        It is a copy in a file of its own beside the state, which is removed at the end. Raises
        OverloadedError where one is under way already, or there is no space for a copy.
        """
        thread = self._running()
        if self._backup_runs:
            raise OverloadedError("another backup is being made on this node")
        self._backup_runs = True
        try:
            try:
                path, description = await thread.copy_for_backup()
                backup = StateBackup(self._settings.filesystem, path, description)
            except (OSError, StateStreamError) as error:
                raise OverloadedError(f"the state can't be copied now: {error}") from error
            try:
                yield backup
            finally:
                backup.close()
        finally:
            self._backup_runs = False

    async def transfer_leadership(self) -> None:
        """Ask another voter to lead; does nothing where this node doesn't lead."""
        thread = self._running()
        await thread.call(thread.replica.begin_transfer)

    async def remove_member(self, node_id: NodeId) -> None:
        """Remove a member for good, on the leader (rule M7); returns once the change is in the log.

        Raises MembershipChangeError, which says what to do instead.
        """
        thread = self._running()

        def append() -> None:
            replica = thread.replica
            if not replica.engine.is_leader:
                raise MembershipChangeError(f"ask the leader, node {replica.engine.leader_id}")
            replica.change_configuration(replica.engine.configuration.without(node_id))

        await thread.call(append)

    # --- inside -------------------------------------------------------------------------------

    def _running(self) -> RaftThread:
        if self._thread is None or self._stopped:
            raise NoQuorumError("this node is not running")
        if self._thread.is_removed:
            raise RemovedError("this node was removed from the cluster")
        if self._thread.later_boot:
            raise RestoredDiskError(f"boot {self._thread.later_boot} of this node is known")
        return self._thread

    def _deliver(self, delivery: Delivery) -> None:
        if delivery.applied is not None:
            self._applied = delivery.applied
        for request_id, outcome in delivery.results:
            for future in self._waiting.pop(request_id, ()):
                if future.done():
                    continue
                if isinstance(outcome, bytes):
                    future.set_result(decode_result(outcome))
                else:
                    future.set_exception(outcome)
        for token, index in delivery.reads:
            reading = self._reading.pop(token, None)
            if reading is None or reading.done():
                continue
            if isinstance(index, int):
                reading.set_result(index)
            else:
                reading.set_exception(index)
        if delivery.applied is not None:
            for listener in self._listeners:
                try:
                    listener(delivery.applied)
                except Exception as error:
                    message = "a listener of the metadata failed"
                    self._loop.call_exception_handler({"message": message, "exception": error})

    def _abandon(self, reason: str) -> None:
        for request_id, futures in self._waiting.items():
            for future in futures:
                if not future.done():
                    future.set_exception(OutcomeUnknownError(request_id, reason))
        for reading in self._reading.values():
            if not reading.done():
                reading.set_exception(NoQuorumError(reason))
        self._waiting.clear()
        self._reading.clear()

    def _fail(self, error: BaseException) -> None:
        self._abandon(f"this node failed: {error}")
        self._on_fatal(error)
