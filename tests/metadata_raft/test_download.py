"""State download: what arrives is what one commit of the source held, or nothing at all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from metadata_raft import download
from metadata_raft.compaction import LogLease
from metadata_raft.configuration import Configuration
from metadata_raft.download import ReceivedState, StateReceiver, StateSource
from metadata_raft.manifest import Base, Identity
from metadata_raft.messages import Message, StatePiece, StateRefused, StateRequest
from metadata_raft.state_stream import (
    StateDecoder,
    StateDescription,
    StateEncoder,
    StateStreamError,
    copy_database,
)
from ring.filesystem import RealFileSystem
from tests.fakes.filesystem import FakeFileSystem

CONFIGURATION = Configuration(("source",), ("receiver",))
ROWS = 4000
DISK = RealFileSystem()


def make_state(path: Path, *, index: int = 7, term: int = 3) -> Path:
    """A database with what the download looks at, and a few megabytes besides."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE cluster (applied_index, applied_term)")
        connection.execute("CREATE TABLE files (path TEXT PRIMARY KEY, content BLOB)")
        connection.execute("INSERT INTO cluster VALUES (?, ?)", (index, term))
        connection.executemany(
            "INSERT INTO files VALUES (?, ?)", ((f"{n:08}", os.urandom(500)) for n in range(ROWS))
        )
        connection.commit()
    return path


def base_of(path: Path | str) -> Base:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return Base(*connection.execute("SELECT * FROM cluster").fetchone())


def rows(path: Path | str) -> list[tuple[str, bytes]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT * FROM files ORDER BY path").fetchall()


class Link:
    """Both directions between two nodes; `on_piece` may change or drop (None) what passes."""

    def __init__(self) -> None:
        self.receivers: dict[str, Callable[[str, Message], None]] = {}
        self.on_piece: Callable[[StatePiece], StatePiece | None] = lambda piece: piece
        self.pieces = 0
        self.unanswered = 0
        self.window_max = 0
        self.is_congested = False

    def end(self, own: str) -> LinkEnd:
        return LinkEnd(self, own)


class LinkEnd:
    def __init__(self, link: Link, own: str) -> None:
        self._link = link
        self._own = own

    def send(self, node_id: str, message: Message) -> None:
        link = self._link
        if isinstance(message, StatePiece):
            link.pieces += 1
            link.unanswered += 1
            link.window_max = max(link.window_max, link.unanswered)
            changed = link.on_piece(message)
            if changed is None:
                return
            message = changed
        elif isinstance(message, StateRequest):
            link.unanswered = max(0, link.unanswered - 1)
        target = link.receivers[node_id]
        asyncio.get_running_loop().call_soon(target, self._own, message)

    def can_send(self, node_id: str) -> bool:
        return not self._link.is_congested

    def flush(self) -> None:
        pass


class Pair:
    """A source with a state, and a receiver that wants it."""

    def __init__(self, directory: Path, *, receiver_cluster: str = "cluster") -> None:
        (directory / "source").mkdir()
        (directory / "receiver").mkdir()
        self.link = Link()
        self.lease = LogLease()
        self.database = make_state(directory / "source" / "state.db")
        self.target = directory / "receiver" / "state.db"
        self.source = StateSource(
            DISK,
            str(self.database),
            Identity("cluster", "source"),
            self.link.end("source"),
            self.lease,
            applied_index=lambda: 5,
            configuration_at=lambda index: CONFIGURATION,
        )
        ids = iter(range(1, 100))
        self.receiver = StateReceiver(
            DISK,
            str(self.target),
            Identity(receiver_cluster, "receiver"),
            self.link.end("receiver"),
            new_id=lambda: next(ids),
        )

        def to_source(sender: str, message: Message) -> None:
            assert isinstance(message, StateRequest)
            self.source.receive(sender, message)

        def to_receiver(sender: str, message: Message) -> None:
            assert isinstance(message, StatePiece | StateRefused)
            self.receiver.receive(sender, message)

        self.link.receivers = {"source": to_source, "receiver": to_receiver}

    async def fetch(self) -> ReceivedState:
        try:
            return await self.receiver.fetch("source")
        finally:
            await self.source.stop()


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


async def test_m6_arrives_whole(pair: Pair) -> None:
    """The receiver gets every row, the base, and the configuration there; no copy stays behind."""
    received = await pair.fetch()
    assert rows(received.path) == rows(pair.database)
    assert received.description.base == Base(7, 3) == base_of(received.path)
    assert received.description.configuration == CONFIGURATION
    assert os.listdir(pair.database.parent) == ["state.db"]


async def test_m6_window_is_kept(pair: Pair) -> None:
    """No more pieces are under way than the receiver has given credit for."""
    await pair.fetch()
    assert pair.link.pieces > download.WINDOW
    assert pair.link.window_max <= download.WINDOW


async def test_m6_copy_is_of_one_commit(pair: Pair) -> None:
    """Commits while the copy is sent neither show in it nor wait for it."""
    before = rows(pair.database)
    with contextlib.closing(sqlite3.connect(pair.database)) as writer:

        def commit(piece: StatePiece) -> StatePiece:
            writer.execute("UPDATE cluster SET applied_index = applied_index + 1")
            writer.execute("DELETE FROM files WHERE path = (SELECT min(path) FROM files)")
            writer.commit()
            return piece

        pair.link.on_piece = commit
        received = await pair.fetch()
    assert rows(received.path) == before
    assert received.description.base == Base(7, 3)
    assert base_of(pair.database).index > 7


async def test_m6_every_damage_is_noticed(pair: Pair) -> None:
    """A changed, cut, missing or added piece fails the download, whichever piece it is."""
    whole = await pair.fetch()
    count = pair.link.pieces
    assert whole.description.size_bytes > 2_000_000

    def flip(piece: StatePiece) -> StatePiece:
        middle = len(piece.data) // 2
        data = bytearray(piece.data)
        data[middle] ^= 1
        return StatePiece(piece.download, piece.number, bytes(data), piece.last)

    def cut(piece: StatePiece) -> StatePiece:
        return StatePiece(piece.download, piece.number, piece.data[:-1], piece.last)

    def end(piece: StatePiece) -> StatePiece:
        return StatePiece(piece.download, piece.number, piece.data, last=True)

    attempts = [(change, number) for change in (flip, cut) for number in range(count)]
    # The first piece is the description, and the last one the end, whatever they say.
    attempts += [(end, number) for number in range(1, count - 1)]
    for change, number in attempts:

        def spoil(
            piece: StatePiece,
            change: Callable[[StatePiece], StatePiece] = change,
            number: int = number,
        ) -> StatePiece:
            return change(piece) if piece.number == number else piece

        pair.link.on_piece = spoil
        with pytest.raises(StateStreamError):
            await pair.fetch()


async def test_m6_lost_piece(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a connection loses a piece, the attempt ends, and the next one succeeds."""
    monkeypatch.setattr(download, "PIECE_SECONDS", 0.2)
    pair.link.on_piece = lambda piece: None if piece.number == 3 else piece
    with pytest.raises(StateStreamError, match="piece 4 of source came before 3"):
        await pair.fetch()
    pair.link.on_piece = lambda piece: None if piece.number >= 3 else piece
    with pytest.raises(StateStreamError, match="went silent"):
        await pair.fetch()
    pair.link.on_piece = lambda piece: piece
    assert rows((await pair.fetch()).path) == rows(pair.database)


async def test_m6_lost_source(pair: Pair) -> None:
    """A source whose connection closed, or to whom there is none, is not waited for."""
    sent = asyncio.Event()
    pair.link.on_piece = lambda piece: sent.set()
    fetching = asyncio.create_task(pair.fetch())
    await sent.wait()
    pair.receiver.peer_lost("another")
    pair.receiver.peer_lost("source")
    with pytest.raises(StateStreamError, match="connection"):
        await asyncio.wait_for(fetching, 5)
    pair.link.is_congested = True
    with pytest.raises(StateStreamError, match="connection"):
        await asyncio.wait_for(pair.fetch(), 5)


async def test_m6_silent_receiver(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that went away does not keep the source busy, nor its log held, for ever."""
    monkeypatch.setattr(download, "PIECE_SECONDS", 0.05)
    pair.link.receivers["receiver"] = lambda sender, message: None
    pair.source.receive("receiver", StateRequest(1, 2))
    task = pair.source._task
    assert task is not None
    await asyncio.wait_for(task, 10)
    assert pair.link.pieces == 2
    assert not (pair.database.parent / "state.db.outgoing").exists()


async def test_m6_congested_connection(pair: Pair) -> None:
    """While the connection has enough to do no piece is added; afterwards the rest follows."""

    congested = asyncio.Event()

    def congest(piece: StatePiece) -> StatePiece:
        if piece.number == 1:
            pair.link.is_congested = True
            congested.set()
        return piece

    pair.link.on_piece = congest
    fetching = asyncio.create_task(pair.fetch())
    await congested.wait()
    for _ in range(20):
        await asyncio.sleep(download.SEND_PAUSE_SECONDS)
        assert pair.link.pieces == 2
    pair.link.is_congested = False
    assert rows((await fetching).path) == rows(pair.database)


async def test_m6_one_at_a_time(pair: Pair) -> None:
    """A second receiver is told to come back; the first one is not disturbed."""
    refused: list[Message] = []
    pair.link.receivers["third"] = lambda sender, message: refused.append(message)

    def ask(piece: StatePiece) -> StatePiece:
        if piece.number == 1:
            pair.source.receive("third", StateRequest(9, 4))
        return piece

    pair.link.on_piece = ask
    received = await pair.fetch()
    assert rows(received.path) == rows(pair.database)
    assert refused == [StateRefused(9, "busy")]


async def test_m6_late_credit(pair: Pair) -> None:
    """Credit that comes when all was sent begins nothing anew."""
    await pair.receiver.fetch("source")
    task = pair.source._task
    assert task is not None
    await asyncio.wait_for(task, 10)
    pieces = pair.link.pieces
    pair.source.receive("receiver", StateRequest(1, 1000))
    assert pair.source._task is task
    assert pair.link.pieces == pieces


async def test_m6_receiver_begins_anew(pair: Pair) -> None:
    """A receiver that restarted is served at once, in place of its former attempt."""
    pair.source.receive("receiver", StateRequest(50, 2))
    await asyncio.sleep(0)
    received = await pair.fetch()
    assert rows(received.path) == rows(pair.database)


async def test_m6_log_is_held(pair: Pair) -> None:
    """The source holds its log from where its state stood before the copy, and for a while."""
    await pair.fetch()
    now = asyncio.get_running_loop().time()
    assert pair.lease.index(now) == 5
    assert pair.lease.index(now + download.LEASE_AFTER_SECONDS + 1) is None


async def test_m6_other_cluster(tmp_path: Path) -> None:
    """A state of another cluster is not taken."""
    with pytest.raises(StateStreamError, match="of cluster cluster"):
        await Pair(tmp_path, receiver_cluster="other").fetch()


async def test_m6_source_without_state(pair: Pair) -> None:
    """A source that can't copy its state says so at once."""
    os.unlink(pair.database)
    with pytest.raises(StateStreamError, match="refused"):
        await pair.fetch()


def encode_all(path: Path) -> tuple[list[tuple[bytes, bool]], StateDescription]:
    file = DISK.open(str(path))
    description = StateDescription(
        version=1,
        cluster_id="cluster",
        incarnation=1,
        base=Base(7, 3),
        configuration=CONFIGURATION,
        size_bytes=file.size(),
    )
    encoder = StateEncoder(file, description)
    pieces = [encoder.next()]
    while not pieces[-1][1]:
        pieces.append(encoder.next())
    file.close()
    return pieces, description


def test_m6_durable_before_it_counts(tmp_path: Path) -> None:
    """When the last piece was taken, the file is there after every power cut."""
    state = make_state(tmp_path / "state.db")
    copy_database(str(state), str(tmp_path / "copy"))
    pieces, description = encode_all(tmp_path / "copy")
    disk = FakeFileSystem()
    decoder = StateDecoder(disk, "/state.incoming", cluster_id="cluster", incarnation=1)
    for data, last in pieces[:-1]:
        assert decoder.take(data, last=last) is None
    assert decoder.take(*pieces[-1][:1], last=True) == description
    content = (tmp_path / "copy").read_bytes()
    for seed in range(10):
        found = disk.crashed_copy(seed).open("/state.incoming")
        assert found.read_at(0, found.size()) == content


def test_m6_no_space(tmp_path: Path) -> None:
    """A state that would fill the disk is refused before its first byte."""
    state = make_state(tmp_path / "state.db")
    pieces, _ = encode_all(state)
    disk = FakeFileSystem(capacity_bytes=1_000_000)
    decoder = StateDecoder(disk, "/state.incoming", cluster_id="cluster", incarnation=1)
    with pytest.raises(StateStreamError, match="bytes free"):
        decoder.take(pieces[0][0], last=False)
    assert disk.names("/") == []
