"""The vote file: durable before use, never back, recognised when damaged."""

from __future__ import annotations

import errno

import pytest

from metadata_raft.sealed import seal, unseal
from metadata_raft.storage_errors import (
    StorageDamagedError,
    StorageFailedError,
    StorageUnusableError,
)
from metadata_raft.vote_file import Vote, VoteFile
from ring.filesystem import read_file, write_file_atomically
from tests.fakes.filesystem import FakeFileSystem, SimulatedCrash

PATH = "/vote"


@pytest.fixture
def disk() -> FakeFileSystem:
    return FakeFileSystem()


def load(disk: FakeFileSystem) -> Vote:
    found = VoteFile.load(disk, PATH)
    assert found is not None
    return found.current


def test_durable_on_return(disk: FakeFileSystem) -> None:
    """A term or vote that `store` returned from is found after every power cut."""
    vote_file = VoteFile.create(disk, PATH)
    for vote in (Vote(1, None), Vote(1, "a"), Vote(2, "b"), Vote(7, None)):
        vote_file.store(vote.term, vote.voted_for)
        assert vote_file.current == vote
        for seed in range(30):
            assert load(disk.crashed_copy(seed)) == vote


def test_old_or_new_at_every_crash() -> None:
    """A power cut within `store` leaves the vote before it or the new one, never a third."""
    for step in range(1, 7):
        disk = FakeFileSystem()
        vote_file = VoteFile.create(disk, PATH)
        vote_file.store(3, "a")
        disk.crash_at = disk.steps + step
        try:
            vote_file.store(4, "b")
            expected = {Vote(4, "b")}
        except SimulatedCrash:
            expected = {Vote(3, "a"), Vote(4, "b")}
        assert {load(disk.crashed_copy(seed)) for seed in range(40)} <= expected


def test_terms_and_votes_never_go_back(disk: FakeFileSystem) -> None:
    """A smaller term, or another vote in the same term, is a defect and stops the process."""
    vote_file = VoteFile.create(disk, PATH)
    vote_file.store(5, "a")
    for term, voted_for in ((4, None), (5, None), (5, "b")):
        with pytest.raises(AssertionError):
            vote_file.store(term, voted_for)
    assert load(disk) == Vote(5, "a")


def test_repetition_writes_nothing(disk: FakeFileSystem) -> None:
    vote_file = VoteFile.create(disk, PATH)
    vote_file.store(5, "a")
    steps = disk.steps
    vote_file.store(5, "a")
    assert disk.steps == steps


def test_missing_file(disk: FakeFileSystem) -> None:
    assert VoteFile.load(disk, PATH) is None


def test_every_flipped_bit_is_noticed(disk: FakeFileSystem) -> None:
    """No damaged vote is ever taken for a vote."""
    VoteFile.create(disk, PATH).store(5, "candidate")
    size = len(read_file(disk, PATH))
    for bit in range(size * 8):
        disk.flip_bit(PATH, bit)
        with pytest.raises(StorageDamagedError, match="wipe its data directory"):
            VoteFile.load(disk, PATH)
        disk.flip_bit(PATH, bit)
    assert load(disk) == Vote(5, "candidate")


def test_every_truncation_is_noticed(disk: FakeFileSystem) -> None:
    VoteFile.create(disk, PATH).store(5, "candidate")
    whole = read_file(disk, PATH)
    for length in range(len(whole)):
        write_file_atomically(disk, PATH, whole[:length])
        with pytest.raises(StorageDamagedError):
            VoteFile.load(disk, PATH)


def test_other_kind_and_version() -> None:
    """A sealed file of another kind is refused, and so is a version of the future, by name."""
    data = seal(b"vote", 2, b"body")
    with pytest.raises(StorageDamagedError, match="another kind"):
        unseal(b"mani", 2, data, PATH)
    with pytest.raises(StorageUnusableError, match="format version 2"):
        unseal(b"vote", 1, data, PATH)
    assert unseal(b"vote", 2, data, PATH) == b"body"


def test_no_vote_in_the_body(disk: FakeFileSystem) -> None:
    """A well-sealed body that is no vote is damage, too."""
    write_file_atomically(disk, PATH, seal(b"vote", 1, b"\xc1"))
    with pytest.raises(StorageDamagedError, match="unreadable"):
        VoteFile.load(disk, PATH)


@pytest.mark.parametrize("operation", ["write", "datasync", "sync_directory"])
def test_failed_write_or_sync(disk: FakeFileSystem, operation: str) -> None:
    """Where the disk fails, `store` fails, and the vote does not count."""
    vote_file = VoteFile.create(disk, PATH)
    disk.fail(operation, errno.EIO)  # type: ignore[arg-type]
    with pytest.raises(StorageFailedError, match="Input/output error"):
        vote_file.store(1, "a")
    assert vote_file.current == Vote(0, None)
    assert disk.exists("/suspect")
