"""When a scrub runs, how fast, and what a restart knows of it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from ring import scrub
from ring.errors import StoreFullError
from ring.filesystem import FileSystem
from ring.scrub import Scrubber
from ring.store_scrub import Position, Verified
from tests.fakes.filesystem import FakeFileSystem

DAY = 24 * 3600.0
MIB = 1024 * 1024


@dataclass
class FakeRecords:
    """Records of a mebibyte, in one volume, one behind the other."""

    count: int = 8
    damaged: set[int] = field(default_factory=set)
    read: list[int] = field(default_factory=list)
    checks: int = 0
    error: Exception | None = None

    async def end(self) -> Position:
        return Position(1, self.count * MIB)

    async def verify(self, position: Position, end: Position) -> Verified | None:
        if self.error is not None:
            raise self.error
        number = position.offset // MIB
        if number >= end.offset // MIB:
            return None
        self.read.append(number)
        return Verified(Position(1, (number + 1) * MIB), MIB, number in self.damaged)

    async def check_files(self) -> int:
        self.checks += 1
        return 0


class World:
    """A scrubber in virtual time."""

    def __init__(self, workers: ThreadPoolExecutor) -> None:
        self.workers = workers
        self.disk = FakeFileSystem()
        self.disk.make_directory("/chunks")
        self.disk.sync_directory("/")
        self.store = FakeRecords()
        self.now = 1000.0
        self.wall = 1_800_000_000.0
        self.rate = 0
        self.interval = 14 * DAY
        self.is_busy = False
        self.scrubber = self.make(self.disk)

    def make(self, disk: FileSystem) -> Scrubber:
        return Scrubber(
            store=self.store,
            filesystem=disk,
            directory="/chunks",
            workers=self.workers,
            total=lambda: self.store.count * MIB,
            rate=lambda: self.rate,
            interval=lambda: self.interval,
            is_busy=lambda: self.is_busy,
            wall_clock=lambda: self.wall,
            clock=lambda: self.now,
        )

    async def step(self) -> float:
        """One unit of work, and the pause it asks for."""
        pause = await self.scrubber.work()
        self.let_pass(pause)
        return pause

    def let_pass(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds

    async def until_idle(self) -> float:
        """Work until no pass is under way; returns the seconds it took."""
        started = self.now
        await self.step()
        while self.scrubber.status().is_running:
            await self.step()
        return self.now - started


@pytest.fixture
def world() -> Iterator[World]:
    with ThreadPoolExecutor(1) as workers:
        yield World(workers)


async def test_a_pass_comes_when_the_interval_is_over(world: World) -> None:
    """The first one an interval after the store's beginning, the next an interval after its end."""
    await world.step()
    world.let_pass(13 * DAY)
    await world.until_idle()
    assert world.store.read == []
    assert world.scrubber.status().age_seconds == pytest.approx(13 * DAY, abs=10)
    world.let_pass(1 * DAY)
    await world.until_idle()
    assert world.store.read == list(range(8))
    status = world.scrubber.status()
    assert (status.passes, status.age_seconds) == (1, 0.0)
    await world.until_idle()
    assert world.store.read == list(range(8))


async def test_the_interval_may_change_and_nought_means_never(world: World) -> None:
    """It is asked for as it is now."""
    await world.step()
    world.interval = 0.0
    world.let_pass(1000 * DAY)
    await world.until_idle()
    assert world.store.read == []
    world.interval = DAY
    await world.until_idle()
    assert world.store.read == list(range(8))


async def test_a_clock_that_was_ahead_does_not_put_passes_off(world: World) -> None:
    """A time to come that was noted counts as none."""
    world.scrubber.start_now()
    await world.until_idle()
    world.wall -= 5 * 365 * DAY
    await world.until_idle()
    assert world.scrubber.status().passes == 2


async def test_on_request_at_once(world: World) -> None:
    """The number told is that of `passes` when the pass has ended."""
    await world.step()
    expected = world.scrubber.start_now()
    assert world.scrubber.status().passes < expected
    await world.until_idle()
    assert world.scrubber.status().passes == expected


async def test_a_request_during_a_pass_wants_another_one(world: World) -> None:
    """What the pass has gone by may have been damaged since; several requests want one, though."""
    world.scrubber.start_now()
    for _ in range(4):
        await world.step()
    expected = world.scrubber.start_now()
    assert world.scrubber.start_now() == expected == 2
    await world.until_idle()
    await world.until_idle()
    assert world.scrubber.status().passes == 2
    assert world.store.read == [*range(8), *range(8)]
    await world.until_idle()
    assert world.scrubber.status().passes == 2


@pytest.mark.parametrize("rate", [MIB // 50, MIB, 3 * MIB])
async def test_the_rate_is_kept(world: World, rate: int) -> None:
    """Over a whole pass, also where one unit takes longer than a pause may be."""
    world.rate = rate
    world.scrubber.start_now()
    assert await world.until_idle() == pytest.approx(8 * MIB / rate, rel=0.01)


async def test_clients_come_first(world: World) -> None:
    """While they are served a pass takes a part of its rate."""
    world.rate, world.is_busy = MIB, True
    world.scrubber.start_now()
    assert await world.until_idle() == pytest.approx(8 * scrub.BUSY_SHARE, rel=0.01)


async def test_a_raised_rate_counts_soon(world: World) -> None:
    """However slow the pass was: no pause is longer than the bound, and debts shrink with it."""
    world.rate = 1
    world.scrubber.start_now()
    await world.step()
    assert await world.step() == scrub.PAUSE_SECONDS_MAX
    world.rate = MIB
    assert await world.until_idle() < 10


async def test_progress(world: World) -> None:
    """Bytes done, time left at the speed so far, damage found; after the pass what it found."""
    world.rate = MIB
    world.store.damaged = {1, 6}
    world.scrubber.start_now()
    while world.scrubber.status().done_bytes < 4 * MIB:
        await world.step()
    status = world.scrubber.status()
    assert status.is_running
    assert (status.done_bytes, status.total_bytes, status.damage_found) == (4 * MIB, 8 * MIB, 1)
    assert status.bytes_per_second == pytest.approx(MIB, rel=0.01)
    assert status.eta_seconds == pytest.approx(4.0, rel=0.01)
    await world.until_idle()
    status = world.scrubber.status()
    assert not status.is_running
    assert status.damage_found == 2
    assert status.eta_seconds is None


async def test_a_restart_goes_on_where_it_was(world: World) -> None:
    """A power cut repeats what was read since the last note at most, and forgets no damage."""
    world.rate = MIB // 10
    world.store.damaged = {0}
    world.scrubber.start_now()
    while world.scrubber.status().done_bytes < 6 * MIB:
        await world.step()
    noted = 6 - int(scrub.SAVE_SECONDS // 10) - 1
    world.scrubber = world.make(world.disk.crashed_copy(1))
    del world.store.read[:]
    await world.until_idle()
    assert world.store.read[0] > 0
    assert world.store.read[0] >= noted
    assert world.store.read == list(range(world.store.read[0], 8))
    assert world.scrubber.status().damage_found == 1
    assert world.scrubber.status().passes == 1


async def test_a_restart_knows_when_the_last_pass_ended(world: World) -> None:
    """Also after a power cut right behind it."""
    world.scrubber.start_now()
    await world.until_idle()
    world.scrubber = world.make(world.disk.crashed_copy(1))
    world.let_pass(13 * DAY)
    await world.until_idle()
    assert world.scrubber.status().passes == 1
    assert world.scrubber.status().age_seconds == pytest.approx(13 * DAY, abs=10)
    world.let_pass(DAY)
    await world.until_idle()
    assert world.scrubber.status().passes == 2


async def test_a_store_that_is_new_remembers_its_beginning(world: World) -> None:
    """Else a node that is restarted every day would never be scrubbed."""
    for _ in range(15):
        world.scrubber = world.make(world.disk)
        await world.until_idle()
        world.let_pass(DAY)
    assert world.scrubber.status().passes == 1


@pytest.mark.parametrize("note", [b"", b"{", b'{"format_version": 99, "ended_at": 0}', b"\xff"])
async def test_a_note_that_is_of_no_use(world: World, note: bytes) -> None:
    """It is told and replaced; scrubbing begins anew."""
    file = world.disk.open("/chunks/" + scrub.RECORD_NAME, create=True)
    file.write_at(0, note)
    await world.until_idle()
    world.let_pass(14 * DAY)
    await world.until_idle()
    assert world.scrubber.status().passes == 1


async def test_a_full_disk_does_not_stop_a_pass(world: World) -> None:
    """A note that can't be made is no harm."""
    world.disk.fail("write", errno.ENOSPC, times=1000)
    world.scrubber.start_now()
    await world.until_idle()
    assert world.store.read == list(range(8))
    assert world.scrubber.status().passes == 1


async def test_what_could_not_be_quarantined_is_read_again(world: World) -> None:
    """Damage that was found and not marked must not be passed by."""
    world.scrubber.start_now()
    await world.step()
    world.store.error = StoreFullError("no space left for the chunk index")
    for _ in range(2):
        with pytest.raises(StoreFullError):
            await world.scrubber.work()
    world.store.error = None
    await world.until_idle()
    assert world.store.read == list(range(8))


async def test_files_are_looked_at_all_the_time(world: World) -> None:
    """Between passes and in them, every few seconds and not more often."""
    started = world.now
    while world.now < started + 50:
        await world.step()
    assert world.store.checks == pytest.approx(50 / scrub.CHECK_SECONDS, abs=1)
    world.rate = MIB // 10
    world.scrubber.start_now()
    before, took = world.store.checks, await world.until_idle()
    assert took > 70
    assert world.store.checks - before >= took / scrub.PAUSE_SECONDS_MAX - 1
