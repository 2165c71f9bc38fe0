"""The client of short requests gives back what was stored, or says why not."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from loadtests.keep_alive_client import Connection, RequestFailedError, for_each
from tests.loadtests.fake_store import FakeStore

FILES = 50


@pytest.fixture
async def store() -> AsyncIterator[tuple[FakeStore, int]]:
    fake = FakeStore()
    runner = web.AppRunner(fake.application())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield fake, runner.addresses[0][1]
    await runner.cleanup()


def _path(number: int) -> str:
    return f"/api/v1/files/default/{number:03}"


async def test_every_number_is_worked_off_once_over_kept_connections(
    store: tuple[FakeStore, int],
) -> None:
    """Fifty files through three connections: each stored once, each read back as it was."""
    fake, port = store
    connections = [Connection("127.0.0.1", port, {"X-Any": "header"}) for _ in range(3)]
    read: dict[int, bytes] = {}

    async def put(connection: Connection, number: int) -> None:
        await connection.ask("PUT", _path(number), b"%d" % number * 100, expect=(201,))

    async def get(connection: Connection, number: int) -> None:
        read[number] = await connection.ask("GET", _path(number))

    await for_each(range(FILES), connections, put)
    assert fake.requests == FILES
    await for_each(range(FILES), connections, get)
    assert read == {number: b"%d" % number * 100 for number in range(FILES)}
    for connection in connections:
        connection.close()


async def test_another_status_than_expected_is_an_error(store: tuple[FakeStore, int]) -> None:
    """A file that is not there fails the request, and the message names it and the status."""
    connection = Connection("127.0.0.1", store[1], {})
    with pytest.raises(RequestFailedError, match=r"GET .*/001: 404"):
        await connection.ask("GET", _path(1))
    connection.close()
