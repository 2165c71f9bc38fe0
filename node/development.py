"""A whole cluster on loopback for a first try: several nodes as children of one process.

The first node founds the cluster and opens the bucket `default`; the others join it in the ordinary
way, with a token. A node that dies is started again, so that `kill -9` can be tried. The children
end with the parent, whatever happens to it. With a directory that is kept, ports and contents are
the same at the next start.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import msgspec

from node.data_directory import has_left
from node.errors import DataDirectoryError, NodeError
from node.health import Health, probe
from node.ports import check_available, free_ports
from ring.filesystem import RealFileSystem, write_file_atomically

HOST = "127.0.0.1"
OPEN_BUCKET = "default"
LAYOUT_NAME = "dev.json"
ADMIN_KEY_NAME = "admin-key"

_PREFERRED_PORT = 7070
_PORT_STEP = 10
_READY_SECONDS = 60.0
"""A node of a fresh cluster is ready in about a second; this is for a very slow disk."""
_POLL_SECONDS = 0.05
_STOP_SECONDS = 30.0
_RESTART_PAUSE_SECONDS = 3.0
_RESTART_LIMIT = 5
"""Restarts of one node in a row, each within a minute of the last, before it is left alone."""
_RESTART_WINDOW_SECONDS = 60.0


class Ports(msgspec.Struct, frozen=True):
    client: int
    peer: int
    raft: int


class Layout(msgspec.Struct, frozen=True):
    """What a kept development directory remembers; JSON."""

    format_version: int
    nodes: list[Ports]


class Child:
    """One node of the development cluster."""

    def __init__(self, number: int, directory: str, ports: Ports) -> None:
        self.number = number
        self.ports = ports
        self.data = os.path.join(directory, f"node-{number}")
        self.log_path = os.path.join(directory, f"node-{number}.log")
        self.url = f"http://{HOST}:{ports.client}"
        self.restarts = 0
        self.started = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self, *options: str, environment: dict[str, str] | None = None) -> None:
        self.started = time.monotonic()
        arguments = [
            # -P: folders called `node` or `ring` where the user stands are not ours.
            *(sys.executable, "-P", "-m", "node", "serve", "--data", self.data, "--listen", HOST),
            *("--port", str(self.ports.client), "--peer-port", str(self.ports.peer)),
            *("--raft-port", str(self.ports.raft), "--with-parent", str(os.getpid())),
            *options,
        ]
        with open(self.log_path, "ab") as log:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
                # Ctrl-C in the terminal reaches the parent alone, which ends the children in order.
                start_new_session=True,
            )

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll() if self._process else None

    def send_stop(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.terminate()

    def wait_stopped(self, timeout_seconds: float) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait_ready(self) -> None:
        """Return once the node serves clients; raises NodeError with its last words otherwise."""
        deadline = time.monotonic() + _READY_SECONDS
        while probe(self.url) is not Health.READY:
            if self.exit_code() is not None:
                raise NodeError(f"Node {self.number} ended while starting:\n{self.last_words()}")
            if time.monotonic() > deadline:
                raise NodeError(
                    f"Node {self.number} is not ready after {_READY_SECONDS:.0f} seconds:\n"
                    f"{self.last_words()}"
                )
            time.sleep(_POLL_SECONDS)

    def last_words(self) -> str:
        """The last lines of its log."""
        with open(self.log_path, encoding="utf-8", errors="replace") as log:
            return "".join(f"  {line}" for line in log.readlines()[-5:]).rstrip()


class DevelopmentCluster:
    """Nodes 1..n below one directory; `say` receives a sentence for each step."""

    def __init__(self, directory: str | None, count: int, say: Callable[[str], None]) -> None:
        self._temporary = directory is None
        self.directory = os.path.abspath(directory or tempfile.mkdtemp(prefix="holdfast-dev-"))
        self._say = say
        self._stopping = False
        layout = _layout(self.directory, count)
        self.nodes = [
            Child(number, self.directory, ports) for number, ports in enumerate(layout.nodes, 1)
        ]

    @property
    def admin_key_path(self) -> str:
        return os.path.join(self.directory, ADMIN_KEY_NAME)

    def start(self) -> None:
        """Start the nodes; the new ones found or join the cluster. Raises NodeError."""
        first = self.nodes[0]
        if _has_identity(first):
            known = [node for node in self.nodes if _has_identity(node)]
            self._say(f"Starting {_count(len(known))} again ...")
            for node in known:
                node.start()
            for node in known:
                node.wait_ready()
        else:
            self._say("Starting node 1, which founds the cluster ...")
            first.start(
                *("--open-bucket", OPEN_BUCKET, "--admin-key-file", self.admin_key_path),
            )
            first.wait_ready()
        for node in self.nodes[1:]:
            if not _has_identity(node):
                self._join(node)

    def _join(self, node: Child) -> None:
        self._say(f"Node {node.number} joins ...")
        token_path = os.path.join(self.directory, f"token-{node.number}")
        descriptor = os.open(token_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            subprocess.run(
                [sys.executable, "-P", "-m", "node", "token", "--data", self.nodes[0].data],
                stdout=descriptor,
                check=True,
            )
            node.start("--join", environment={"HOLDFAST_JOIN_TOKEN_FILE": token_path})
            node.wait_ready()
        except subprocess.CalledProcessError as error:
            raise NodeError("No join token could be made; see the sentence above.") from error
        finally:
            os.close(descriptor)
            os.unlink(token_path)

    def watch(self) -> None:
        """Start nodes again that die, until `request_stop` is called."""
        while not self._stopping:
            for node in self.nodes:
                self._revive(node)
            time.sleep(_POLL_SECONDS)

    def _revive(self, node: Child) -> None:
        code = node.exit_code()
        if code is None or node.restarts >= _RESTART_LIMIT:
            return
        if has_left(node.data):
            self._say(f"Node {node.number} has left the cluster, and is not started again.")
            node.restarts = _RESTART_LIMIT
            return
        if time.monotonic() - node.started > _RESTART_WINDOW_SECONDS:
            node.restarts = 0
        node.restarts += 1
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if node.restarts >= _RESTART_LIMIT:
            self._say(f"Node {node.number} {how} again and is left alone:\n{node.last_words()}")
            return
        self._say(
            f"Node {node.number} {how}; starting it again in {_RESTART_PAUSE_SECONDS:.0f} seconds."
        )
        deadline = time.monotonic() + _RESTART_PAUSE_SECONDS
        while time.monotonic() < deadline and not self._stopping:
            time.sleep(_POLL_SECONDS)
        if not self._stopping:
            node.start()

    def request_stop(self) -> None:
        """Make `watch` return soon; safe in a signal handler."""
        self._stopping = True

    def stop(self) -> None:
        """End all nodes; a temporary directory is removed."""
        for node in self.nodes:
            node.send_stop()
        deadline = time.monotonic() + _STOP_SECONDS
        for node in self.nodes:
            node.wait_stopped(max(0.1, deadline - time.monotonic()))
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)


def _layout(directory: str, count: int) -> Layout:
    """The ports of the cluster in `directory`: remembered ones, which must be free, or new ones."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    path = os.path.join(directory, LAYOUT_NAME)
    layout = _remembered(path)
    if layout is None:
        foreign = os.listdir(directory)
        if foreign:
            raise DataDirectoryError(
                f"The directory {directory} is not empty and was not made by `holdfast dev` (it "
                f"holds {min(foreign)}). Name an empty one."
            )
        layout = Layout(format_version=1, nodes=[])
    missing = count - len(layout.nodes)
    nodes = [*layout.nodes, *_new_ports(len(layout.nodes), missing)]
    for ports in nodes:
        for port in (ports.client, ports.peer, ports.raft):
            check_available(HOST, port, "remembered by this development cluster")
    layout = Layout(format_version=1, nodes=nodes)
    write_file_atomically(RealFileSystem(), path, msgspec.json.encode(layout))
    return layout


def _remembered(path: str) -> Layout | None:
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=Layout)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise DataDirectoryError(f"{path} is damaged ({error}).") from error


def _new_ports(existing: int, count: int) -> list[Ports]:
    """The well-known ports where they are free, else any that are."""
    result: list[Ports] = []
    for number in range(existing, existing + count):
        start = _PREFERRED_PORT + _PORT_STEP * number
        try:
            for port in range(start, start + 3):
                check_available(HOST, port, "development cluster")
            result.append(Ports(start, start + 1, start + 2))
        except NodeError:
            result.append(Ports(*free_ports(3, host=HOST)))
    return result


def _has_identity(node: Child) -> bool:
    return os.path.exists(os.path.join(node.data, "identity.json"))


def _count(nodes: int) -> str:
    return "one node" if nodes == 1 else f"{nodes} nodes"


def stop_on_signals(cluster: DevelopmentCluster) -> None:
    """Ctrl-C and SIGTERM end the cluster in order."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: cluster.request_stop())
