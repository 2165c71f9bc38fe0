"""The ring of an epoch is computed once, off the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from ring.members import Member, Membership
from ring.placement import Ring, build_ring
from ring.ring_cache import CACHE_LIMIT, RingCache
from tests.fakes.ring_nodes import FixedView


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads in which rings were computed."""
    threads: list[str] = []

    def build(membership: Membership) -> Ring:
        threads.append(threading.current_thread().name)
        return build_ring(membership)

    monkeypatch.setattr("ring.ring_cache.build_ring", build)
    return threads


def _membership(epoch: int) -> Membership:
    member = Member(node_id="a", peer_address="h:1", raft_address="h:2", client_url="http://h:3")
    return Membership(epoch=epoch, members=(member,))


async def test_a_ring_is_computed_once(workers: ThreadPoolExecutor, builds: list[str]) -> None:
    """Whoever asks at the same time or later gets the same ring, from one computation elsewhere."""
    view = FixedView()
    view.present = _membership(1)
    rings = RingCache(view, workers)
    assert rings.ready() is None
    first, second = await asyncio.gather(rings.current(), rings.current())
    assert first is second is rings.ready() is await rings.of(_membership(1))
    assert len(builds) == 1
    assert builds[0] != threading.current_thread().name


async def test_an_impatient_caller_takes_the_ring_from_nobody(
    workers: ThreadPoolExecutor, builds: list[str]
) -> None:
    """Cancelling one of those that wait leaves the computation to the others."""
    view = FixedView()
    view.present = _membership(1)
    rings = RingCache(view, workers)
    impatient = asyncio.ensure_future(rings.current())
    patient = asyncio.ensure_future(rings.current())
    await asyncio.sleep(0)
    impatient.cancel()
    assert (await patient).epoch == 1
    assert len(builds) == 1


async def test_a_new_address_is_a_new_ring_and_old_ones_are_dropped(
    workers: ThreadPoolExecutor, builds: list[str]
) -> None:
    """Members are reached at their newest addresses; memory is bounded."""
    view = FixedView()
    rings = RingCache(view, workers)
    view.present = _membership(1)
    await rings.current()
    (member,) = view.present.members
    moved = msgspec.structs.replace(member, peer_address="h:9")
    view.present = Membership(epoch=1, members=(moved,))
    assert rings.ready() is None
    assert (await rings.current()).members["a"].peer_address == "h:9"
    for epoch in range(2, CACHE_LIMIT + 4):
        await rings.of(_membership(epoch))
    before = len(builds)
    await rings.of(_membership(CACHE_LIMIT + 3))
    assert len(builds) == before
    await rings.of(_membership(1))
    assert len(builds) == before + 1
