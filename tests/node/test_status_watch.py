"""`holdfast status --watch` on a terminal, a dumb one, and a pipe; until Ctrl-C."""

from __future__ import annotations

import http.server
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.fakes.cluster_documents import cluster

pytestmark = pytest.mark.processes

COMMAND = (sys.executable, "-m", "node", "status", "--watch")
LIMIT_SECONDS = 60.0


class Node(http.server.ThreadingHTTPServer):
    """Answers every request with a healthy cluster, or with what it was told to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.status = 200
        self.body = msgspec.json.encode(cluster())
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def refuse(self, status: int, code: str, detail: str) -> None:
        problem = {"type": "", "title": "", "status": status, "code": code, "detail": detail}
        self.status = status
        self.body = json.dumps({**problem, "retryable": status == 503}).encode()

    def recover(self) -> None:
        self.status, self.body = 200, msgspec.json.encode(cluster())


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        node: Any = self.server
        self.send_response(node.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(node.body)))
        self.end_headers()
        self.wfile.write(node.body)

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture
def node() -> Iterator[Node]:
    server = Node()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


class Watching:
    """A running command whose output is read until it has said something."""

    def __init__(self, *options: str, url: str, terminal: str | None) -> None:
        environment = {**os.environ, "TERM": terminal or "dumb", "COLUMNS": "80", "LINES": "30"}
        environment.pop("NO_COLOR", None)
        if terminal is None:
            reading, writing = os.pipe()
        else:
            reading, writing = pty.openpty()
        self._reading = reading
        self.process = subprocess.Popen(
            [*COMMAND, "--url", url, *options],
            stdin=subprocess.DEVNULL, stdout=writing, stderr=writing, env=environment,
        )  # fmt: skip
        os.close(writing)
        self.said = b""

    def wait_said(self, text: bytes, times: int = 1) -> None:
        """Read until `text` was said that often; the command ends first only by a mistake."""
        watchdog = threading.Timer(LIMIT_SECONDS, self.process.kill)
        watchdog.start()
        try:
            while self.said.count(text) < times:
                part = self._read()
                assert part, self.said.decode()
                self.said += part
        finally:
            watchdog.cancel()

    def interrupt(self) -> int:
        """Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def end(self) -> int:
        """Read what is left; the exit code."""
        watchdog = threading.Timer(LIMIT_SECONDS, self.process.kill)
        watchdog.start()
        try:
            while part := self._read():
                self.said += part
        finally:
            watchdog.cancel()
        os.close(self._reading)
        return self.process.wait(LIMIT_SECONDS)

    def _read(self) -> bytes:
        try:
            return os.read(self._reading, 65536)
        except OSError:  # a terminal whose other side was closed
            return b""


def test_a_terminal_is_drawn_anew_and_left_as_it_was(node: Node) -> None:
    """Ctrl-C is how it ends: without an error, the last look stays, the cursor is back."""
    watching = Watching(url=node.url, terminal="xterm-256color")
    watching.wait_said(b"No warnings.", times=2)
    assert watching.interrupt() == 0
    entered, left = watching.said.index(b"\x1b[?1049h"), watching.said.index(b"\x1b[?1049l")
    assert entered < left
    assert b"\x1b[?25h" in watching.said
    rest = watching.said[left:]
    assert b"No warnings." in rest
    assert b"nterrupted" not in rest
    assert b"Traceback" not in rest


@pytest.mark.parametrize("terminal", ["dumb", None])
def test_where_no_screen_can_be_drawn_one_look_follows_the_other(
    node: Node, terminal: str | None
) -> None:
    """A dumb terminal and a pipe get plain lines, nothing that steers a cursor."""
    watching = Watching(url=node.url, terminal=terminal)
    watching.wait_said(b"No warnings.", times=2)
    assert watching.interrupt() == 0
    assert b"\x1b" not in watching.said


def test_as_json_each_look_is_a_line(node: Node) -> None:
    """For programs that follow a cluster."""
    watching = Watching("--json", url=node.url, terminal=None)
    watching.wait_said(b"\n", times=2)
    assert watching.interrupt() == 0
    looks = [json.loads(line) for line in watching.said.splitlines()]
    assert all(look["quorum"] is True for look in looks)


def test_a_node_that_is_away_for_a_while_is_asked_again(node: Node) -> None:
    """The screen says why there is nothing to be seen, and goes on when there is."""
    node.refuse(503, "not_ready", "the state is being downloaded")
    watching = Watching(url=node.url, terminal=None)
    watching.wait_said(b"the state is being downloaded")
    node.recover()
    watching.wait_said(b"No warnings.")
    assert watching.interrupt() == 0


def test_a_refusal_that_stays_ends_it(node: Node) -> None:
    """A wrong key is wrong a second later, too."""
    node.refuse(401, "unauthenticated", "this key is not known")
    watching = Watching(url=node.url, terminal=None)
    assert watching.end() == 1
    assert b"this key is not known" in watching.said
