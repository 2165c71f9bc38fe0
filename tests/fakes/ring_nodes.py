"""Nodes of a ring in one process: real HTTP on loopback, chunks in memory, a view set by the test.

`RingCluster` wires what `node/` wires for real. Nodes can be taken down and brought back, lag
behind an epoch, and have their stores damaged, held up or filled.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import lru_cache

from aiohttp import web
from blake3 import blake3

from ring.anti_entropy import AntiEntropy
from ring.buffers import BufferPool
from ring.fetching import ChunkFetcher
from ring.identity import ClusterIdentity
from ring.members import Member, Membership, NodeId
from ring.moves import Mover
from ring.peer_client import PeerClient
from ring.peer_server import make_peer_application, peer_runner
from ring.placement import Ring, build_ring
from ring.repair import Repairer
from ring.replicator import ChunkWritten, Replicator
from ring.ring_cache import RingCache
from ring.throttle import Throttle
from ring.tls import client_context, server_context
from tests.fakes.chunk_store import MemoryChunkStore

SECRET = bytes(range(32))
CLUSTER_ID = "7c9a1a4e-2f1b-4bb5-9d7e-5d5d8b7d2a10"


_building = threading.Lock()


@lru_cache
def _built(membership: Membership) -> Ring:
    return build_ring(membership)


def _ring_of(membership: Membership) -> Ring:
    with _building:
        return _built(membership)


class FixedView:
    """A `ClusterView` that knows what it is given; `refresh` makes `coming` the present."""

    def __init__(self) -> None:
        self.present = Membership(epoch=0, members=())
        self.past: list[Membership] = []
        self.coming: Membership | None = None
        self.number = 1
        self.held = False
        self.refreshes = 0
        self.refresh_error: Exception | None = None

    def membership(self) -> Membership:
        return self.present

    def former(self) -> Sequence[Membership]:
        return self.past

    def generation(self) -> int:
        return self.number

    def collection_held(self) -> bool:
        return self.held

    async def refresh(self) -> None:
        self.refreshes += 1
        if self.refresh_error is not None:
            raise self.refresh_error
        if self.coming is not None:
            self.learn(self.coming)

    def learn(self, membership: Membership) -> None:
        if membership.epoch > self.present.epoch:
            if self.present.members:
                self.past.insert(0, self.present)
            self.present = membership


class LiveSet:
    """A `LiveChunks` from a set."""

    def __init__(self) -> None:
        self.chunks: set[bytes] = set()

    def referenced(self, chunk_ids: Sequence[bytes]) -> set[bytes]:
        return self.chunks.intersection(chunk_ids)

    def page(self, after: bytes, limit: int) -> list[bytes]:
        return sorted(chunk for chunk in self.chunks if chunk > after)[:limit]


class RingNode:
    """One node; `member` names its address from the start, the port is held from then on."""

    def __init__(
        self, node_id: NodeId, *, live: LiveSet, workers: ThreadPoolExecutor, tls: bool = False
    ) -> None:
        self.identity = ClusterIdentity(cluster_id=CLUSTER_ID, node_id=node_id, secret=SECRET)
        self._socket = socket.create_server(("127.0.0.1", 0), reuse_port=False)
        port = self._socket.getsockname()[1]
        self.member = Member(
            node_id=node_id,
            peer_address=f"127.0.0.1:{port}",
            raft_address="127.0.0.1:1",
            client_url="http://127.0.0.1:1",
        )
        self.workers = workers
        self.tls = tls
        self.view = FixedView()
        self.store = MemoryChunkStore()
        self.store.set_touch_floor(0)
        self.pool = BufferPool(64 * 1024 * 1024)
        self.peer_pool = BufferPool(64 * 1024 * 1024)
        # Computed once for all nodes: it takes longer than most of what tests do with it.
        self.rings = RingCache(self.view, workers, build=_ring_of)
        self.lacking: list[tuple[bytes, NodeId]] = []
        self.client = PeerClient(
            self.identity, pool=self.pool, tls=client_context(self.identity) if tls else None
        )
        self.fetcher = ChunkFetcher(
            node_id,
            view=self.view,
            rings=self.rings,
            client=self.client,
            workers=workers,
            on_lacking=self._note,
        )
        self.replicator = Replicator(
            node_id,
            store=self.store,
            view=self.view,
            rings=self.rings,
            client=self.client,
            fetcher=self.fetcher,
            workers=workers,
            on_lacking=self._note,
            buffers_bytes=self.pool.budget_bytes,
        )
        self.rate = 0
        self.serves_clients = False
        self.throttle = Throttle(lambda: self.rate, clients=lambda: False)
        self.repairer = Repairer(
            node_id,
            store=self.store,
            view=self.view,
            live=live,
            rings=self.rings,
            client=self.client,
            fetcher=self.fetcher,
            workers=workers,
            throttle=self.throttle,
            pool=self.pool,
        )
        self.mover = Mover(
            node_id,
            store=self.store,
            view=self.view,
            live=live,
            rings=self.rings,
            client=self.client,
            workers=workers,
        )
        self.reachable: dict[NodeId, bool] = {}
        """What a probe of the others would tell."""
        self.swept = True
        """What anti-entropy takes repair's word for."""
        self.anti_entropy = AntiEntropy(
            node_id,
            store=self.store,
            view=self.view,
            live=live,
            rings=self.rings,
            client=self.client,
            workers=workers,
            note_lacking=self._note,
            reachable=self.reachable.get,
            settled=lambda: self.swept,
        )
        self._runner: web.AppRunner | None = None

    @property
    def node_id(self) -> NodeId:
        return self.identity.node_id

    def _note(self, chunk_id: bytes, node_id: NodeId) -> None:
        self.lacking.append((chunk_id, node_id))
        self.repairer.note_lacking(chunk_id, node_id)

    async def start(self) -> None:
        await self.client.start()
        await self.come_up()

    async def come_up(self) -> None:
        """Answer again, as a new process with the same chunks would."""
        application = make_peer_application(
            self.store,
            self.view,
            self.identity,
            rings=self.rings,
            pool=self.peer_pool,
            workers=self.workers,
            signed=not self.tls,
            settled=lambda: self.repairer.status().settled and self.mover.status().settled,
            clients_active=lambda: self.serves_clients,
        )
        self._runner = peer_runner(application)
        await self._runner.setup()
        context = server_context(self.identity) if self.tls else None
        await web.SockSite(self._runner, self._socket.dup(), ssl_context=context).start()

    async def go_down(self) -> None:
        """Refuse connections from now on, and drop those there are."""
        if self._runner is not None:
            port = self._socket.getsockname()[1]
            self._socket.close()
            await self._runner.cleanup()
            self._runner = None
            # Bound but not listening: connections are refused, and nobody takes the port.
            self._socket = socket.socket()
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(("127.0.0.1", port))

    async def come_back(self) -> None:
        self._socket.listen(128)
        await self.come_up()

    async def stop(self) -> None:
        await self.replicator.close()
        await self.client.close()
        await self.go_down()
        self._socket.close()

    async def write(self, content: bytes, *, generation: int = 1) -> ChunkWritten:
        lease = await self.pool.lease(len(content))
        lease.view[: len(content)] = content
        return await self.replicator.write(lease, len(content), generation=generation)


class RingCluster:
    """Nodes by number. Their ids are fixed, so that placement is the same in each run."""

    def __init__(self, nodes: list[RingNode], live: LiveSet) -> None:
        self.nodes = nodes
        self.live = live

    def ring(self) -> Ring:
        return _ring_of(self.nodes[0].view.present)

    def by_id(self, node_id: NodeId) -> RingNode:
        return next(node for node in self.nodes if node.node_id == node_id)

    def change_ring(self, numbers: Iterable[int], *, told: Iterable[int] | None = None) -> None:
        """Make the next epoch of these nodes; `told` (default all) learn of it at once, the others
        when they refresh."""
        epoch = max(node.view.present.epoch for node in self.nodes) + 1
        members = tuple(sorted(self.nodes[number].member for number in numbers))
        membership = Membership(epoch=epoch, members=members)
        informed = set(range(len(self.nodes)) if told is None else told)
        for number, node in enumerate(self.nodes):
            node.view.coming = membership
            if number in informed:
                node.view.learn(membership)

    def content_owned_by(self, *owners: int, size: int = 1000, seed: int = 0) -> bytes:
        """Contents of a chunk that has exactly these nodes as owners, in any order."""
        wanted = {self.nodes[number].node_id for number in owners}
        ring = self.ring()
        body = blake3(str(seed).encode()).digest(size)
        for attempt in range(100_000):
            content = attempt.to_bytes(4, "big") + body[4:]
            if set(ring.owners(blake3(content).digest())) == wanted:
                return content
        raise AssertionError(f"no chunk is owned by {owners}")

    def holders(self, chunk_id: bytes) -> list[int]:
        """The nodes that have a healthy copy."""
        return [
            number
            for number, node in enumerate(self.nodes)
            if chunk_id in node.store.ids(b"", 1_000_000)
        ]


@asynccontextmanager
async def ring_cluster(
    count: int, *, in_ring: int | None = None, tls: bool = False
) -> AsyncIterator[RingCluster]:
    """Start `count` nodes, of which the first `in_ring` (default all) are the first epoch."""
    live = LiveSet()
    with ThreadPoolExecutor(2) as workers:
        nodes = [
            RingNode(str(uuid.UUID(int=number + 1)), live=live, workers=workers, tls=tls)
            for number in range(count)
        ]
        cluster = RingCluster(nodes, live)
        try:
            for node in nodes:
                await node.start()
            cluster.change_ring(range(count if in_ring is None else in_ring))
            yield cluster
        finally:
            for node in nodes:
                node.store.release_writes()
                node.store.release_reads()
            for node in nodes:
                await node.stop()


async def eventually(
    condition: Callable[[], bool | Awaitable[bool]], *, seconds: float = 5.0
) -> None:
    """Wait until a condition holds; an AssertionError after `seconds`."""
    async with asyncio.timeout(seconds):
        while True:
            holds = condition()
            if not isinstance(holds, bool):
                holds = await holds
            if holds:
                return
            await asyncio.sleep(0.002)
