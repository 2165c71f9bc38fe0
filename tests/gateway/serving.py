"""A gateway on a real loopback socket, on the real state machine and chunks in memory."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from gateway.app import GatewayServer, make_server
from gateway.authentication import new_key
from gateway.client import GatewayClient
from gateway.documents import (
    ClusterDocument,
    MemberDocument,
    NewToken,
    RingDocument,
    RingMemberDocument,
    RingPreviewDocument,
    ScrubDocument,
    ScrubNodeDocument,
    SettingsDocument,
)
from gateway.errors import ApiError
from gateway.interfaces import GatewaySettings
from gateway.openapi import refusal_statuses
from gateway.operations import OPERATIONS
from gateway.paths import parse_target
from metadata_raft.commands import CreateBucket, CreateKey, Done
from ring.buffers import BufferPool
from tests.fakes.chunks import MemoryChunks
from tests.fakes.documents import cluster, member, ring_preview
from tests.fakes.metadata import ADMIN_KEY_ID, FakeMetadata

TINY_CHUNK = 1000
"""So small that files of a few kilobytes have many chunks."""

WAIT_SECONDS = 5.0
"""How long a test waits for a condition that always comes."""


@dataclass
class FakeMembership:
    """Records what an administrator wants; node `n1` lives, `n2` is dead, no other exists."""

    wishes: list[tuple[Any, ...]] = field(default_factory=list)
    settings: dict[str, int | None] = field(default_factory=dict)

    async def set_intent(
        self, node_id: str, intent: str, *, actor: str, reduce_copies: bool = False
    ) -> MemberDocument:
        self._check(node_id)
        self.wishes.append((node_id, intent, actor, reduce_copies))
        return member(node_id, intent=intent)

    async def remove(self, node_id: str, *, actor: str, force: bool) -> None:
        self._check(node_id)
        if node_id == "n1" and not force:
            raise ApiError("node_is_alive", "node n1 answers")
        self.wishes.append((node_id, "remove", actor, force))

    async def preview_join(self, *, weight: int, zone: str) -> RingPreviewDocument:
        return ring_preview("join", f"{weight} {zone}")

    async def preview_leave(self, node_id: str) -> RingPreviewDocument:
        self._check(node_id)
        return ring_preview("leave", node_id)

    async def change_settings(
        self, settings: Mapping[str, int | None], *, actor: str
    ) -> SettingsDocument:
        self.settings.update(settings)
        self.wishes.append(("settings", actor))
        return SettingsDocument(
            repair_bytes_per_second=self.settings.get("repair_bytes_per_second") or 1,
            repair_bytes_per_second_beside_clients=4,
            scrub_bytes_per_second=2,
            scrub_interval_seconds=3,
        )

    async def resume_collection(self, *, actor: str) -> None:
        self.wishes.append(("resume", actor))

    @staticmethod
    def _check(node_id: str) -> None:
        if node_id not in {"n1", "n2"}:
            raise ApiError("no_such_member", f"there is no node {node_id}")


@dataclass
class FakeCluster:
    """What a node would say about itself."""

    reason: str | None = None
    against_stopping: list[str] = field(default_factory=list)
    joins: list[bytes] = field(default_factory=list)
    scrubs: list[str | None] = field(default_factory=list)
    membership: FakeMembership = field(default_factory=FakeMembership)
    backup_pieces: list[bytes | None] = field(default_factory=list)
    """None: reading on fails there."""

    def status(self) -> ClusterDocument:
        return cluster(member("n1"), load={"buffers_bytes": 0.0})

    def ring(self) -> RingDocument:
        return RingDocument(
            epoch=1,
            epoch_floor=0,
            replicas=3,
            partitions=4096,
            members=[
                RingMemberDocument(node_id="n1", zone="", weight=100, partitions=4096, share=1.0)
            ],
        )

    def unready(self) -> str | None:
        return self.reason

    async def scrub(self, node_id: str | None) -> ScrubDocument:
        if node_id is not None:
            FakeMembership._check(node_id)
        self.scrubs.append(node_id)
        return ScrubDocument(nodes=[ScrubNodeDocument(node_id=node_id or "n1", passes=1)])

    async def reasons_against_stopping(self) -> list[str]:
        return self.against_stopping

    async def create_token(self, *, actor: str, lifetime_seconds: int) -> NewToken:
        return NewToken(token=f"hft_{actor}", lifetime_seconds=lifetime_seconds)

    @asynccontextmanager
    async def backup(self) -> AsyncIterator[AsyncIterable[bytes]]:
        yield self._pieces()

    async def _pieces(self) -> AsyncIterator[bytes]:
        for piece in self.backup_pieces:
            if piece is None:
                raise OSError("the disk failed")
            yield piece

    async def join(self, sealed: bytes) -> bytes:
        if sealed == b"wrong":
            raise ApiError("token_invalid", "the token is not valid, was used, or has expired")
        self.joins.append(sealed)
        return b"sealed answer"


@dataclass(frozen=True)
class Answer:
    """An HTTP response, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of a problem document."""
        assert self.headers["Content-Type"] == "application/problem+json", self.body
        return str(self.json["code"])


class Serving:
    """A running gateway and the ways to talk to it."""

    def __init__(
        self,
        *,
        metadata: FakeMetadata,
        chunks: MemoryChunks,
        buffers: BufferPool,
        cluster: FakeCluster,
        server: GatewayServer,
        port: int,
        admin_key: str,
        noted: list[None],
    ) -> None:
        self.noted = noted
        """Grows with each request that background work yields to."""
        self.metadata = metadata
        self.chunks = chunks
        self.buffers = buffers
        self.cluster = cluster
        self.server = server
        self.port = port
        self.admin_key = admin_key
        self.url = f"http://127.0.0.1:{port}"
        self.session = aiohttp.ClientSession(auto_decompress=False)

    @property
    def in_progress(self) -> int:
        """Requests being served."""
        return self.server.requests_in_progress

    async def request(
        self,
        method: str,
        path: str,
        *,
        key: str | None = "admin",
        headers: Mapping[str, str] | None = None,
        data: Any = None,
        **options: Any,
    ) -> Answer:
        """One request; `key` "admin" is the administrator's, None is nobody's."""
        if isinstance(data, bytes) and len(data) > 1024 * 1024:
            # aiohttp wants large bodies as files, to send them in pieces.
            data = io.BytesIO(data)
        sent = dict(headers or {})
        if key is not None:
            sent["Authorization"] = f"Bearer {self.admin_key if key == 'admin' else key}"
        async with self.session.request(
            method, URL(self.url + path, encoded=True), headers=sent, data=data, **options
        ) as response:
            answer = Answer(response.status, response.headers, await response.read())
        assert_documented(method, path, answer)
        return answer

    async def file(self, method: str, path: str, **options: Any) -> Answer:
        return await self.request(method, f"/api/v1/files/{path}", **options)

    def client(self, key: str | None = "admin") -> GatewayClient:
        return GatewayClient(self.url, self.admin_key if key == "admin" else key)

    async def make_bucket(self, name: str, **settings: Any) -> None:
        await self.metadata.submit(CreateBucket(name=name, actor=ADMIN_KEY_ID, **settings))

    async def make_key(self, role: str) -> str:
        key = new_key()
        result = await self.metadata.submit(
            CreateKey(key_id=key.key_id, secret_hash=key.secret_hash, actor=ADMIN_KEY_ID, role=role)
        )
        assert isinstance(result, Done), result
        return key.text

    async def raw(self, request: bytes) -> bytes:
        """Send bytes as they are and return the first answer, its head and body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            async with asyncio.timeout(WAIT_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"Content-Length: (\d+)", head)
                assert length is not None, head
                return head + await reader.readexactly(int(length[1]))
        finally:
            writer.close()


@asynccontextmanager
async def serving(
    directory: str, *, buffers: BufferPool | None = None, **settings: Any
) -> AsyncIterator[Serving]:
    """A gateway with bucket `box` and an administrator's key, until the block ends.

    At the end no request is left, every buffer is back, and the budget for downloads is whole.
    """
    admin = new_key()
    metadata = FakeMetadata(f"{directory}/state.sqlite")
    await metadata.bootstrap()
    await metadata.submit(
        CreateKey(
            key_id=admin.key_id, secret_hash=admin.secret_hash, actor=ADMIN_KEY_ID, role="admin"
        )
    )
    chunks, cluster = MemoryChunks(), FakeCluster()
    buffers = buffers or BufferPool()
    settings.setdefault("chunk_size_bytes", TINY_CHUNK)
    workers = ThreadPoolExecutor(2)
    noted: list[None] = []
    server = make_server(
        metadata,
        chunks,
        buffers,
        cluster,
        settings=GatewaySettings(**settings),
        workers=workers,
        on_request=lambda: noted.append(None),
    )
    runner = web.ServerRunner(server, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    served = Serving(
        metadata=metadata,
        chunks=chunks,
        buffers=buffers,
        cluster=cluster,
        server=server,
        port=port,
        admin_key=admin.text,
        noted=noted,
    )
    try:
        await served.make_bucket("box")
        yield served
        await eventually(lambda: buffers.leased_bytes == 0)
        await eventually(lambda: server.backends.read_budget.taken_bytes == 0)
    finally:
        await served.session.close()
        await runner.cleanup()
        workers.shutdown()
        await metadata.stop()


def assert_documented(method: str, path: str, answer: Answer) -> None:
    """Whatever a test provokes, its status and code are in the published document."""
    code = answer.headers.get("X-Error-Code")
    if code in {"no_such_route", "method_not_allowed"}:
        return
    try:
        route = parse_target(path).route
    except ApiError:
        return
    documented = "GET" if method == "HEAD" else method
    (operation,) = [
        each for each in OPERATIONS if (each.method, each.template) == (documented, route)
    ]
    if code is None:
        assert answer.status in operation.answers, (method, route, answer.status)
    else:
        codes = refusal_statuses(operation).get(answer.status, [])
        assert code in codes, (method, route, answer.status, code)


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds, for `WAIT_SECONDS` at most."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


def contents(size: int, *, seed: int = 0) -> bytes:
    """Bytes without repetition in any chunk, the same for the same seed."""
    return Random(seed).randbytes(size)
