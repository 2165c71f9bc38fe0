"""Bringing a whole state to a node whose place in the log is gone (rule M6).

The state travels as messages between Raft peers, so it needs no port, no authentication and no
simulation of its own. Pieces are sent only on credit, a few at a time, and made, checked and
written in worker threads: heartbeats are never behind more than a few megabytes, elections never
behind a disk. A source serves one download at a time and holds its log from the copy on, for a
bounded time, so that the receiver can go on from there. Everything here is bounded by a timeout;
an attempt that fails costs nothing but its time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from metadata_raft.compaction import LogLease
from metadata_raft.configuration import Configuration
from metadata_raft.manifest import Base, Identity
from metadata_raft.messages import Message, StatePiece, StateRefused, StateRequest
from metadata_raft.state_stream import (
    SPACE_LEFT_BYTES,
    STREAM_VERSION,
    StateDecoder,
    StateDescription,
    StateEncoder,
    StateStreamError,
    copy_database,
    prepare_backup,
)
from metadata_raft.storage import BACKUP_SUFFIX, INCOMING_SUFFIX, OUTGOING_SUFFIX
from ring.filesystem import FileSystem
from ring.members import NodeId

WINDOW = 4
"""Pieces on their way at once, of about half a megabyte."""

FIRST_PIECE_SECONDS = 120.0
"""How long a receiver waits for the source to copy its database."""

PIECE_SECONDS = 20.0
"""How long either side waits for the other's next word."""

LEASE_AFTER_SECONDS = 30.0
"""How long the source holds its log after the last piece: the receiver installs and reconnects."""

RETRY_SECONDS = 1.0
"""Between a failed attempt and the next."""

SEND_PAUSE_SECONDS = 0.01
"""Between two looks whether a congested connection takes more."""

_logger = logging.getLogger(__name__)

T = TypeVar("T")


class Connections(Protocol):
    """The way to other members; the transport's."""

    def send(self, node_id: NodeId, message: Message) -> None: ...

    def can_send(self, node_id: NodeId) -> bool: ...

    def flush(self) -> None: ...


@dataclass(frozen=True)
class ReceivedState:
    """A state that is verified and durable, ready for `storage.begin_install`."""

    path: str
    description: StateDescription


class StateSource:
    """Sends this node's state to whoever asks, one at a time. Raft thread's loop."""

    def __init__(
        self,
        filesystem: FileSystem,
        database: str,
        identity: Identity,
        connections: Connections,
        lease: LogLease,
        *,
        applied_index: Callable[[], int],
        configuration_at: Callable[[int], Configuration],
    ) -> None:
        self._filesystem = filesystem
        self._database = database
        self._identity = identity
        self._connections = connections
        self._lease = lease
        self._applied_index = applied_index
        self._configuration_at = configuration_at
        self._task: asyncio.Task[None] | asyncio.Task[Base] | None = None
        self._serving: tuple[NodeId, int] | None = None
        """The present download or the one before, whose last credit may still come."""
        self._credit = 0
        self._credit_grew = asyncio.Event()

    def receive(self, sender: NodeId, request: StateRequest) -> None:
        """Take a request: a new download, or more credit for the present one."""
        wanted = (sender, request.download)
        if self._serving == wanted:
            self._credit = max(self._credit, request.credit)
            self._credit_grew.set()
            return
        if self._task is not None and not self._task.done():
            if self._serving is None or self._serving[0] != sender:
                self._connections.send(sender, StateRefused(request.download, "busy"))
                self._connections.flush()
                return
            # The receiver began anew; its former attempt waits for nothing any more.
            self._task.cancel()
        self._serving = wanted
        self._credit = request.credit
        self._task = asyncio.create_task(self._serve(sender, request.download, self._task))

    async def copy_for_backup(self) -> tuple[str, StateDescription]:
        """Copy the state to a file, which is the caller's from then on, and describe it.

        Raises StateStreamError: another copy is being made or sent, or this one came to nothing.
        """
        if self._task is not None and not self._task.done():
            raise StateStreamError("another copy of the state is being made or sent")
        self._serving = None
        copy = self._database + BACKUP_SUFFIX
        task = asyncio.create_task(in_thread(partial(self._copy, copy)))
        self._task = task
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.cancelled():
            raise StateStreamError("this node's state is about to be replaced or closed")
        try:
            base = task.result()
            size_bytes, cluster_version = await in_thread(partial(prepare_backup, copy))
        except OSError as error:
            raise StateStreamError(f"the state can't be copied: {error}") from error
        return copy, self._describe(base, size_bytes, cluster_version)

    def _describe(self, base: Base, size_bytes: int, cluster_version: int = 0) -> StateDescription:
        return StateDescription(
            version=STREAM_VERSION,
            cluster_id=self._identity.cluster_id,
            incarnation=self._identity.incarnation,
            base=base,
            configuration=self._configuration_at(base.index),
            size_bytes=size_bytes,
            cluster_version=cluster_version,
        )

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _serve(
        self,
        receiver: NodeId,
        download: int,
        former: asyncio.Task[None] | asyncio.Task[Base] | None,
    ) -> None:
        if former is not None:
            await asyncio.wait([former])
        copy = self._database + OUTGOING_SUFFIX
        self._lease.grant(self._applied_index(), time.monotonic())
        try:
            await self._send_state(receiver, download, copy)
        except (OSError, StateStreamError) as error:
            _logger.warning("the state could not be sent to %s: %s", receiver, error)
            self._connections.send(receiver, StateRefused(download, str(error)))
            self._connections.flush()
        finally:
            self._lease.end_within(LEASE_AFTER_SECONDS, time.monotonic())
            with contextlib.suppress(OSError):
                self._filesystem.unlink(copy)

    async def _send_state(self, receiver: NodeId, download: int, copy: str) -> None:
        base = await in_thread(partial(self._copy, copy))
        file = self._filesystem.open(copy)
        try:
            description = self._describe(base, file.size())
            await self._send_pieces(receiver, download, StateEncoder(file, description))
        finally:
            file.close()

    def _copy(self, copy: str) -> Base:
        """Worker thread."""
        size = os.path.getsize(self._database)
        if self._filesystem.free_bytes(os.path.dirname(copy)) < size + SPACE_LEFT_BYTES:
            raise StateStreamError("the source has no space for a copy of its state")
        return copy_database(self._database, copy)

    async def _send_pieces(self, receiver: NodeId, download: int, encoder: StateEncoder) -> None:
        number, last = 0, False
        while not last:
            data, last = await in_thread(encoder.next)
            async with asyncio.timeout(PIECE_SECONDS):
                while number >= self._credit:
                    self._credit_grew.clear()
                    await self._credit_grew.wait()
                while not self._connections.can_send(receiver):  # noqa: ASYNC110 - it has no event.
                    await asyncio.sleep(SEND_PAUSE_SECONDS)
            self._connections.send(receiver, StatePiece(download, number, data, last))
            self._connections.flush()
            number += 1


class StateReceiver:
    """Fetches another node's state into a file beside this node's own. Raft thread's loop."""

    def __init__(
        self,
        filesystem: FileSystem,
        database: str,
        identity: Identity,
        connections: Connections,
        *,
        new_id: Callable[[], int],
    ) -> None:
        self._filesystem = filesystem
        self._path = database + INCOMING_SUFFIX
        self._identity = identity
        self._connections = connections
        self._new_id = new_id
        self._source: NodeId | None = None
        self._download = 0
        self._pieces: asyncio.Queue[StatePiece | StateRefused] = asyncio.Queue(WINDOW + 1)

    def receive(self, sender: NodeId, message: StatePiece | StateRefused) -> None:
        """Take what the source says; what no present download asked for is dropped."""
        if sender == self._source and message.download == self._download:
            with contextlib.suppress(asyncio.QueueFull):
                # Beyond its credit a source is not heard; the download then times out.
                self._pieces.put_nowait(message)

    def peer_lost(self, node_id: NodeId) -> None:
        """A connection closed: where it was the source's, its next piece won't come."""
        self.receive(node_id, StateRefused(self._download, "its connection closed"))

    async def fetch(self, source: NodeId) -> ReceivedState:
        """Download the state of `source`; verified and durable on return.

        Raises StateStreamError where it has to be tried again; so is an error of the disk, since
        nothing depends on the file yet.
        """
        self._source, self._download = source, self._new_id()
        while not self._pieces.empty():
            self._pieces.get_nowait()
        decoder = StateDecoder(
            self._filesystem,
            self._path,
            cluster_id=self._identity.cluster_id,
            incarnation=self._identity.incarnation,
        )
        try:
            return ReceivedState(self._path, await self._take_all(source, decoder))
        except TimeoutError as error:
            raise StateStreamError(f"{source} went silent") from error
        except OSError as error:
            raise StateStreamError(f"{self._path} could not be written: {error}") from error
        finally:
            self._source = None
            decoder.close()

    async def _take_all(self, source: NodeId, decoder: StateDecoder) -> StateDescription:
        if not self._connections.can_send(source):
            raise StateStreamError(f"there is no connection to {source}")
        number, patience = 0, FIRST_PIECE_SECONDS
        while True:
            self._connections.send(source, StateRequest(self._download, number + WINDOW))
            self._connections.flush()
            async with asyncio.timeout(patience):
                piece = await self._pieces.get()
            if isinstance(piece, StateRefused):
                raise StateStreamError(f"{source} refused: {piece.reason}")
            if piece.number != number:
                raise StateStreamError(f"piece {piece.number} of {source} came before {number}")
            description = await in_thread(partial(decoder.take, piece.data, last=piece.last))
            if description is not None:
                return description
            number, patience = number + 1, PIECE_SECONDS


class Downloads:
    """Both sides of a node: it sends its state to who asks, and fetches one when told to."""

    def __init__(
        self,
        filesystem: FileSystem,
        database: str,
        identity: Identity,
        connections: Connections,
        lease: LogLease,
        *,
        applied_index: Callable[[], int],
        configuration_at: Callable[[int], Configuration],
        received: Callable[[ReceivedState], None],
    ) -> None:
        """`received` is called with each state that came whole. `database` is this node's own."""
        self.database = database
        self._received = received
        self._source = StateSource(
            filesystem,
            database,
            identity,
            connections,
            lease,
            applied_index=applied_index,
            configuration_at=configuration_at,
        )
        self._receiver = StateReceiver(
            filesystem, database, identity, connections, new_id=lambda: random.getrandbits(63)
        )
        self._task: asyncio.Task[None] | None = None
        self._begin_at = 0.0

    def receive(self, sender: NodeId, message: StateRequest | StatePiece | StateRefused) -> None:
        if isinstance(message, StateRequest):
            self._source.receive(sender, message)
        else:
            self._receiver.receive(sender, message)

    async def copy_for_backup(self) -> tuple[str, StateDescription]:
        """See `StateSource.copy_for_backup`."""
        return await self._source.copy_for_backup()

    def peer_lost(self, node_id: NodeId) -> None:
        self._receiver.peer_lost(node_id)

    def begin(self, source: NodeId) -> None:
        """Fetch the state of `source`, unless a download runs or failed a moment ago."""
        if (self._task is None or self._task.done()) and time.monotonic() >= self._begin_at:
            self._task = asyncio.create_task(self._fetch(source))

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._source.stop()

    async def _fetch(self, source: NodeId) -> None:
        started = time.monotonic()
        _logger.info("downloading the state of %s", source)
        try:
            received = await self._receiver.fetch(source)
        except StateStreamError as error:
            _logger.warning("a state download failed, and is tried again: %s", error)
            self._begin_at = time.monotonic() + RETRY_SECONDS
            return
        size, seconds = received.description.size_bytes, time.monotonic() - started
        _logger.info("downloaded %d bytes of state in %.1f s", size, seconds)
        # A copy of the database that is to be replaced must not be in the making meanwhile.
        await self._source.stop()
        self._received(received)


async def in_thread(work: Callable[[], T]) -> T:
    """Run work in a worker thread. Where the caller is cancelled it is waited for all the same: a
    file must not be closed, and its descriptor given to another, under a thread that uses it."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
