"""The ring's part of a node: buffers, chunk store, what peers ask of us and we of them, its jobs.

Three pools of buffers. What clients send may wait for what peers take, but never the other way
round: a node serves its peers from a pool that no client can exhaust. And what moves in the
background takes nothing from either.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

from aiohttp import web

from metadata_raft.records import ClusterSettings
from node.encryption import PeerEncryption
from node.errors import DataDirectoryError, PortTakenError
from node.machine import MachineGauge
from node.membership_control import Holdings
from node.peer_probe import PeerProbe, Probed
from node.ports import sentence
from node.settings import Settings
from ring.anti_entropy import AntiEntropy
from ring.buffers import BufferPool
from ring.chunk_store import DiskChunkStore
from ring.collector import Collector
from ring.errors import RingError, StoreFailedError
from ring.fetching import ChunkFetcher
from ring.filesystem import RealFileSystem
from ring.identity import ClusterIdentity
from ring.interfaces import ClusterView, LiveChunks
from ring.members import Member, NodeId
from ring.moves import Mover
from ring.peer_client import PEER_SHARE, PeerClient
from ring.peer_server import make_peer_application, peer_runner
from ring.placement import Ring, build_ring
from ring.repair import Repairer
from ring.replicator import Replicator
from ring.ring_cache import RingCache
from ring.scrub import Scrubber, ScrubStatus
from ring.store_changes import StoreLimits
from ring.throttle import ClientActivity, Throttle
from ring.worker import Job, Worker

INDEX_NAME = "index.db"

_ASKED_WHETHER_ALIVE = 3
"""How often a node is asked before it counts as dead: each time it may be silent for
`peer_transport.READ_SECONDS`, and a machine that is that busy is not dead."""

REPAIR_BUFFERS_DIVISOR = 8
"""The part of a node's buffers that repair has for itself: four large chunks of the usual budget,
one of the smallest. It so never takes one from a client, nor waits for one."""

REPAIR_THREADS = 2
"""Hashing and look-ups of repair and moves, beside the threads that clients wait for."""


class DataPlane:
    """`open`, `serve`, `run`; then `rest` and `close`, in this order. Main loop only."""

    def __init__(
        self,
        *,
        settings: Settings,
        identity: ClusterIdentity,
        encryption: PeerEncryption | None,
        directory: str,
        view: ClusterView,
        live: LiveChunks,
        members: Callable[[], Sequence[Member]],
        workers: Executor,
        cluster_settings: Callable[[], ClusterSettings],
        on_failure: Callable[[StoreFailedError], None],
    ) -> None:
        self._settings = settings
        self._encryption = encryption
        self._view = view
        budget = settings.buffer_budget_bytes
        self.pool = BufferPool(budget // 2)
        self._repair_pool = BufferPool(budget // REPAIR_BUFFERS_DIVISOR)
        self._peer_pool = BufferPool(budget // 2 - budget // REPAIR_BUFFERS_DIVISOR)
        self._repair_workers = ThreadPoolExecutor(REPAIR_THREADS, thread_name_prefix="repair")
        self.clients = ClientActivity()
        self._throttle = Throttle(
            lambda: cluster_settings().repair_bytes_per_second,
            clients=self._clients_active,
            beside_clients=lambda: cluster_settings().repair_bytes_per_second_beside_clients,
        )
        self._node_id = identity.node_id
        self._workers = workers
        self._filesystem = RealFileSystem()
        self._directory = directory
        self._cluster_settings = cluster_settings
        self._rings = RingCache(view, workers)
        self._store = DiskChunkStore(
            filesystem=self._filesystem,
            directory=directory,
            index_path=os.path.join(directory, INDEX_NAME),
            workers=workers,
            pool=self.pool,
            limits=StoreLimits(
                quota=settings.chunk_quota_bytes or None, reserve=settings.disk_reserve_bytes
            ),
            on_failure=on_failure,
            on_damage=lambda chunk_id: self._note_lacking(chunk_id, self._node_id),
        )
        self._client = PeerClient(
            identity, pool=self.pool, tls=encryption.client if encryption else None
        )
        self._fetcher = ChunkFetcher(
            identity.node_id,
            view=view,
            rings=self._rings,
            client=self._client,
            workers=workers,
            on_lacking=self._note_lacking,
            race_bytes=self.pool.budget_bytes // PEER_SHARE,
        )
        self.replicator = Replicator(
            identity.node_id,
            store=self._store,
            view=view,
            rings=self._rings,
            client=self._client,
            fetcher=self._fetcher,
            workers=workers,
            on_lacking=self._note_lacking,
            buffers_bytes=self.pool.budget_bytes,
            on_client=self.clients.note,
        )
        self._repairer = Repairer(
            identity.node_id,
            store=self._store,
            view=view,
            live=live,
            rings=self._rings,
            client=self._client,
            fetcher=ChunkFetcher(
                identity.node_id,
                view=view,
                rings=self._rings,
                client=self._client,
                workers=self._repair_workers,
                on_lacking=self._note_lacking,
                pool=self._repair_pool,
                race_bytes=self._repair_pool.budget_bytes // PEER_SHARE,
            ),
            workers=self._repair_workers,
            throttle=self._throttle,
            pool=self._repair_pool,
        )
        self._mover = Mover(
            identity.node_id,
            store=self._store,
            view=view,
            live=live,
            rings=self._rings,
            client=self._client,
            workers=self._repair_workers,
            busy=self._clients_active,
        )
        self._anti_entropy = AntiEntropy(
            identity.node_id,
            store=self._store,
            view=view,
            live=live,
            rings=self._rings,
            client=self._client,
            workers=workers,
            note_lacking=self._repairer.note_lacking,
            reachable=self._reachable,
            settled=lambda: self._repairer.status().settled,
        )
        self._collector = Collector(store=self._store, view=view, live=live, workers=workers)
        self._probe = PeerProbe(self._client, identity.node_id, members)
        self._machine = MachineGauge(directory, workers)
        self._jobs: list[Worker] = []
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self._peers = peer_runner(
            make_peer_application(
                self._store,
                view,
                identity,
                rings=self._rings,
                pool=self._peer_pool,
                workers=workers,
                signed=encryption is None,
                settled=self._settled_here,
                figures=self.load,
                scrub=self.scrub,
                clients_active=self.clients.active,
            )
        )

    async def open(self) -> None:
        """Recover the chunk store. Raises DataDirectoryError."""
        try:
            await self._store.start()
        except StoreFailedError as error:
            raise DataDirectoryError(f"{error}.") from error
        self._closers.append(self._store.close)
        self._scrubber = Scrubber(
            store=self._store.scrub,
            filesystem=self._filesystem,
            directory=self._directory,
            workers=self._workers,
            total=lambda: self._store.statistics().allocated_bytes,
            rate=lambda: self._cluster_settings().scrub_bytes_per_second,
            interval=lambda: self._cluster_settings().scrub_interval_seconds,
            is_busy=self._clients_active,
        )
        if self._store.is_index_new:
            self._scrubber.start_now()

    async def serve(self) -> None:
        """Answer peers, and be able to ask them. Raises PortTakenError."""
        await self._client.start()
        self._closers.append(self._client.close)
        await self._peers.setup()
        self._closers += [self._peers.cleanup, self.replicator.close]
        listen, port = self._settings.listen, self._settings.peer_port
        context = self._encryption.server if self._encryption else None
        try:
            await web.TCPSite(self._peers, listen, port, ssl_context=context).start()
        except OSError as error:
            raise PortTakenError(sentence(listen, port, "peers", error)) from error

    def run(self, jobs: Mapping[str, Job]) -> None:
        """Start the background jobs: the ring's own, and those given by name."""
        own: dict[str, Job] = {
            "repair": self._repairer,
            "moves": self._mover,
            "anti-entropy": self._anti_entropy,
            "collector": self._collector,
            "scrub": self._scrubber,
            "peer probe": self._probe,
            "machine": self._machine,
        }
        for name, job in {**own, **jobs}.items():
            worker = Worker(name, job)
            worker.start()
            self._jobs.append(worker)

    async def know_touches(self) -> None:
        """Give the store its touch floor, after a linearizable read (rule D4).

        Raises what `ClusterView.refresh` does.
        """
        await self._view.refresh()
        self._store.set_touch_floor(self._view.generation())

    async def rest(self) -> None:
        """Stop the background jobs."""
        for worker in self._jobs:
            await worker.stop()

    async def close(self) -> None:
        """End what is under way, then close what has been opened."""
        while self._closers:
            await self._closers.pop()()
        self._repair_workers.shutdown(wait=True, cancel_futures=True)

    # --- what the status shows ---------------------------------------------------------------

    def ring(self) -> Ring:
        """The current ring; computed here in the moment after it has changed."""
        ready = self._rings.ready()
        return ready if ready is not None else build_ring(self._view.membership())

    def settled(self) -> bool:
        """Whether all copies of what files refer to are where the current epoch wants them.

        What the others hold is as they said at the last probe, some seconds ago at most.
        """
        membership = self._view.membership()
        return self._settled_here() and self._probe.settled(
            [member.node_id for member in membership.members], membership.epoch
        )

    def own_settled_epoch(self) -> int | None:
        """The current epoch, where all that it wants of this node is here."""
        return self._repairer.settled_epoch()

    def _settled_here(self) -> bool:
        return self._repairer.status().settled and self._mover.status().settled

    async def answers(self, member: Member) -> bool:
        """Whether a node answers right now; one that is silent is asked for some ten seconds."""
        for _ in range(_ASKED_WHETHER_ALIVE):
            with contextlib.suppress(RingError):
                await self._client.status(member)
                return True
        return False

    def holdings(self) -> Holdings:
        """What there is to move, for the preview of a change. Any thread; some milliseconds."""
        store = self._store.statistics()
        others = (self._probe.probed(member.node_id) for member in self._view.membership().members)
        return Holdings(
            chunk_counts=[digest.count for digest in self._store.partition_digests()],
            chunk_bytes_mean=store.stored_bytes / store.chunks if store.chunks else 0.0,
            others_bytes=sum(
                each.answer.stored_bytes
                for each in others
                if each is not None and each.answer is not None
            ),
        )

    def probed(self, node_id: NodeId) -> Probed | None:
        """What another node said of itself last, and when; None where it was never asked."""
        return self._probe.probed(node_id)

    def scrub(self) -> int:
        """Begin a scrub of this node; returns the number of whole passes when it has ended."""
        return self._scrubber.start_now()

    async def scrub_member(self, member: Member) -> int:
        """The same of any node. Raises RingError."""
        if member.node_id == self._node_id:
            return self.scrub()
        return await self._client.scrub(member)

    async def ask_members(self) -> None:
        """Renew what `probed` and `settled` know of the other nodes."""
        await self._probe.refresh()

    def load(self) -> Mapping[str, float]:
        """All that this node shows of itself, by name, units last.

        Each figure has its sentence in `node/metrics.py: FIGURES`; a test holds that.
        """
        store, repair = self._store.statistics(), self._repairer.status()
        moves = self._mover.status()
        entropy = self._anti_entropy.status()
        scrub = self._scrubber.status()
        return {
            "chunks": store.chunks,
            "chunks_plain_bytes": store.plain_bytes,
            "chunks_stored_bytes": store.stored_bytes,
            "disk_allocated_bytes": store.allocated_bytes,
            "store_writable": float(store.writable),
            "chunk_quota_bytes": self._settings.chunk_quota_bytes,
            "store_full": float(store.full),
            "quarantined_chunks": store.quarantined,
            "damage_found": store.damage_found,
            "buffers_leased_bytes": sum(
                pool.leased_bytes for pool in (self.pool, self._peer_pool, self._repair_pool)
            ),
            "repair_remaining_copies": repair.remaining,
            "repair_swept_percent": round(100 * repair.swept_fraction, 1),
            "repair_copied_bytes": repair.bytes_copied,
            "repair_bytes_left": repair.bytes_left,
            "repair_bytes_per_second": round(repair.bytes_per_second),
            **({} if repair.eta_seconds is None else {"repair_eta_seconds": repair.eta_seconds}),
            "moves_misplaced_copies": moves.misplaced,
            "moves_dropped_copies": moves.dropped,
            "unrecoverable_chunks": repair.unrecoverable,
            "collected_chunks": self._collector.chunks_collected,
            "jobs_failing": sum(job.statistics().last_error is not None for job in self._jobs),
            **self._machine.figures(),
            "reads_overtaken": self._fetcher.overtaken,
            "anti_entropy_age_seconds": round(entropy.age_seconds, 1),
            "anti_entropy_differing_partitions": entropy.partitions_differing,
            "anti_entropy_exchanged_bytes": entropy.bytes_exchanged,
            "anti_entropy_lacking_chunks": entropy.chunks_lacking,
            "anti_entropy_repaired_digests": entropy.digests_repaired,
            "scrub_running": float(scrub.is_running),
            "scrub_passes": scrub.passes,
            "scrub_done_bytes": scrub.done_bytes,
            "scrub_total_bytes": scrub.total_bytes,
            "scrub_bytes_per_second": round(scrub.bytes_per_second),
            "scrub_eta_seconds": round(scrub.eta_seconds or 0.0),
            "scrub_damage_found": scrub.damage_found,
            "scrub_age_seconds": round(scrub.age_seconds),
            **({"scrub_percent": _percent(scrub)} if scrub.is_running else {}),
        }

    def _clients_active(self) -> bool:
        """Whether clients are being served here, or where copies come from."""
        return self.clients.active() or self._probe.clients_active()

    def _note_lacking(self, chunk_id: bytes, node_id: NodeId) -> None:
        self._repairer.note_lacking(chunk_id, node_id)
        # What happened to one copy may have happened to others.
        self._anti_entropy.run_soon()

    def _reachable(self, node_id: NodeId) -> bool | None:
        probed = self._probe.probed(node_id)
        return None if probed is None else probed.reachable


def _percent(scrub: ScrubStatus) -> float:
    return round(100 * scrub.done_bytes / max(1, scrub.total_bytes), 1)
