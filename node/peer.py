"""A node: the one place where ring, metadata and gateway are put together, and their life cycle.

Its parts start in the order in which they need each other and stop in the opposite one. A failed
disk or damaged metadata ends the process at once with one line, because nothing more may be
acknowledged; being removed, or running on a restored disk, ends it in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import ssl
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, TextIO

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry

from gateway.app import make_server
from gateway.interfaces import GatewaySettings
from metadata_raft.errors import FatalRaftError, MetadataError
from metadata_raft.group import MetadataGroup
from metadata_raft.records import MemberAddress
from metadata_raft.settings import RaftSettings, RaftTiming
from node import encryption, logs, process
from node.cluster_gateway import ClusterGateway
from node.cluster_view import ReplicatedLiveChunks, ReplicatedView
from node.cluster_worker import GenerationWorker, ReclaimWorker, RingWorker, VersionWorker
from node.control import ControlServer
from node.data_directory import DataDirectory, Identity, raft_directory_name
from node.data_plane import DataPlane
from node.departure_worker import DepartureWorker
from node.errors import DataDirectoryError, NodeError
from node.join import Admission
from node.logs import event
from node.metrics import NodeMetrics
from node.own_membership import OwnMembership
from node.peer_probe import Probed
from node.ports import sentence
from node.settings import Settings
from node.settled_reporter import SettledReporter
from ring.identity import ClusterIdentity
from ring.members import Member, NodeId
from ring.worker import Job

logger = logging.getLogger(__name__)

SOFTWARE_VERSION = importlib.metadata.version("holdfast")

WORKER_THREADS = 4
"""Hashing, compression, volume reads, listings: more than the cores of a small machine, because
half of them wait for a disk; few, because each takes its turn at the interpreter."""

LEARN_SECONDS = 1.0
"""Between two attempts to learn from the group what deletions wait for."""

_RAFT_MANIFEST = "manifest"
"""Without this file a Raft directory is nobody's (metadata_raft/storage.py)."""


class Node:
    """One running node. `start`, then `run` until it is time to end, then `stop`."""

    def __init__(
        self,
        settings: Settings,
        directory: DataDirectory,
        identity: Identity,
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._identity = identity
        self._say = say
        self._cluster_identity = ClusterIdentity(
            cluster_id=identity.cluster_id,
            node_id=identity.node_id,
            secret=bytes.fromhex(identity.cluster_secret),
            incarnation=identity.incarnation,
        )
        self._encryption = (
            encryption.make(self._cluster_identity) if settings.peer_tls_wanted else None
        )
        self._workers = ThreadPoolExecutor(WORKER_THREADS, thread_name_prefix="worker")
        self._tasks: set[asyncio.Task[None]] = set()
        self._end = asyncio.Event()
        self._error: NodeError | None = None
        self._unready: str | None = "this node is starting"
        self._closers: list[Callable[[], Coroutine[Any, Any, None]]] = []

    # --- life cycle --------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything; returns when clients are served. Raises NodeError."""
        asyncio.get_running_loop().set_exception_handler(self._unhandled)
        self._metadata = self._make_metadata()
        self._view = ReplicatedView(self._metadata)
        self._membership = OwnMembership(
            self._metadata, self._settings, self._identity, SOFTWARE_VERSION, self._say
        )
        self._registry = CollectorRegistry()
        self._data = DataPlane(
            settings=self._settings,
            identity=self._cluster_identity,
            encryption=self._encryption,
            directory=self._directory.directory("chunks"),
            view=self._view,
            live=ReplicatedLiveChunks(self._metadata),
            members=self._members,
            workers=self._workers,
            cluster_settings=lambda: self._metadata.applied().settings,
            on_failure=self._fail,
        )
        await self._data.open()
        self._closers.append(self._data.close)
        await self._start_metadata()
        self._view.load()
        logs.identify(node_id=self._identity.node_id, epoch=lambda: self._view.membership().epoch)
        await self._data.serve()
        gateway = await self._start_gateway()
        self._closers.append(gateway.cleanup)
        await self._start_control()
        # Before this node is a full member: it may lead already, and then its own way into the ring
        # is for itself to make.
        reporter = SettledReporter(
            self._metadata, self._identity.node_id, self._data.own_settled_epoch
        )
        self._data.run({"settled": reporter, **self._leader_jobs()})
        self._closers.append(self._data.rest)
        await self._become_member()
        self._unready = None
        self._spawn(self._upgrade())
        self._spawn(self._follow_membership())
        self._spawn(self._learn_touches())

    async def run(self) -> None:
        """Wait until this node must not go on. Raises NodeError with the reason."""
        await self._end.wait()
        assert self._error is not None
        raise self._error

    async def stop(self) -> None:
        """Stop what has been started: requests drain first, the metadata goes last."""
        self._unready = "this node is stopping"
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._closers:
            await self._closers.pop()()
        self._workers.shutdown(wait=True, cancel_futures=True)

    # --- parts -------------------------------------------------------------------------------

    def _make_metadata(self) -> MetadataGroup:
        directory = os.path.join(
            self._directory.path, raft_directory_name(self._identity.incarnation)
        )
        known = os.path.exists(os.path.join(directory, _RAFT_MANIFEST))
        if self._identity.stage == "member" and not known:
            raise DataDirectoryError(
                f"{directory} is missing or empty: this node has forgotten what it promised. "
                "Remove it from its cluster and let it join again with an empty directory."
            )
        identity, secure = self._cluster_identity, self._encryption
        return MetadataGroup(
            RaftSettings(
                node_id=identity.node_id,
                cluster_id=identity.cluster_id,
                incarnation=self._identity.incarnation,
                boot_counter=self._identity.boot_counter,
                directory=directory,
                listen_host=self._settings.listen,
                listen_port=self._settings.raft_port,
                advertise_address=self._settings.raft_address,
                cluster_key=identity.raft_key(),
                bootstrap=self._identity.stage == "founding",
                timing=RaftTiming(voter_gone=self._settings.voter_gone_seconds),
                seeds=tuple(MemberAddress(node_id=node, raft_address=address)
                            for node, address in self._identity.seeds),
                server_tls=secure.server if secure else None,
                client_tls=secure.client if secure else None,
                tls_server_name=secure.member_name if secure else None,
            ),
            on_fatal=self._fail,
        )  # fmt: skip

    async def _start_metadata(self) -> None:
        try:
            await self._metadata.start()
        except FatalRaftError as error:
            raise DataDirectoryError(f"{error}.") from error
        except OSError as error:
            raise NodeError(
                sentence(self._settings.listen, self._settings.raft_port, "Raft", error)
            ) from error
        self._closers.append(self._metadata.stop)

    async def _start_gateway(self) -> web.ServerRunner:
        settings = self._settings
        self._cluster = ClusterGateway(
            metadata=self._metadata,
            admission=Admission(self._metadata, self._identity),
            condition=self,
            ring=self._data.ring,
            answers=self._data.answers,
            holdings=self._data.holdings,
            scrub=self._data.scrub_member,
            workers=self._workers,
            identity=self._identity,
            software_version=SOFTWARE_VERSION,
        )
        self._registry.register(NodeMetrics(self._metadata.status, self._cluster.status))
        server = make_server(
            self._metadata,
            self._data.replicator,
            self._data.pool,
            self._cluster,
            settings=GatewaySettings(
                chunk_size_bytes=settings.chunk_size_bytes,
                # Half of the clients' buffers, so that slow downloads leave room for uploads.
                read_budget_bytes=settings.buffer_budget_bytes // 4,
            ),
            workers=self._workers,
            registry=self._registry,
            on_request=self._data.clients.note,
        )
        context = None
        if settings.tls_cert:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            try:
                context.load_cert_chain(settings.tls_cert, settings.tls_key)
            except (OSError, ssl.SSLError) as error:
                raise NodeError(
                    f"tls_cert and tls_key ({settings.tls_cert}, {settings.tls_key}) are no "
                    f"certificate and its key in PEM: {error}."
                ) from error
        runner = web.ServerRunner(server, shutdown_timeout=settings.drain_seconds)
        await runner.setup()
        try:
            await web.TCPSite(runner, settings.listen, settings.port, ssl_context=context).start()
        except OSError as error:
            await runner.cleanup()
            raise NodeError(sentence(settings.listen, settings.port, "clients", error)) from error
        return runner

    async def _start_control(self) -> None:
        control = ControlServer(self._directory.path, self._cluster)
        await control.start()
        self._closers.append(control.stop)

    async def _become_member(self) -> None:
        """Found the cluster or find one's way into it; the directory is a member's from here on."""
        identity = self._identity
        if identity.stage == "founding":
            with self._key_file() as file:
                key = await self._membership.found()
                if key is not None:
                    self._tell_key(key.text, file)
        if identity.stage != "member":
            self._directory.write_identity(msgspec.structs.replace(identity, stage="member"))
        await self._membership.announce()
        await self._membership.watch()
        event(
            logger, logging.INFO, "ready", node_id=identity.node_id, cluster=identity.cluster_id,
            url=self._settings.client_url,
        )  # fmt: skip
        self._say(f"Ready: {self._settings.client_url}")

    def _key_file(self) -> AbstractContextManager[TextIO | None]:
        """Where the admin key goes, opened before it is made; None where it is printed."""
        path = self._settings.admin_key_file
        if not path:
            return contextlib.nullcontext()
        try:
            # Not truncated: a start that was cut off may have left the only copy of the key there.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise NodeError(
                f"The file {path} for the admin key can't be written: {error.strerror}."
            ) from error
        return open(descriptor, "w", encoding="utf-8")

    def _tell_key(self, key: str, file: TextIO | None) -> None:
        data = self._directory.path
        if file is not None:
            file.write(key + "\n")
            file.truncate()
            self._say(f"The admin key is in {self._settings.admin_key_file}.")
        else:
            self._say(f"The admin key, shown this once:\n\n  {key}\n")
            self._say(f"If it gets lost: holdfast admin reset-key --data {data}")
        self._say(
            f"To add a node: `holdfast token --data {data}` here; there, with that token in FILE:\n"
            "  HOLDFAST_JOIN_TOKEN_FILE=FILE holdfast serve --data DIR --listen HOST --join"
        )

    def _leader_jobs(self) -> dict[str, Job]:
        metadata, settings = self._metadata, self._settings
        return {
            "version": VersionWorker(metadata, self._leads),
            "ring": RingWorker(metadata, self._leads),
            "departures": DepartureWorker(metadata, self._leads),
            "generation": GenerationWorker(
                metadata, self._leads, settings.generation_interval_seconds
            ),
            "reclaim": ReclaimWorker(metadata, self._leads, settings.reclaim_grace_seconds),
        }

    def _members(self) -> list[Member]:
        with self._metadata.snapshot() as snapshot:
            return [record.member for record in snapshot.members()]

    def _knows_leader(self) -> bool:
        return self._metadata.status().leader_id is not None

    def _leads(self) -> bool:
        return self._metadata.status().role == "leader"

    # --- what the cluster gateway asks -------------------------------------------------------

    def unready(self) -> str | None:
        if (
            self._metadata.other_incarnation > self._identity.incarnation
            and not self._knows_leader()
        ):
            return "the metadata were restored elsewhere, and this node is of a former incarnation"
        if self._unready is None and not self._knows_leader():
            return "this node knows no leader"
        if self._unready is None and self._membership.intent == "leave":
            # It serves to its end, but new connections had better go to the others.
            return "this node is leaving its cluster"
        return self._unready

    def settled(self) -> bool | None:
        return self._data.settled()

    def probed(self, node_id: NodeId) -> Probed | None:
        return self._data.probed(node_id)

    async def ask_members(self) -> None:
        await self._data.ask_members()

    def load(self) -> Mapping[str, float]:
        return self._data.load()

    # --- the end -----------------------------------------------------------------------------

    async def _follow_membership(self) -> None:
        self._finish(await self._membership.follow())

    async def _upgrade(self) -> None:
        try:
            await self._membership.announce_until_upgraded()
        except NodeError as error:
            self._finish(error)

    async def _learn_touches(self) -> None:
        """Deletions wait for this, so it may take its time (rule D4)."""
        while True:
            try:
                await self._data.know_touches()
            except MetadataError:
                await asyncio.sleep(LEARN_SECONDS)
            else:
                return

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _finish(self, error: NodeError) -> None:
        self._error = self._error or error
        self._end.set()

    def _fail(self, error: BaseException) -> None:
        """Nothing more may be acknowledged, not even while stopping in order."""
        process.end_now(f"this node must end: {error}")

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, FatalRaftError):
            self._fail(error)
        loop.default_exception_handler(context)
