"""Rereads every chunk of this node now and then: damage is found while others have it whole.

A pass goes through the records in the order in which they lie on the disk, past the page cache, and
verifies headers and contents; what is bad is quarantined and so handed to repair, which brings a
good copy. It is slow on purpose: so many bytes a second, a part of that while clients are served.
Passes follow one another at an interval, or on request. Where a pass is, and when the last one
ended, is kept beside the volumes and survives restarts; this is the one place in the ring that asks
a wall clock, and nothing but the time of the next pass hangs on it.

Every few seconds, passes or not, the files themselves are looked at: see `ring/store_scrub.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

import msgspec

from ring.filesystem import FileSystem, read_file, write_file_atomically
from ring.store_scrub import Position, Verified

RECORD_NAME = "scrub.json"
RECORD_VERSION = 1

CHECK_SECONDS = 5.0
"""Between two looks at the files: what is written to a removed volume in between is on the other
nodes only."""

IDLE_SECONDS = 1.0
"""Between two looks at the time while no pass is under way."""

SAVE_SECONDS = 30.0
"""Between two notes of the position in a pass: a restart repeats this much, and no note costs."""

BUSY_SHARE = 4
"""While clients are served a pass takes one part in so many of its rate."""

PAUSE_SECONDS_MAX = 10.0
"""A rate that was raised is noticed within this time, however low it was."""

_log = logging.getLogger(__name__)


class ScrubbedStore(Protocol):
    """What a scrub needs of a store: `ring.store_scrub.StoreScrub`."""

    async def end(self) -> Position: ...

    async def verify(self, position: Position, end: Position) -> Verified | None: ...

    async def check_files(self) -> int: ...


class ScrubPass(msgspec.Struct, frozen=True, kw_only=True):
    """A pass under way, as it is stored."""

    position: tuple[int, int]
    """Volume and offset: what lies before has been verified."""
    end: tuple[int, int]
    """Where the records ended when the pass began; what came later was verified as it came."""
    done_bytes: int = 0
    damaged: int = 0


class ScrubRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored; see docs/format.md."""

    format_version: int = RECORD_VERSION
    ended_at: float
    """Unix time at which the latest whole pass ended, or this store was first scrubbed or made."""
    passes: int = 0
    """Whole passes so far."""
    damaged: int = 0
    """Records that the latest whole pass found bad."""
    under_way: ScrubPass | None = None


@dataclass(frozen=True, slots=True)
class ScrubStatus:
    """How far the scrub of this node is."""

    is_running: bool
    passes: int
    """Whole passes so far, over restarts."""
    done_bytes: int
    total_bytes: int
    """Of the pass under way; 0 between two."""
    bytes_per_second: float
    """Of the pass under way, since it began or this process started."""
    eta_seconds: float | None
    """Until the pass under way ends; None where that is not known, or none is."""
    damage_found: int
    """Records that the pass under way, or else the latest, found bad."""
    age_seconds: float
    """Since the latest whole pass ended, or the store's beginning."""


class Scrubber:
    """A `ring.worker.Job`. `start_now` and `status` may be called at any time on its loop.

    `rate` gives bytes per second (0: no limit) and `interval` the seconds between two passes (0:
    only on request), both as they are now; `total` gives the bytes of all records, and `is_busy`
    whether clients are served.
    """

    def __init__(
        self,
        *,
        store: ScrubbedStore,
        filesystem: FileSystem,
        directory: str,
        workers: Executor,
        total: Callable[[], int],
        rate: Callable[[], int],
        interval: Callable[[], float],
        is_busy: Callable[[], bool] = lambda: False,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._filesystem = filesystem
        self._path = os.path.join(directory, RECORD_NAME)
        self._workers = workers
        self._total = total
        self._rate = rate
        self._interval = interval
        self._is_busy = is_busy
        self._wall_clock = wall_clock
        self._clock = clock
        self._record: ScrubRecord | None = None
        """None until it was read."""
        self._is_asked = False
        self._check_at = 0.0
        self._save_at = 0.0
        self._debt_bytes = 0.0
        """Read already, and not yet paid for with time."""
        self._paid_at = 0.0
        self._measured_from = (0.0, 0)
        """When, and at how many bytes, this process took up the pass under way."""

    def start_now(self) -> int:
        """Begin a pass as soon as possible; returns the number that `passes` has when it ended.

        One that is under way ends first: what it has passed by may have been damaged since.
        """
        self._is_asked = True
        return self._passes + (2 if self._is_running else 1)

    def status(self) -> ScrubStatus:
        record = self._record
        under_way = record.under_way if record is not None else None
        age = max(0.0, self._wall_clock() - record.ended_at) if record is not None else 0.0
        if record is None or under_way is None:
            return ScrubStatus(
                is_running=False,
                passes=self._passes,
                done_bytes=0,
                total_bytes=0,
                bytes_per_second=0.0,
                eta_seconds=None,
                damage_found=record.damaged if record is not None else 0,
                age_seconds=age,
            )
        since, before = self._measured_from
        seconds = self._clock() - since
        speed = (under_way.done_bytes - before) / seconds if seconds > 0 else 0.0
        total = max(self._total(), under_way.done_bytes)
        return ScrubStatus(
            is_running=True,
            passes=record.passes,
            done_bytes=under_way.done_bytes,
            total_bytes=total,
            bytes_per_second=speed,
            eta_seconds=(total - under_way.done_bytes) / speed if speed > 0 else None,
            damage_found=under_way.damaged,
            age_seconds=age,
        )

    async def work(self) -> float:
        """Look at the files if that is due; verify some records if a pass is."""
        record = self._record
        if record is None:
            record = await self._load()
        if self._clock() >= self._check_at:
            await self._store.check_files()
            self._check_at = self._clock() + CHECK_SECONDS
        if record.under_way is None:
            if not self._is_due(record):
                return IDLE_SECONDS
            record = await self._begin(record)
        assert record.under_way is not None
        pause = self._pause()
        if pause > 0:
            return pause
        return await self._go_on(record, record.under_way)

    # --- a pass ------------------------------------------------------------------------------

    @property
    def _passes(self) -> int:
        return self._record.passes if self._record is not None else 0

    @property
    def _is_running(self) -> bool:
        return self._record is not None and self._record.under_way is not None

    def _is_due(self, record: ScrubRecord) -> bool:
        age, interval = self._wall_clock() - record.ended_at, self._interval()
        # A time to come is one of a clock that was wrong: it must not put passes off for years.
        return self._is_asked or (interval > 0 and not 0 <= age < interval)

    async def _begin(self, record: ScrubRecord) -> ScrubRecord:
        end = await self._store.end()
        # Only what is asked from here on wants another pass.
        self._is_asked = False
        under_way = ScrubPass(position=Position(), end=end)
        self._record = begun = msgspec.structs.replace(record, under_way=under_way)
        self._measured_from = (self._clock(), 0)
        _log.info("a scrub begins: %d bytes", self._total())
        await self._save()
        return begun

    async def _go_on(self, record: ScrubRecord, under_way: ScrubPass) -> float:
        verified = await self._store.verify(Position(*under_way.position), Position(*under_way.end))
        if verified is None:
            await self._finish(record, under_way)
            return 0.0
        self._record = msgspec.structs.replace(
            record,
            under_way=ScrubPass(
                position=verified.position,
                end=under_way.end,
                done_bytes=under_way.done_bytes + verified.size_bytes,
                damaged=under_way.damaged + verified.damaged,
            ),
        )
        if self._clock() >= self._save_at:
            await self._save()
        self._debt_bytes += verified.size_bytes
        return self._pause()

    async def _finish(self, record: ScrubRecord, under_way: ScrubPass) -> None:
        self._record = ScrubRecord(
            ended_at=self._wall_clock(), passes=record.passes + 1, damaged=under_way.damaged
        )
        _log.info(
            "a scrub has ended: %d bytes, %d records damaged",
            under_way.done_bytes,
            under_way.damaged,
        )
        await self._save()

    def _pause(self) -> float:
        """Seconds until what has been read is paid for at the present rate, or until it is asked
        for again."""
        now = self._clock()
        elapsed, self._paid_at = now - self._paid_at, now
        rate = self._rate()
        if self._is_busy():
            rate = rate and max(1, rate // BUSY_SHARE)
        if rate <= 0:
            self._debt_bytes = 0.0
            return 0.0
        self._debt_bytes -= elapsed * rate
        # The rest of a byte is what rounding leaves.
        if self._debt_bytes < 1:
            self._debt_bytes = 0.0
        return min(self._debt_bytes / rate, PAUSE_SECONDS_MAX)

    # --- what is kept ------------------------------------------------------------------------

    async def _load(self) -> ScrubRecord:
        found = await asyncio.get_running_loop().run_in_executor(self._workers, self._read)
        record = found if found is not None else ScrubRecord(ended_at=self._wall_clock())
        if record.under_way is not None:
            self._measured_from = (self._clock(), record.under_way.done_bytes)
        self._record = record
        if found is None:
            # A node that is restarted often would never be an interval old.
            await self._save()
        return record

    def _read(self) -> ScrubRecord | None:
        try:
            record = msgspec.json.decode(read_file(self._filesystem, self._path), type=ScrubRecord)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            _log.warning("%s can't be used, the scrub begins anew: %s", self._path, error)
            return None
        return record if record.format_version <= RECORD_VERSION else None

    async def _save(self) -> None:
        """Note where the scrub is. A note that can't be made is no harm: some is read twice."""
        assert self._record is not None
        self._save_at = self._clock() + SAVE_SECONDS
        data = msgspec.json.encode(self._record) + b"\n"
        try:
            await asyncio.get_running_loop().run_in_executor(
                self._workers, write_file_atomically, self._filesystem, self._path, data
            )
        except OSError as error:
            _log.warning("%s can't be written: %s", self._path, error)
