"""`holdfast serve` on what it cannot use: one clear sentence, a non-zero exit, nothing changed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from node.data_directory import DataDirectory, Identity
from node.join import TOKEN_VERSION, JoinToken
from node.ports import free_ports

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parents[2]
CLUSTER_ID = str(uuid.UUID(int=7))
MEMBER = Identity(
    cluster_id=CLUSTER_ID, node_id=str(uuid.UUID(int=8)), stage="member", cluster_secret="cd" * 32
)


def token_text(cluster_id: str, port: int = 1) -> str:
    return JoinToken(
        version=TOKEN_VERSION,
        cluster_id=cluster_id,
        token_id="00",
        secret=bytes(32),
        urls=(f"http://127.0.0.1:{port}",),
    ).text()


def serve(
    data: Path, *options: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    ports = free_ports(3)
    return subprocess.run(
        [
            *(sys.executable, "-m", "node", "serve", "--data", str(data)),
            *("--port", str(ports[0]), "--peer-port", str(ports[1]), "--raft-port", str(ports[2])),
            *options,
        ],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def sentence(done: subprocess.CompletedProcess[str], exit_code: int = 1) -> str:
    """The one line that a refused start says, besides its log."""
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("holdfast: ")]
    assert len(said) == 1, done.stderr
    return said[0]


def store(path: Path, identity: Identity) -> None:
    with closing(DataDirectory.open(str(path))) as directory:
        directory.write_identity(identity)


def test_a_locked_directory(tmp_path: Path) -> None:
    """Another process holds it."""
    with closing(DataDirectory.open(str(tmp_path))):
        assert "is locked: another node is running on it" in sentence(serve(tmp_path))


def test_a_foreign_directory(tmp_path: Path) -> None:
    """Somebody's files stay as they are."""
    (tmp_path / "letters").write_text("dear")
    assert "it is not a data directory of Holdfast" in sentence(serve(tmp_path))
    assert (tmp_path / "letters").read_text() == "dear"


def test_a_directory_that_was_left(tmp_path: Path) -> None:
    """A removed node does not come back."""
    store(tmp_path, msgspec.structs.replace(MEMBER, stage="left"))
    assert "has left its cluster for good" in sentence(serve(tmp_path))


def test_a_newer_format(tmp_path: Path) -> None:
    """Written by a later Holdfast."""
    (tmp_path / "identity.json").write_text('{"format_version": 2}')
    assert "has format 2" in sentence(serve(tmp_path))


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """A file stands in the way."""
    (tmp_path / "file").write_text("")
    assert "is not a directory" in sentence(serve(tmp_path / "file" / "data"))


def test_a_taken_port(tmp_path: Path) -> None:
    """The sentence names port and purpose; the directory is not even made."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = serve(tmp_path / "data", "--port", str(port))
    assert f"Port {port} on 127.0.0.1 (clients) is taken" in sentence(done)
    assert not (tmp_path / "data").exists()


def test_an_address_that_is_not_ours(tmp_path: Path) -> None:
    """192.0.2.0/24 is nobody's (RFC 5737)."""
    done = serve(tmp_path, "--listen", "192.0.2.1")
    assert "is not an address of this machine" in sentence(done)


def test_wrong_settings_all_at_once(tmp_path: Path) -> None:
    """Exit code 2, a line for each."""
    done = serve(tmp_path, "--weight", "0", environment={"HOLDFAST_ZOMBIE": "1"})
    assert done.returncode == 2
    assert done.stderr.count("holdfast: ") == 2


@pytest.mark.parametrize("token", ["", "hfj_", "hfj_AAAA", "nonsense!", "hfj_" + "A" * 300])
def test_what_is_no_token(tmp_path: Path, token: str) -> None:
    """A token that was cut off in copying is told from a wrong one."""
    path = tmp_path / "token"
    path.write_text(token)
    done = serve(tmp_path / "d", "--join", environment={"HOLDFAST_JOIN_TOKEN_FILE": str(path)})
    assert "What was given as join token is not one" in sentence(done)


def test_joining_without_a_token(tmp_path: Path) -> None:
    """Without a terminal nobody can be asked for it."""
    assert "HOLDFAST_JOIN_TOKEN_FILE" in sentence(serve(tmp_path, "--join"))


def test_a_token_of_another_cluster(tmp_path: Path) -> None:
    """The directory belongs to one cluster, the token to another."""
    store(tmp_path / "d", MEMBER)
    other = str(uuid.UUID(int=9))
    path = tmp_path / "token"
    path.write_text(token_text(other))
    done = serve(tmp_path / "d", "--join", environment={"HOLDFAST_JOIN_TOKEN_FILE": str(path)})
    said = sentence(done)
    assert CLUSTER_ID in said
    assert other in said


def test_an_admin_key_file_that_cannot_be_written(tmp_path: Path) -> None:
    """Found out before the key is made, so that a later start still shows one."""
    done = serve(tmp_path / "d", "--admin-key-file", str(tmp_path / "missing" / "key"))
    assert "for the admin key can't be written: No such file" in sentence(done)
