"""The first thing anybody runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from node.health import Health, probe
from tests.end_to_end.cluster import ROOT

pytestmark = pytest.mark.processes


def test_the_demo_succeeds_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Three nodes, a round trip, exit code 0, no process and no file left."""
    done = subprocess.run(
        [sys.executable, "scripts/demo.py", "--once"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The bytes are the same" in done.stdout
    assert os.listdir(tmp_path) == []
    assert not _nodes_below(tmp_path)


def test_the_nodes_of_dev_end_with_their_parent_and_come_back(tmp_path: Path) -> None:
    """kill -9 of `holdfast dev` ends its nodes; kept contents are there at the next start."""
    arguments = [sys.executable, "-m", "node", "dev", "--nodes", "1", "--data", str(tmp_path)]
    url = ""
    for attempt in range(2):
        with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            for line in parent.stdout:
                if line.startswith("  node 1"):
                    url = line.split()[2]
                if line.startswith("Ctrl-C"):
                    break
            assert probe(url) is Health.READY
            command = [sys.executable, "-m", "node"]
            if attempt == 0:
                put = [*command, "put", __file__, "default/kept", "--url", url]
                subprocess.run(put, cwd=ROOT, check=True)
                parent.kill()
            else:
                cat = [*command, "cat", "default/kept", "--url", url]
                kept = subprocess.run(cat, cwd=ROOT, check=True, capture_output=True).stdout
                assert kept == Path(__file__).read_bytes()
                parent.send_signal(signal.SIGINT)
                assert parent.wait(30) == 0
        deadline = time.monotonic() + 30
        while _nodes_below(tmp_path):
            assert time.monotonic() < deadline, "a node outlives its parent"
            time.sleep(0.05)
        assert probe(url) is Health.UNREACHABLE


def test_dev_starts_where_folders_have_names_of_ours(tmp_path: Path) -> None:
    """Python looks into the folder where one stands first; `gateway` there is not our package."""
    (tmp_path / "gateway").mkdir()
    (tmp_path / "gateway" / "__init__.py").write_text("")
    data = tmp_path / "data"
    arguments = [sys.executable, "-P", "-m", "node", "dev", "--nodes", "1", "--data", str(data)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        arguments, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert any(line.startswith("Ctrl-C") for line in parent.stdout)
        parent.send_signal(signal.SIGINT)
        assert parent.wait(30) == 0


def _nodes_below(folder: Path) -> list[str]:
    """Command lines of running processes that name the folder, children of `dev` included."""
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(folder) in line and " serve " in line:
                found.append(line)
    return found
