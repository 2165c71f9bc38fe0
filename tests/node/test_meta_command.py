"""`holdfast meta backup`: the file appears when it is whole, for its owner alone, or not at all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from metadata_raft.backup import StateBackup
from metadata_raft.configuration import Configuration
from metadata_raft.manifest import Base
from metadata_raft.state_stream import StateDescription
from node import control
from node.commands import run
from node.control import ControlError
from ring.filesystem import RealFileSystem


@pytest.fixture
def pieces(tmp_path: Path) -> list[bytes]:
    """What a node streams; of some bytes that need be no database."""
    content = tmp_path / "content"
    content.write_bytes(os.urandom(700_000))
    description = StateDescription(1, "cluster", 7, Base(12, 3), Configuration(), 700_000, 2)

    async def read() -> list[bytes]:
        backup = StateBackup(RealFileSystem(), str(content), description)
        return [piece async for piece in backup]

    return asyncio.run(read())


def offer(monkeypatch: pytest.MonkeyPatch, pieces: list[bytes], error: Exception | None) -> None:
    def stream(directory: str, path: str) -> Iterator[bytes]:
        assert (directory, path) == ("DIR", "/backup")
        yield from pieces
        if error is not None:
            raise error

    monkeypatch.setattr(control, "stream", stream)


def test_a_whole_backup_gets_its_name(
    pieces: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It replaces an older one, is verified, and only its owner may read it."""
    offer(monkeypatch, pieces, None)
    target = tmp_path / "folder" / "backup"
    target.parent.mkdir()
    target.write_bytes(b"older")
    assert run(["meta", "backup", "--data", "DIR", str(target)]) == 0
    assert target.read_bytes() == b"".join(pieces)
    assert target.stat().st_mode & 0o777 == 0o600
    assert os.listdir(target.parent) == ["backup"]
    assert run(["meta", "verify", str(target)]) == 0
    target.write_bytes(b"".join(pieces)[:-1])
    assert run(["meta", "verify", str(target)]) == 1


@pytest.mark.parametrize("cut", ["end", "error", "damage"])
def test_a_cut_or_damaged_stream_leaves_nothing(
    cut: str, pieces: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither under the name nor beside it; what was there before stays."""
    sent, error = pieces[:-1], None
    if cut == "error":
        error = ControlError("The node went away.", retryable=True)
    if cut == "damage":
        sent = [*pieces[:-1], pieces[-1][:-1] + b"?"]
    offer(monkeypatch, sent, error)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "kept").write_bytes(b"older")
    for name in ("new", "kept"):
        assert run(["meta", "backup", "--data", "DIR", str(folder / name)]) in (1, 5)
    assert os.listdir(folder) == ["kept"]
    assert (folder / "kept").read_bytes() == b"older"
