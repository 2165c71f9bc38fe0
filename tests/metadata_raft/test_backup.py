"""A backup is one moment of the metadata, whole, or no backup at all (rule M6's machinery)."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path

import pytest

from metadata_raft import download
from metadata_raft.backup import (
    BackupError,
    BackupReader,
    describe_backup,
    read_backup,
    verify_backup,
)
from metadata_raft.commands import SYSTEM, CreateJoinToken
from metadata_raft.errors import OverloadedError
from metadata_raft.group import MetadataGroup
from metadata_raft.state_stream import StateDescription
from tests.metadata_raft.test_download_group import FOUNDER, Starter, founder, put, start

__all__ = ["start"]


async def make_backup(group: MetadataGroup, path: Path) -> StateDescription:
    with path.open("wb") as file:
        async with group.backup() as backup:
            async for piece in backup:
                file.write(piece)
            return backup.description


@pytest.fixture
async def group(start: Starter, tmp_path: Path) -> MetadataGroup:
    return await founder(start, tmp_path)


async def test_a_backup_holds_one_commit_while_writing_goes_on(
    group: MetadataGroup, tmp_path: Path
) -> None:
    """What it says of itself is what it holds: every file up to its index and none behind."""
    stop = asyncio.Event()
    written: dict[str, int] = {}

    async def write() -> None:
        number = 0
        while not stop.is_set():
            await put(group, f"meanwhile/{number:06}")
            written[f"meanwhile/{number:06}"] = group.applied().index
            number += 1

    writing = asyncio.create_task(write())
    before = group.applied().index
    description = await make_backup(group, tmp_path / "backup")
    stop.set()
    await writing
    assert verify_backup(str(tmp_path / "backup")) == description
    assert describe_backup(str(tmp_path / "backup")) == description
    assert before <= description.base.index <= group.applied().index
    assert description.configuration.voters == (FOUNDER,)
    assert description.cluster_version >= 1
    restored = tmp_path / "state.db"
    with restored.open("wb") as file:
        read_backup(str(tmp_path / "backup"), BackupReader(lambda plain: void(file.write(plain))))
    found = paths(restored)
    assert all(
        (path in found) == (index <= description.base.index) for path, index in written.items()
    )


async def test_a_backup_admits_nobody(group: MetadataGroup, tmp_path: Path) -> None:
    """The hash of a join token is as good as the token; no byte of it is in a backup. The cluster
    itself still knows the token."""
    secret_hash = bytes(range(32))
    await group.submit(CreateJoinToken(token_id="unspent", secret_hash=secret_hash, actor=SYSTEM))
    await make_backup(group, tmp_path / "backup")
    plain: list[bytes] = []
    read_backup(str(tmp_path / "backup"), BackupReader(plain.append))
    assert secret_hash not in b"".join(plain)
    with group.snapshot() as snapshot:
        assert snapshot.join_token_hash("unspent") == secret_hash


def void(_: int) -> None:
    pass


def paths(database: Path) -> set[str]:
    connection = sqlite3.connect(database)
    try:
        return {path for (path,) in connection.execute("SELECT path FROM files")}
    finally:
        connection.close()


async def test_one_backup_at_a_time(group: MetadataGroup, tmp_path: Path) -> None:
    """A second one is refused while the first is read, and comes through afterwards; the copies
    are gone with the backups."""
    async with group.backup():
        with pytest.raises(OverloadedError, match="another backup"):
            async with group.backup():
                pass
    await make_backup(group, tmp_path / "backup")
    assert not [name for name in os.listdir(tmp_path / FOUNDER[-1]) if "outgoing" in name]


async def test_no_space_for_a_copy(
    group: MetadataGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup never takes the space that the node itself needs."""
    monkeypatch.setattr(download, "SPACE_LEFT_BYTES", 1 << 60)
    with pytest.raises(OverloadedError, match="no space"):
        await make_backup(group, tmp_path / "backup")


async def test_every_damage_is_found(group: MetadataGroup, tmp_path: Path) -> None:
    """A flipped bit anywhere, a missing or an added end: no backup."""
    path = tmp_path / "backup"
    await make_backup(group, path)
    whole = path.read_bytes()
    for position in [*range(64), *range(64, len(whole), 4001), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[position] ^= 1
        assert is_refused(bytes(damaged)), position
    for end in [0, 5, 12, 40, len(whole) // 2, len(whole) - 37, len(whole) - 1]:
        assert is_refused(whole[:end]), end
    assert is_refused(whole + b"x")
    assert is_refused(whole + whole[12:])
    assert not is_refused(whole)


def is_refused(data: bytes) -> bool:
    reader = BackupReader()
    try:
        # In pieces that respect no boundary.
        for start in range(0, len(data), 65_537):
            reader.feed(data[start : start + 65_537])
        reader.finish()
    except BackupError:
        return True
    return False
