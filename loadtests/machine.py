"""What a figure was measured on: without it, no figure means anything."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sqlite3
import statistics
import subprocess
import time

_PACKAGES = ("aiohttp", "uvloop", "pysyncobj", "blake3", "msgspec")
_SYNC_SAMPLES = 200


def facts(directory: str) -> dict[str, str]:
    """Return machine, versions, and what a sync of 4 KiB costs on the disk below `directory`."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    return {
        "machine": f"{os.cpu_count()} cores of {_processor()}, {memory / 2**30:.0f} GiB of memory",
        "system": f"Linux {platform.release()}, {_file_system(directory)}",
        "versions": (
            f"Python {platform.python_version()}, {packages}, SQLite {sqlite3.sqlite_version}"
        ),
        "durability": (
            "fsync on; every copy is synced before it counts, two of three before the answer; "
            f"4 KiB append with fdatasync {sync_milliseconds(directory):.2f} ms"
        ),
    }


def sync_milliseconds(directory: str) -> float:
    """Return the median time of a 4 KiB append with fdatasync in `directory`."""
    path = os.path.join(directory, "sync-probe")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        samples = []
        for _ in range(_SYNC_SAMPLES):
            began = time.perf_counter()
            os.write(descriptor, bytes(4096))
            os.fdatasync(descriptor)
            samples.append((time.perf_counter() - began) * 1000)
        return statistics.median(samples)
    finally:
        os.close(descriptor)
        os.unlink(path)


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(directory: str) -> str:
    shown = subprocess.run(
        ["df", "--output=fstype", directory],
        capture_output=True,
        text=True,
        check=True,
    )
    return shown.stdout.split()[-1]
