"""Runs a background job: a unit of work, a pause, the next unit.

A job says itself when it wants to go on. An error in a unit is logged with its job's name, and
followed by ever longer pauses; no error ends a worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Protocol

FAILURE_PAUSE_SECONDS = 1.0
FAILURE_PAUSE_SECONDS_MAX = 60.0
"""Pauses after errors double between these: most causes pass within seconds, others need people."""

_log = logging.getLogger(__name__)


class Job(Protocol):
    async def work(self) -> float:
        """Do one bounded unit; return the seconds until the next one is wanted."""


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    units: int
    """Units that ended without an error."""
    failures: int
    last_error: str | None
    """Of the latest unit; None if that ended well."""


class Worker:
    """One job's runner, on one event loop."""

    def __init__(self, name: str, job: Job) -> None:
        self._name = name
        self._job = job
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._units = 0
        self._failures = 0
        self._last_error: str | None = None

    def start(self) -> None:
        assert self._task is None, "a worker is started once"
        self._task = asyncio.get_running_loop().create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """End the pause or the unit under way, and wait for that."""
        if self._task is None:
            return
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def wake(self) -> None:
        """Let the next unit begin at once."""
        self._wake.set()

    def statistics(self) -> WorkerStatistics:
        return WorkerStatistics(self._units, self._failures, self._last_error)

    async def _run(self) -> None:
        in_a_row = 0
        while True:
            self._wake.clear()
            try:
                pause = await self._job.work()
                self._units += 1
                in_a_row, self._last_error = 0, None
            except Exception as error:
                _log.exception("the job %s failed", self._name)
                self._failures += 1
                self._last_error = f"{type(error).__name__}: {error}"
                pause = min(FAILURE_PAUSE_SECONDS * 2**in_a_row, FAILURE_PAUSE_SECONDS_MAX)
                in_a_row = min(in_a_row + 1, 10)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
