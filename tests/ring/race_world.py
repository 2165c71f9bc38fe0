"""A small cluster whose every step a test decides: for `test_race.py`.

The nodes are the product's: stores on disks in memory, writers and readers, the peer protocol over
loopback, repair, moves and collection. The log is the product's state machine. What a node knows of
it is a prefix, as long as the test wants: nodes lag. Each step is awaited to its end, so the order
of steps is the test's alone; what can happen in the middle of a deletion, between the decision in
the writer thread and the deed, is put there by `while_judging`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
from blake3 import blake3

from gateway.errors import ApiError
from gateway.restaging import submit_references
from metadata_raft.chunk_references import pack
from metadata_raft.commands import (
    AdmitMember,
    AdvanceGeneration,
    ChangeRing,
    Command,
    CreateBucket,
    CreateJoinToken,
    DeleteFile,
    Failure,
    ForgetMember,
    PutFile,
    Reclaimed,
    ReclaimStep,
    ReportSettled,
    Result,
    SetClusterVersion,
)
from ring import collector, moves
from ring.buffers import BufferPool
from ring.chunk_store import DiskChunkStore
from ring.collector import Collector
from ring.errors import RingError
from ring.fetching import ChunkFetcher
from ring.identity import ClusterIdentity
from ring.interfaces import ChunkRow
from ring.members import Member, Membership, NodeId
from ring.moves import Mover
from ring.peer_client import PeerClient
from ring.peer_server import make_peer_application, peer_runner
from ring.placement import Ring, build_ring
from ring.repair import Repairer
from ring.replicator import ChunkWritten, Replicator
from ring.ring_cache import RingCache
from ring.store_changes import StoreLimits
from ring.throttle import Throttle
from tests.fakes.filesystem import FakeFileSystem
from tests.fakes.metadata import ADMIN_KEY_ID, FakeMetadata, make_member
from tests.fakes.ring_nodes import CLUSTER_ID, SECRET

BUCKET = "box"

NESTED_SECONDS = 240.0
"""How long a writer thread waits for what happens while it judges."""

UNITS_MAX = 60
"""Units of work that one pass of a job over so few chunks can take."""

REST_GENERATIONS = 6


@lru_cache
def _orders(node_ids: tuple[NodeId, ...], replicas: int) -> list[tuple[NodeId, ...]]:
    members = tuple(
        Member(node_id=node_id, peer_address="", raft_address="", client_url="")
        for node_id in node_ids
    )
    ring = build_ring(Membership(epoch=0, members=members, replicas=replicas))
    return [
        owners + handoffs for owners, handoffs in zip(ring._owners, ring._handoffs, strict=True)
    ]


def remembered_ring(membership: Membership) -> Ring:
    """`build_ring`, which takes 50 ms, once for each set of nodes: addresses make no difference."""
    node_ids = tuple(member.node_id for member in membership.members)
    return Ring(membership, _orders(node_ids, membership.replicas))


class Applied(NamedTuple):
    """What some prefix of the log says."""

    memberships: tuple[Membership, ...]
    """Newest first."""
    generation: int
    referenced: frozenset[bytes]


class PrefixView:
    """A `ClusterView` and `LiveChunks` of a node that has applied some of the log. Any thread."""

    def __init__(self, log: list[Applied]) -> None:
        self._log = log
        self.applied = 0

    def membership(self) -> Membership:
        return self._log[self.applied].memberships[0]

    def former(self) -> Sequence[Membership]:
        return self._log[self.applied].memberships[1:]

    def generation(self) -> int:
        return self._log[self.applied].generation

    def collection_held(self) -> bool:
        return False

    async def refresh(self) -> None:
        self.applied = len(self._log) - 1

    def catch_up(self, entries: int) -> None:
        self.applied = min(self.applied + entries, len(self._log) - 1)

    def referenced(self, chunk_ids: Sequence[bytes]) -> set[bytes]:
        return set(self._log[self.applied].referenced.intersection(chunk_ids))

    def page(self, after: bytes, limit: int) -> list[bytes]:
        return sorted(each for each in self._log[self.applied].referenced if each > after)[:limit]


class Node:
    """One node; `start` makes a process of it, which forgets touches, `stop` ends that."""

    def __init__(self, number: int, world: RaceWorld) -> None:
        self.number = number
        self.view = PrefixView(world.log)
        self.is_gone = False
        self.settled_epoch = 0
        """The newest epoch of which it has reported that all is here."""
        self._world = world
        self._disk = FakeFileSystem()
        self._index_path = str(world.directory / f"index-{number}.sqlite")
        node_id = make_member(number + 1).node_id
        self.identity = ClusterIdentity(cluster_id=CLUSTER_ID, node_id=node_id, secret=SECRET)
        self._socket = socket.create_server(("127.0.0.1", 0))
        port = self._socket.getsockname()[1]
        self.member = msgspec.structs.replace(
            make_member(number + 1), peer_address=f"127.0.0.1:{port}"
        )

    @property
    def node_id(self) -> NodeId:
        return self.identity.node_id

    async def start(self) -> None:
        workers, view, node_id = self._world.workers, self.view, self.node_id
        self.pool, self.peer_pool = BufferPool(32 * 1024**2), BufferPool(32 * 1024**2)
        self.store = DiskChunkStore(
            filesystem=self._disk,
            directory="/store",
            index_path=self._index_path,
            workers=workers,
            pool=self.pool,
            limits=StoreLimits(reserve=0),
        )
        await self.store.start()
        rings = RingCache(view, workers)
        self.client = PeerClient(self.identity, pool=self.pool, tls=None)
        await self.client.start()
        fetcher = ChunkFetcher(
            node_id,
            view=view,
            rings=rings,
            client=self.client,
            workers=workers,
            on_lacking=self._note_lacking,
        )
        self.replicator = Replicator(
            node_id,
            store=self.store,
            view=view,
            rings=rings,
            client=self.client,
            fetcher=fetcher,
            workers=workers,
            on_lacking=self._note_lacking,
        )
        self.repairer = Repairer(
            node_id,
            store=self.store,
            view=view,
            live=view,
            rings=rings,
            client=self.client,
            fetcher=fetcher,
            workers=workers,
            throttle=Throttle(lambda: 0, clients=lambda: False),
            pool=self.peer_pool,
        )
        self.mover = Mover(
            node_id,
            store=self.store,
            view=view,
            live=view,
            rings=rings,
            client=self.client,
            workers=workers,
        )
        self.collector = Collector(store=self.store, view=view, live=view, workers=workers)
        application = make_peer_application(
            self.store,
            view,
            self.identity,
            rings=rings,
            pool=self.peer_pool,
            workers=workers,
            signed=True,
        )
        self._runner = peer_runner(application)
        await self._runner.setup()
        self._socket.listen(128)
        await self._world.web_site(self._runner, self._socket)

    async def stop(self) -> None:
        await self.replicator.close()
        await self.client.close()
        port = self._socket.getsockname()[1]
        self._socket.close()
        await self._runner.cleanup()
        await self.store.close()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))

    async def leave(self) -> None:
        """For good: nobody answers at its address, and its disk is gone."""
        await self.stop()
        self.is_gone = True

    def close(self) -> None:
        self._socket.close()

    def _note_lacking(self, chunk_id: bytes, node_id: NodeId) -> None:
        self.repairer.note_lacking(chunk_id, node_id)

    async def know_floor(self) -> None:
        """What `node/data_plane.py` does after a start."""
        await self.view.refresh()
        self.store.set_touch_floor(self.view.generation())

    async def collect(self) -> None:
        """A whole pass, whatever generation the last one was for."""
        await self.store.wait_indexed()
        self.collector._passed = -1
        for _ in range(UNITS_MAX):
            if await self.collector.work() == collector.IDLE_SECONDS:
                return
        raise AssertionError("the collector does not come to an end")

    async def repair(self) -> int | None:
        """What is queued, and a whole sweep; the epoch that is settled then."""
        self.repairer.sweep_soon()
        for _ in range(UNITS_MAX):
            self.repairer._retry_at = 0.0
            await self.repairer.work()
            if self.repairer._sweep is None and not self.repairer._queue:
                break
        return self.repairer.settled_epoch()

    async def drop(self) -> None:
        """A whole pass of the mover."""
        await self.store.wait_indexed()
        self.mover._passed_epoch = None
        for _ in range(UNITS_MAX):
            if await self.mover.work() == moves.LOOK_SECONDS:
                return
        raise AssertionError("the mover does not come to an end")


@dataclass
class Upload:
    """One file on its way through a gateway, which may pause between any two steps."""

    node: Node
    content: bytes
    generation: int
    """Read before the first write."""
    written: ChunkWritten | None = None

    @property
    def chunk_id(self) -> bytes:
        return blake3(self.content).digest()


class RaceWorld:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log: list[Applied] = []
        self.nodes: list[Node] = []
        self.files: dict[str, bytes] = {}
        """What is committed: contents by path."""
        self.workers = ThreadPoolExecutor(4)
        self._replicas = 1
        self._metadata = FakeMetadata(str(directory / "state.sqlite"))
        self._members: dict[NodeId, Member] = {}

    async def start(self, count: int, *, replicas: int) -> None:
        """Start `count` nodes, which know everything so far; all of them are the ring."""
        self._replicas = replicas
        self.nodes = [Node(number, self) for number in range(count)]
        self._members = {node.node_id: node.member for node in self.nodes}
        await self._metadata.bootstrap()
        await self._metadata.submit(SetClusterVersion(version=2))
        await self._metadata.submit(CreateBucket(name=BUCKET, actor=ADMIN_KEY_ID))
        for node in self.nodes[1:]:
            token = f"t{node.number}"
            await self._metadata.submit(
                CreateJoinToken(token_id=token, secret_hash=bytes(32), actor=ADMIN_KEY_ID)
            )
            await self._metadata.submit(
                AdmitMember(token_id=token, secret_hash=bytes(32), member=node.member)
            )
        await self.change_ring(range(count))
        for node in self.nodes:
            await node.view.refresh()
            await node.start()
            await node.know_floor()

    async def stop(self) -> None:
        for node in self.nodes:
            if not node.is_gone:
                await node.stop()
            node.close()
        await self._metadata.stop()
        self.workers.shutdown()

    @property
    def alive(self) -> list[Node]:
        return [node for node in self.nodes if not node.is_gone]

    @staticmethod
    async def web_site(runner: Any, listener: socket.socket) -> None:
        from aiohttp import web  # noqa: PLC0415

        await web.SockSite(runner, listener.dup()).start()

    # --- the log -----------------------------------------------------------------------------

    async def submit(self, command: Command) -> Result:
        result = await self._metadata.submit(command)
        with self._metadata.snapshot() as snapshot:
            memberships = tuple(self._with_addresses(each) for each in snapshot.epochs())
            referenced = frozenset(snapshot.chunk_page(b"", 100_000))
        generation = self._metadata.applied().generation
        entry = Applied(memberships, generation, referenced)
        if not self.log or entry != self.log[-1]:
            self.log.append(entry)
        return result

    def _with_addresses(self, membership: Membership) -> Membership:
        members = tuple(self._members[member.node_id] for member in membership.members)
        return msgspec.structs.replace(membership, members=members)

    @property
    def ring(self) -> Membership:
        return self.log[-1].memberships[0]

    async def change_ring(self, numbers: Sequence[int] | range) -> None:
        """Make the next epoch of these nodes. Taking any out raises the floor (rule D6)."""
        wanted = {self.nodes[number].node_id for number in numbers}
        before = {member.node_id for member in self.ring.members} if self.log else set()
        result = await self.submit(
            ChangeRing(
                expected_epoch=self._metadata.applied().epoch,
                node_ids=tuple(sorted(wanted)),
                replicas=self._replicas,
                raise_floor=not before <= wanted,
            )
        )
        assert not isinstance(result, Failure), result

    async def advance_generation(self) -> None:
        await self.submit(AdvanceGeneration(expected=self._metadata.applied().generation))

    async def reclaim(self) -> None:
        while True:
            result = await self.submit(ReclaimStep(row_limit=100, grace_ms=0))
            assert isinstance(result, Reclaimed), result
            if not result.remaining:
                return

    # --- what clients do ---------------------------------------------------------------------

    async def write(self, upload: Upload) -> bool:
        """All copies of the upload's chunk; False where no quorum took one."""
        node, content = upload.node, upload.content
        lease = await node.pool.lease(len(content))
        lease.view[: len(content)] = content
        try:
            upload.written = await node.replicator.write(
                lease, len(content), generation=upload.generation
            )
        except RingError:
            return False
        finally:
            await node.replicator._wait_ended()
        return True

    async def commit(self, upload: Upload, path: str, *, restages: bool = True) -> bool:
        """As the gateway does: what is too old is confirmed anew, unless the gateway is one that
        gives up then. False where the file is refused."""
        written, node = upload.written, upload.node
        assert written is not None

        async def barrier() -> int:
            await node.view.refresh()
            return 0

        backends: Any = SimpleNamespace(
            metadata=SimpleNamespace(
                barrier=barrier,
                applied=lambda: SimpleNamespace(generation=node.view.generation()),
            ),
            chunks=node.replicator,
            buffers=node.pool,
        )

        async def submit(command: PutFile) -> Result:
            result = await self.submit(command)
            if isinstance(result, Failure):
                raise ApiError(result.code, result.detail)
            return result

        command = PutFile(
            bucket=BUCKET,
            path=path,
            actor=ADMIN_KEY_ID,
            size_bytes=written.length,
            etag="etag",
            chunks=pack([(written.chunk_id, written.length)]),
            generation=upload.generation,
            oldest_epoch=written.epoch,
        )
        try:
            if restages:
                await submit_references(backends, command, submit)
            else:
                await submit(command)
        except (ApiError, RingError):
            return False
        finally:
            await node.replicator._wait_ended()
        self.files[path] = upload.content
        return True

    async def delete(self, path: str) -> None:
        result = await self.submit(DeleteFile(bucket=BUCKET, path=path, actor=ADMIN_KEY_ID))
        assert not isinstance(result, Failure), result
        del self.files[path]

    async def download(self, path: str, node: Node) -> None:
        """A linearizable read of a file through any node returns what was written."""
        await node.view.refresh()
        content = self.files[path]
        data = await node.replicator.read(blake3(content).digest(), length=len(content))
        assert bytes(data) == content

    # --- what nodes do -----------------------------------------------------------------------

    async def repair(self, node: Node) -> None:
        settled = await node.repair()
        if settled is not None and settled > node.settled_epoch:
            node.settled_epoch = settled
            await self.submit(ReportSettled(node_id=node.node_id, epoch=settled))

    def may_leave(self, node: Node) -> bool:
        """Whether it is out of the ring, and all who are in it have what the ring wants of them."""
        ring = {member.node_id for member in self.ring.members}
        return node.node_id not in ring and all(
            each.settled_epoch == self.ring.epoch for each in self.alive if each.node_id in ring
        )

    async def leave(self, node: Node) -> None:
        await self.submit(ForgetMember(node_id=node.node_id))
        await node.leave()

    async def while_judging(
        self,
        node: Node,
        job: Callable[[], Awaitable[None]],
        nested: Callable[[bytes], Awaitable[None]],
    ) -> bool:
        """Run a job of a node; when its writer thread has decided for the first time to delete a
        chunk, and before it does, run `nested` with that chunk to its end. Whether it came so far.
        """
        loop = asyncio.get_running_loop()
        store, delete = node.store, node.store.delete
        decided: list[bytes] = []

        def judged(unless: Callable[[ChunkRow], bool], row: ChunkRow) -> bool:
            stays = unless(row)
            if not stays and not decided:
                decided.append(row.chunk_id)
                step = asyncio.run_coroutine_threadsafe(_run(nested(row.chunk_id)), loop)
                step.result(NESTED_SECONDS)
            return stays

        async def racing(chunk_id: bytes, *, unless: Callable[[ChunkRow], bool]) -> bool:
            return await delete(chunk_id, unless=lambda row: judged(unless, row))

        store.delete = racing  # type: ignore[method-assign]
        try:
            await job()
        finally:
            store.delete = delete  # type: ignore[method-assign]
        return bool(decided)

    async def after_confirming(
        self, node: Node, job: Callable[[], Awaitable[None]], nested: Callable[[], Awaitable[None]]
    ) -> None:
        """Run a job of a node; once an owner has answered what it was asked to confirm, and before
        anything is done with that, run `nested` to its end."""
        client, confirm = node.client, node.client.confirm
        answered: list[bool] = []

        async def overtaken(*asked: Any, **options: Any) -> list[bool]:
            try:
                return await confirm(*asked, **options)
            finally:
                if not answered:
                    answered.append(True)
                    await nested()

        client.confirm = overtaken  # type: ignore[method-assign]
        try:
            await job()
        finally:
            client.confirm = confirm  # type: ignore[method-assign]
        assert answered, "nothing was asked for"

    # --- what must hold ----------------------------------------------------------------------

    async def assert_nothing_lost(self) -> None:
        """Every chunk that the cluster's state refers to is healthy somewhere."""
        wanted = sorted(self.log[-1].referenced)
        healthy: set[bytes] = set()
        for node in self.alive:
            stats = await node.store.stat(wanted)
            for chunk_id, stat in zip(wanted, stats, strict=True):
                if stat is not None and not stat.quarantined:
                    healthy.add(chunk_id)
        lost = set(wanted) - healthy
        assert not lost, f"no node has a copy of {sorted(each.hex()[:8] for each in lost)}"

    async def rest(self) -> None:
        """Everybody catches up, and some generations pass in which every job runs."""
        await self.reclaim()
        for node in self.alive:
            await node.know_floor()
        for _ in range(REST_GENERATIONS):
            await self.advance_generation()
            for node in self.alive:
                await node.view.refresh()
            for node in self.alive:
                await node.collect()
                await self.repair(node)
                await node.drop()
                await self.assert_nothing_lost()

    async def assert_in_place(self) -> None:
        """At rest, each referenced chunk is on its owners, and nothing else is anywhere."""
        ring = remembered_ring(self.ring)
        for node in self.alive:
            await node.store.wait_indexed()
            owned = sorted(
                each for each in self.log[-1].referenced if node.node_id in ring.owners(each)
            )
            assert node.store.ids(b"", 1000) == owned, f"on node {node.number}"
            if not owned:
                assert node.store.statistics().allocated_bytes == 0


async def _run(step: Awaitable[None]) -> None:
    await step
