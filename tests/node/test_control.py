"""The control socket: reachable from the data directory alone, and clear when nobody answers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.documents import (
    ClusterDocument,
    LeaveRequest,
    MemberDocument,
    NewKey,
    NewToken,
    TokenCreation,
)
from gateway.errors import ApiError
from node import control
from node.control import ControlError, ControlServer
from tests.fakes.documents import cluster, member


class FakeNode:
    def __init__(self) -> None:
        self.leaving: list[bool] = []

    async def leave(self, *, reduce_copies: bool) -> MemberDocument:
        self.leaving.append(reduce_copies)
        return member("n1", intent="leave")

    def status(self) -> ClusterDocument:
        return cluster(member("n1"))

    backup_fails = False

    async def create_token(self, *, actor: str, lifetime_seconds: int) -> NewToken:
        return NewToken(token=f"token of {actor}", lifetime_seconds=lifetime_seconds)

    async def reset_admin_key(self) -> NewKey:
        raise ApiError("no_quorum", "no leader is known")

    @asynccontextmanager
    async def backup(self) -> AsyncIterator[AsyncIterable[bytes]]:
        yield self._pieces()

    async def _pieces(self) -> AsyncIterator[bytes]:
        yield b"first"
        if self.backup_fails:
            raise OSError("the disk failed")
        yield b"second"


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
async def directory(tmp_path: Path, node: FakeNode) -> AsyncIterator[str]:
    # Deeper than a Unix socket's address could name.
    path = tmp_path / ("d" * 100) / ("e" * 100)
    path.mkdir(parents=True)
    server = ControlServer(str(path), node)
    await server.start()
    yield str(path)
    await server.stop()


async def test_a_call_is_answered_however_long_the_path_is(directory: str) -> None:
    """The answer comes back typed; the node acts as the system, without any key."""
    token = await asyncio.to_thread(
        control.call, directory, "/token", NewToken, TokenCreation(lifetime_seconds=9)
    )
    assert token == NewToken(token="token of system", lifetime_seconds=9)


async def test_a_node_is_told_to_leave_without_a_key(directory: str, node: FakeNode) -> None:
    """Who owns the machine may say that its node is to leave, and may watch it."""
    told = await asyncio.to_thread(control.call, directory, "/leave", MemberDocument)
    assert told.intent == "leave"
    request = LeaveRequest(reduce_copies=True)
    await asyncio.to_thread(control.call, directory, "/leave", MemberDocument, request)
    assert node.leaving == [False, True]
    seen = await asyncio.to_thread(control.call, directory, "/status", ClusterDocument)
    assert [each.node_id for each in seen.members] == ["n1"]


async def test_others_cannot_open_the_socket(directory: str) -> None:
    """The socket is its owner's alone."""
    assert os.stat(os.path.join(directory, "control.sock")).st_mode & 0o077 == 0


async def test_a_refusal_keeps_its_sentence_and_says_whether_to_try_again(directory: str) -> None:
    """No quorum: exit code 5."""
    with pytest.raises(ControlError, match="no leader is known") as raised:
        await asyncio.to_thread(control.call, directory, "/reset-key", NewKey)
    assert raised.value.exit_code == 5


def test_without_a_node_the_sentence_says_so(tmp_path: Path) -> None:
    """Neither a missing directory nor a socket that a killed node left is a traceback."""
    with pytest.raises(ControlError, match="No node answers on the data directory"):
        control.call(str(tmp_path / "missing"), "/token", NewToken)
    (tmp_path / "control.sock").write_text("")
    with pytest.raises(ControlError, match="start it first"):
        control.call(str(tmp_path), "/token", NewToken)


async def test_a_socket_left_by_a_killed_node_is_replaced(tmp_path: Path) -> None:
    """A restart after kill -9 listens again."""
    (tmp_path / "control.sock").write_text("")
    server = ControlServer(str(tmp_path), FakeNode())
    await server.start()
    try:
        token = await asyncio.to_thread(control.call, str(tmp_path), "/token", NewToken)
        assert token.lifetime_seconds == 3600
    finally:
        await server.stop()


async def test_a_backup_streams_and_breaks_off_visibly(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All pieces in order; where the node fails in the middle whoever reads is told."""

    def read() -> bytes:
        return b"".join(control.stream(directory, "/backup"))

    assert await asyncio.to_thread(read) == b"firstsecond"
    monkeypatch.setattr(FakeNode, "backup_fails", True)
    with pytest.raises(ControlError):
        await asyncio.to_thread(read)
