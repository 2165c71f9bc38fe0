"""The runner of background jobs."""

from __future__ import annotations

import asyncio

import pytest

from ring.worker import Worker
from tests.fakes.ring_nodes import eventually


class _Job:
    """Fails in the first `failures` units; pauses as told."""

    def __init__(self, *, pause: float, failures: int = 0) -> None:
        self.units = 0
        self.pause = pause
        self.failures = failures

    async def work(self) -> float:
        self.units += 1
        if self.units <= self.failures:
            raise ValueError("not yet")
        return self.pause


async def test_a_job_runs_until_stopped() -> None:
    """Unit follows unit; after `stop` none does."""
    job = _Job(pause=0.0)
    worker = Worker("test", job)
    worker.start()
    await eventually(lambda: job.units >= 3)
    await worker.stop()
    done = job.units
    await asyncio.sleep(0.01)
    assert job.units == done


async def test_a_long_pause_can_be_cut_short() -> None:
    """`wake` begins the next unit at once."""
    job = _Job(pause=3600.0)
    worker = Worker("test", job)
    worker.start()
    await eventually(lambda: job.units == 1)
    worker.wake()
    await eventually(lambda: job.units == 2)
    await worker.stop()


async def test_errors_are_told_and_do_not_end_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing unit is followed by a pause and another try; statistics name the error."""
    monkeypatch.setattr("ring.worker.FAILURE_PAUSE_SECONDS", 0.02)
    job = _Job(pause=3600.0, failures=1)
    worker = Worker("test", job)
    worker.start()
    await eventually(lambda: worker.statistics().failures == 1)
    assert worker.statistics().last_error == "ValueError: not yet"
    await eventually(lambda: worker.statistics().units == 1)
    assert worker.statistics().last_error is None
    await worker.stop()


async def test_a_worker_that_never_started_stops() -> None:
    """Stopping is safe at any point of a start that failed."""
    await Worker("test", _Job(pause=0.0)).stop()
