"""Runs the recipes of the guide as an operator would, so that the pages stay true.

A step is a fenced block of shell in a page of docs/operations, marked by a comment above it:

    <!-- recipe: wait -->
    ```sh
    holdfast wait settled
    ```

It is run by bash with `holdfast` and `systemctl` in the path; the latter starts and stops this
test's processes. The page's addresses and directories stand for those of the node it is run on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from tests.end_to_end.cluster import ROOT, Cluster, NodeProcess, wait_until

FOLDER = ROOT / "docs" / "operations"
STEP_SECONDS = 120.0
"""What one step may take on a machine that does other things, too."""

_STEP = re.compile(r"<!-- recipe: ([a-z0-9-]+) -->\n+```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SHELL = re.compile(r"^```sh$", re.MULTILINE)

_SYSTEMCTL = """\
import os, socket, sys
action, unit = sys.argv[1:]
assert unit == "holdfast", unit
with socket.create_connection(("127.0.0.1", int(os.environ["RECIPE_PORT"]))) as connection:
    connection.sendall(action.encode() + b"\\n")
    answer = connection.makefile().read()
sys.exit(0 if answer == "done" else answer)
"""


def steps(page: str) -> dict[str, str]:
    """The marked blocks of a page, in order. All of its shell is marked, under different names."""
    text = (FOLDER / page).read_text()
    found = _STEP.findall(text)
    assert len(found) == len(_SHELL.findall(text)), f"{page}: a block of shell is not marked"
    assert len(dict(found)) == len(found), f"{page}: a name is there twice"
    return dict(found)


class Recipe:
    """One page, run step by step on a cluster."""

    def __init__(self, page: str, cluster: Cluster, folder: Path) -> None:
        self.page = page
        self.cluster = cluster
        self._steps = steps(page)
        self._run: set[str] = set()
        self.folder = folder
        """Where the steps are run."""
        self.port = 0
        self._on: NodeProcess | None = None

    async def run(
        self,
        step: str,
        *,
        on: NodeProcess,
        asking: NodeProcess | None = None,
        fill: Mapping[str, str] | None = None,
    ) -> str:
        """Run a step on a node's machine and return what it printed; it has to succeed.

        `asking`: the node that the page calls http://10.0.0.1:7070, and that commands talk to; the
        same one if not given. `fill`: what else the page's words stand for.
        """
        asked = asking or on
        words = {
            "/srv/holdfast": str(on.data),
            "/etc/holdfast": str(self._configuration(on)),
            "http://10.0.0.1:7070": asked.url,
            **(fill or {}),
        }
        script = self._steps[step]
        for word, meaning in words.items():
            script = script.replace(word, meaning)
        self._run.add(step)
        self._on = on
        environment = {
            **{name: value for name, value in os.environ.items() if "HOLDFAST" not in name},
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RECIPE_PORT": str(self.port),
            "HOLDFAST_URL": asked.url,
            "HOLDFAST_KEY": self.cluster.admin_key,
        }
        process = await asyncio.create_subprocess_exec(
            "bash", "-euo", "pipefail", "-c", script,
            stdin=asyncio.subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=self.folder, env=environment,
        )  # fmt: skip
        try:
            async with asyncio.timeout(STEP_SECONDS):
                output, errors = await process.communicate()
        except TimeoutError:
            raise AssertionError(
                f"{self.page}, {step}: not done within {STEP_SECONDS:.0f} s\n{script}\n{on.log()}"
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, (
            f"{self.page}, {step}: exit code {process.returncode}\n{script}\n"
            f"{output.decode()}\n{errors.decode()}\n{on.log()}"
        )
        return output.decode()

    def assert_complete(self) -> None:
        """No step of the page was left out."""
        assert self._run == set(self._steps), self.page

    def _configuration(self, node: NodeProcess) -> Path:
        path = self.folder / f"etc-{node.number}"
        path.mkdir(exist_ok=True)
        return path

    async def control(self, action: str) -> None:
        """What `systemctl ACTION holdfast` does on the machine of the present step."""
        node = self._on
        assert node is not None
        assert action in ("start", "stop", "restart", "disable"), action
        if action in ("stop", "restart") and node.running:
            assert await node.stop() == 0, node.log()
        if action in ("start", "restart"):
            node.start(token_path=self._token(node))
            await wait_until(
                lambda: _begun(node), timeout_seconds=STEP_SECONDS, what=f"node {node.number}"
            )

    def _token(self, node: NodeProcess) -> Path | None:
        """What /etc/holdfast/environment says of joining, as the unit would hand it over."""
        path = self._configuration(node) / "environment"
        if not path.exists():
            return None
        given = dict(line.split("=", 1) for line in path.read_text().split())
        if given.pop("HOLDFAST_JOIN", None) != "true":
            return None
        token = given.pop("HOLDFAST_JOIN_TOKEN_FILE")
        assert not given, f"what is {given} for?"
        return Path(token)


async def _begun(node: NodeProcess) -> bool:
    assert node.running, node.log()
    return True


@contextlib.asynccontextmanager
async def recipe(page: str, cluster: Cluster) -> AsyncIterator[Recipe]:
    """A page to be run on a cluster; left without an error, all of its steps must have been run."""
    folder = cluster.folder / f"recipe-{page}"
    (folder / "bin").mkdir(parents=True)
    _command(folder / "bin" / "holdfast", f'exec {sys.executable} -m node "$@"')
    program = folder / "systemctl.py"
    program.write_text(_SYSTEMCTL)
    _command(folder / "bin" / "systemctl", f'exec {sys.executable} {program} "$@"')
    made = Recipe(page, cluster, folder)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await made.control((await reader.readline()).decode().strip())
            writer.write(b"done")
        except AssertionError as error:
            writer.write(str(error).encode())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        made.port = server.sockets[0].getsockname()[1]
        yield made
    made.assert_complete()


def _command(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
