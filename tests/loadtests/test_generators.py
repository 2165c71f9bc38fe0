"""The load generators move the bytes they say, and notice when a server does not."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from blake3 import blake3

from loadtests.request_generator import GeneratorError, Requests, generate
from loadtests.stream_client import (
    STRETCH_SIZE,
    Target,
    TransferError,
    UploadSource,
    connect,
    download,
    download_over,
)

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a bare handler in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-m", "loadtests.bare_handler"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield int(process.stdout.readline())
        process.stdin.close()
        assert process.wait(timeout=10) == 0


@pytest.fixture
def source() -> Iterator[UploadSource]:
    source = UploadSource()
    yield source
    source.close()


def _answer_once(answer: bytes, received: bytearray) -> int:
    """Start a server that takes one connection's bytes, then answers; return its port.

    It reads until the request and its body, announced by Content-Length, are complete.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        connection, _ = listener.accept()
        with connection, listener:
            wanted = -1
            while wanted < 0 or len(received) < wanted:
                received.extend(connection.recv(1 << 20))
                head, separator, _ = bytes(received[:4096]).partition(b"\r\n\r\n")
                if separator and wanted < 0:
                    length = next(
                        (line.split()[1] for line in head.split(b"\r\n") if b"Length" in line), b"0"
                    )
                    wanted = len(head) + 4 + int(length)
            connection.sendall(answer)

    threading.Thread(target=run, daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


@pytest.mark.parametrize("size", [0, 5, 40, STRETCH_SIZE - 1, 2 * STRETCH_SIZE + 10])
def test_an_upload_sends_the_bytes_its_checksum_says(source: UploadSource, size: int) -> None:
    """The body on the wire has the announced length and the hash that is computed apart."""
    received = bytearray()
    answer = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok"
    port = _answer_once(answer, received)
    transfer = source.upload(Target("127.0.0.1", port, "/x"), identity=3, size=size)
    assert transfer.body == b"ok"
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    assert head.startswith(b"PUT /x HTTP/1.1\r\n")
    assert len(body) == size
    assert blake3(body).hexdigest() == source.checksum(3, size)


def test_no_stretch_of_two_uploads_is_equal(source: UploadSource) -> None:
    """Nothing that removes duplicates can shorten an upload."""
    size = 66 * STRETCH_SIZE  # Longer than the base, which repeats after 64.
    assert source.checksum(1, size) != source.checksum(2, size)
    received = bytearray()
    port = _answer_once(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", received)
    source.upload(Target("127.0.0.1", port, "/x"), identity=1, size=size)
    body = bytes(received).partition(b"\r\n\r\n")[2]
    stretches = [body[start : start + STRETCH_SIZE] for start in range(0, size, STRETCH_SIZE)]
    assert len(set(stretches)) == 66


def test_a_refused_upload_is_an_error(source: UploadSource) -> None:
    """A status that is no success is never counted as a transfer."""
    answer = b"HTTP/1.1 507 Insufficient Storage\r\nContent-Length: 4\r\n\r\nfull"
    port = _answer_once(answer, bytearray())
    with pytest.raises(TransferError, match=r"507.*full"):
        source.upload(Target("127.0.0.1", port, "/x"), identity=1, size=10)


def test_a_download_counts_and_hashes_all_bytes() -> None:
    """The checksum is that of the body, wherever the head ended within the first piece."""
    body = bytes(range(256)) * 5000
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    port = _answer_once(head + body, bytearray())
    transfer = download(Target("127.0.0.1", port, "/x"), verify=True)
    assert transfer.size == len(body)
    assert transfer.checksum == blake3(body).hexdigest()
    assert 0 < transfer.first_byte_seconds <= transfer.seconds


def test_a_body_that_ends_early_is_an_error() -> None:
    """A connection closed before the announced length never passes for a download."""
    port = _answer_once(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", bytearray())
    with pytest.raises(TransferError, match="5 of 10"):
        download(Target("127.0.0.1", port, "/x"))


def test_the_bare_handler_takes_and_sends_what_it_is_asked(port: int, source: UploadSource) -> None:
    """The yardstick moves every byte, over one kept connection as well."""
    size = 3 * STRETCH_SIZE + 17
    sunk = source.upload(Target("127.0.0.1", port, "/sink/a"), identity=1, size=size)
    assert sunk.body == str(size).encode()
    target = Target("127.0.0.1", port, f"/source/{size}/a")
    with connect(target) as connection:
        assert download_over(connection, target).size == size
        assert download_over(connection, target).size == size


@pytest.mark.skipif(shutil.which("wrk") is None, reason="scripts/wrk installs it")
def test_requests_are_all_answered_or_the_run_fails(port: int) -> None:
    """A run counts its requests; one error among them fails it."""
    address = [f"127.0.0.1:{port}"]
    put = Requests(
        method="PUT", addresses=address, prefix="/sink/", size=64, concurrency=2, seconds=1
    )
    assert generate(put).requests > 100
    get = Requests(
        method="GET", addresses=address, prefix="/source/64/", size=64, concurrency=2, seconds=1
    )
    assert generate(get).requests > 100
    missing = Requests(
        method="GET", addresses=address, prefix="/nothing/", size=64, concurrency=2, seconds=1
    )
    with pytest.raises(GeneratorError, match="failed"):
        generate(missing)
    short = Requests(
        method="GET", addresses=address, prefix="/source/64/", size=9999, concurrency=2, seconds=1
    )
    with pytest.raises(GeneratorError, match="9999"):
        generate(short)
