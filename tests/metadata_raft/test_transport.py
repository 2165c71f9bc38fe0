"""The transport on real loopback sockets: who may speak, what is refused, what is dropped."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest

from metadata_raft import transport as transport_module
from metadata_raft.errors import FrameError, HandshakeError
from metadata_raft.frames import (
    HANDSHAKE_SIZE_LIMIT,
    PROTOCOL_VERSION,
    Challenge,
    FrameReader,
    FrameSealer,
    Hello,
    Identity,
    check_hello,
    plain_frame,
    refusal_of,
)
from metadata_raft.messages import (
    MESSAGE_SIZE_LIMIT,
    Append,
    Confirm,
    Message,
    decode_message,
    encode_message,
)
from metadata_raft.settings import RaftTiming
from metadata_raft.transport import Transport

KEY = b"k" * 32
TIMING = RaftTiming(connect_retry=0.02, connect_timeout=0.5)


class Host:
    """Notes what the transport tells."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Message]] = []
        self.connected: list[str] = []
        self.lost: list[str] = []
        self.addresses: dict[str, str] = {}
        self.removed_peers: set[str] = set()
        self.told_removed = False
        self.recorded_boots: dict[str, int] = {}
        self.told_boot = 0
        self.told_incarnation = 0
        self.failures: list[BaseException] = []
        self.fail_with: Exception | None = None

    def received(self, sender: str, message: Message) -> None:
        if self.fail_with is not None:
            raise self.fail_with
        self.messages.append((sender, message))

    def peer_connected(self, node_id: str) -> None:
        self.connected.append(node_id)

    def peer_lost(self, node_id: str) -> None:
        self.lost.append(node_id)

    def is_removed_peer(self, node_id: str) -> bool:
        return node_id in self.removed_peers

    def was_removed(self) -> None:
        self.told_removed = True

    def recorded_boot(self, node_id: str) -> int:
        return self.recorded_boots.get(node_id, 0)

    def was_restored(self, recorded_boot: int) -> None:
        self.told_boot = recorded_boot

    def other_incarnation(self, incarnation: int) -> None:
        self.told_incarnation = incarnation

    def peer_address(self, node_id: str, address: str) -> None:
        self.addresses[node_id] = address

    def failed(self, error: BaseException) -> None:
        self.failures.append(error)


class Peer:
    """A transport with its host, listening."""

    def __init__(
        self,
        name: str,
        *,
        cluster: str = "c",
        incarnation: int = 1,
        key: bytes = KEY,
        boot_counter: int = 0,
    ):
        self.name = name
        self.host = Host()
        identity = Identity(name, cluster, incarnation, key, boot_counter)
        self.transport = Transport(identity, self.host, timing=TIMING)
        self.address = ""

    def dial(self, *others: Peer) -> None:
        self.transport.set_peers({other.name: other.address for other in others})


MakePeer = Callable[..., Awaitable[Peer]]


@pytest.fixture
async def make_peer() -> AsyncIterator[MakePeer]:
    peers: list[Peer] = []

    async def make(name: str, **identity: object) -> Peer:
        peer = Peer(name, **identity)  # type: ignore[arg-type] # Passed through.
        peer.address = await peer.transport.start("127.0.0.1", 0)
        peers.append(peer)
        return peer

    yield make
    for peer in peers:
        await peer.transport.stop()


async def until(condition: Callable[[], bool], limit: float = 5.0) -> None:
    async with asyncio.timeout(limit):
        while not condition():  # noqa: ASYNC110 - bounded by the limit.
            await asyncio.sleep(0.005)


async def test_messages_arrive_in_order_with_their_sender(make_peer: MakePeer) -> None:
    """Each direction by its own connection; both sides learn the other's address."""
    a, b = await make_peer("a"), await make_peer("b")
    a.dial(b)
    b.dial(a)
    await until(lambda: a.transport.can_send("b") and b.transport.can_send("a"))
    for number in range(1000):
        a.transport.send("b", Confirm(1, number))
    a.transport.flush()
    b.transport.send("a", Confirm(2, 0))
    b.transport.flush()
    await until(lambda: len(b.host.messages) == 1000 and len(a.host.messages) == 1)
    assert b.host.messages == [("a", Confirm(1, number)) for number in range(1000)]
    assert a.host.messages == [("b", Confirm(2, 0))]
    assert b.host.addresses == {"a": a.address}


async def test_a_large_message_arrives(make_peer: MakePeer) -> None:
    """The fullest Append fits a frame."""
    a, b = await make_peer("a"), await make_peer("b")
    a.dial(b)
    await until(lambda: a.transport.can_send("b"))
    append = Append(1, 0, 0, 0, 0, [(bytes(200_000), index, 1) for index in range(1, 6)])
    a.transport.send("b", append)
    a.transport.flush()
    await until(lambda: bool(b.host.messages))
    assert b.host.messages == [("a", append)]


@pytest.mark.parametrize(
    "identity",
    [{"key": b"x" * 32}, {"cluster": "other"}, {"incarnation": 2}],
    ids=["key", "cluster", "incarnation"],
)
async def test_strangers_are_refused(make_peer: MakePeer, identity: dict[str, object]) -> None:
    """Another key, cluster or incarnation never gets a connection, in either direction."""
    a, stranger = await make_peer("a"), await make_peer("b", **identity)
    a.dial(stranger)
    stranger.dial(a)
    await asyncio.sleep(0.2)
    assert not a.transport.can_send("b")
    assert not stranger.transport.can_send("a")
    assert not a.host.messages + stranger.host.messages
    assert not a.host.addresses


async def test_an_impostor_is_told_nothing(make_peer: MakePeer) -> None:
    """A dialler that gets a forged proof closes without giving its own."""
    heard: list[bytes] = []

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(plain_frame(msgspec.msgpack.encode(Challenge(b"n" * 32, b"p" * 32, ""))))
        heard.append(await reader.read(4096))
        writer.close()

    server = await asyncio.start_server(pretend, "127.0.0.1", 0)
    try:
        a = await make_peer("a")
        port = server.sockets[0].getsockname()[1]
        a.transport.set_peers({"b": f"127.0.0.1:{port}"})
        await until(lambda: bool(heard))
        assert heard[0] == b""
        assert not a.transport.can_send("b")
        a.transport.set_peers({})
    finally:
        server.close()
        await server.wait_closed()


async def test_another_node_at_the_address_is_refused(make_peer: MakePeer) -> None:
    """Who answers must be the node that was wanted: ids count, not addresses."""
    a, b = await make_peer("a"), await make_peer("b")
    a.transport.set_peers({"c": b.address})
    await asyncio.sleep(0.2)
    assert not a.transport.can_send("c")


async def test_a_removed_node_is_told(make_peer: MakePeer) -> None:
    """It learns from any member that it was removed, provably (rule M7)."""
    a, gone = await make_peer("a"), await make_peer("gone")
    a.host.removed_peers.add("gone")
    gone.dial(a)
    await until(lambda: gone.host.told_removed)
    assert not gone.transport.can_send("a")


async def test_m7_another_incarnation_is_told_provably(make_peer: MakePeer) -> None:
    """Both sides learn in which incarnation the other is, and who has not the key learns and tells
    nothing."""
    a, old = await make_peer("a", incarnation=2), await make_peer("b", incarnation=1)
    stranger = await make_peer("x", incarnation=3, key=b"x" * 32)
    a.dial(old, stranger)
    old.dial(a)
    stranger.dial(a)
    await until(lambda: old.host.told_incarnation == 2 and a.host.told_incarnation == 1)
    assert stranger.host.told_incarnation == 0
    assert not a.transport.can_send("b")
    assert not old.transport.can_send("a")


async def test_m7_a_restored_disk_is_refused_before_it_can_vote(make_peer: MakePeer) -> None:
    """Who was started fewer times than the cluster knows is told so and can't send a word; the same
    node with its newest disk is welcome."""
    a = await make_peer("a")
    a.host.recorded_boots["b"] = 7
    restored = await make_peer("b", boot_counter=6)
    restored.dial(a)
    await until(lambda: restored.host.told_boot == 7)
    assert not restored.transport.can_send("a")
    await restored.transport.stop()
    newest = await make_peer("b", boot_counter=7)
    newest.dial(a)
    await until(lambda: newest.transport.can_send("a"))
    assert newest.host.told_boot == 0


async def test_m7_a_copy_of_a_node_is_cut_off_when_the_later_boot_is_known(
    make_peer: MakePeer,
) -> None:
    """A connection from before does not outlive the record of a later boot."""
    a, b = await make_peer("a"), await make_peer("b", boot_counter=6)
    b.dial(a)
    await until(lambda: b.transport.can_send("a") and "b" in a.host.addresses)
    a.transport.close_older_boots({"b": 6})
    await asyncio.sleep(0)
    assert a.host.lost == []
    a.host.recorded_boots["b"] = 7
    a.transport.close_older_boots(a.host.recorded_boots)
    await until(lambda: b.host.told_boot == 7 and a.host.lost == ["b"])


async def test_m7_a_copy_does_not_take_the_place_of_a_connected_node(make_peer: MakePeer) -> None:
    """Nobody has recorded the newest boot of a node yet, but it is connected, and has proven it."""
    a, b = await make_peer("a"), await make_peer("b", boot_counter=7)
    a.host.recorded_boots["b"] = 6
    b.dial(a)
    await until(lambda: b.transport.can_send("a") and "b" in a.host.addresses)
    copy = await make_peer("b", boot_counter=6)
    copy.dial(a)
    await until(lambda: copy.host.told_boot == 7)
    assert b.transport.can_send("a")
    assert a.host.lost == []


async def test_a_peer_that_comes_back_is_dialled_again(make_peer: MakePeer) -> None:
    """Both sides notice the loss; the next connection is used."""
    a, b = await make_peer("a"), await make_peer("b")
    a.dial(b)
    b.dial(a)
    await until(lambda: a.transport.can_send("b") and b.transport.can_send("a"))
    await b.transport.stop()
    await until(lambda: a.host.lost == ["b"] and not a.transport.can_send("b"))
    host, port = b.address.rsplit(":", 1)
    again = Peer("b")
    try:
        await again.transport.start(host, int(port))
        await until(lambda: a.transport.can_send("b"))
        assert a.host.connected == ["b", "b"]
    finally:
        await again.transport.stop()


async def test_a_peer_that_lost_its_power_is_given_up_soon(make_peer: MakePeer) -> None:
    """What nobody acknowledges for seconds closes the connection: the kernel alone would try for a
    quarter of an hour, and a machine that is back would hear nothing meanwhile."""
    a, b = await make_peer("a"), await make_peer("b")
    a.dial(b)
    await until(lambda: a.transport.can_send("b"))
    connection = a.transport._outbound["b"]._transport
    assert connection is not None
    sock = connection.get_extra_info("socket")
    limit_ms = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert 1000 <= limit_ms <= 10_000


async def test_a_newer_connection_supersedes_the_older(make_peer: MakePeer) -> None:
    """Of two connections from one node the older is closed; its end is not the node's."""
    a, first, second = await make_peer("a"), await make_peer("b"), await make_peer("b")
    first.dial(a)
    await until(lambda: "b" in a.transport._inbound)
    older = a.transport._inbound["b"]
    second.dial(a)
    await until(lambda: a.transport._inbound.get("b") not in (None, older))
    await until(lambda: older not in a.transport._accepted)
    await first.transport.stop()
    await until(lambda: second.transport.can_send("a"))
    second.transport.send("a", Confirm(1, 1))
    second.transport.flush()
    await until(lambda: bool(a.host.messages))


async def test_a_peer_that_does_not_read_is_cut_off(
    make_peer: MakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is queued to a peer is bounded: more log is not offered, then the connection goes."""
    monkeypatch.setattr(transport_module, "CONGESTED_SIZE", 4 * 1024 * 1024)
    monkeypatch.setattr(transport_module, "QUEUE_SIZE_LIMIT", 8 * 1024 * 1024)
    a, b = await make_peer("a"), await make_peer("b")
    a.dial(b)
    await until(lambda: a.transport.can_send("b"))
    await until(lambda: "a" in b.transport._inbound)
    reading = b.transport._inbound["a"]._transport
    assert reading is not None
    reading.pause_reading()
    append = Append(1, 0, 0, 0, 0, [(bytes(1_000_000), 1, 1)])
    for _ in range(40):
        if not a.transport.can_send("b"):
            break
        a.transport.send("b", append)
        a.transport.flush()
    assert not a.transport.can_send("b")
    for _ in range(10):
        a.transport.send("b", append)
    a.transport.flush()
    await until(lambda: a.host.connected == ["b", "b"])


async def raw_handshake(peer: Peer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = peer.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    hello = Hello(PROTOCOL_VERSION, "c", 1, "x", peer.name, "", b"n" * 32)
    writer.write(plain_frame(msgspec.msgpack.encode(hello)))
    return reader, writer


async def is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(2):
            while await reader.read(4096):
                pass
    except ConnectionError:
        return True
    return True


async def test_who_knows_no_key_gets_nowhere(make_peer: MakePeer) -> None:
    """Bytes without a handshake, a forged proof, silence: the connection closes, and no message
    is ever taken."""
    a = await make_peer("a")
    host, port = a.address.rsplit(":", 1)
    hello = msgspec.msgpack.encode(Hello(PROTOCOL_VERSION, "c", 1, "x", "a", "", b"n" * 32))
    no_text = plain_frame(hello.replace(b"\xa1x", b"\xa1\xff"))
    too_large = (HANDSHAKE_SIZE_LIMIT + 1).to_bytes(4, "little")
    for attack in (b"\x80\x04\x95" * 50, too_large, no_text, b""):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(attack)
        assert await is_closed(reader)
        writer.close()
    reader, writer = await raw_handshake(a)
    writer.write(plain_frame(msgspec.msgpack.encode((b"p" * 32,))))
    writer.write(plain_frame(encode_message(Confirm(1, 1))))
    assert await is_closed(reader)
    writer.close()
    assert a.host.messages == []
    assert a.host.addresses == {}
    assert a.host.failures == []


async def test_a_nonsensical_answer_is_no_reason_to_give_up(make_peer: MakePeer) -> None:
    """Whatever listens at a peer's address, and whatever the address is, it is dialled again."""
    a = await make_peer("a")
    greeted = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal greeted
        greeted += 1
        writer.write(plain_frame(b"\x93\xc4\x01n\xc4\x01p\xa1\xff"))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    a.transport.set_peers({"b": f"127.0.0.1:{port}", "c": "no address"})
    await until(lambda: greeted >= 2)
    assert not any(task.done() for task in a.transport._diallers.values())
    a.transport.set_peers({})
    server.close()
    await server.wait_closed()


async def test_an_error_of_the_node_reaches_it(make_peer: MakePeer) -> None:
    """What taking a message raises is not swallowed by the loop: it ends the node."""
    a, b = await make_peer("a"), await make_peer("b")
    b.host.fail_with = RuntimeError("broken")
    a.dial(b)
    await until(lambda: a.transport.can_send("b"))
    a.transport.send("b", Confirm(1, 1))
    a.transport.flush()
    await until(lambda: bool(b.host.failures))
    assert b.host.failures == [b.host.fail_with]


def test_frames_can_be_cut_anywhere() -> None:
    """A reader that is fed byte by byte finds the same frames."""
    sealer, reader = FrameSealer(KEY), FrameReader()
    reader.authenticate(KEY)
    payloads = [b"", b"one", bytes(300)]
    stream = b"".join(b"".join(sealer.seal(payload)) for payload in payloads)
    found = []
    for position in range(len(stream)):
        reader.feed(stream[position : position + 1])
        while (payload := reader.next()) is not None:
            found.append(payload)
    assert found == payloads


def sealed(*payloads: bytes, key: bytes = KEY) -> list[bytes]:
    sealer = FrameSealer(key)
    return [b"".join(sealer.seal(payload)) for payload in payloads]


@pytest.mark.parametrize(
    "stream",
    [
        sealed(b"one", b"two")[1:],
        [sealed(b"one")[0], sealed(b"one")[0]],
        sealed(b"one", key=b"x" * 32),
        [sealed(b"one")[0][:-1] + b"E"],
        [(MESSAGE_SIZE_LIMIT + 1).to_bytes(4, "little")],
    ],
    ids=["left out", "replayed", "another connection's", "changed", "too large"],
)
def test_a_frame_that_is_not_the_next_one_is_refused(stream: list[bytes]) -> None:
    """Left out, replayed, forged, changed, or beyond the bound."""
    reader = FrameReader()
    reader.authenticate(KEY)

    def read_all() -> None:
        for frame in stream:
            reader.feed(frame)
            reader.next()

    with pytest.raises(FrameError):
        read_all()


def test_a_hello_for_another_node_is_refused() -> None:
    """The wanted id must be this node's, the sender's must not."""
    identity = Identity("a", "c", 1, KEY)
    check_hello(Hello(PROTOCOL_VERSION, "c", 1, "b", "a", "", b"n" * 32), identity)
    for hello in (
        Hello(PROTOCOL_VERSION + 1, "c", 1, "b", "a", "", b"n" * 32),
        Hello(PROTOCOL_VERSION, "c", 1, "b", "z", "", b"n" * 32),
        Hello(PROTOCOL_VERSION, "c", 1, "a", "a", "", b"n" * 32),
        Hello(PROTOCOL_VERSION, "c", 1, "b", "a", "", b"short"),
    ):
        with pytest.raises(HandshakeError):
            check_hello(hello, identity)


def test_a_hello_of_another_cluster_or_incarnation_is_refused() -> None:
    """Even where the key is the same: a recovered cluster must not hear its former self (M7)."""
    identity = Identity("a", "c", 1, KEY)
    with pytest.raises(HandshakeError, match="of cluster other"):
        check_hello(Hello(PROTOCOL_VERSION, "other", 1, "b", "a", "", b"n" * 32), identity)
    for incarnation in (0, 2):
        hello = Hello(PROTOCOL_VERSION, "c", incarnation, "b", "a", "", b"n" * 32)
        assert refusal_of(hello, identity, is_removed=False, recorded_boot=0) == "incarnation 1"
    hello = Hello(PROTOCOL_VERSION, "c", 1, "b", "a", "", b"n" * 32, 4)
    assert refusal_of(hello, identity, is_removed=False, recorded_boot=4) == ""
    assert refusal_of(hello, identity, is_removed=False, recorded_boot=5) == "restored 5"
    assert refusal_of(hello, identity, is_removed=True, recorded_boot=5) == "removed"


def test_only_messages_are_messages() -> None:
    """Unknown numbers, wrong types and pickles are refused by decoding."""
    assert decode_message(encode_message(Confirm(3, 4))) == Confirm(3, 4)
    for data in (b"", b"\x80\x04K\x01.", msgspec.msgpack.encode([99, 1]), b"\x93\x0a\xa1x\x01"):
        with pytest.raises(msgspec.DecodeError):
            decode_message(data)
