"""The load test passes against an honest store, and fails against one that lies in any one way."""

from __future__ import annotations

import asyncio
import sys

import pytest
from aiohttp.test_utils import TestServer

from tests.loadtests.fake_store import Defect, FakeStore

pytestmark = pytest.mark.processes

_TIMEOUT_SECONDS = 60


async def _run_locust(defect: Defect, seconds: int, *options: str) -> tuple[int, str, FakeStore]:
    """Run the load test for some seconds; return its exit code, its output and the store."""
    store = FakeStore(defect)
    async with TestServer(store.application()) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless"),
            *("-u", "8", "-r", "8", "-t", f"{seconds}s", "--nodes", str(server.make_url("/"))),
            *("--working-set-mb", "24", *options),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert process.stdout is not None
        try:
            output = await asyncio.wait_for(process.stdout.read(), _TIMEOUT_SECONDS)
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
    return code, output.decode(), store


async def test_an_honest_store_passes() -> None:
    """Every task runs, nothing fails, and the exit code is 0."""
    code, output, store = await _run_locust("none", 5)
    assert code == 0, output
    assert store.requests > 100
    for name in ("put small", "get small", "list", "head", "delete", "get deleted"):
        assert f" {name} " in output, output


@pytest.mark.parametrize(
    ("defect", "tag", "complaint"),
    [
        ("flipped byte", "read", "wrong contents"),
        ("short", "read", "wrong contents"),
        ("stale version", "overwrite", "wrong contents"),
        ("lost from listing", "browse", "entries differ"),
        ("undead", "delete", "deleted, and still 200"),
    ],
)
async def test_a_lying_store_fails(defect: Defect, tag: str, complaint: str) -> None:
    """One wrong byte, one old version, one missing name: exit code 1 and what was wrong."""
    code, output, _ = await _run_locust(defect, 2, "--tags", tag)
    assert code == 1, output
    assert complaint in output


async def test_tags_select_tasks() -> None:
    """With `--tags browse` nothing is read or deleted after the files are there."""
    code, output, _ = await _run_locust("none", 2, "--tags", "browse")
    assert code == 0, output
    assert " list " in output
    assert " get small " not in output
    assert " delete " not in output
