"""The raft thread: one loop that owns journal, state machine, connections and the replica.

Nothing else runs on it, so bulk data elsewhere can't make this node miss a heartbeat (hazard 18).
The main loop hands over commands and reads in batches, one wake-up for as many as came meanwhile,
and gets answers back the same way. Any error of journal, state machine or protocol stops the thread
and is told once: the process must end (rule M4).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import uvloop

from metadata_raft.batching import Draft
from metadata_raft.compaction import LogLease
from metadata_raft.configuration import Configuration
from metadata_raft.download import Downloads, ReceivedState
from metadata_raft.errors import FatalRaftError, MetadataError, NoQuorumError
from metadata_raft.frames import Identity
from metadata_raft.log import ReplicatedLog
from metadata_raft.manifest import Identity as DirectoryIdentity
from metadata_raft.messages import Message, StatePiece, StateRefused, StateRequest
from metadata_raft.readers import ReaderPool
from metadata_raft.records import AppliedState, MemberRecord
from metadata_raft.replica import RaftStatus, Replica
from metadata_raft.settings import RaftSettings
from metadata_raft.state_machine import StateMachine
from metadata_raft.state_stream import StateDescription
from metadata_raft.storage import (
    Storage,
    begin_install,
    check_state,
    finish_install,
    open_storage,
)
from metadata_raft.transport import Transport
from ring.members import NodeId

STATE_NAME = "state.db"

HAND_OVER_SECONDS_LIMIT = 0.7
"""How long a stopping leader waits for another one."""

COMPACTION_PERIOD_SECONDS = 2.0
COMPACTION_GROWTH_BYTES = 16 * 1024 * 1024
"""The journal is compacted when it has grown by this much: two segments."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one step of the raft thread tells the main loop."""

    results: list[tuple[bytes, bytes | MetadataError]]
    reads: list[tuple[int, int | MetadataError]]
    applied: AppliedState | None
    """The state it published, where it is a new one."""


class RaftThread:
    """Runs a `Replica`. Public methods are for the main loop unless they say otherwise."""

    def __init__(
        self,
        settings: RaftSettings,
        readers: ReaderPool,
        *,
        deliver: Callable[[Delivery], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """`deliver` and `failed` are called on the main loop."""
        self._settings = settings
        self._readers = readers
        self._deliver = deliver
        self._failed_callback = failed
        self._main = asyncio.get_running_loop()
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="raft", daemon=True)
        self._ready: asyncio.Future[str] = self._main.create_future()
        self._inbox: deque[Callable[[], None]] = deque()
        self._inbox_woken = False
        self._outgoing: deque[Delivery] = deque()
        self._outgoing_woken = False
        self._step_scheduled = False
        self._stopping = False
        self._stopped = asyncio.Event()
        self._storage: Storage
        self._state: StateMachine
        self._replica: Replica
        self._transport: Transport
        self._downloads: Downloads
        self._lease = LogLease()
        self._learned: dict[NodeId, str] = {}
        self._stages: tuple[int, dict[NodeId, str]] = (-1, {})
        self._peers_version = -1
        self._peers_changed = False
        self._removed: tuple[NodeId, ...] = ()
        self._compacted_size = 0
        self._compaction_at = 0.0
        self.status: RaftStatus
        self.applied: AppliedState
        self.is_removed = False
        self.later_boot = 0
        self.other_incarnation_seen = 0
        self._boots: dict[NodeId, int] = {}

    async def start(self) -> str:
        """Recover, listen, begin to tick; returns the listening address.

        Raises StorageUnusableError, StateCorruptError, OSError, with nothing left running.
        """
        self._thread.start()
        try:
            return await self._ready
        except asyncio.CancelledError:
            with contextlib.suppress(RuntimeError):  # It may have ended by itself just now.
                self._loop.call_soon_threadsafe(self._give_up_start)
            await asyncio.to_thread(self._thread.join)
            raise
        except BaseException:
            await asyncio.to_thread(self._thread.join)
            raise

    async def stop(self) -> None:
        """Hand leadership over if leading, answer everybody, flush, close."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._begin_stop)
            await asyncio.to_thread(self._thread.join)

    def submit(self, draft: Draft, timeout_seconds: float, submit_seconds: float) -> None:
        now = time.monotonic()
        deadline, submit_before = now + timeout_seconds, now + submit_seconds
        self._post(
            lambda: self._replica.submit(draft, deadline=deadline, submit_before=submit_before)
        )

    def read(self, token: int, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        self._post(lambda: self._replica.read(token, deadline))

    async def call(self, function: Callable[[], T]) -> T:
        """Run a function on the raft thread, between its steps, and return its result."""
        answer: asyncio.Future[T] = self._main.create_future()

        def tell(result: T | None, error: BaseException | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type] # No error: it is a T.

        def run() -> None:
            try:
                result = function()
            except Exception as error:
                self._main.call_soon_threadsafe(tell, None, error)
                if isinstance(error, FatalRaftError):
                    self.failed(error)
            else:
                self._main.call_soon_threadsafe(tell, result, None)

        if self._stopping or not self._thread.is_alive():
            raise NoQuorumError("this node is stopping")
        self._post(run)
        return await answer

    async def copy_for_backup(self) -> tuple[str, StateDescription]:
        """A copy of the state, the caller's to remove. Raises StateStreamError, NoQuorumError."""
        if self._stopping or not self._thread.is_alive():
            raise NoQuorumError("this node is stopping")
        work = self._downloads.copy_for_backup()
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError as error:  # The loop has closed just now.
            work.close()
            raise NoQuorumError("this node is stopping") from error
        return await asyncio.wrap_future(future)

    def checkpoint(self) -> int:
        """Raft thread: make the state durable, then drop what the journal need not keep (M4)."""
        durable_index = self._state.checkpoint()
        log = self._replica.log
        self._storage.manifest.update(configuration=log.configuration_at(durable_index))
        log.compact(durable_index, lease_index=self._lease.index(time.monotonic()))
        self._compacted_size = self._storage.journal.size_bytes
        return durable_index

    @property
    def replica(self) -> Replica:
        """Raft thread only."""
        return self._replica

    # --- thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._live())
        except BaseException as error:
            self._main.call_soon_threadsafe(self._tell_failure, error)
        finally:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _live(self) -> None:
        try:
            self._open()
            try:
                address = await self._transport.start(
                    self._settings.listen_host, self._settings.listen_port
                )
            except BaseException:
                self._close()
                raise
        except BaseException as error:
            self._main.call_soon_threadsafe(self._tell_start, "", error)
            return
        self._connect_peers()
        self._publish_status()
        self._main.call_soon_threadsafe(self._tell_start, address, None)
        self._tick()
        await self._stopped.wait()
        await self._downloads.stop()
        await self._transport.stop()
        self._replica.fail_all("this node is stopping")
        self._publish()
        self._close()

    def _open(self) -> None:
        settings = self._settings
        identity = DirectoryIdentity(settings.cluster_id, settings.node_id, settings.incarnation)
        settings.filesystem.make_directory(settings.directory)
        founding = Configuration((settings.node_id,)) if settings.bootstrap else None
        self._storage = open_storage(
            settings.filesystem,
            settings.directory,
            identity,
            configuration=founding,
            settings=settings.journal,
        )
        try:
            self._state = StateMachine(os.path.join(settings.directory, STATE_NAME))
        except BaseException:
            self._storage.close()
            raise
        try:
            self.applied = self._state.applied
            check_state(
                self._storage.journal,
                applied_index=self.applied.index,
                applied_term=self.applied.term,
            )
            self._transport = Transport(
                Identity(
                    settings.node_id,
                    settings.cluster_id,
                    settings.incarnation,
                    settings.cluster_key,
                    settings.boot_counter,
                ),
                self,
                timing=settings.timing,
                server_tls=settings.server_tls,
                client_tls=settings.client_tls,
                tls_server_name=settings.tls_server_name,
                advertise_address=settings.advertise_address,
            )
            self._replica = Replica(
                node_id=settings.node_id,
                log=ReplicatedLog(
                    self._storage.journal, self._storage.manifest.current.configuration
                ),
                state=self._state,
                links=self._transport,
                stages=self._read_stages,
                timing=settings.timing,
                clock=time.monotonic,
                wall_clock_ms=lambda: time.time_ns() // 1_000_000,
                generator=random.Random(),
            )
            self._replica.on_configuration = self._on_configuration
            self._downloads = Downloads(
                settings.filesystem,
                os.path.join(settings.directory, STATE_NAME),
                identity,
                self._transport,
                self._lease,
                applied_index=lambda: self._state.applied.index,
                configuration_at=self._replica.log.configuration_at,
                received=self._install,
            )
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        try:
            self._state.close()
        finally:
            self._storage.close()

    def _give_up_start(self) -> None:
        self._stopping = True
        self._stopped.set()

    def _begin_stop(self) -> None:
        self._stopping = True
        self._replica.begin_transfer()
        self._wait_for_successor(self._loop.time() + HAND_OVER_SECONDS_LIMIT)

    def _wait_for_successor(self, deadline: float) -> None:
        alone = len(self._replica.engine.configuration.voters) < 2
        if alone or not self._replica.engine.is_leader or self._loop.time() > deadline:
            self._stopped.set()
        else:
            self._loop.call_later(self._settings.timing.tick, self._wait_for_successor, deadline)

    # --- steps --------------------------------------------------------------------------------

    def _post(self, action: Callable[[], None]) -> None:
        self._inbox.append(action)
        if not self._inbox_woken:
            self._inbox_woken = True
            self._loop.call_soon_threadsafe(self._take_inbox)

    def _take_inbox(self) -> None:
        # Cleared first: what is appended from here on wakes again.
        self._inbox_woken = False
        inbox = self._inbox
        try:
            while inbox:
                inbox.popleft()()
            self._step()
        except Exception as error:
            self.failed(error)

    def _schedule_step(self) -> None:
        if not self._step_scheduled:
            self._step_scheduled = True
            self._loop.call_soon(self._scheduled_step)

    def _scheduled_step(self) -> None:
        self._step_scheduled = False
        try:
            self._step()
        except Exception as error:
            self.failed(error)

    def _step(self) -> None:
        if self._stopped.is_set():
            return
        if self._replica.advance():
            self._schedule_step()
        self._publish()

    def _tick(self) -> None:
        if self._stopped.is_set():
            return
        try:
            self._replica.housekeep()
            self._step()
            self._publish_status()
            if self._replica.state_needed_from is not None:
                self._downloads.begin(self._replica.state_needed_from)
            if self._peers_changed or self.applied.members_version != self._peers_version:
                self._connect_peers()
            now = self._loop.time()
            if now >= self._compaction_at:
                self._compaction_at = now + COMPACTION_PERIOD_SECONDS
                growth = self._storage.journal.size_bytes - self._compacted_size
                if growth >= COMPACTION_GROWTH_BYTES:
                    self.checkpoint()
        except Exception as error:
            self.failed(error)
            return
        self._loop.call_later(self._settings.timing.tick, self._tick)

    def _publish(self) -> None:
        """Hand answers and the applied state to the main loop, with one wake-up for many."""
        replica = self._replica
        applied = self._state.applied
        if not replica.results and not replica.reads_done and applied is self.applied:
            return
        published = applied if applied is not self.applied else None
        self.applied = applied
        self._outgoing.append(Delivery(replica.results, replica.reads_done, published))
        replica.results, replica.reads_done = [], []
        if not self._outgoing_woken:
            self._outgoing_woken = True
            self._main.call_soon_threadsafe(self._take_outgoing)

    def _take_outgoing(self) -> None:
        """Main loop."""
        # Cleared first: what is appended from here on wakes again.
        self._outgoing_woken = False
        while self._outgoing:
            self._deliver(self._outgoing.popleft())

    def _publish_status(self) -> None:
        self.status = self._replica.status()
        removed = self._replica.committed_configuration().removed
        if removed != self._removed:
            self._removed = removed
            self.is_removed = self.is_removed or self._settings.node_id in removed
            # They dial again, and the handshake tells them.
            for node_id in removed:
                self._transport.close_inbound(node_id)

    def _tell_start(self, address: str, error: BaseException | None) -> None:
        if self._ready.done():
            return
        if error is not None:
            self._ready.set_exception(error)
        else:
            self._ready.set_result(address)

    def _tell_failure(self, error: BaseException) -> None:
        self._failed_callback(error)

    def _install(self, received: ReceivedState) -> None:
        """Let a downloaded state take the place of this node's, unless it caught up (M6)."""
        description = received.description
        replica, base, path = self._replica, description.base, self._downloads.database
        if self._stopped.is_set():
            return
        try:
            if base.index <= self._state.applied.index:
                replica.state_needed_from = None
                return
            # From here on it will be the state, whatever happens to this process.
            begin_install(
                self._storage,
                source=received.path,
                target=path,
                base=base,
                configuration=description.configuration,
            )
            self._readers.suspend()
            self._state.close()
            finish_install(
                self._storage,
                reset=lambda index, term: replica.log.install(
                    index, term, description.configuration
                ),
            )
            self._state = StateMachine(path)
            self._readers.reopen()
            # The digest covered both what the state is and what it was said to be.
            assert self._state.applied.index == base.index
            replica.installed(description.configuration, self._state)
            self._compacted_size = self._storage.journal.size_bytes
            self._answer_from_results()
            self._peers_changed = True
            self._step()
        except Exception as error:
            self.failed(error)

    def _answer_from_results(self) -> None:
        """Requests whose entries were skipped: the state remembers what came of them (M1).

        Where clients keep all the readers busy they are sent again, and answered by that.
        """
        with contextlib.suppress(MetadataError), self._readers.snapshot() as snapshot:
            for request_id in self._replica.pending_request_ids():
                result = snapshot.result(request_id)
                if result is not None:
                    self._replica.answer(request_id, result)

    # --- membership and addresses -------------------------------------------------------------

    def _read_stages(self) -> Mapping[NodeId, str]:
        """The members' stages as committed now; none where they can't be read at the moment, for
        steps decided on old ones would be refused, ten times a second."""
        version = self._state.applied.members_version
        if version != self._stages[0]:
            members = self._read_members()
            if members is None:
                return {}
            self._stages = (version, {each.member.node_id: each.stage for each in members})
        return self._stages[1]

    def _read_members(self) -> list[MemberRecord] | None:
        """None where clients keep all the readers busy; the next tick tries again."""
        try:
            with self._readers.snapshot() as snapshot:
                return snapshot.members()
        except MetadataError:
            return None

    def _on_configuration(self, configuration: Configuration) -> None:  # noqa: ARG002
        self._peers_changed = True

    def _connect_peers(self) -> None:
        """Dial the members of the configuration, whoever dialled us, and the seeds at first.

        What a live peer says of its address is newest, then comes the replicated state, then what
        was known at the last stop.
        """
        version, members = self._state.applied.members_version, self._read_members()
        self._peers_changed = members is None
        if members is None:
            return
        self._peers_version = version
        self._boots = {each.member.node_id: each.boot_counter for each in members}
        self._transport.close_older_boots(self._boots)
        recorded = {each.member.node_id: each.member.raft_address for each in members}
        seeds = {seed.node_id: seed.raft_address for seed in self._settings.seeds}
        manifest = self._storage.manifest
        known = {**seeds, **manifest.current.addresses, **recorded, **self._learned}
        configuration = self._replica.engine.configuration
        wanted = set(configuration.members) | set(self._learned)
        if self._settings.node_id not in configuration.members:
            wanted |= set(seeds)
        wanted -= {self._settings.node_id, *configuration.removed}
        peers = {node_id: known[node_id] for node_id in sorted(wanted) if node_id in known}
        manifest.update(
            addresses={each: peers[each] for each in configuration.members if each in peers}
        )
        self._transport.set_peers(peers)

    # --- TransportHost ------------------------------------------------------------------------

    def received(self, sender: NodeId, message: Message) -> None:
        if self._stopped.is_set():
            return
        if isinstance(message, StateRequest | StatePiece | StateRefused):
            self._downloads.receive(sender, message)
            return
        self._replica.receive(sender, message)
        self._schedule_step()

    def peer_connected(self, node_id: NodeId) -> None:
        self._replica.peer_connected(node_id)
        self._schedule_step()

    def peer_lost(self, node_id: NodeId) -> None:
        if not self._stopped.is_set():
            self._replica.peer_lost(node_id)
            self._downloads.peer_lost(node_id)
            self._schedule_step()

    def is_removed_peer(self, node_id: NodeId) -> bool:
        if node_id in self._replica.committed_configuration().removed:
            return True
        if node_id in self._replica.engine.configuration.members:
            return False
        try:
            with self._readers.snapshot() as snapshot:
                return snapshot.departed(node_id)
        except MetadataError:  # Clients keep all the readers busy; it will dial again.
            return False

    def was_removed(self) -> None:
        self.is_removed = True

    def recorded_boot(self, node_id: NodeId) -> int:
        return self._boots.get(node_id, 0)

    def was_restored(self, recorded_boot: int) -> None:
        self.later_boot = max(self.later_boot, recorded_boot)

    def other_incarnation(self, incarnation: int) -> None:
        self.other_incarnation_seen = max(self.other_incarnation_seen, incarnation)

    def peer_address(self, node_id: NodeId, address: str) -> None:
        if address and self._learned.get(node_id) != address:
            self._learned[node_id] = address
            self._connect_peers()

    def failed(self, error: BaseException) -> None:
        """Stop for good; the node has to end its process."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._main.call_soon_threadsafe(self._tell_failure, error)
