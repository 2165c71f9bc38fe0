"""What the machine under a node has left."""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from node.machine import LOOK_SECONDS, MachineGauge, disk_figures


async def test_figures_are_those_of_the_system(tmp_path: Path) -> None:
    """Disk as an ordinary process has it, memory of this process, the time; the disk once seen."""
    with ThreadPoolExecutor(1) as workers:
        gauge = MachineGauge(str(tmp_path), workers)
        assert "disk_free_bytes" not in gauge.figures()
        assert await gauge.work() == LOOK_SECONDS
    figures = gauge.figures()
    usage = shutil.disk_usage(tmp_path)
    # Others use the disk while this runs.
    assert abs(figures["disk_free_bytes"] - usage.free) < 0.2 * usage.total
    assert usage.used <= figures["disk_size_bytes"] * 1.2
    assert figures["disk_size_bytes"] <= usage.total
    assert 1e6 < figures["memory_resident_bytes"] < 1e12
    assert abs(figures["clock_seconds"] - time.time()) < 60
    assert figures["machine_load_percent"] >= 0


def test_blocks_kept_for_root_are_neither_free_nor_part_of_the_size(tmp_path: Path) -> None:
    """So that a disk that takes no more is shown as full, as `df` shows it."""
    found = os.statvfs(tmp_path)
    kept = (found.f_bfree - found.f_bavail) * found.f_frsize
    figures = disk_figures(str(tmp_path))
    assert figures["disk_size_bytes"] + kept == found.f_blocks * found.f_frsize
