"""The one thread that changes a chunk store, and the queue in front of it.

Everything that waits when the thread comes round is worked off together: records go out in as few
writes as their sizes allow, one sync makes a group durable, its futures are resolved in one wake-up
of the event loop, and the index follows. What is done, and in which order, stands in
`ring/store_changes.py`.

A disk without space fails what it has no space for. After any other error of a write or a sync it
is unknown what the disk holds: nothing of the group is acknowledged, the volume is sealed, and the
store takes no more changes until it is started anew (rule D9).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ring.chunk_index import IndexRow
from ring.errors import (
    RingError,
    StoreFailedError,
    StoreFullError,
    StoreOverloadedError,
)
from ring.interfaces import ChunkRow
from ring.store_changes import NewRecord, StoreChanges

QUEUE_LIMIT = 1024
"""Operations that may wait. At a sync a millisecond this is far more than a second's worth."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Write:
    future: asyncio.Future[None]
    record: NewRecord


@dataclass(frozen=True, slots=True)
class _Delete:
    future: asyncio.Future[bool]
    chunk_id: bytes
    unless: Callable[[ChunkRow], bool]


@dataclass(frozen=True, slots=True)
class _Quarantine:
    future: asyncio.Future[bool]
    row: IndexRow


@dataclass(frozen=True, slots=True)
class _Inspect:
    future: asyncio.Future[list[bytes]]
    volume: int


@dataclass(frozen=True, slots=True)
class _UpdateIndex:
    future: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class _Recount:
    future: asyncio.Future[bool]
    partition: int


_Operation = _Write | _Delete | _Quarantine | _Inspect | _UpdateIndex | _Recount


class StoreWriter:
    """Feeds `changes` from a queue. Made and used on the event loop.

    `on_failure` is called there once, when the store stops taking changes.
    """

    def __init__(
        self, changes: StoreChanges, *, on_failure: Callable[[StoreFailedError], None]
    ) -> None:
        self._changes = changes
        self._on_failure = on_failure
        self._queue: deque[_Operation] = deque()
        self._wake = threading.Condition()
        self._is_stopping = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="store writer", daemon=True)
        self.failure: StoreFailedError | None = None

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        """Work off what waits, bring the index up to date, and end the thread."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    @property
    def queue_depth(self) -> int:
        return len(self._queue)

    def write(self, record: NewRecord) -> asyncio.Future[None]:
        """Queue a chunk that is not here; done when it is durable.

        The record's payload is in use until then. All five raise StoreOverloadedError and
        StoreFailedError; their futures StoreFullError and StoreFailedError.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        self._enqueue(_Write(future, record))
        return future

    def delete(self, chunk_id: bytes, unless: Callable[[ChunkRow], bool]) -> asyncio.Future[bool]:
        """Queue a deletion; the result says whether it took place."""
        future: asyncio.Future[bool] = self._loop.create_future()
        self._enqueue(_Delete(future, chunk_id, unless))
        return future

    def quarantine(self, row: IndexRow) -> asyncio.Future[bool]:
        """Queue the marking of a damaged copy; False where the chunk has moved or gone."""
        future: asyncio.Future[bool] = self._loop.create_future()
        self._enqueue(_Quarantine(future, row))
        return future

    def recount(self, partition: int) -> asyncio.Future[bool]:
        """Queue putting a partition's digest right; the result says whether it was wrong."""
        future: asyncio.Future[bool] = self._loop.create_future()
        self._enqueue(_Recount(future, partition))
        return future

    def inspect(self, volume: int) -> asyncio.Future[list[bytes]]:
        """Queue a look at a volume's file; the result is the chunks that it has lost."""
        future: asyncio.Future[list[bytes]] = self._loop.create_future()
        self._enqueue(_Inspect(future, volume))
        return future

    def fail(self, failure: StoreFailedError) -> None:
        """Take no more changes, as after a failed write; what waits in the queue fails too."""
        with self._wake:
            if self.failure is not None:
                return
            self.failure = failure
        self._on_failure(failure)

    def update_index(self) -> asyncio.Future[None]:
        """Queue a commit of the index; done when it reflects all that was queued before."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._enqueue(_UpdateIndex(future))
        return future

    def _enqueue(self, operation: _Operation) -> None:
        with self._wake:
            if self.failure is not None:
                raise StoreFailedError(str(self.failure))
            if self._is_stopping:
                raise StoreFailedError("the chunk store is closed")
            if len(self._queue) >= QUEUE_LIMIT:
                raise StoreOverloadedError(f"{QUEUE_LIMIT} operations wait for the disk already")
            self._queue.append(operation)
            self._wake.notify()

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._queue and not self._is_stopping:
                    self._wake.wait()
                batch = list(self._queue)
                self._queue.clear()
            if not batch:
                return
            self._work(batch)

    def _work(self, batch: Sequence[_Operation]) -> None:
        """Resolve the future of each operation, whatever happens."""
        if self.failure is not None:
            self._resolve([(operation, self.failure) for operation in batch])
            return
        unresolved: dict[int, _Operation] = {id(operation): operation for operation in batch}

        def resolve(outcomes: Sequence[tuple[_Operation, object]]) -> None:
            for operation, _ in outcomes:
                del unresolved[id(operation)]
            self._resolve(outcomes)

        try:
            self._write(batch, resolve)
            self._delete(batch, resolve)
            self._quarantine(batch, resolve)
            self._update_index(batch, resolve)
            self._recount(batch, resolve)
        except Exception as error:
            _log.exception("the chunk store failed")
            self._fail(error, list(unresolved.values()))

    def _write(self, batch: Sequence[_Operation], resolve: Callable[[_Outcomes], None]) -> None:
        waiting = [operation for operation in batch if isinstance(operation, _Write)]
        while waiting:
            try:
                count = self._changes.append_group([write.record for write in waiting])
            except StoreFullError as error:
                resolve([(write, error) for write in waiting])
                return
            resolve([(write, None) for write in waiting[:count]])
            del waiting[:count]

    def _delete(self, batch: Sequence[_Operation], resolve: Callable[[_Outcomes], None]) -> None:
        deletions = [operation for operation in batch if isinstance(operation, _Delete)]
        if not deletions:
            return
        outcomes: Sequence[object]
        try:
            outcomes = self._changes.delete([(each.chunk_id, each.unless) for each in deletions])
        except StoreFullError as error:
            outcomes = [error] * len(deletions)
        resolve(list(zip(deletions, outcomes, strict=True)))

    def _quarantine(
        self, batch: Sequence[_Operation], resolve: Callable[[_Outcomes], None]
    ) -> None:
        for operation in batch:
            if isinstance(operation, _Quarantine | _Inspect):
                outcome: object
                try:
                    if isinstance(operation, _Quarantine):
                        outcome = self._changes.quarantine(operation.row)
                    else:
                        outcome = self._changes.inspect(operation.volume)
                except StoreFullError as error:
                    outcome = error
                resolve([(operation, outcome)])

    def _update_index(
        self, batch: Sequence[_Operation], resolve: Callable[[_Outcomes], None]
    ) -> None:
        waiting = [operation for operation in batch if isinstance(operation, _UpdateIndex)]
        if not waiting and self._queue:
            return
        outcome: object = None
        try:
            self._changes.update_index()
        except StoreFullError as error:
            # The rows wait for better times; the next write that finds too many is refused.
            outcome = error
        resolve([(operation, outcome) for operation in waiting])

    def _recount(self, batch: Sequence[_Operation], resolve: Callable[[_Outcomes], None]) -> None:
        for operation in batch:
            if isinstance(operation, _Recount):
                outcome: object
                try:
                    outcome = self._changes.recount(operation.partition)
                except StoreFullError as error:
                    outcome = error
                resolve([(operation, outcome)])

    def _fail(self, error: Exception, unresolved: Sequence[_Operation]) -> None:
        failure = StoreFailedError(f"the chunk store takes no more changes: {error}")
        failure.__cause__ = error
        with self._wake:
            self.failure = failure
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._on_failure, failure)
        self._resolve([(operation, failure) for operation in unresolved])
        with contextlib.suppress(RingError):
            self._changes.seal()

    def _resolve(self, outcomes: _Outcomes) -> None:
        if not outcomes:
            return
        # Only a loop that has ended refuses, and with it everybody who waited.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(_set_outcomes, outcomes)


_Outcomes = Sequence[tuple[_Operation, object]]


def _set_outcomes(outcomes: _Outcomes) -> None:
    for operation, outcome in outcomes:
        future: asyncio.Future[Any] = operation.future
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
