"""What the machine under a node has left: disk, memory, processors, and the time on its clock."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from concurrent.futures import Executor

LOOK_SECONDS = 5.0
"""Between two looks at the disk; it fills by some hundred MB in that time at most."""

_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


class MachineGauge:
    """A background job that looks at the disk below `directory`; main loop only.

    The file system is asked in a worker thread, because a failing disk may take its time to answer.
    """

    def __init__(self, directory: str, workers: Executor) -> None:
        self._directory = directory
        self._workers = workers
        self._disk: dict[str, float] = {}

    async def work(self) -> float:
        """Look at the disk. Raises OSError where it can't be asked."""
        loop = asyncio.get_running_loop()
        self._disk = await loop.run_in_executor(self._workers, disk_figures, self._directory)
        return LOOK_SECONDS

    def figures(self) -> Mapping[str, float]:
        """All of it by name, units last; the disk as it was at the last look."""
        return {
            **self._disk,
            "machine_load_percent": round(100 * os.getloadavg()[0] / (os.cpu_count() or 1), 1),
            "memory_resident_bytes": _resident_bytes(),
            "clock_seconds": time.time(),
        }


def disk_figures(directory: str) -> dict[str, float]:
    """Size of the file system that holds `directory`, and what an ordinary process may still use.

    As `df` has it: blocks kept for root count neither as free nor as part of the size.
    """
    found = os.statvfs(directory)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    free = found.f_bavail * found.f_frsize
    return {"disk_size_bytes": float(used + free), "disk_free_bytes": float(free)}


def _resident_bytes() -> float:
    with open("/proc/self/statm", "rb") as file:
        return float(int(file.read().split()[1]) * _PAGE_SIZE)
