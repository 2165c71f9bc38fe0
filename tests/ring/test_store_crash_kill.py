"""The store on a real disk, in a process that is killed at random moments, 200 times."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = 200
ROOT = Path(__file__).parents[2]


@pytest.mark.processes
@pytest.mark.slow
def test_killed_200_times(tmp_path: Path) -> None:
    """After any kill -9 every acknowledged chunk is there, right, and deleted ones are not."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.ring.killed_store", str(tmp_path), str(KILLS), "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    counts = json.loads(result.stdout)
    # Most children must have come to work, or the test would show nothing.
    assert counts["starts"] > KILLS / 2
    assert counts["here"] > 1000
    assert counts["gone"] > 100
