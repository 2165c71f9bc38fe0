"""Real file systems of a few megabytes, in memory, for tests of full disks."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(path: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of this size at `path`; unmounted whatever happens. Skips where none can be."""
    path.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0700", "holdfast-test", str(path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small file system can't be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield path
    finally:
        # Lazily: a node that a failed test has left may still have files open there.
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def free_bytes(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def use_up(path: Path, name: str) -> Path:
    """Take all that is free at this moment with a file that is not of Holdfast's.

    At once, because a node gives space up for others to take while its disk is filling.
    """
    filler = path / name
    with filler.open("xb") as file:
        while True:
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END) + free_bytes(path))
                return filler
