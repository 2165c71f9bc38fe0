"""What `holdfast` does with the terminal, the standard streams and signals, as a process."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.commands.text import printable

COMMAND = (sys.executable, "-m", "node")
LIMIT_SECONDS = 30.0

_BUCKETS = b'{"buckets":[{"name":"photos","visibility":"private","hidden":false,"owner":"",'
_BUCKETS += b'"quota_bytes":null,"size_bytes":0,"file_count":0,"created_ms":0}],"next_cursor":null}'


class Server:
    """Answers every connection with the same bytes and then says nothing more."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.recv(65536)
            connection.sendall(self._answer)
            self._open.append(connection)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self._open:
            connection.close()


@pytest.fixture
def half_a_file() -> Iterator[Server]:
    """A gateway that stops in the middle of a file."""
    server = Server(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it")
    yield server
    server.close()


@pytest.fixture
def one_bucket() -> Iterator[Server]:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    server = Server(head % len(_BUCKETS) + _BUCKETS)
    yield server
    server.close()


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_download_leaves_nothing(
    half_a_file: Server, tmp_path: Path, number: signal.Signals
) -> None:
    """Neither half a file nor a temporary one; the shell learns which signal it was."""
    arguments = [*COMMAND, "get", "--url", half_a_file.url, "bucket/file", str(tmp_path) + "/"]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE)
    _wait_for(lambda: bool(os.listdir(tmp_path)), process)
    process.send_signal(number)
    _, said = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == -number
    assert said == b"holdfast: interrupted\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.processes
def test_ctrl_c_ends_an_upload_whose_source_is_silent() -> None:
    """Nobody has to close standard input before `put -` ends: a thread sits in that read."""
    server = Server(b"HTTP/1.1 100 Continue\r\n\r\n")
    reading, writing = os.pipe()
    arguments = [*COMMAND, "put", "--url", server.url, "-", "bucket/file"]
    process = subprocess.Popen(arguments, stdin=reading, stderr=subprocess.DEVNULL)
    try:
        os.write(writing, b"x")
        # It is read once, and then waited for.
        _wait_for(lambda: not select.select([reading], [], [], 0)[0], process)
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_SECONDS) == -signal.SIGINT
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)
        server.close()


@pytest.mark.processes
def test_a_full_disk_behind_the_output_is_one_sentence(one_bucket: Server) -> None:
    """`holdfast ls > file` on a full disk fails, and says why."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "ls", "--url", one_bucket.url],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"holdfast: No space left on device\n")


@pytest.mark.processes
def test_a_node_that_is_not_there_is_named_plainly() -> None:
    """The address, the system's reason, and the exit code for trying again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = subprocess.run(
        [*COMMAND, "ls", "--url", f"http://127.0.0.1:{port}"],
        capture_output=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    said = f"no connection to 127.0.0.1:{port}: Connection refused\n"
    assert done.stderr.decode() == f"holdfast: The node can't be reached: {said}"
    assert done.returncode == 5


@pytest.mark.processes
@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_streams_do_no_harm(one_bucket: Server, closed: str) -> None:
    """The event loop would abort the process, or a data file would get the number of a stream."""
    line = f'exec "$@" {closed}'
    done = subprocess.run(
        ["/bin/sh", "-c", line, "sh", *COMMAND, "ls", "--url", one_bucket.url],
        capture_output=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.startswith(b"" if "1>" in closed else b"photos\t")


def test_names_do_not_steer_the_terminal() -> None:
    """A name is one line without control characters; letters of all scripts stay."""
    assert printable("a\nb\x1b[31m\u202ec") == "a\\nb\\x1b[31m\\u202ec"
    assert printable("ünï cødé 😀 [x]") == "ünï cødé 😀 [x]"


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
