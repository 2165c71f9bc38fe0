"""Real nodes as processes, for tests: started, killed, started again, and never left behind.

    async with running_cluster(tmp_path, 3) as cluster:
        cluster.nodes[0].kill()
        ...
        cluster.nodes[0].start()
        await cluster.nodes[0].wait_ready()

Waiting is asynchronous, so that readers and writers go on in the test's loop meanwhile. Nodes end
with the test whatever happens: on leaving the block they are killed, and when the test process
itself dies the kernel tells them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from node.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
OPEN_BUCKET = "default"
READY_SECONDS = 60.0
POLL_SECONDS = 0.03


class NodeFailedError(AssertionError):
    """A node ended, or did not get where it should, with the tail of its log."""


async def wait_until(
    condition: Callable[[], Awaitable[bool]], *, timeout_seconds: float, what: str
) -> None:
    """Poll until the condition holds; fails naming `what` after the limit."""
    deadline = asyncio.get_running_loop().time() + timeout_seconds
    while not await condition():
        if asyncio.get_running_loop().time() > deadline:
            raise NodeFailedError(f"{what}: not within {timeout_seconds:.0f} s")
        await asyncio.sleep(POLL_SECONDS)


class NodeProcess:
    """One node: its folder, its ports, and the process while there is one."""

    def __init__(self, number: int, folder: Path, settings: Mapping[str, object]) -> None:
        self.number = number
        self.data = folder / f"node-{number}"
        self.log_path = folder / f"node-{number}.log"
        self.port, self.peer_port, self.raft_port = free_ports(3)
        self.url = f"http://{HOST}:{self.port}"
        self.settings = dict(settings)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str, token_path: Path | None = None) -> None:
        """Start the process; with `token_path` it joins the cluster that made the token."""
        assert not self.running, f"node {self.number} runs already"
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")
        }
        environment.update(
            {f"HOLDFAST_{name.upper()}": str(value) for name, value in self.settings.items()}
        )
        if token_path is not None:
            options = (*options, "--join")
            environment["HOLDFAST_JOIN_TOKEN_FILE"] = str(token_path)
        arguments = [
            *(sys.executable, "-m", "node", "serve", "--data", str(self.data), "--listen", HOST),
            *("--port", str(self.port), "--peer-port", str(self.peer_port)),
            *("--raft-port", str(self.raft_port), "--with-parent", str(os.getpid())),
            *options,
        ]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT,
                env=environment,
            )  # fmt: skip

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """End the process with SIGKILL, at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def pause(self) -> None:
        """Stop the process without ending it (SIGSTOP), as a hanging machine would."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    async def stop(self, *, timeout_seconds: float = 40.0) -> int:
        """End the process with SIGTERM and return its exit code."""
        assert self.process is not None
        self.process.terminate()
        return await self.wait_exit(timeout_seconds=timeout_seconds)

    async def wait_exit(self, *, timeout_seconds: float) -> int:
        """Wait for the process to end and return its exit code."""
        process = self.process
        assert process is not None

        async def ended() -> bool:
            return process.poll() is not None

        await wait_until(ended, timeout_seconds=timeout_seconds, what=f"node {self.number} ends")
        return process.returncode

    async def ready(self) -> bool:
        """Whether the node serves clients now."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session,
                session.get(f"{self.url}/health/ready") as response,
            ):
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def wait_ready(self, *, timeout_seconds: float = READY_SECONDS) -> None:
        """Wait until the node serves clients; fails with its log if it ends or takes too long."""

        async def ready_or_ended() -> bool:
            return not self.running or await self.ready()

        try:
            await wait_until(
                ready_or_ended, timeout_seconds=timeout_seconds, what=f"node {self.number} ready"
            )
        except NodeFailedError as error:
            raise NodeFailedError(f"{error}\n{self.log()}") from error
        if not self.running:
            raise NodeFailedError(f"node {self.number} ended while starting:\n{self.log()}")

    def log(self, lines: int = 40) -> str:
        """The last lines of its log."""
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def resident_bytes(self) -> int:
        """Resident memory of the process now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


class Cluster:
    """The nodes of one test, in the order in which they were added."""

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        self.folder = folder
        self.nodes: list[NodeProcess] = []
        self.admin_key = ""
        self._settings = settings

    async def found(self) -> NodeProcess:
        """Start the first node of a new cluster, with the bucket `default` open to everybody."""
        key_path = self.folder / "admin-key"
        node = self.add_process()
        node.start("--open-bucket", OPEN_BUCKET, "--admin-key-file", str(key_path))
        await node.wait_ready()
        self.admin_key = key_path.read_text().strip()
        return node

    async def add_node(self, *, settle: bool = True) -> NodeProcess:
        """Join one more node; with `settle` returns once it is in the ring on every node."""
        token_path = self.folder / f"token-{len(self.nodes) + 1}"
        sponsor = next(node for node in self.nodes if node.running)
        made = await self.command("token", "--data", str(sponsor.data))
        assert made.returncode == 0, made.stderr
        token_path.write_text(made.stdout)
        node = self.add_process()
        node.start(token_path=token_path)
        await node.wait_ready()
        if settle:
            await self.wait_ring(len(self.nodes))
        return node

    def add_process(self) -> NodeProcess:
        """One more node of this test, not started yet."""
        node = NodeProcess(len(self.nodes) + 1, self.folder, self._settings)
        self.nodes.append(node)
        return node

    async def wait_ring(self, count: int, *, timeout_seconds: float = 60.0) -> None:
        """Wait until every running node says that `count` nodes are in the ring and vote."""

        async def complete() -> bool:
            for node in self.nodes:
                if not node.running:
                    continue
                try:
                    members = (await self.status(node))["members"]
                except (aiohttp.ClientError, TimeoutError):
                    return False
                if sum(member["in_ring"] for member in members) != count:
                    return False
                if sum(member["stage"] == "voter" for member in members) < min(count, 3):
                    return False
            return True

        try:
            await wait_until(
                complete, timeout_seconds=timeout_seconds, what=f"{count} nodes in the ring"
            )
        except NodeFailedError as error:
            logs = "\n\n".join(f"node {node.number}:\n{node.log(15)}" for node in self.nodes)
            raise NodeFailedError(f"{error}\n{logs}") from error

    async def status(self, node: NodeProcess | None = None) -> dict[str, Any]:
        """What `GET /api/v1/cluster` says on a node (the first running one)."""
        node = node or next(node for node in self.nodes if node.running)
        async with (
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=5),
                headers={"Authorization": f"Bearer {self.admin_key}"},
            ) as session,
            session.get(f"{node.url}/api/v1/cluster") as response,
        ):
            response.raise_for_status()
            status: dict[str, Any] = await response.json()
            return status

    async def leader(self) -> NodeProcess:
        """The node that leads Raft; waits for an election if there is none."""
        found: list[NodeProcess] = []

        async def known() -> bool:
            for node in self.nodes:
                if not node.running:
                    continue
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    if (await self.status(node))["raft"]["role"] == "leader":
                        found[:] = [node]
                        return True
            return False

        await wait_until(known, timeout_seconds=60, what="a leader")
        return found[0]

    async def command(
        self,
        *arguments: str,
        node: NodeProcess | None = None,
        stdin: bytes = b"",
        token_path: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `holdfast ARGUMENTS` as admin against a node (the first running one)."""
        node = node or next((node for node in self.nodes if node.running), self.nodes[0])
        environment = {
            **{name: value for name, value in os.environ.items() if "HOLDFAST" not in name},
            "HOLDFAST_URL": node.url,
            "HOLDFAST_KEY": self.admin_key,
        }
        if token_path is not None:
            environment["HOLDFAST_JOIN_TOKEN_FILE"] = str(token_path)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "node", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env=environment,
        )
        try:
            output, errors = await process.communicate(stdin)
        except BaseException:
            process.kill()
            await process.wait()
            raise
        return subprocess.CompletedProcess(
            arguments, process.returncode or 0, output.decode(), errors.decode()
        )

    def close(self) -> None:
        """Kill every node."""
        for node in self.nodes:
            node.kill()


@contextlib.asynccontextmanager
async def running_cluster(
    folder: Path, count: int = 3, **settings: object
) -> AsyncIterator[Cluster]:
    """A cluster of `count` settled nodes below `folder`; settings as in `node/settings.py`."""
    cluster = Cluster(folder, settings)
    try:
        await cluster.found()
        for _ in range(1, count):
            await cluster.add_node()
        yield cluster
    finally:
        cluster.close()
