"""The protocol between peers: who is let in, what is refused, what is carried."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import aiohttp
import msgspec
import pytest
from blake3 import blake3

from ring.buffers import BufferPool
from ring.codec import encode
from ring.errors import (
    ChunkNotFoundError,
    PeerRefusedError,
    PeerUnreachableError,
    StaleEpochError,
    StoreFullError,
)
from ring.identity import ClusterIdentity
from ring.interfaces import CHUNK_SIZE_LIMIT, Codec, PutOutcome
from ring.members import Member
from ring.peer_client import PeerClient
from ring.peer_wire import (
    BATCH_LIMIT,
    CLUSTER_HEADER,
    CODEC_HEADER,
    CREDENTIALS_HEADER,
    DIGEST_HEADER,
    PLAIN_LENGTH_HEADER,
    PUT_BATCH_BODY_LIMIT,
    PUT_BATCH_LIMIT,
    SMALL_PUT_LIMIT,
    TOUCH_MAX,
    MalformedError,
    Purpose,
    PutTarget,
    Refusal,
    SmallPut,
    Welcome,
    chunk_path,
    decode_ids,
    decode_touches,
    encode_ids,
    encode_touches,
    ids_path,
    parse_after,
    parse_chunk_id,
    parse_number,
    range_path,
)
from ring.signatures import Session, sign_request
from ring.tls import client_context
from tests.fakes.ring_nodes import (
    CLUSTER_ID,
    SECRET,
    RingCluster,
    RingNode,
    eventually,
    ring_cluster,
)

CONTENT = random.Random(1).randbytes(1000)
CHUNK_ID = blake3(CONTENT).digest()


def _target(
    *,
    content: bytes = CONTENT,
    chunk_id: bytes | None = None,
    epoch: int = 1,
    purpose: Purpose = Purpose.OWNER,
    touch: int = 1,
    plain_length: int | None = None,
) -> PutTarget:
    return PutTarget(
        chunk_id=blake3(content).digest() if chunk_id is None else chunk_id,
        epoch=epoch,
        purpose=purpose,
        touch=touch,
        codec=Codec.RAW,
        plain_length=len(content) if plain_length is None else plain_length,
    )


async def _put(
    cluster: RingCluster, target: PutTarget, content: bytes = CONTENT, *, to: int = 1
) -> PutOutcome:
    sender = cluster.nodes[0].client
    return await sender.put(cluster.nodes[to].member, target, memoryview(content))


class _Stranger:
    """Speaks the protocol by hand, to do what no client does."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        node: RingNode,
        *,
        key: bytes | None = None,
        cluster_id: str = CLUSTER_ID,
    ) -> None:
        identity = ClusterIdentity(cluster_id=CLUSTER_ID, node_id="stranger", secret=SECRET)
        self._key = identity.request_key() if key is None else key
        self._http = http
        self._node = node
        self._cluster_id = cluster_id
        self.session = Session(bytes(16), 1)

    async def open_session(self) -> Welcome:
        status, body = await self.send("POST", "/peer/1/sessions", {}, bytes(16))
        assert status == 200
        welcome = msgspec.msgpack.decode(body, type=Welcome)
        self.session = Session(welcome.boot_nonce, welcome.number)
        return welcome

    def credentials(self, method: str, target: str, body: bytes, counter: int) -> dict[str, str]:
        text = sign_request(
            self._key,
            sender="stranger",
            receiver=self._node.node_id,
            session=self.session,
            counter=counter,
            method=method,
            target=target,
            body_digest=blake3(body).digest() if body else b"",
        ).text()
        return {CREDENTIALS_HEADER: text}

    async def send(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes = b""
    ) -> tuple[int, bytes]:
        async with self._http.request(
            method,
            f"http://{self._node.member.peer_address}{target}",
            headers={CLUSTER_HEADER: f"{self._cluster_id}/1", **headers},
            data=io.BytesIO(body) if body else None,
        ) as response:
            return response.status, await response.read()

    async def code(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes = b""
    ) -> str | None:
        """The code of a refusal, None for a success."""
        status, answer = await self.send(method, target, headers, body)
        if status < 300:
            return None
        return msgspec.msgpack.decode(answer, type=Refusal).code


async def test_signed_requests_are_let_in_once() -> None:
    """The same bytes sent again are refused with 401 `replayed`."""
    async with ring_cluster(1) as cluster, aiohttp.ClientSession() as http:
        stranger = _Stranger(http, cluster.nodes[0])
        await stranger.open_session()
        headers = stranger.credentials("GET", "/peer/1/node", b"", 1)
        assert await stranger.code("GET", "/peer/1/node", headers) is None
        status, _ = await stranger.send("GET", "/peer/1/node", headers)
        assert status == 401
        assert await stranger.code("GET", "/peer/1/node", headers) == "replayed"
        batch = stranger.credentials("POST", "/peer/1/stat", CHUNK_ID, 2)
        other = blake3(b"other").digest()
        assert await stranger.code("POST", "/peer/1/stat", batch, other) == "bad_signature"
        assert await stranger.code("POST", "/peer/1/stat", batch, CHUNK_ID) is None


async def test_strangers_are_refused() -> None:
    """Without the secret nothing is answered: not unsigned, not with another secret's signature,
    not from another cluster, not for another path."""
    async with ring_cluster(1) as cluster, aiohttp.ClientSession() as http:
        node = cluster.nodes[0]
        path = "/peer/1/node"
        for target in (path, "/peer/1/ids/-/10", chunk_path(CHUNK_ID), range_path(CHUNK_ID, 0, 5)):
            assert await _Stranger(http, node).code("GET", target, {}) == "bad_signature"
        wrong = _Stranger(http, node, key=bytes(32))
        await wrong.open_session()
        assert await wrong.code("GET", path, wrong.credentials("GET", path, b"", 1)) == (
            "bad_signature"
        )
        good = _Stranger(http, node)
        await good.open_session()
        headers = good.credentials("GET", path, b"", 1)
        foreign = _Stranger(http, node, cluster_id="another")
        assert await foreign.code("GET", path, headers) == "wrong_cluster"
        assert await foreign.code("POST", "/peer/1/sessions", {}, bytes(16)) == "wrong_cluster"
        assert await good.code("GET", "/peer/1/ids/-/10", headers) == "bad_signature"
        assert await good.code("POST", "/peer/1/stat", {}, CHUNK_ID) == "bad_signature"
        put = _target().path()
        assert await good.code("PUT", put, {}, CONTENT) == "bad_signature"
        assert node.store.ids(b"", 10) == []


async def test_a_client_with_another_secret_gets_nowhere() -> None:
    """Its own check fails first: the server can't prove to it that they share a cluster."""
    async with ring_cluster(1) as cluster:
        identity = ClusterIdentity(cluster_id=CLUSTER_ID, node_id="x", secret=bytes(32))
        client = PeerClient(identity, pool=BufferPool(), tls=None)
        await client.start()
        with pytest.raises(PeerRefusedError) as caught:
            await client.status(cluster.nodes[0].member)
        assert caught.value.code == "bad_signature"
        await client.close()


async def test_a_client_of_another_cluster_is_told_so() -> None:
    """A node pointed at the wrong cluster learns which one it has reached."""
    async with ring_cluster(1) as cluster:
        identity = ClusterIdentity(cluster_id="another", node_id="x", secret=SECRET)
        client = PeerClient(identity, pool=BufferPool(), tls=None)
        await client.start()
        with pytest.raises(PeerRefusedError, match=CLUSTER_ID) as caught:
            await client.status(cluster.nodes[0].member)
        assert caught.value.code == "wrong_cluster"
        await client.close()


async def test_m7_a_client_of_another_incarnation_is_refused() -> None:
    """Its secret and its certificate are good, and its cluster is a former self of this one."""
    for tls in (False, True):
        async with ring_cluster(1, tls=tls) as cluster:
            (node,) = cluster.nodes
            for incarnation, answered in ((1, True), (2, False)):
                identity = ClusterIdentity(
                    cluster_id=CLUSTER_ID, node_id="x", secret=SECRET, incarnation=incarnation
                )
                context = client_context(identity) if tls else None
                client = PeerClient(identity, pool=BufferPool(), tls=context)
                await client.start()
                try:
                    if answered:
                        assert (await client.status(node.member)).node_id == node.member.node_id
                    else:
                        with pytest.raises(PeerRefusedError, match=f"{CLUSTER_ID}/1") as caught:
                            await client.status(node.member)
                        assert caught.value.code == "wrong_cluster"
                finally:
                    await client.close()


async def test_a_restarted_peer_is_greeted_anew() -> None:
    """Sessions end with the server's process; clients open another without an error."""
    async with ring_cluster(2) as cluster:
        client, member = cluster.nodes[0].client, cluster.nodes[1].member
        assert (await client.status(member)).node_id == member.node_id
        await cluster.nodes[1].go_down()
        with pytest.raises(PeerUnreachableError) as caught:
            await client.status(member)
        assert f"{member.peer_address} does not answer (Connection refused)" in str(caught.value)
        await cluster.nodes[1].come_back()
        answers = await asyncio.gather(*(client.status(member) for _ in range(20)))
        assert {answer.node_id for answer in answers} == {member.node_id}


async def test_another_node_at_a_known_address_is_refused() -> None:
    """With signatures as with TLS, a node is its id and not its address."""
    for tls in (False, True):
        async with ring_cluster(3, tls=tls) as cluster:
            disguised = msgspec.structs.replace(
                cluster.nodes[1].member, node_id=cluster.nodes[2].node_id
            )
            with pytest.raises((PeerRefusedError, PeerUnreachableError)):
                await cluster.nodes[0].client.status(disguised)


async def test_tls_lets_nobody_in_without_the_secret() -> None:
    """With TLS on, a client whose certificate is of another secret reaches no handler."""
    async with ring_cluster(2, tls=True) as cluster:
        assert (await cluster.nodes[0].client.status(cluster.nodes[1].member)).epoch == 1
        identity = ClusterIdentity(cluster_id=CLUSTER_ID, node_id="x", secret=bytes(32))
        context = client_context(identity)
        client = PeerClient(identity, pool=BufferPool(), tls=context)
        await client.start()
        with pytest.raises(PeerUnreachableError):
            await client.status(cluster.nodes[1].member)
        await client.close()


async def test_a_put_is_durable_and_says_whether_it_was_new() -> None:
    """A second put of the same chunk finds it there and raises its touch."""
    async with ring_cluster(2) as cluster:
        assert await _put(cluster, _target()) is PutOutcome.WRITTEN
        assert await _put(cluster, _target(touch=8)) is PutOutcome.EXISTED
        (state,) = await cluster.nodes[0].client.stat(cluster.nodes[1].member, [CHUNK_ID])
        assert state is not None
        assert (state.plain_length, state.healthy, state.touch) == (1000, True, 8)


async def test_the_epoch_fence_holds_for_writes_and_touches() -> None:
    """Rule D1: at any other epoch than its own, older or newer, a node takes and confirms nothing,
    and says which epoch it is at."""
    async with ring_cluster(2) as cluster:
        member = cluster.nodes[1].member
        cluster.change_ring([0, 1])
        for epoch in (1, 3):
            for purpose in (Purpose.OWNER, Purpose.REPAIR):
                with pytest.raises(StaleEpochError) as caught:
                    await _put(cluster, _target(epoch=epoch, purpose=purpose))
                assert (caught.value.epoch, caught.value.node_id) == (2, member.node_id)
            with pytest.raises(StaleEpochError):
                await cluster.nodes[0].client.touch(member, [CHUNK_ID], epoch=epoch, touch=1)
            with pytest.raises(StaleEpochError):
                await cluster.nodes[0].client.confirm(member, [(CHUNK_ID, 1)], epoch=epoch)
        assert cluster.holders(CHUNK_ID) == []


async def test_the_fence_is_asked_again_once_the_body_has_come() -> None:
    """A ring that changes while a body is on its way is noticed before anything is stored."""
    async with ring_cluster(1) as cluster, aiohttp.ClientSession() as http:
        node = cluster.nodes[0]
        stranger = _Stranger(http, node)
        await stranger.open_session()
        reader, writer = await _connect(node)
        writer.write(_head(stranger, _target().path(), counter=1) + CONTENT[:400])
        await eventually(lambda: node.peer_pool.leased_bytes > 0)
        cluster.change_ring([0])
        writer.write(CONTENT[400:])
        assert b" 409 " in await reader.readline()
        writer.close()
        assert node.store.ids(b"", 10) == []


async def test_the_fence_is_asked_again_once_the_copy_is_durable() -> None:
    """A copy that became durable only under the next ring is not confirmed for the former one."""
    async with ring_cluster(2) as cluster:
        node = cluster.nodes[1]
        node.store.hold_writes()
        writing = asyncio.ensure_future(_put(cluster, _target()))
        await eventually(lambda: node.store.statistics().queue_depth == 1)
        cluster.change_ring([0, 1])
        node.store.release_writes()
        with pytest.raises(StaleEpochError):
            await writing


async def test_the_fence_is_asked_again_after_a_confirmation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rule D5: what was confirmed when the ring had changed meanwhile does not count."""
    async with ring_cluster(2) as cluster:
        member, store = cluster.nodes[1].member, cluster.nodes[1].store
        await _put(cluster, _target())
        confirm = store.confirm

        async def confirm_and_change(touches: Sequence[tuple[bytes, int]]) -> list[bool]:
            flags = await confirm(touches)
            cluster.change_ring([0, 1])
            return flags

        monkeypatch.setattr(store, "confirm", confirm_and_change)
        with pytest.raises(StaleEpochError):
            await cluster.nodes[0].client.confirm(member, [(CHUNK_ID, 1)], epoch=1)
        with pytest.raises(StaleEpochError):
            await cluster.nodes[0].client.touch(member, [CHUNK_ID], epoch=2, touch=1)
        # Nor does what was looked at by the former ring, for the one that came meanwhile.
        with pytest.raises(StaleEpochError):
            await cluster.nodes[0].client.confirm(member, [(CHUNK_ID, 1)], epoch=4)


async def test_only_owners_confirm_and_no_touch_is_renewed() -> None:
    """Rules D5, D10: each touch becomes at least the asker's, not this node's generation; who has a
    copy and is no owner confirms nothing."""
    async with ring_cluster(4) as cluster:
        content = cluster.content_owned_by(0, 1, 2)
        chunk_id = blake3(content).digest()
        for number in (2, 3):
            cluster.nodes[number].view.number = 9
            encoded = encode(memoryview(content))
            await cluster.nodes[number].store.put(chunk_id, encoded, touch=3)
        absent = blake3(b"absent").digest()
        confirm = cluster.nodes[0].client.confirm
        for touch in (2, 5):
            asked = [(absent, 8), (chunk_id, touch)]
            assert await confirm(cluster.nodes[2].member, asked, epoch=1) == [False, True]
            assert await confirm(cluster.nodes[3].member, asked, epoch=1) == [False, False]
            for number in (2, 3):
                (stat,) = await cluster.nodes[number].store.stat([chunk_id])
                assert stat is not None
                assert stat.touch == (max(3, touch) if number == 2 else 3)


async def test_only_owners_and_named_handoffs_take_a_chunk() -> None:
    """A node that has no part in a partition refuses its chunks, whatever it is called."""
    async with ring_cluster(4) as cluster:
        content = cluster.content_owned_by(0, 1, 2)
        with pytest.raises(PeerRefusedError, match="not an owner"):
            await _put(cluster, _target(content=content), content, to=3)
        with pytest.raises(PeerRefusedError, match="not an owner"):
            await _put(cluster, _target(content=content, purpose=Purpose.REPAIR), content, to=3)
        with pytest.raises(PeerRefusedError, match="not a handoff"):
            await _put(cluster, _target(content=content, purpose=Purpose.HANDOFF), content, to=1)
        await _put(cluster, _target(content=content, purpose=Purpose.HANDOFF), content, to=3)
        assert cluster.holders(blake3(content).digest()) == [3]


async def test_contents_that_are_not_the_chunk_are_refused() -> None:
    """Receivers hash before they write: wrong bytes, lengths and codecs leave nothing behind."""
    async with ring_cluster(2) as cluster:
        wrong = blake3(b"wrong").digest()
        for target in (_target(chunk_id=wrong), _target(plain_length=999)):
            with pytest.raises(PeerRefusedError) as caught:
                await _put(cluster, target)
            assert caught.value.code == "chunk_rejected"
        compressed = msgspec.structs.replace(_target(plain_length=5000), codec=Codec.ZSTD)
        with pytest.raises(PeerRefusedError, match="chunk_rejected"):
            await _put(cluster, compressed)
        assert cluster.holders(CHUNK_ID) == cluster.holders(wrong) == []


async def test_repair_keeps_the_touch_it_brings() -> None:
    """Rule D10: the receiver's own generation does not make an old copy new."""
    async with ring_cluster(2) as cluster:
        cluster.nodes[1].view.number = 40
        await _put(cluster, _target(touch=3, purpose=Purpose.REPAIR))
        (stat,) = await cluster.nodes[1].store.stat([CHUNK_ID])
        assert stat is not None
        assert stat.touch == 3
        await _put(cluster, _target(touch=3, purpose=Purpose.OWNER))
        (stat,) = await cluster.nodes[1].store.stat([CHUNK_ID])
        assert stat is not None
        assert stat.touch == 40


async def test_a_full_store_is_told_apart() -> None:
    """A sender learns that it was space that lacked."""
    async with ring_cluster(2) as cluster:
        cluster.nodes[1].store.quota_bytes = 0
        with pytest.raises(StoreFullError, match=cluster.nodes[1].node_id):
            await _put(cluster, _target())


async def test_absent_chunks_are_absent() -> None:
    """Get, range and stat of a chunk that is not there say so, and nothing else."""
    async with ring_cluster(2) as cluster:
        client, member = cluster.nodes[0].client, cluster.nodes[1].member
        with pytest.raises(ChunkNotFoundError):
            await client.get(member, CHUNK_ID)
        with pytest.raises(ChunkNotFoundError):
            await client.get_range(member, CHUNK_ID, 0, 10)
        assert await client.stat(member, [CHUNK_ID]) == [None]
        assert await client.touch(member, [CHUNK_ID], epoch=1, touch=1) == [False]
        assert cluster.nodes[0].pool.leased_bytes == 0


async def test_ids_are_listed_in_order() -> None:
    """A peer's holdings can be walked through in pages."""
    async with ring_cluster(2) as cluster:
        client, member = cluster.nodes[0].client, cluster.nodes[1].member
        contents = [number.to_bytes(4, "big") * 10 for number in range(10)]
        for content in contents:
            await _put(cluster, _target(content=content), content)
        everything = sorted(blake3(content).digest() for content in contents)
        first = await client.ids(member, b"", 4)
        assert first == everything[:4]
        assert await client.ids(member, first[-1], 100) == everything[4:]


async def test_requests_of_impossible_form_or_size_are_refused() -> None:
    """Bounds hold before anything is read or looked up."""
    async with ring_cluster(1) as cluster, aiohttp.ClientSession() as http:
        node = cluster.nodes[0]
        stranger = _Stranger(http, node)
        await stranger.open_session()
        counter = iter(range(1, 100))

        async def code(method: str, path: str, body: bytes = b"", *, sign_body: bool = True) -> str:
            signed = body if sign_body else b""
            headers = stranger.credentials(method, path, signed, next(counter))
            return await stranger.code(method, path, headers, body) or ""

        put = _target().path()
        assert await code("PUT", put, b"", sign_body=False) == "body_too_large"
        huge = bytes(CHUNK_SIZE_LIMIT + 1)
        assert await code("PUT", put, huge, sign_body=False) == "body_too_large"
        assert await code("PUT", put + "/9", CONTENT, sign_body=False) == "malformed"
        assert await code("PUT", "/peer/1/chunks/zz", CONTENT, sign_body=False) == "malformed"
        puts = "/peer/1/puts"
        assert await code("POST", puts, bytes(PUT_BATCH_BODY_LIMIT + 1)) == "body_too_large"
        assert await code("POST", puts, b"no chunks") == "malformed"
        assert await code("POST", puts, msgspec.msgpack.encode([])) == "malformed"
        too_many = [SmallPut(_target(), memoryview(CONTENT))] * (PUT_BATCH_LIMIT + 1)
        assert await code("POST", puts, msgspec.msgpack.encode(too_many)) == "malformed"
        short_id = msgspec.structs.replace(_target(), chunk_id=b"short")
        one = msgspec.msgpack.encode([SmallPut(short_id, memoryview(CONTENT))])
        assert await code("POST", puts, one) == "malformed"
        whole = msgspec.msgpack.encode([SmallPut(_target(), memoryview(CONTENT))])
        assert await code("POST", puts, whole, sign_body=False) == "bad_signature"
        assert await code("GET", "/peer/1/chunks/zz") == "malformed"
        assert await code("GET", range_path(CHUNK_ID, 5, 5)) == "malformed"
        assert await code("GET", range_path(CHUNK_ID, 0, CHUNK_SIZE_LIMIT + 1)) == "malformed"
        assert await code("POST", "/peer/1/stat", b"half an id") == "malformed"
        assert await code("POST", "/peer/1/stat", bytes(32 * (BATCH_LIMIT + 1))) == "malformed"
        assert await code("POST", "/peer/1/stat", bytes(300_000)) == "body_too_large"
        assert await code("POST", "/peer/1/sessions", b"short") == "malformed"
        assert node.peer_pool.leased_bytes == 0


async def test_too_many_requests_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound a peer is told at once, and what is under way is not disturbed."""
    monkeypatch.setattr("ring.peer_server.REQUEST_LIMIT", 2)
    async with ring_cluster(2) as cluster:
        cluster.nodes[1].store.hold_writes()
        contents = [bytes([number]) * (SMALL_PUT_LIMIT + 1) for number in range(5)]
        puts = [
            asyncio.ensure_future(_put(cluster, _target(content=content), content))
            for content in contents
        ]
        await eventually(lambda: sum(put.done() for put in puts) == 3)
        cluster.nodes[1].store.release_writes()
        await asyncio.wait(puts)
        errors = [put.exception() for put in puts if put.exception() is not None]
        assert len(errors) == 3
        assert all("overloaded" in str(error) for error in errors)


async def test_small_chunks_of_one_moment_share_requests() -> None:
    """Each gets an answer of its own, whatever becomes of the others; the last one's buffer is back
    when all have ended."""
    async with ring_cluster(2) as cluster:
        contents = [bytes([number]) * 100 for number in range(20)]
        stale = _target(content=b"another", epoch=9)
        answers = await asyncio.gather(
            *(_put(cluster, _target(content=content), content) for content in contents),
            _put(cluster, stale, b"another"),
            _put(cluster, _target(content=b"claimed"), b"invents"),
            return_exceptions=True,
        )
        assert answers[:20] == [PutOutcome.WRITTEN] * 20
        assert isinstance(answers[20], StaleEpochError)
        assert isinstance(answers[21], PeerRefusedError)
        assert answers[21].code == "chunk_rejected"
        ids = [blake3(content).digest() for content in contents]
        assert all(await cluster.nodes[1].store.stat(ids))
        assert cluster.nodes[1].peer_pool.leased_bytes == 0


async def _connect(node: RingNode) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = node.member.peer_address.split(":")
    return await asyncio.open_connection(host, int(port))


def _head(stranger: _Stranger, path: str, *, counter: int) -> bytes:
    """The head of a put of `CONTENT`, as bytes."""
    headers = {
        "Host": "x",
        "Content-Length": str(len(CONTENT)),
        CLUSTER_HEADER: f"{CLUSTER_ID}/1",
        **stranger.credentials("PUT", path, b"", counter),
    }
    lines = [f"PUT {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


async def test_bodies_that_stop_half_way_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that pauses for ever ends with 408, one whose connection breaks with nothing; neither
    stores a chunk, and the buffer comes back."""
    monkeypatch.setattr("ring.peer_answers.BODY_SILENCE_SECONDS", 0.05)
    async with ring_cluster(1) as cluster, aiohttp.ClientSession() as http:
        node = cluster.nodes[0]
        stranger = _Stranger(http, node)
        await stranger.open_session()
        for counter, breaks in ((1, False), (2, True)):
            reader, writer = await _connect(node)
            writer.write(_head(stranger, _target().path(), counter=counter) + CONTENT[:400])
            if not breaks:
                assert b" 408 " in await asyncio.wait_for(reader.readline(), 5)
            writer.close()
            await eventually(lambda: node.peer_pool.leased_bytes == 0)
            assert node.store.ids(b"", 10) == []


@asynccontextmanager
async def _impostor(node: RingNode, answer: bytes) -> AsyncIterator[tuple[Member, list[bytes]]]:
    """A server that answers every connection with these bytes, and the requests it has seen."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        address = f"127.0.0.1:{port}"
        yield (
            msgspec.structs.replace(node.member, node_id="impostor", peer_address=address),
            requests,
        )


def _http(headers: Mapping[str, str], body: bytes, *, length: int | None = None) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def test_a_half_sent_answer_is_no_chunk() -> None:
    """A peer that announces more than it sends is an unreachable peer; no buffer is lost."""
    async with ring_cluster(1) as cluster:
        node = cluster.nodes[0]
        node.client._transport._peer("impostor").session = Session(bytes(16), 1)
        form = {CODEC_HEADER: "0", PLAIN_LENGTH_HEADER: "1000"}
        answer = _http(form, CONTENT[:300], length=1000)
        async with _impostor(node, answer) as (member, _):
            with pytest.raises(PeerUnreachableError):
                await node.client.get(member, CHUNK_ID)
        assert node.pool.leased_bytes == 0


async def test_a_range_that_changed_on_its_way_is_refused() -> None:
    """The reader checks what arrives against what its sender has verified."""
    async with ring_cluster(1) as cluster:
        node = cluster.nodes[0]
        node.client._transport._peer("impostor").session = Session(bytes(16), 1)
        good = {DIGEST_HEADER: blake3(CONTENT).hexdigest()}
        async with _impostor(node, _http(good, CONTENT)) as (member, _):
            data = await node.client.get_range(member, CHUNK_ID, 0, 1000)
            assert bytes(data) == CONTENT
            del data
        changed = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
        async with _impostor(node, _http(good, changed)) as (member, _):
            with pytest.raises(PeerUnreachableError, match="damaged"):
                await node.client.get_range(member, CHUNK_ID, 0, 1000)
        assert node.pool.leased_bytes == 0


async def test_a_server_that_can_not_prove_the_secret_gets_no_request() -> None:
    """The client asks nothing, and sends no chunk, before the session is proven."""
    async with ring_cluster(1) as cluster:
        node = cluster.nodes[0]
        welcome = Welcome(boot_nonce=bytes(16), number=1, proof=bytes(32))
        answer = _http({}, msgspec.msgpack.encode(welcome))
        async with _impostor(node, answer) as (member, requests):
            with pytest.raises(PeerRefusedError, match="is not node impostor"):
                await node.client.put(member, _target(), memoryview(CONTENT))
        assert [request.split(b" ")[1] for request in requests] == [b"/peer/1/sessions"]


async def test_a_node_tells_how_it_is() -> None:
    """Whether it serves clients, and whether all is where it belongs, is as it is right now."""
    async with ring_cluster(2) as cluster:
        asker, node = cluster.nodes
        for serves in (True, False):
            node.serves_clients = serves
            assert (await asker.client.status(node.member)).clients_active is serves
        assert not (await asker.client.status(node.member)).settled
        for _ in range(3):
            await node.repairer.work()
            await node.mover.work()
        assert (await asker.client.status(node.member)).settled


def test_touches_are_of_bounded_number_and_size() -> None:
    """Ids with touches come back as they were sent; anything else is refused."""
    touches = [(CHUNK_ID, 0), (bytes(32), TOUCH_MAX)]
    body = encode_touches(touches)
    assert decode_touches(body, 2) == touches
    for bad in (body[:-1], body + body[:40], encode_touches([(CHUNK_ID, TOUCH_MAX + 1)])):
        with pytest.raises(MalformedError):
            decode_touches(bad, 2)


def test_the_forms_of_paths_are_strict() -> None:
    """What is parsed is exactly what is written, and nothing that merely resembles it."""
    target = _target(epoch=7, purpose=Purpose.HANDOFF, touch=9)
    assert PutTarget.parse(target.path().split("/")[4:]) == target
    assert parse_after(ids_path(CHUNK_ID, 5).split("/")[4]) == CHUNK_ID
    assert parse_after(ids_path(b"", 5).split("/")[4]) == b""
    assert decode_ids(encode_ids([CHUNK_ID, bytes(32)]), 2) == [CHUNK_ID, bytes(32)]
    for text in ("", "-1", "+1", "1_0", "٣", "1" * 19):
        with pytest.raises(MalformedError):
            parse_number(text)
    for text in ("", "ab", CHUNK_ID.hex().upper(), CHUNK_ID.hex()[:-1] + " "):
        with pytest.raises(MalformedError):
            parse_chunk_id(text)
