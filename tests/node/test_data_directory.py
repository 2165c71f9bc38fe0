"""The data directory: one holder, one owner, and a sentence for everything that is in the way."""

from __future__ import annotations

import errno
import os
import uuid
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from node import data_directory
from node.data_directory import NEW_NODE_BYTES, DataDirectory, Identity
from node.errors import DataDirectoryError
from ring.filesystem import RealFileSystem

IDENTITY = Identity(
    cluster_id=str(uuid.UUID(int=1)),
    node_id=str(uuid.UUID(int=2)),
    stage="member",
    cluster_secret="ab" * 32,
)


def refusal(path: Path) -> str:
    with pytest.raises(DataDirectoryError) as raised, closing(DataDirectory.open(str(path))) as it:
        it.identity()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def store(path: Path, identity: Identity) -> None:
    opened = DataDirectory.open(str(path))
    opened.write_identity(identity)
    opened.close()


def test_an_empty_directory_has_no_identity_and_keeps_the_one_it_is_given(tmp_path: Path) -> None:
    """What was written is read again; the file is readable by its owner alone."""
    opened = DataDirectory.open(str(tmp_path / "new" / "data"))
    assert opened.identity() is None
    opened.write_identity(IDENTITY)
    assert opened.identity() == IDENTITY
    mode = os.stat(tmp_path / "new" / "data" / "identity.json").st_mode
    assert mode & 0o077 == 0
    opened.close()


def test_the_boot_counter_grows_with_every_start_before_anything_else(tmp_path: Path) -> None:
    """The counter on disk is the one of the running process: a later start has a greater one."""
    opened = DataDirectory.open(str(tmp_path))
    first = opened.count_boot(IDENTITY)
    assert opened.identity() == first
    second = opened.count_boot(first)
    assert (first.boot_counter, second.boot_counter) == (1, 2)
    opened.close()


def test_a_second_node_on_the_directory_is_refused(tmp_path: Path) -> None:
    """The lock is held as long as the directory is open, and free afterwards."""
    opened = DataDirectory.open(str(tmp_path))
    assert "is locked: another node is running on it" in refusal(tmp_path)
    opened.close()
    DataDirectory.open(str(tmp_path)).close()


def test_a_foreign_directory_is_refused(tmp_path: Path) -> None:
    """A directory with somebody else's files is never written into."""
    (tmp_path / "thesis.tex").write_text("")
    assert "is not empty and holds no identity.json (but thesis.tex)" in refusal(tmp_path)


def test_a_directory_that_a_node_left_for_good_is_refused(tmp_path: Path) -> None:
    """A removed node can't come back under its old id."""
    store(tmp_path, msgspec.structs.replace(IDENTITY, stage="left"))
    assert "has left its cluster for good" in refusal(tmp_path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    """An older program doesn't touch what a newer one has written, fields it never saw included."""
    (tmp_path / "identity.json").write_text('{"format_version": 9, "shape": "unknown"}')
    assert "has format 9; this Holdfast knows formats up to 1" in refusal(tmp_path)


@pytest.mark.parametrize("contents", ["", "{}", "{not json", '{"format_version": 1}'])
def test_a_damaged_identity_is_refused(tmp_path: Path, contents: str) -> None:
    """Nothing is guessed from a damaged file."""
    (tmp_path / "identity.json").write_text(contents)
    assert "is damaged" in refusal(tmp_path)


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    """The sentence says that it is no directory."""
    (tmp_path / "data").write_text("")
    assert "is not a directory" in refusal(tmp_path / "data")


def test_an_unwritable_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence gives the reason; root may write anywhere, so the error is injected."""

    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "makedirs", refuse)
    assert refusal(tmp_path).endswith("can't be written: Read-only file system.")


def test_a_file_system_without_holes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleting could give nothing back there."""
    monkeypatch.setattr(data_directory, "can_punch_holes", lambda _filesystem, _path: False)
    assert "which deleting needs" in refusal(tmp_path)
    monkeypatch.undo()
    DataDirectory.open(str(tmp_path)).close()


def test_a_new_node_needs_room_to_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below what Raft keeps free nothing is accepted: founding would wait without an end."""
    with closing(DataDirectory.open(str(tmp_path))) as directory:
        free = NEW_NODE_BYTES
        monkeypatch.setattr(RealFileSystem, "free_bytes", lambda _self, _path: free)
        directory.check_room()
        free -= 1
        with pytest.raises(DataDirectoryError, match="47 MiB free; a new node needs 48"):
            directory.check_room()


def test_the_secret_does_not_show_in_texts() -> None:
    """An identity may end up in a log line; its secret may not."""
    assert IDENTITY.cluster_secret not in repr(IDENTITY)
