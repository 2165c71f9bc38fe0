"""The pace of what moves in the background: a rate that can change, clients first."""

from __future__ import annotations

import asyncio
import math

import pytest

from ring.throttle import (
    BURST_SECONDS,
    CLIENT_SECONDS,
    CLIENTS_DIVISOR,
    LOOK_SECONDS,
    ClientActivity,
    SpeedMeter,
    Throttle,
)
from tests.fakes.ring_nodes import eventually

MIB = 1024 * 1024


class World:
    """A clock that sleeping moves on, and what a throttle asks for. `at` changes things in time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.rate = 10 * MIB
        self.clients = False
        self.beside_clients = 0
        self.slept: list[float] = []
        self.throttle = Throttle(
            lambda: self.rate,
            clients=lambda: self.clients,
            beside_clients=lambda: self.beside_clients,
            clock=self.clock,
            sleep=self.sleep,
        )

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0.0001)

    async def seconds_for(self, total: int, *, piece: int = MIB) -> float:
        """How long it takes until `total` bytes have been let through and paid for."""
        began = self.now
        for _ in range(total // piece):
            await self.throttle.wait(piece)
        await self.throttle.wait(0)
        return self.now - began


async def test_the_rate_holds_over_time() -> None:
    """Bytes per second are what was set, whatever the pieces are."""
    for piece in (128 * 1024, MIB, 8 * MIB):
        world = World()
        seconds = await world.seconds_for(160 * MIB, piece=piece)
        assert seconds == pytest.approx(16, abs=2 * BURST_SECONDS)


async def test_time_that_passed_unused_is_not_saved_up() -> None:
    """After an hour of silence no more than a burst goes at once."""
    world = World()
    world.now += 3600
    assert await world.seconds_for(100 * MIB) == pytest.approx(10, abs=2 * BURST_SECONDS)


async def test_without_a_limit_nobody_waits() -> None:
    """Rate 0 means as fast as it goes, also for what a former rate had not been paid for yet."""
    world = World()
    await world.throttle.wait(1000 * MIB)
    world.rate = 0
    assert await world.seconds_for(10_000 * MIB, piece=8 * MIB) == 0
    assert math.isinf(world.throttle.bytes_per_second())


async def test_a_new_rate_takes_effect_for_who_waits_already() -> None:
    """The rate is asked for again while waiting: neither up nor down waits for the old one."""
    world = World()
    world.rate = MIB // 1024
    await world.throttle.wait(8 * MIB)
    waiting = asyncio.ensure_future(world.throttle.wait(1))
    await eventually(lambda: len(world.slept) >= 3)
    assert not waiting.done()
    world.rate = 100 * MIB
    before = world.now
    await waiting
    assert world.now - before <= LOOK_SECONDS + 8 / 100
    assert max(world.slept) <= LOOK_SECONDS


async def test_clients_come_first() -> None:
    """While clients are served a part of the rate is used, and no more than what is set for that,
    from the moment on at which it is."""
    world = World()
    world.clients = True
    seconds = await world.seconds_for(40 * MIB)
    assert seconds == pytest.approx(4 * CLIENTS_DIVISOR, abs=2 * BURST_SECONDS)
    for rate in (0, 10_000 * MIB):
        world.rate = rate
        world.beside_clients = 24 * MIB
        assert await world.seconds_for(8 * 24 * MIB) == pytest.approx(8, abs=0.5)
        world.beside_clients = 48 * MIB
        assert await world.seconds_for(8 * 48 * MIB) == pytest.approx(8, abs=0.5)
    world.beside_clients = 0
    assert world.throttle.bytes_per_second() == 10_000 * MIB / CLIENTS_DIVISOR
    world.rate = 0
    assert math.isinf(world.throttle.bytes_per_second())
    world.rate, world.beside_clients = 40 * MIB, 24 * MIB
    assert world.throttle.bytes_per_second() == 10 * MIB
    world.clients = False
    world.rate = 10 * MIB
    assert await world.seconds_for(100 * MIB) == pytest.approx(10, abs=0.5)


async def test_turns_come_in_order() -> None:
    """Who asked first goes first, so that no copy waits for ever behind others."""
    world = World()
    done: list[int] = []

    async def take(number: int) -> None:
        await world.throttle.wait(MIB)
        done.append(number)

    await asyncio.gather(*(take(number) for number in range(30)))
    assert done == list(range(30))


async def test_who_gives_up_holds_nobody_up() -> None:
    """A waiter that is cancelled, as at the stop of a node, leaves its turn to the next."""
    world = World()
    await world.throttle.wait(50 * MIB)
    first = asyncio.ensure_future(world.throttle.wait(MIB))
    second = asyncio.ensure_future(world.throttle.wait(MIB))
    await eventually(lambda: bool(world.slept))
    first.cancel()
    await second
    assert first.cancelled()


def test_clients_are_noticed_for_a_while() -> None:
    """A node serves clients from a request on until a second after the last sign of one."""
    now = [50.0]
    activity = ClientActivity(lambda: now[0])
    assert not activity.active()
    activity.note()
    now[0] += CLIENT_SECONDS * 0.9
    assert activity.active()
    activity.note()
    now[0] += CLIENT_SECONDS * 0.9
    assert activity.active()
    now[0] += CLIENT_SECONDS * 0.2
    assert not activity.active()


def test_the_speed_of_late() -> None:
    """A steady speed is told within a few percent after half a minute, and is forgotten again."""
    now = [0.0]
    meter = SpeedMeter(lambda: now[0])
    assert meter.bytes_per_second() == 0
    for _ in range(300):
        now[0] += 0.1
        meter.add(MIB)
    assert meter.bytes_per_second() == pytest.approx(10 * MIB, rel=0.06)
    now[0] += 120
    assert meter.bytes_per_second() < 100
